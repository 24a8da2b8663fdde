"""Questions of published benchmarks, which training must not know: rows whose prompt is one of them are found.

A prompt is a benchmark's question where the two are alike as near-duplicates are, or where they share a run of
thirteen words, or of as many as the shorter one has, but eight at least: the measure of overlap that GPT-3's authors
used (Brown et al., 2020, appendix C). As there, a run that stands in more than ten questions is their form, not their
content. Of a benchmark's files only the prompts are read.

Runs are compared by hashes of 64 bits, part by part: what a part needs to know of the questions stands in two files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import ConfigError, settings_named
from tunesmith.core.records import normalised
from tunesmith.data import similar, sketches
from tunesmith.data.reading import collect, files, readers, shapes
from tunesmith.data.reading.values import Unusable, plain_record
from tunesmith.data.traits import Finding, Hashes, Places, Ruling, Traits

LONGEST, SHORTEST = 13, 8  # words of a run that two texts share
ALIKE = 0.7  # Jaccard similarity of character 4-grams

_OF_FORM = 10  # questions: a run that stands in more of them is left out
_FACTOR, _WHOLE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_RUNS, _OF = "runs.npy", "questions.npy"


@dataclass(frozen=True)
class Questions:
    """Those of all benchmarks, and where each was read: the benchmark's name, and the line in its file."""

    texts: list[str]
    read_at: list[tuple[str, int]]
    unreadable: int


def read(paths: Sequence[Path]) -> Questions:
    """Raises ConfigError for a file without a single question, DataError for one that cannot be read at all."""
    with settings_named({"data.sources": "data.clean.benchmarks"}):
        return _read(paths)


def _read(paths: Sequence[Path]) -> Questions:
    texts, read_at, unreadable = list[str](), list[tuple[str, int]](), 0
    for path in paths:
        before = len(texts)
        problem = "there is no record in it"
        for name, record in _records(path):
            try:
                if record.problem:
                    raise record.problem
                notes: list[str] = []
                texts.append(_text(shapes.prompt(plain_record(record.value, shapes.NAMES, notes), notes)))
                read_at.append((name, record.line))
            except Unusable as found:
                unreadable += 1
                problem = f"line {record.line}: {found.reason}; {found.fix}"
        if len(texts) == before:
            raise ConfigError(
                f"data.clean.benchmarks: {path.name} has no question",
                problem,
                "name a file whose records have a prompt, or take it out",
            )
    return Questions(texts, read_at, unreadable)


def _records(path: Path) -> Iterator[tuple[str, readers.Record]]:
    """Those of a file, compressed or not, each with the name under which it is told of."""
    with tempfile.TemporaryDirectory() as unpacked:
        found = list(collect.collected(path, partial(files.why_not, texts=False), Path(unpacked)))
        items = [one for one in found if isinstance(one, collect.Item)]
        if not items:
            skipped = collect.told(one for one in found if isinstance(one, collect.Skipped))
            raise collect.nothing_to_read(path, skipped, files.EXAMPLES)
        for item in items:
            if item.path.suffix.lower() in files.DOCUMENTS:
                raise ConfigError(
                    f"data.clean.benchmarks: {item.name} is a document",
                    "the questions of a benchmark are read from files of examples, each with a prompt",
                    f"write its questions to a file of examples ({files.EXAMPLES}) and name that, or take it out",
                )
            for record in files.records(item.path):
                yield item.name, record


