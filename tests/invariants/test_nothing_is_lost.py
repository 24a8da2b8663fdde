"""Random files and settings through all steps of the data: every record is accounted for, in the files as in the
records, and a run that was ended in the middle comes to the same rows."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tunesmith.core import finished, hardware
from tunesmith.core.clean_section import Clean
from tunesmith.core.data_section import Grow, Source, Split
from tunesmith.core.errors import DataError
from tunesmith.core.interrupt import Interrupted
from tunesmith.core.step import Steps
from tunesmith.data import grow, load, parts, pipeline, split
from tunesmith.data.telling import ledger

STEPS = ("load", "clean", "split", "grow")
SMALL_BYTES = 400  # of a part: a file has several

said = st.sampled_from(
    ["", " ", "hello", "Where is my card?", "Where is my card ?", "WHERE is my card", "Refund 20 to anna@example.com",
     "Refund 30 to anna@example.com", "I cannot log in", "I can log in", "naïve \u200bcafe\u0301", "🙂" * 9, "ok " * 40,
     '{"team": "cards"}', '{"team": "loans"}', "```json\n{}\n```", "4111 1111 1111 1111", "line\r\nbreak\u2028here"]
)  # fmt: skip
turn = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "ghost"]), "content": said}
)
record = st.one_of(
    st.fixed_dictionaries({"prompt": said, "completion": said}),
    st.fixed_dictionaries({"prompt": said, "completion": said, "at": st.integers(0, 5), "who": said}),
    st.fixed_dictionaries({"instruction": said, "input": said, "output": said}),
    st.fixed_dictionaries({"messages": st.lists(turn, max_size=4)}),
    st.fixed_dictionaries({"prompt": said, "completion": said, "label": st.booleans()}),
    st.dictionaries(st.sampled_from(["prompt", "answer", "x"]), st.none() | said | st.integers(), max_size=3),
    st.lists(st.integers(), max_size=2),
)
good = st.builds(
    lambda i, j: {"prompt": f"Question {i} of {j * 7919:x}", "completion": f"{j}"},
    st.integers(0, 99),
    st.integers(0, 9),
)
line = st.one_of(
    good.map(json.dumps),
    good.map(json.dumps),
    record.map(json.dumps),
    record.map(lambda r: json.dumps(r, ensure_ascii=False)),
    said,
)


def table(rows: list[tuple[str, str]]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows([("prompt", "completion"), *rows])
    return file.getvalue().encode()


content = st.one_of(
    st.tuples(st.just("jsonl"), st.lists(line, min_size=5, max_size=60).map(lambda its: "\n".join(its).encode())),
    st.tuples(
        st.just("json"), st.lists(good | record, min_size=1, max_size=20).map(lambda its: json.dumps(its).encode())
    ),
    st.tuples(st.just("csv"), st.lists(st.tuples(said, said), min_size=3, max_size=20).map(table)),
)
files = st.lists(
    st.tuples(content, st.sampled_from(["auto", "auto", "train", "validation", "test"])), min_size=1, max_size=3
)
cleaning = st.fixed_dictionaries(
    {
        "repair": st.sampled_from(["mend", "keep"]),
        "answer": st.sampled_from(["text", "text", "json"]),
        "duplicates": st.sampled_from(["drop", "keep"]),
        "near_duplicates": st.none() | st.floats(0.51, 1),
        "contradictions": st.sampled_from(["drop", "majority", "newest", "review", "report"]),
        "single_answer": st.sampled_from(["auto", "yes", "no"]),
        "personal_data": st.sampled_from(["replace", "surrogate", "drop", "report"]),
        "length": st.fixed_dictionaries({"max_prompt": st.none() | st.integers(4, 30)}),
        "repetition": st.fixed_dictionaries({"runs": st.none() | st.floats(0.1, 1)}),
    }
)
shares = st.sampled_from([0.0, 0.2, 0.4])
limits = st.none() | st.integers(1, 5)
splitting = st.fixed_dictionaries(
    {
        "validation": shares,
        "test": shares,
        "max_train_rows": limits,
        "max_validation_rows": limits,
        "max_test_rows": limits,
    }
)
growing = st.fixed_dictionaries(
    {},
    optional={
        "balance": st.fixed_dictionaries(
            {"by": st.just("length"), "groups": st.just(2)}, optional={"cap": st.integers(1, 9)}
        ),
        "synthesise": st.fixed_dictionaries({"noise": st.fixed_dictionaries({"rows": st.integers(1, 9)})}),
        "mix": st.fixed_dictionaries({"share": st.sampled_from([0.1, 0.5])}),
    },
)


def ran(output: Path, sources: list[Source], told: dict[str, Any]) -> list[finished.Finished]:
    """The steps, as a run leaves them."""
    steps, clean = Steps(output), Clean.model_validate(told["clean"])
    raw = steps("load", load.run, sources, "Be brief.", 1.0)
    splits = steps(
        "split", split.run, Split.model_validate(told["split"]), [], steps("clean", pipeline.run, clean, raw)
    )
    if told["grow"]:
        steps("grow", grow.run, Grow.model_validate(told["grow"]), clean, "Be brief.", 1.0, None, splits)
    return finished.lineage(output, next(finished.of(output, STEPS)), STEPS)


def balanced(steps: list[finished.Finished]) -> None:
    """`ledger.read` holds the files against the records, stage by stage and file by file; here the sum of all."""
    found = ledger.read(steps)
    assert found.records + found.made == sum(found.rows.values()) + found.dropped + found.quarantined
    of_files = [(s.records + s.made, s.quarantined + s.dropped + sum(s.kept.values())) for s in found.sources]
    assert all(came == went for came, went in of_files)


def contents(steps: list[finished.Finished]) -> dict[str, bytes]:
    """All rows, wherever they went."""
    return {f"{step.step}/{path.name}": path.read_bytes() for step in steps for path in step.folder.glob("*.jsonl")}


@pytest.fixture(autouse=True)
def one_process_and_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 1)
    monkeypatch.setattr(parts.cut, "__defaults__", (SMALL_BYTES,))


@settings(
    phases=[Phase.explicit, Phase.generate],
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(files=files, clean=cleaning, split=splitting, grow=growing, ended_after=st.integers(0, 12))
@example(
    files=[(("jsonl", b'{"prompt": "a b", "completion": "c"}\n' * 30), "auto"), (("csv", table([("d", "f")])), "test")],
    clean={"duplicates": "keep"}, split={}, grow={"mix": {"share": 0.5}, "balance": {"by": "length", "cap": 3}},
    ended_after=3,
)  # fmt: skip
def test_every_record_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, files: Any, clean: Any, split: Any, grow: Any, ended_after: int
) -> None:
    folder = tmp_path_factory.mktemp("lost")
    sources = []
    for number, ((suffix, bytes_), side) in enumerate(files):
        path = folder / f"{number}.{suffix}"
        path.write_bytes(bytes_)
        fields = {"time": "at", "group": "who"} if b'"at"' in bytes_ and b'"who"' in bytes_ else {}
        sources.append(Source.model_validate({"path": path, "split": side, "fields": fields}))
    if "mix" in grow:
        grow = {**grow, "mix": {**grow["mix"], "sources": [{"path": sources[0].path}]}}
    told = {"clean": clean, "split": split, "grow": grow}
    try:
        whole = ran(folder / "whole", sources, told)
    except (ValidationError, DataError) as refusal:  # settings that do not go together; no row is left
        event(str(refusal)[:90])
        return
    event("balanced")
    balanced(whole)
    calls, do = 0, parts._do

    def broken_off(*arguments: Any) -> parts.Done:
        nonlocal calls
        calls += 1
        if calls > ended_after:
            raise Interrupted(2)
        return do(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_do", broken_off)
        try:
            ran(folder / "ended", sources, told)
        except Interrupted:
            pass
    again = ran(folder / "ended", sources, told)
    balanced(again)
    assert contents(again) == contents(whole)
