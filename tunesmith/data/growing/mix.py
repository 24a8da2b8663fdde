"""General rows among the training rows, so that a model does not forget for a task what it could do before.

To go on seeing general examples is the plainest remedy against forgetting, and the base model's own answers are the
mildest form of it: tuned on what it says already, it has the least reason to change. General rows come from elsewhere,
so nobody has seen to it that they are not the exam's: those that are like one of its prompts are dropped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.core import store
from tunesmith.core.clean_section import Clean
from tunesmith.core.console import progress
from tunesmith.core.data_section import Mix
from tunesmith.core.endpoint_section import Endpoint
from tunesmith.core.errors import settings_named
from tunesmith.core.records import Dropped, Row
from tunesmith.core.step import Artifact
from tunesmith.data import load, pipeline
from tunesmith.data.growing import known
from tunesmith.data.growing.drops import Drops
from tunesmith.data.growing.lines import Lines, ranks
from tunesmith.models.base import Base
from tunesmith.models.endpoint import Asked, Client

STAGE = "mixing"
MIXED = "general, mixed in"

_ELSEWHERE = {
    "data.sources": "data.grow.mix.sources",
    "output/failed/load": "output/failed/grow/mix/load",
    "output/failed/clean": "output/failed/grow/mix/clean",
}


@dataclass(frozen=True)
class General:
    """What is mixed in, by which rules, and what it is held against."""

    mix: Mix
    clean: Clean
    max_quarantined: float
    exam: known.Exam
    drops: Drops

    @property
    def rules(self) -> Clean:
        """What the task's answers have to be, general ones need not, and to a general question there may be several."""
        loose = {"answer": "text", "answer_schema": None, "contradictions": "report", "reviewed": None}
        return self.clean.model_copy(update=loose)

    def drop(self, row: Row, reason: str, detail: str) -> None:
        self.drops.add(Dropped(row, reason, detail), STAGE)

    def cleaned(self, row: Row) -> Iterator[Row]:
        """The row as cleaning leaves it, if it does, where its answer is a new one."""
        for _, stage in pipeline.stages(self.rules):
            [result] = stage([row])
            if isinstance(result, Dropped):
                self.drops.add(result, STAGE)
                return
            row = result.row
        yield replace(row, changes=list(dict.fromkeys(row.changes)))  # what its prompt holds was noted before


def run(general: General, own_rows: int, base: Base | None, out: Path) -> dict[str, Any]:
    """Writes `mixed.jsonl` to the workplace: so many general rows that they are the wished share beside `own_rows`
    others; and to `out` `quarantine.jsonl`, the records that are no rows. Raises what reading and cleaning raise."""
    mix, work, folder = general.mix, general.exam.work, out / "mix"
    read, cleaned = _prepared(general, folder)
    for item in store.read_jsonl(folder / "clean/dropped.jsonl"):
        row = Row.from_json({key: value for key, value in item.items() if key not in ("reason", "detail", "stage")})
        general.drop(row, item["reason"], item["detail"])
    rows = Lines(folder / "clean/rows.jsonl")
    threads = ((place, general.exam.threads.get(row["thread"])) for place, row in enumerate(rows.at(range(len(rows)))))
    like = {place: told for place, told in threads if told}
    like |= general.exam.knows(known.note_file(rows.path, work / "general", general.exam.cut))
    order = np.argsort(ranks("mix", [item["id"] for item in rows.at(range(len(rows)))]), kind="stable").tolist()
    for place, item in zip(like, rows.at(list(like))):
        general.drop(Row.from_json(item), *like[place])
    wanted = round(mix.share / (1 - mix.share) * own_rows)
    candidates = map(Row.from_json, rows.at([place for place in order if place not in like]))
    with ExitStack() as closing:
        answered: Iterator[tuple[Row, str]] = ((row, MIXED) for row in candidates)
        if mix.answers == "base":
            endpoint = Endpoint(max_tokens=mix.max_tokens)
            client = closing.enter_context(Client(endpoint, store.cache_dir() / "replies", base))
            answered = _answered(general, candidates, client, wanted)
        mixed = store.write_rows(work / "mixed.jsonl", (_noted(*one) for one in islice(answered, wanted)))
    for row in candidates:
        general.drop(row, "more than the share of the mix", f"{wanted:,} rows are wanted")
    unread = store.read_jsonl(folder / "load/quarantine.jsonl")
    store.write_jsonl(out / "quarantine.jsonl", ({**record, "stage": STAGE} for record in unread))
    shutil.rmtree(folder)
    return {
        "made": read["rows_in"],
        "quarantined": read["quarantined"],
        "reasons": read["reasons"],
        "cleaned": cleaned["kept"],
        "like_the_exam": len(like),
        "answers": mix.answers,
        "wanted": wanted,
        "mixed": mixed,
        "share": mixed / max(own_rows + mixed, 1),
        "warnings": _warnings(mix, wanted, mixed, own_rows),
    }


def _prepared(general: General, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sources read and cleaned as those of the task are, by looser rules."""
    for name in ("load", "clean"):
        (folder / name).mkdir(parents=True)
    with settings_named(_ELSEWHERE):
        read = load.run(general.mix.sources, None, general.max_quarantined, folder / "load")
        cleaned = pipeline.run(general.rules, Artifact("load", "mix", folder / "load", "ran", read), folder / "clean")
    return read, cleaned


def _answered(general: General, rows: Iterator[Row], client: Client, wanted: int) -> Iterator[tuple[Row, str]]:
    """Rows with the base model's answers, until so many have one; where it has none the row is dropped, and the next
    one asked."""
    given = 0
    while given < wanted and (batch := list(islice(rows, wanted - given))):
        asked = [row for row in batch if not row.tools]
        for row in batch:
            if row.tools:
                general.drop(row, "has tools", "the base model is asked without any")
        with progress("mix", len(asked), "answers") as bar:
            for row, reply in zip(asked, client.ask(Asked(row.prompt) for row in asked)):
                bar.advance(1)
                if reply.text is None:
                    general.drop(row, reply.fault, "the base model gave no answer that can be used")
                    continue
                answer = {"role": "assistant", "content": reply.text}
                for kept in general.cleaned(replace(row, messages=[*row.prompt, answer], rejected=None)):
                    given += 1
                    yield kept, f"{MIXED}; answered by the base"


def _noted(row: Row, note: str) -> Row:
    return replace(row, split="train", changes=[*row.changes, note])


def _warnings(mix: Mix, wanted: int, mixed: int, own_rows: int) -> list[str]:
    if mixed >= wanted:
        return []
    came, missing = mixed / max(own_rows + mixed, 1), wanted - mixed
    return [
        f"the mix is {came:.1%} of the training rows and not {mix.share:.1%}: {mixed:,} of {wanted:,} general rows are "
        f"there; add {missing:,} to data.grow.mix.sources, or lower data.grow.mix.share."
    ]
