"""The training side alone, after the split: balanced, grown by new rows, mixed with general ones.

Validation and test pass through untouched. What is added comes from outside the split, so the rows of all sides are
held against one another once more, and a new certificate says that training still knows nothing of the exam.

Nothing is lost: the rows that came, and all that was made beside them, are in the end kept or dropped with a reason.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.core import certificate, store
from tunesmith.core.clean_section import Clean
from tunesmith.core.console import counted
from tunesmith.core.data_section import Grow
from tunesmith.core.errors import DataError
from tunesmith.core.step import Artifact
from tunesmith.data import parts, similar, sketches
from tunesmith.data.growing import admission, balance, known, mix, synthesise
from tunesmith.data.growing.drops import Drops
from tunesmith.data.growing.seeds import Seeds
from tunesmith.data.reading import collect
from tunesmith.data.split import ALIKE, SIDES
from tunesmith.models.base import Base

VERSION = 4

_HELD_OUT = SIDES[1:]
_PLACE = re.compile(r" \S.*:\d+$")  # that a note may end with


def run(
    grow: Grow,
    clean: Clean,
    system: str | None,
    max_quarantined: float,
    base: Base | None,
    splits: Artifact,
    out: Path,
) -> dict[str, Any]:
    """Writes `train.jsonl`, `validation.jsonl`, `test.jsonl`, `dropped.jsonl` (each row with its reason) and
    `certificate.json`, as the split does.

    `base` is there where it is asked for rows. Raises DataError where no training row is left, and what reading and
    cleaning general rows, reading documents, and asking a model raise.
    """
    certified = certificate.require(splits.folder)
    for side in _HELD_OUT:
        shutil.copyfile(splits / f"{side}.jsonl", out / f"{side}.jsonl")
    # With the hashes of the split, what it certified is found again as it was.
    cut = sketches.banding(ALIKE, splits.summary["rows_in"])
    told: dict[str, Any] = {"balance": None, "synthesise": None, "mix": None}
    with parts.workplace(None, out) as work, Drops(out / "dropped.jsonl") as drops:
        exam = known.exam({side: out / f"{side}.jsonl" for side in _HELD_OUT}, clean.benchmarks, cut, work)
        whole = [splits / "train.jsonl"]
        if grow.balance:
            told["balance"] = balance.run(grow.balance, whole[0], work / "balanced.jsonl", work, drops)
            whole = [work / "balanced.jsonl"]
        own = told["balance"]["kept"] if told["balance"] else splits.summary["train"]
        if grow.synthesise:
            ground = synthesise.Ground(grow.synthesise, clean, system, Seeds(whole[0], cut, work), exam, drops)
            told["synthesise"] = synthesise.run(ground, base, out)
            whole.append(work / "new.jsonl")
            own += told["synthesise"]["kept"]
        if grow.mix:
            told["mix"] = mix.run(mix.General(grow.mix, clean, max_quarantined, exam, drops), own, base, out)
            whole.append(work / "mixed.jsonl")
            own += told["mix"]["mixed"]
        parts.concatenate(whole, out / "train.jsonl")
        changes = _noted(told["balance"], whole[1:])
        facts = _certify(certified, exam, out)
        dropped = drops.counts.total()
        reasons = Counter(drops.reasons) + Counter(told["mix"]["reasons"] if told["mix"] else {})
    came_in = sum(splits.summary[side] for side in SIDES)
    stages = list(_stages(came_in, told, drops))
    made, quarantined = sum(stage["made"] for stage in stages), sum(stage["quarantined"] for stage in stages)
    trained = splits.summary["train"]
    assert trained + made == own + dropped + quarantined, f"{made:,} made, {own:,} kept, {dropped:,} dropped"
    if not own:
        raise DataError(
            "no training row is left after growing",
            ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
            or "there was none to begin with",
            "read output/failed/grow/dropped.jsonl, then loosen `data.grow`",
        )
    sides = {"train": own, **{side: splits.summary[side] for side in _HELD_OUT}}
    groups = {side: splits.summary["groups"][side] for side in _HELD_OUT}  # nobody looked for groups among new rows
    ledger = {**sides, "dropped": dropped, "quarantined": quarantined, "stages": stages, "groups": groups}
    ledger |= {"reasons": dict(reasons.most_common()), "changes": dict(changes.most_common())}
    return {**_said(told, own, dropped), "rows_in": came_in, "made": made, **ledger, **told, "certificate": facts}


def _stages(rows: int, told: dict[str, Any], drops: Drops) -> Iterator[dict[str, Any]]:
    """What came to each stage, over all sides, and what left it: `rows_in` + `made` = `kept` + `dropped` +
    `quarantined`."""
    for stage, its in zip((balance.STAGE, admission.STAGE, mix.STAGE), told.values()):
        if its:
            dropped, quarantined = drops.of(stage), its.get("quarantined", 0)
            left = rows + its["made"] - dropped - quarantined
            yield {
                "stage": stage,
                "rows_in": rows,
                "made": its["made"],
                "kept": left,
                "dropped": dropped,
                "quarantined": quarantined,
            }
            rows = left


def _noted(balanced: dict[str, Any] | None, files: Sequence[Path]) -> Counter[str]:
    """How many of the rows that were added have a note, by its kind: repeats, and the rows of these files."""
    found = Counter({f"{balance.REPEATED} {balanced['by']}s": balanced["repeats"]} if balanced else {})
    for row in (row for path in files for row in store.read_jsonl(path)):
        found.update({_PLACE.sub("", note) for note in row["changes"]})
    return +found


def _certify(certified: dict[str, Any], exam: known.Exam, out: Path) -> dict[str, Any]:
    """The split's certificate for the grown sides, after the rows of both have been held against one another again."""
    train = known.note_file(out / "train.jsonl", exam.work / "grown", exam.cut)
    noted = known.together([train, *exam.sides.values()], exam.work / "shingles", exam.cut)
    held_out = np.concatenate([noted.of(1 + i) for i in range(len(exam.sides))])
    found = similar.across(noted.prompts, ALIKE, noted.of(0), held_out)
    leaks = len(found.alike)
    assert not leaks, f"{leaks} rows of the exam or of validation have their like among the grown training rows"
    if found.uncompared:
        raise DataError(
            f"{len(found.uncompared):,} rows of the exam or of validation may be like grown training rows",
            "they met too many to be compared with all of them",
            "add fewer rows of one kind: lower data.grow.synthesise.noise.per_row or data.grow.balance.weights",
        )
    facts = {fact: value for fact, value in certified.items() if fact != "files"}
    grown = {"training_rows": len(noted.of(0)), "held_out_rows": len(held_out), "leaks": leaks}
    return certificate.seal(out, {**facts, "leaks": leaks, "grown": grown}, [f"{side}.jsonl" for side in SIDES])


