"""General rows among the training rows, so that a model does not forget for a task what it could do before.

To go on seeing general examples is the plainest remedy against forgetting, and the base model's own answers are the
mildest form of it: tuned on what it says already, it has the least reason to change. General rows come from elsewhere,
so nobody has seen to it that they are not the exam's: those that are like one of its prompts are dropped.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tunesmith.core import store
from tunesmith.core.data_section import Clean, Mix
from tunesmith.core.errors import settings_named
from tunesmith.core.records import Dropped, Row
from tunesmith.core.step import Artifact
from tunesmith.data import known, load, parts, pipeline
from tunesmith.data.drops import Drops

STAGE = "mixing"
MIXED = "general, mixed in"

_ELSEWHERE = {
    "data.sources": "data.grow.mix.sources",
    "output/failed/load": "output/failed/grow/mix/load",
    "output/failed/clean": "output/failed/grow/mix/clean",
}


def run(
    mix: Mix, clean: Clean, max_quarantined: float, own_rows: int, exam: known.Exam, out: Path, drops: Drops
) -> dict[str, Any]:
    """Writes `mixed.jsonl` to the workplace: so many general rows that they are the wished share beside `own_rows`
    others; and to `out` `quarantine.jsonl`, the records that are no rows. Raises what reading and cleaning raise."""
    folder = out / "mix"
    read, cleaned = _prepared(mix, clean, max_quarantined, folder)
    for item in store.read_jsonl(folder / "clean/dropped.jsonl"):
        row = Row.from_json({key: value for key, value in item.items() if key not in ("reason", "detail", "stage")})
        drops.add(Dropped(row, item["reason"], item["detail"]), STAGE)
    general = folder / "clean/rows.jsonl"
    like = exam.knows(known.note_file(general, exam.work / "general", exam.cut))
    wanted = round(mix.share / (1 - mix.share) * own_rows)
    mixed = _chosen(general, wanted, like, exam.work / "mixed.jsonl", drops)
    shutil.move(folder / "load/quarantine.jsonl", out / "quarantine.jsonl")
    shutil.rmtree(folder)
    return {
        "made": read["kept"],
        "quarantined": read["quarantined"],
        "cleaned": cleaned["kept"],
        "like_the_exam": len(like),
        "wanted": wanted,
        "mixed": mixed,
        "share": mixed / max(own_rows + mixed, 1),
        "warnings": _warnings(mix, wanted, mixed, own_rows),
    }


def _prepared(mix: Mix, clean: Clean, max_quarantined: float, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sources read and cleaned as those of the task are. What the task's answers have to be, general ones need
    not."""
    for name in ("load", "clean"):
        (folder / name).mkdir(parents=True)
    with settings_named(_ELSEWHERE):
        read = load.run(mix.sources, None, max_quarantined, folder / "load")
        general = clean.model_copy(update={"answer": "text", "answer_schema": None})
        cleaned = pipeline.run(general, Artifact("load", "mix", folder / "load", "ran", read), folder / "clean")
    return read, cleaned


def _chosen(general: Path, wanted: int, like: dict[int, tuple[str, str]], mixed: Path, drops: Drops) -> int:
    """Writes so many of the rows that are not like the exam, those with the lowest hash; returns how many."""
    ranks = [_rank(orjson.loads(line)["id"]) for piece in parts.cut(general) for line in piece.read()]
    places = np.array([place for place in np.argsort(ranks, kind="stable").tolist() if place not in like], np.int64)
    chosen = set(places[:wanted].tolist())
    with open(mixed, "wb") as file:
        lines = (line for piece in parts.cut(general) for line in piece.read())
        for place, line in enumerate(lines):
            row = Row.from_json(orjson.loads(line))
            if place in chosen:
                row = replace(row, changes=[*row.changes, MIXED])
                file.write(orjson.dumps(row.to_json(), option=orjson.OPT_APPEND_NEWLINE))
            elif place in like:
                drops.add(Dropped(row, *like[place]), STAGE)
            else:
                drops.add(Dropped(row, "more than the share of the mix", f"{wanted:,} rows are wanted"), STAGE)
    return len(chosen)


def _rank(row_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"mix {row_id}".encode()).digest()[:7])


def _warnings(mix: Mix, wanted: int, mixed: int, own_rows: int) -> list[str]:
    if mixed >= wanted:
        return []
    came, missing = mixed / max(own_rows + mixed, 1), wanted - mixed
    return [
        f"the mix is {came:.1%} of the training rows and not {mix.share:.1%}: {mixed:,} of {wanted:,} general rows are "
        f"there; add {missing:,} to data.grow.mix.sources, or lower data.grow.mix.share."
    ]