def write(folder: Path, questions: Questions, cut: sketches.Banding) -> None:
    """What parts are compared with, and the questions' sketches, in files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sketches.write(folder, questions.texts, cut)
    runs, of = _known_runs(questions.texts)
    np.save(folder / _RUNS, runs)
    np.save(folder / _OF, of)


def shared(folder: Path, texts: Sequence[str]) -> NDArray[np.int32]:
    """For each text the first question with which it shares a run; -1: none."""
    known_R, of_R = np.load(folder / _RUNS), np.load(folder / _OF)
    none = np.iinfo(np.int32).max
    found_N = np.full(len(texts), none, np.int32)
    for run_W, text_W in _runs(texts, of_questions=False) if len(known_R) else ():
        place_W = np.minimum(np.searchsorted(known_R, run_W), len(known_R) - 1)
        hit = known_R[place_W] == run_W
        np.minimum.at(found_N, text_W[hit], of_R[place_W[hit]])
    return np.where(found_N == none, -1, found_N).astype(np.int32)


def together(folders: Sequence[Path]) -> NDArray[np.int32]:
    """What all parts share with the questions."""
    return np.concatenate([np.zeros(0, np.int32), *(np.fromfile(folder / "shared", np.int32) for folder in folders)])


def known(
    traits: Traits, left: Places, prompts: sketches.Sketches, shared_N: NDArray[np.int32], questions: Questions
) -> Iterator[Ruling | Finding]:
    """Drops rows whose prompt is a benchmark's question. Rows that are pinned to the exam stay: it may be one.

    `prompts` has the sketches of the questions behind those of the rows.
    """
    asked = np.arange(len(questions.texts)) + len(traits)
    may_train = left[~traits["held_out"][left]]
    across = similar.across(prompts, ALIKE, asked, may_train)
    found = {place: (int(one) - len(traits), f"{how:.2f} like") for place, (one, how) in across.alike.items()}
    for place in may_train[shared_N[may_train] >= 0].tolist():
        found.setdefault(place, (int(shared_N[place]), "shares a run of words with"))
    for place, (question, how) in sorted(found.items()):
        name, line = questions.read_at[question]
        told = f"{how} {name}:{line}".replace("{", "{{").replace("}", "}}")
        yield Ruling(place, place, f"in benchmark {name}", told)
    yield Finding("benchmarks", _facts(questions, found, across), list(_warnings(questions, across)))


def _facts(questions: Questions, found: dict[int, tuple[int, str]], across: similar.Across) -> dict[str, Any]:
    met = {question for question, _ in found.values()}
    return {
        "questions": len(questions.texts),
        "unreadable": questions.unreadable,
        "known_questions": len(met),
        "rows": len(found),
        "uncompared": len(across.uncompared.keys() - found.keys()),
    }


def _warnings(questions: Questions, across: similar.Across) -> Iterator[str]:
    if questions.unreadable:
        yield f"{questions.unreadable:,} records of benchmarks have no question that could be read."
    if across.uncompared:
        yield f"{len(across.uncompared):,} rows met too many benchmark questions to be compared with all of them."


def _text(turns: Iterable[dict[str, Any]]) -> str:
    return "\n".join(normalised(str(turn["content"])) for turn in turns if turn["role"] != "system")


def _known_runs(texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int32]]:
    """Hashes of the questions' runs in their order, and the question that each stands in."""
    runs_R, of_R = (np.concatenate(side) for side in zip(*_runs(texts, of_questions=True)))
    order = np.lexsort((of_R, runs_R))
    runs_R, of_R = runs_R[order], of_R[order]
    again = np.zeros(len(order), bool)  # a run that a question has twice
    again[1:] = (runs_R[1:] == runs_R[:-1]) & (of_R[1:] == of_R[:-1])
    runs_R, of_R = runs_R[~again], of_R[~again]
    runs_R, first, questions = np.unique(runs_R, return_index=True, return_counts=True)
    content = questions <= _OF_FORM
    return runs_R[content], of_R[first[content]].astype(np.int32)


def _runs(texts: Sequence[str], of_questions: bool) -> Iterator[tuple[Hashes, Places]]:
    """Hashes of the runs of words that can be shared, length by length, and the text of each.

    Runs of thirteen words are held against one another. A shorter run counts where it is the whole of a text: the runs
    in a question are held against rows that are no longer, and the runs in a row against such questions.
    """
    words = [text.split() for text in texts]
    lengths_N = np.fromiter(map(len, words), np.int64, len(words))
    number: dict[str, int] = {}
    for word in {word for its in words for word in its}:
        letters = word.encode("utf-8", "surrogatepass")
        number[word] = crc32(letters) << 32 | crc32(letters[::-1], 1)
    words_W = np.fromiter((number[word] for its in words for word in its), np.uint64, int(lengths_N.sum()))
    text_W = np.repeat(np.arange(len(words)), lengths_N)
    left_W = np.repeat(np.cumsum(lengths_N), lengths_N) - np.arange(len(words_W))  # words from here to the text's end
    hashed_W = np.zeros(len(words_W), np.uint64)
    for length in range(1, LONGEST + 1):
        fits = left_W >= length
        hashed_W[fits] = (hashed_W[fits] ^ words_W[np.flatnonzero(fits) + length - 1]) * _FACTOR
        hashed_W[fits] ^= hashed_W[fits] >> np.uint64(29)
        if length < SHORTEST:
            continue
        whole = fits & (lengths_N[text_W] == length)
        if length == LONGEST:
            yield hashed_W[fits], text_W[fits]
        elif of_questions:
            yield hashed_W[fits], text_W[fits]
            yield hashed_W[whole] ^ _WHOLE, text_W[whole]
        else:
            yield hashed_W[whole], text_W[whole]
            yield hashed_W[fits] ^ _WHOLE, text_W[fits]
