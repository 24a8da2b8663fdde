"""Rows to prepare, as many as are asked for: short texts of banking77, the instructions and Alpaca, varied.

A real data set of a million rows is not at hand, and copies of a small one would be all duplicates. So each row is a
real one in which some words are changed for others of the same sets. A known share repeats a row that stands before it,
another one does so with a single letter or word changed: duplicates and near-duplicates.
"""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path

from tunesmith.core.errors import DataError

EQUAL, NEAR = 0.03, 0.05  # shares of the rows
_LONGEST_ANSWER = 400  # characters
_REMEMBERED = 10_000  # rows of which a later one may be a duplicate


def write(path: Path, rows: int) -> None:
    """So many rows as JSON Lines, the same ones on every call."""
    draw = random.Random(0)
    real = _real()
    words = sorted({word for prompt, _, _ in real for word in prompt.split()})
    earlier: list[dict[str, str]] = []
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(rows):
            chance = draw.random()
            if earlier and chance < EQUAL:
                row = draw.choice(earlier)
            elif earlier and chance < EQUAL + NEAR:
                row = draw.choice(earlier)
                row = {**row, "instruction": _edited(row["instruction"], draw)}
            else:
                prompt, context, answer = draw.choice(real)
                row = {"instruction": _varied(prompt, words, draw), "input": context, "output": answer}
                if len(earlier) < _REMEMBERED:
                    earlier.append(row)
                else:
                    earlier[draw.randrange(_REMEMBERED)] = row
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _real() -> list[tuple[str, str, str]]:
    """Prompt, input and answer of real rows."""
    folder = Path(os.environ.get("TUNESMITH_REAL_DATA", "."))
    files = ("banking77/train.csv", "instructions/instruction-data.json", "formats/alpaca_en_demo.json")
    missing = next((name for name in files if not (folder / name).is_file()), None)
    if missing:
        raise DataError(
            f"there is no {missing}",
            "TUNESMITH_REAL_DATA does not name the folder that has it",
            "set TUNESMITH_REAL_DATA",
        )
    with open(folder / files[0], encoding="utf-8", newline="") as file:
        found = [(row["text"], "", row["category"]) for row in csv.DictReader(file)]
    for name in files[1:]:
        rows = json.loads((folder / name).read_text(encoding="utf-8"))
        found += [(row["instruction"], row["input"], row["output"][:_LONGEST_ANSWER]) for row in rows]
    return found


def _varied(text: str, words: list[str], draw: random.Random) -> str:
    """With up to half of its words changed, at least one."""
    found = text.split()
    for _ in range(draw.randint(1, max(1, len(found) // 2))):
        found[draw.randrange(len(found))] = draw.choice(words)
    return " ".join(found)


def _edited(text: str, draw: random.Random) -> str:
    """With one letter or its end changed, as people mistype and copy."""
    at = draw.randrange(len(text))
    return draw.choice([text + " please", text.upper(), text[:at] + text[at + 1 :], text + "!"])
