"""Measures how many of the rows that are alike are found, and how many that are found are alike: no speed, only counts.

    bench/duplicates.py DATA     the published files' folder; two minutes

Near-duplicates are held against comparing all pairs, beside datasketch's LSH with as many bands of as many hashes, and
against planted ones; vectors against paraphrases and sentences that differ in a word that matters, all written by hand,
and against the labels of banking77; benchmarks against planted questions. Prints tables and, as its last line, JSON;
figures go to bench/results/duplicates.json.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tunesmith.core import store
from tunesmith.core.records import Row, normalised
from tunesmith.data import similar, sketches, traits
from tunesmith.data.cleaning import benchmarks, contradictions, dedup, semantic

RESULTS = Path(__file__).parent / "results/duplicates.json"
PARAPHRASES = Path(__file__).parents[1] / "tests/data/paraphrases.tsv"
THRESHOLDS = (0.7, 0.9)

Found = set[int]  # places of texts that are like an earlier one


def main(data: Annotated[Path, typer.Argument(envvar="TUNESMITH_REAL_DATA", help="the published files")]) -> None:
    """Measures what is found; see the head of this file."""
    texts = {"banking77": banking77(data), "instructions": instructions(data)}
    figures = {
        "near": [of_near(name, its, threshold) for name, its in texts.items() for threshold in THRESHOLDS],
        "planted": [of_planted(edit, texts["banking77"], threshold) for edit in EDITS for threshold in THRESHOLDS],
        "paraphrases": of_paraphrases(texts["banking77"]),
        "semantic": of_labels(data),
        "benchmarks": of_benchmarks(data),
        "contradictions": of_contradictions(data),
    }
    store.write_text(RESULTS, json.dumps(figures, indent=1) + "\n")
    for name, rows in figures.items():
        print(f"\n{name}\n{table(rows)}")
    print(json.dumps(figures))


def banking77(data: Path) -> list[str]:
    with open(data / "banking77/train.csv", newline="", encoding="utf-8") as file:
        return [record["text"] for record in csv.DictReader(file)]


def instructions(data: Path) -> list[str]:
    records = json.loads((data / "instructions/instruction-data.json").read_text(encoding="utf-8"))
    return [f"{record['instruction']}\n{record['input']}".strip() for record in records]


def of_near(name: str, texts: Sequence[str], threshold: float) -> dict[str, Any]:
    """Both indexes at the same cut, against comparing all pairs."""
    texts = [normalised(text) for text in texts]
    cut = sketches.banding(threshold, len(texts))
    truth = by_all_pairs(texts, threshold)
    told = {"texts": name, "threshold": threshold, "rows": len(texts), "bands": cut.bands, "hashes": cut.hashes}
    both = {"tunesmith": by_bands(texts, threshold), "datasketch": by_datasketch(texts, threshold, cut)}
    found = {f"{index}_{figure}": value for index, its in both.items() for figure, value in rated(its, truth).items()}
    return {**told, "alike": len(truth), **found}


def by_bands(texts: Sequence[str], threshold: float) -> Found:
    """Each text against all others: those with an even place against those with an odd one, and so on by each bit."""
    prompts = sketches.sketched(texts, sketches.banding(threshold, len(texts)))
    places, found = np.arange(len(texts)), Found()
    for bit in range(len(texts).bit_length()):
        one, other = places[places >> bit & 1 == 0], places[places >> bit & 1 == 1]
        for these, others in ((one, other), (other, one)):
            found |= set(similar.across(prompts, threshold, these, others).alike)
    return found


def by_datasketch(texts: Sequence[str], threshold: float, cut: sketches.Banding) -> Found:
    """Its candidates, verified in full."""
    from datasketch import MinHash, MinHashLSH

    sets = sketches.shingled(texts)
    shingles = np.split(sets.shingles_S, sets.ends_N[:-1])
    index, hashes = MinHashLSH(num_perm=cut.bands * cut.hashes, params=(cut.bands, cut.hashes)), []
    for place, its in enumerate(shingles):
        hashes.append(MinHash(cut.bands * cut.hashes, hashfunc=int))
        hashes[-1].update_batch(its)
        index.insert(place, hashes[-1], check_duplication=False)
    pairs = [(place, other) for place, its in enumerate(hashes) for other in index.query(its) if other != place]
    later, earlier = np.array(pairs, np.int64).reshape(-1, 2).T
    return set(later[sketches.similarities(sets, (later, earlier)) >= threshold].tolist())


def by_all_pairs(texts: Sequence[str], threshold: float) -> Found:
    """Texts that are like another one."""
    grams = [{text[i : i + 4] for i in range(max(len(text) - 3, 1))} for text in texts]
    number = {gram: i for i, gram in enumerate(sorted(set().union(*grams)))}
    columns = [number[gram] for its in grams for gram in its]
    sizes = np.array([len(its) for its in grams])
    row_ends = np.cumsum([0, *sizes])
    has = csr_array((np.ones(len(columns), np.int32), columns, row_ends), shape=(len(grams), len(number)))
    found = Found()
    for start in range(0, len(texts), 500):
        shared = (has[start : start + 500] @ has.T).tocoo()
        rows = start + shared.row
        alike = shared.data / (sizes[rows] + sizes[shared.col] - shared.data) >= threshold
        found |= set(rows[alike & (rows != shared.col)].tolist())
    return found


def rated(found: Iterable[int], truth: set[int]) -> dict[str, float]:
    found = set(found)
    right = len(found & truth)
    return {"recall": round(right / max(len(truth), 1), 4), "precision": round(right / max(len(found), 1), 4)}


def replaced(words: list[str], draw: random.Random) -> None:
    words[draw.randrange(len(words))] = draw.choice(("really", "also", "account", "please", "now"))


def added(words: list[str], draw: random.Random) -> None:
    words.insert(draw.randrange(len(words) + 1), draw.choice(("really", "also", "account", "please", "now")))


def left_out(words: list[str], draw: random.Random) -> None:
    del words[draw.randrange(len(words))]


def of_words(count: int) -> Callable[[str, random.Random], str]:
    def edited(text: str, draw: random.Random) -> str:
        words = text.split()
        for _ in range(count):
            draw.choice((replaced, added, left_out))(words, draw)
        return " ".join(words)

    return edited


def shouted(text: str, draw: random.Random) -> str:
    return "".join(draw.choice((letter.upper(), letter.lower())) for letter in text)


def punctuated(text: str, draw: random.Random) -> str:
    return "".join(draw.choice((", ", " - ", "  ", " ")) if letter == " " else letter for letter in text) + "!?"


EDITS: dict[str, Callable[[str, random.Random], str]] = {
    "case": shouted,
    "punctuation": punctuated,
    "1 word": of_words(1),
    "2 words": of_words(2),
    "3 words": of_words(3),
}


def of_planted(edit: str, texts: Sequence[str], threshold: float, planted: int = 1_000) -> dict[str, Any]:
    """Edited copies behind texts of ten words or more that are like no other. What is alike is told by comparing each
    with its original. What the stage drops is held against those that are alike and still have the original's numbers
    and negations: the others are not to be dropped."""
    draw = random.Random(2026)
    long = [text for text in dict.fromkeys(texts) if len(text.split()) >= 10]
    plain = [normalised(text) for text in long]
    alone = sorted(set(range(len(long))) - by_all_pairs(plain, 0.5))
    originals = [long[place] for place in draw.sample(alone, min(planted, len(alone)))]
    copies = [EDITS[edit](text, draw) for text in originals]
    rows = [conversation(text, line) for line, text in enumerate([*originals, *copies])]
    pairs = np.arange(len(originals)) + len(originals), np.arange(len(originals))
    sets = sketches.shingled([traits.prompt_text(row) for row in rows])
    alike = set(pairs[0][sketches.similarities(sets, pairs) >= threshold].tolist())
    kinds = traits.of(rows, traits.compared, traits.COMPARED)["kind"]
    free = alike & set(pairs[0][kinds[pairs[0]] == kinds[pairs[1]]].tolist())
    found = near(rows, threshold)
    told = {"edit": edit, "threshold": threshold, "planted": len(copies), "alike": len(alike)}
    return {**told, "with_other_numbers_or_negations": len(alike - free), "found": len(found), **rated(found, free)}


def of_paraphrases(around: Sequence[str]) -> list[dict[str, Any]]:
    """At each cosine: how many of 60 paraphrases are found, how many of those found are among 60 sentences of which one
    word is another, and how many pairs of strangers out of 3,540 would be found."""
    with open(PARAPHRASES, newline="", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file, delimiter="\t"))
    texts, count = [pair[side] for side in ("one", "two") for pair in pairs], len(pairs)
    same = np.array([pair["same"] == "yes" for pair in pairs])
    rows = []
    for name, similarity in kinds_of_vectors(texts, around).items():
        for threshold in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            found = similarity[:count, count:] >= threshold
            right, wrong = int(found.diagonal()[same].sum()), int(found.diagonal()[~same].sum())
            strangers = int(found[np.ix_(same, same)].sum()) - right
            told = {"vectors": name, "cosine": threshold, "paraphrases": right, "hard_negatives": wrong}
            precision = round(right / max(right + wrong, 1), 3)
            rows.append(
                {**told, "strangers": strangers, "recall": round(right / same.sum(), 3), "precision": precision}
            )
    return rows


def kinds_of_vectors(texts: list[str], around: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """The similarities of all texts, by each kind."""
    places = np.arange(len(texts))
    sets = sketches.shingled([normalised(text) for text in [*texts, *around]])
    rare = semantic.of_characters(sets, places)
    words = np.concatenate(list(semantic.of_words([texts])))
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    one, two = (side.ravel() for side in np.meshgrid(places, places, indexing="ij"))
    jaccard = sketches.similarities(sets, (one, two)).reshape(len(texts), -1)
    return {"Jaccard": jaccard, "characters": (rare @ rare.T).toarray(), "words": words @ words.T}


def of_labels(data: Path) -> list[dict[str, Any]]:
    """What the stage drops in banking77, and how many of the pairs that it would find without looking at the answer
    have one answer: the share of them that are right at best."""
    with open(data / "banking77/train.csv", newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    rows = [conversation(record["text"], line, record["category"]) for line, record in enumerate(records, 1)]
    noted, texts = traits.of(rows, traits.compared, traits.COMPARED), [record["text"] for record in records]
    labels = np.unique([record["category"] for record in records], return_inverse=True)[1]
    found = []
    for name, vectors in vectors_of(texts).items():
        cosines = vectors @ vectors.T
        cosines = cosines if isinstance(cosines, np.ndarray) else cosines.toarray()
        np.fill_diagonal(cosines, 0)
        for threshold in (0.8, 0.9):
            one, two = np.nonzero(cosines >= threshold)
            said = semantic.duplicates(noted, np.arange(len(rows)), lambda _, its=vectors: its, threshold, False)
            dropped = sum(isinstance(ruling, traits.Ruling) for ruling in said)
            told = {"vectors": name, "cosine": threshold, "rows": len(rows), "dropped": dropped, "pairs": len(one) // 2}
            found.append({**told, "of_one_label": round(float((labels[one] == labels[two]).mean()), 3)})
    return found


def vectors_of(texts: list[str]) -> dict[str, Any]:
    rare = semantic.of_characters(sketches.shingled([normalised(text) for text in texts]), np.arange(len(texts)))
    words = np.concatenate(list(semantic.of_words([texts])))
    return {"characters": rare, "words": words / np.linalg.norm(words, axis=1, keepdims=True)}


def of_benchmarks(data: Path) -> list[dict[str, Any]]:
    """HumanEval's questions planted among the published instructions: whole, inside a longer prompt, and their second
    half alone."""
    records = [
        json.loads(line) for line in gzip.decompress((data / "code/HumanEval.jsonl.gz").read_bytes()).splitlines()
    ]
    asked = [record["prompt"] for record in records]
    ways: dict[str, Callable[[str], str]] = {
        "whole": lambda text: text,
        "inside a prompt": lambda text: f"Please finish this for me, as you did before.\n{text}\nWrite only Python.",
        "second half": lambda text: " ".join(text.split()[len(text.split()) // 2 :]),
    }
    return [{"planted": way, **of_plants(asked, [change(text) for text in asked], instructions(data))}
            for way, change in ways.items()]  # fmt: skip


def of_plants(asked: list[str], planted: list[str], others: list[str]) -> dict[str, Any]:
    rows = [conversation(text, line) for line, text in enumerate([*planted, *others])]
    cut = sketches.banding(benchmarks.ALIKE, len(rows))
    questions = benchmarks.Questions([normalised(text) for text in asked], [("asked", i) for i in range(len(asked))], 0)
    texts = [traits.prompt_text(row) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        benchmarks.write(Path(folder), questions, cut)
        shared = benchmarks.shared(Path(folder), texts)
    noted, prompts = (
        traits.of(rows, traits.compared, traits.COMPARED),
        sketches.sketched([*texts, *questions.texts], cut),
    )
    said = list(benchmarks.known(noted, np.arange(len(rows)), prompts, shared, questions))
    found = {ruling.place for ruling in said if isinstance(ruling, traits.Ruling)}
    return {"rows": len(rows), "questions": len(asked), "found": len(found), **rated(found, set(range(len(planted))))}


def of_contradictions(data: Path) -> list[dict[str, Any]]:
    """What the published files show: prompts with several answers, and whether one answer is right there."""
    with open(data / "banking77/train.csv", newline="", encoding="utf-8") as file:
        banking = [conversation(r["text"], line, r["category"]) for line, r in enumerate(csv.DictReader(file), 1)]
    records = json.loads((data / "instructions/instruction-data.json").read_text(encoding="utf-8"))
    told = [conversation(f"{r['instruction']}\n{r['input']}", line, r["output"]) for line, r in enumerate(records, 1)]
    found = []
    for name, rows in (("banking77", banking), ("instructions", told)):
        noted = traits.of(rows, traits.compared, traits.COMPARED)
        *_, finding = contradictions.resolve(noted, np.arange(len(rows)), "drop")
        assert isinstance(finding, traits.Finding)
        (task,) = finding.facts["tasks"]
        counts = {key: finding.facts[key] for key in ("rows", "prompts", "nats_per_row")}
        shown = {key: task[key] for key in ("repeated", "agreeing", "answers", "one_right")}
        found.append({"texts": name, **counts, **shown})
    return found


def near(rows: Sequence[Row], threshold: float) -> Found:
    prompts = sketches.sketched([traits.prompt_text(row) for row in rows], sketches.banding(threshold, len(rows)))
    noted = traits.of(rows, traits.compared, traits.COMPARED)
    return {ruling.place for ruling in dedup.near(noted, np.arange(len(rows)), prompts, threshold, False)}


def conversation(prompt: str, line: int, answer: str = "ok") -> Row:
    return Row([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], "t", line, "columns")


def table(rows: Sequence[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    typer.run(main)
