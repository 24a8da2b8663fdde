"""Measures how many of the rows that are alike are found, and how many that are found are alike: no speed, only counts.

    bench/duplicates.py DATA     the published files' folder; a minute

Near-duplicates are held against comparing all pairs, beside datasketch's LSH with as many bands of as many hashes, and
against planted ones. Prints tables and, as its last line, JSON; figures go to bench/results/duplicates.json.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.sparse import csr_array

from tunesmith.core import store
from tunesmith.core.records import Row, normalised
from tunesmith.data import dedup, similar, traits

RESULTS = Path(__file__).parent / "results/duplicates.json"
THRESHOLDS = (0.7, 0.9)

Found = set[int]  # places of texts that are like an earlier one


def main(data: Annotated[Path, typer.Argument(envvar="TUNESMITH_REAL_DATA", help="the published files")]) -> None:
    """Measures what is found; see the head of this file."""
    texts = {"banking77": banking77(data), "instructions": instructions(data)}
    figures = {
        "near": [of_near(name, its, threshold) for name, its in texts.items() for threshold in THRESHOLDS],
        "planted": [of_planted(edit, texts["banking77"], threshold) for edit in EDITS for threshold in THRESHOLDS],
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
    cut = similar.banding(threshold, len(texts))
    truth = by_all_pairs(texts, threshold)
    told = {"texts": name, "threshold": threshold, "rows": len(texts), "bands": cut.bands, "hashes": cut.hashes}
    both = {"tunesmith": by_bands(texts, threshold), "datasketch": by_datasketch(texts, threshold, cut)}
    found = {f"{index}_{figure}": value for index, its in both.items() for figure, value in rated(its, truth).items()}
    return {**told, "alike": len(truth), **found}


def by_bands(texts: Sequence[str], threshold: float) -> Found:
    """Each text against all others: those with an even place against those with an odd one, and so on by each bit."""
    prompts = similar.sketched(texts, similar.banding(threshold, len(texts)))
    places, found = np.arange(len(texts)), Found()
    for bit in range(len(texts).bit_length()):
        one, other = places[places >> bit & 1 == 0], places[places >> bit & 1 == 1]
        for these, others in ((one, other), (other, one)):
            found |= set(similar.across(prompts, threshold, these, others).alike)
    return found


def by_datasketch(texts: Sequence[str], threshold: float, cut: similar.Banding) -> Found:
    """Its candidates, verified in full."""
    from datasketch import MinHash, MinHashLSH

    sets = similar.shingled(texts)
    shingles = np.split(sets.shingles_S, sets.ends_N[:-1])
    index, hashes = MinHashLSH(num_perm=cut.bands * cut.hashes, params=(cut.bands, cut.hashes)), []
    for place, its in enumerate(shingles):
        hashes.append(MinHash(cut.bands * cut.hashes, hashfunc=int))
        hashes[-1].update_batch(its)
        index.insert(place, hashes[-1], check_duplication=False)
    pairs = [(place, other) for place, its in enumerate(hashes) for other in index.query(its) if other != place]
    later, earlier = np.array(pairs, np.int64).reshape(-1, 2).T
    return set(later[similar.similarities(sets, (later, earlier)) >= threshold].tolist())


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
    sets = similar.shingled([traits.prompt_text(row) for row in rows])
    alike = set(pairs[0][similar.similarities(sets, pairs) >= threshold].tolist())
    kinds = traits.of(rows, traits.compared, traits.COMPARED)["kind"]
    free = alike & set(pairs[0][kinds[pairs[0]] == kinds[pairs[1]]].tolist())
    found = near(rows, threshold)
    told = {"edit": edit, "threshold": threshold, "planted": len(copies), "alike": len(alike)}
    return {**told, "with_other_numbers_or_negations": len(alike - free), "found": len(found), **rated(found, free)}


def near(rows: Sequence[Row], threshold: float) -> Found:
    prompts = similar.sketched([traits.prompt_text(row) for row in rows], similar.banding(threshold, len(rows)))
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