def _said(told: dict[str, Any], train: int, dropped: int) -> dict[str, Any]:
    said, warnings = [f"{train:,} train, {dropped:,} dropped"], list[str]()
    if found := told["balance"]:
        repeats, drops = counted(found["repeats"], "repeat"), counted(found["dropped"], "drop")
        said.append(f"{repeats} and {drops} to balance {found['by']}s")
    if found := told["synthesise"]:
        kinds = ", ".join(f"{its['kept']:,} {kind}" for kind, its in found["kinds"].items())
        said.append(f"new rows: {kinds or 'none'}")
        warnings += found["warnings"]
        if read := found.get("sources"):
            said += [f"{read['quarantined']:,} of the documents cannot be read"] if read["quarantined"] else []
            said += [collect.sentence(read["skipped"])] if read["skipped"] else []
    if found := told["mix"]:
        said.append(f"{counted(found['mixed'], 'general row')} ({found['share']:.1%})")
        said += [f"{found['quarantined']:,} quarantined"] if found["quarantined"] else []
        warnings += found["warnings"]
    return {
        "headline": "; ".join([*said, *(warning.rstrip(".") for warning in warnings)]),
        "vouched": f"Certified anew: of the training rows ({train:,}), none is like one of the exam or of validation.",
        "warnings": warnings,
    }
