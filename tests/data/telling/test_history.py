"""The ledger balances, a row's history is whole, and versions are compared: on real runs that stop before training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import tunesmith
from tunesmith.cli import app
from tunesmith.core import certificate, finished, store
from tunesmith.core.clean_section import Clean
from tunesmith.core.data_section import Source, Split
from tunesmith.core.errors import ConfigError, DataError, ResourceError
from tunesmith.core.finished import Finished
from tunesmith.core.step import Artifact, Steps
from tunesmith.data import load, pipeline, split
from tunesmith.data.telling import difference, history, ledger

VERSION = 1  # of the played step

LONG = "Could you please tell me when the parcel that I ordered from your shop last week is going to arrive"
RECORDS = [
    *({"prompt": f"question {i} about thing {i * i}", "answer": f"answer {i}"} for i in range(40)),
    {"prompt": LONG, "answer": "soon"},  # 41
    {"prompt": LONG + " please", "answer": "soon"},  # 42: nearly 41
    {"prompt": "question 3 about thing 9", "answer": "answer 3"},  # 43: is 4
    {"prompt": "question 5 about thing 25", "answer": "another"},  # 44: contradicts 6
    {"prompt": "write to ann.other@mail.example", "answer": "done"},  # 45
    {"prompt": "nothing said", "answer": ""},  # 46
    {"prompt": "half a record"},  # 47
]
DATA = ("load", "clean", "split")


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def made(folder: Path, records: list[Any], clean: dict[str, Any] | None = None, **shares: float) -> list[Finished]:
    """The steps of the data over these records."""
    source = Source.model_validate({"path": write(folder / "rows.jsonl", records)})
    step = Steps(folder / "output")
    raw = step("load", load.run, [source], None, 0.9)
    cleaned = step("clean", pipeline.run, Clean.model_validate({"personal_data": "replace", **(clean or {})}), raw)
    step("split", split.run, Split.model_validate({"test": 0.3, "validation": 0.2, **shares}), [], cleaned)
    return steps(folder / "output")


def steps(output: Path, last: str = "split") -> list[Finished]:
    return finished.lineage(output, next(finished.of(output, [last])), DATA)


def told(found: list[Finished], where: str) -> history.History:
    (one,) = history.of(found, where, {})
    return one


def test_the_ledger_tells_each_stage_and_each_file(tmp_path: Path) -> None:
    found = ledger.read(made(tmp_path, RECORDS))
    stages = {stage.stage: stage for stage in found.stages}
    assert (found.records, found.quarantined, found.dropped, found.made) == (47, 1, 3, 0)
    assert stages["reading"].losses == [ledger.Loss("no answer column", "quarantined", 1, "rows.jsonl:47")]
    assert stages["exact duplicates"].losses == [ledger.Loss("duplicate", "dropped", 1, "rows.jsonl:43")]
    assert stages["near-duplicates"].losses[0].first == "rows.jsonl:42"
    assert sum(found.rows.values()) == 43
    (source,) = found.sources
    assert (source.records, source.quarantined, source.dropped, source.kept) == (47, 1, 3, found.rows)
    assert found.personal_data == {"email": {"replaced": 1}}
    assert found.noted["contradicts"] == 2
    assert "Certified" in found.vouched


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.fixed_dictionaries({"prompt": st.text(max_size=12), "answer": st.text(max_size=3)}),
            st.fixed_dictionaries(
                {"prompt": st.sampled_from(["a@b.example", "Is it 5?", LONG]), "answer": st.just("y")}
            ),
            st.integers(),
        ),
        max_size=12,
    ),
    st.sampled_from(["replace", "drop", "report"]),
    st.sampled_from(["drop", "majority", "report"]),
)
def test_the_ledger_of_random_files_balances(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], personal_data: str, contradictions: str
) -> None:
    folder = tmp_path_factory.mktemp("random")
    records += [{"prompt": f"fixed {i}", "answer": f"{i}"} for i in range(30)]
    options = {"personal_data": personal_data, "contradictions": contradictions}
    found = ledger.read(made(folder, records, options, test=0.1))
    assert len(records) == found.records == found.quarantined + found.dropped + sum(found.rows.values())
    for stage in found.stages:
        assert stage.rows_in == stage.kept + stage.dropped + stage.quarantined
        assert sum(loss.rows for loss in stage.losses) == stage.dropped + stage.quarantined


@pytest.mark.parametrize(
    ("step", "file"),
    [("load", "rows"), ("load", "quarantine"), ("clean", "dropped"), ("clean", "rows"), ("split", "test")],
)
def test_a_line_that_is_lost_is_an_error(tmp_path: Path, step: str, file: str) -> None:
    found = made(tmp_path, RECORDS)
    path = next(one for one in found if one.step == step) / f"{file}.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(True)[1:]))
    with pytest.raises(DataError, match=f"step {step} does not balance") as refused:
        ledger.read(found)
    assert refused.value.next == f"tunesmith run --force {step}"


def test_a_reason_that_is_changed_is_an_error(tmp_path: Path) -> None:
    found = made(tmp_path, RECORDS)
    path = found[1] / "dropped.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"stage":"exact duplicates"', b'"stage":"near-duplicates"'))
    with pytest.raises(DataError, match="dropped at"):
        ledger.read(found)


def grown(splits: Artifact, out: Path) -> dict[str, Any]:
    """A step that the ledger does not know: it drops a training row, repeats another, and adds a copy with a parent."""
    rows = {side: list(store.read_jsonl(splits / f"{side}.jsonl")) for side in ledger.SIDES}
    rows_in = sum(map(len, rows.values()))
    gone, first, *rest = rows["train"]
    messages = [{**first["messages"][0], "content": "a noisy qestion"}, *first["messages"][1:]]
    new = {**first, "id": "f" * 16, "messages": messages, "parents": [first["id"]], "changes": ["typing faults"]}
    rows["train"] = [first, {**first, "changes": [*first["changes"], "repeated"]}, new, *rest]
    for side, its in rows.items():
        store.write_jsonl(out / f"{side}.jsonl", its)
    store.write_jsonl(out / "dropped.jsonl", [{**gone, "reason": "over the cap", "detail": "", "stage": "balancing"}])
    certificate.seal(out, {"leaks": 0}, [f"{side}.jsonl" for side in ledger.SIDES])
    stages = [
        {"stage": "balancing", "rows_in": rows_in, "kept": rows_in, "dropped": 1},
        {"stage": "growing", "rows_in": rows_in, "kept": rows_in + 1, "dropped": 0},
    ]
    counts = {side: len(its) for side, its in rows.items()}
    return {"rows_in": rows_in, "dropped": 1, "reasons": {"over the cap": 1}, "stages": stages, **counts}


def test_a_step_that_is_not_known_appears_by_itself(tmp_path: Path) -> None:
    found = made(tmp_path, RECORDS)
    step = Steps(tmp_path / "output")
    step("grow", grown, Artifact("split", found[-1].identity, found[-1].folder, "done", {}, found[-1].record["made"]))
    last = next(finished.of(tmp_path / "output", [*DATA, "grow"]))
    found = finished.lineage(tmp_path / "output", last, [*DATA, "grow"])
    assert [one.step for one in found] == [*DATA, "grow"]
    counted = ledger.read(found)
    assert [(stage.stage, stage.made, stage.dropped) for stage in counted.stages[-2:]] == [
        ("balancing", 1, 1),
        ("growing", 1, 0),
    ]
    assert counted.records + counted.made == sum(counted.rows.values()) + counted.dropped + counted.quarantined
    assert counted.sources[0].made == 2
    first = store.read_rows(found[-1] / "train.jsonl")[0]
    tracks = history.of(found, f"rows.jsonl:{first.line}", {})
    assert [len(track.events) for track in tracks] == [4, 1, 1]
    assert tracks[2].events[0].told == ["added here, to train", f"made from {first.id}", "typing faults"]
    (gone,) = store.read_jsonl(found[-1] / "dropped.jsonl")
    assert told(found, f"rows.jsonl:{gone['line']}").events[-1].told == ["dropped at balancing: over the cap"]


def test_why_tells_what_a_row_repeats(tmp_path: Path) -> None:
    found = made(tmp_path, RECORDS)
    row = told(found, "rows.jsonl:43")
    assert row.now == "dropped"
    assert [event.step for event in row.events] == ["load", "clean"]
    assert row.events[1].told == ["dropped at exact duplicates: duplicate, same as rows.jsonl:4"]
    assert [other.where for other in row.events[1].others] == ["rows.jsonl:4"]
    assert row.events[1].others[0].messages[0]["content"] == "question 3 about thing 9"
    assert told(found, "rows.jsonl:44").events[1].others[0].where == "rows.jsonl:6"


def test_why_tells_what_was_changed_in_a_text(tmp_path: Path) -> None:
    row = told(made(tmp_path, RECORDS), "rows.jsonl:45")
    assert row.messages[0]["content"] == "write to ann.other@mail.example"
    (text,) = row.events[1].changed
    assert (text.role, text.pieces[0]) == ("user", ("same", "write to "))
    assert "".join(piece for kind, piece in text.pieces if kind != "after") == "write to ann.other@mail.example"
    assert "".join(piece for kind, piece in text.pieces if kind != "before") == "write to [EMAIL_1]"
    assert row.events[1].told == ["replaced: email"]
    assert row.now in ledger.SIDES


def test_why_tells_of_a_record_that_is_no_row(tmp_path: Path) -> None:
    row = told(made(tmp_path, RECORDS), "rows.jsonl:47")
    assert (row.now, row.id, row.messages) == ("quarantined", "", [])
    assert row.events[0].told[0] == "could not be read: no answer column"
    assert "half a record" in row.events[0].told[-1]


def test_why_tells_the_group_and_the_nearest_on_the_other_side(tmp_path: Path) -> None:
    alike = [{"prompt": f"{LONG} to {town}", "answer": town} for town in ("Rome", "Oslo", "Bern")]
    found = made(tmp_path, [*RECORDS[:20], *alike])
    row = told(found, "rows.jsonl:21")
    said = row.events[-1].told
    assert said[0] == f"{row.now}: the hash of a prompt of its group fell there"
    assert "with 2 rows" in said[1]
    assert {sentence.rpartition(" ")[2] for sentence in said[2:4]} == {"rows.jsonl:22", "rows.jsonl:23"}
    assert all(float(sentence.split()[0]) >= 0.7 for sentence in said[2:4])
    assert said[4].startswith("of all prompts in t")
    side = {line["line"]: side for side in ledger.SIDES for line in store.read_jsonl(found[-1] / f"{side}.jsonl")}
    assert side[int(said[4].rpartition(":")[2])] != row.now


def test_why_finds_a_row_by_its_id_before_and_after_a_change(tmp_path: Path) -> None:
    found = made(tmp_path, RECORDS)
    for step in found[:2]:
        row = next(row for row in store.read_rows(step / "rows.jsonl") if row.line == 45)
        assert told(found, row.id[:10]).where == "rows.jsonl:45"
    first = store.read_rows(found[0] / "rows.jsonl")[3]
    assert [one.where for one in history.of(found, first.id, {})] == ["rows.jsonl:4", "rows.jsonl:43"]


@pytest.mark.parametrize(
    ("query", "what"),
    [("rows.jsonl:48", "no record was read at"), ("other.jsonl:4", "no record was read at"),
     ("0123456789abcdef", "no row has the id"), ("abc", "names no row"), ("the first", "names no row"),
     (f"rows.jsonl:{'9' * 5000}", "names no row")],
)  # fmt: skip
def test_why_of_no_row_is_a_clear_error(tmp_path: Path, query: str, what: str) -> None:
    with pytest.raises(DataError, match=what):
        history.of(made(tmp_path, RECORDS), query, {})


def test_a_place_may_be_a_path(tmp_path: Path) -> None:
    assert told(made(tmp_path, RECORDS), str(tmp_path / "rows.jsonl:7")).where == "rows.jsonl:7"


def test_diff_counts_each_kind_of_change(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    before = made(tmp_path / "a", RECORDS[:30])
    changed = [dict(record) for record in RECORDS[2:33]]
    changed[4]["answer"] = "something else"
    changed[5]["prompt"] = changed[5]["prompt"].upper()
    after = made(tmp_path / "b", changed, {"near_duplicates": None}, test=0.5)
    found = difference.of(before, after, {"split.split": "data.split", "clean.clean": "data.clean"})
    assert (found.added, found.removed, found.answered_otherwise, found.asked_otherwise) == (3, 2, 1, 1)
    assert found.same == 26
    assert sum(found.after.rows.values()) == sum(found.before.rows.values()) + found.added - found.removed
    assert {"data.split.test: 0.3 -> 0.5", "data.clean.near_duplicates: 0.9 -> null"} <= set(found.settings)
    sides = [
        {row.prompt[0]["content"]: side for side in ledger.SIDES for row in store.read_rows(v[-1] / f"{side}.jsonl")}
        for v in (before, after)
    ]
    same = [prompt for prompt in sides[0].keys() & sides[1].keys() if prompt != "question 6 about thing 36"]
    moved = Counter((sides[0][prompt], sides[1][prompt]) for prompt in same if sides[0][prompt] != sides[1][prompt])
    assert {(old, new): count for old, new, count in found.moved} == moved
    (sample,) = found.samples["answered_otherwise"]
    assert sample.before is not None
    assert sample.after is not None
    assert (sample.before.answer, sample.after.answer) == ("answer 6", "something else")
    assert {s.before.prompt for s in found.samples["removed"] if s.before} == {r["prompt"] for r in RECORDS[:2]}


def test_diff_of_rows_that_repeat_counts_each(tmp_path: Path) -> None:
    keep = {"duplicates": "keep", "near_duplicates": None}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    before = made(tmp_path / "a", [*RECORDS[:20], RECORDS[0], RECORDS[0]], keep)
    after = made(tmp_path / "b", [*RECORDS[:20], RECORDS[0], RECORDS[1]], keep)
    found = difference.of(before, after, {})
    assert (found.same, found.added, found.removed, found.moved) == (21, 1, 1, [])


def test_diff_of_other_steps_compares_what_both_have(tmp_path: Path) -> None:
    whole = made(tmp_path, RECORDS)
    found = difference.of(whole[:2], whole, {})
    assert found.before == found.after
    assert found.before.step == "clean"
    assert (found.same, found.added, found.removed, found.settings, found.samples) == (43, 0, 0, [], {})


@pytest.fixture
def small(project: Callable[..., Path], base: object) -> Path:
    """A project whose rows are tokenised, with a duplicate and a broken line."""
    path = project(lines=40)
    data = path.parent / "data.jsonl"
    data.write_text(data.read_text() + data.read_text().splitlines()[0] + '\n{"message": "half\n')
    tunesmith.run(path, until="format")
    return path


def test_the_verbs_on_a_tokenised_project(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.parent)
    monkeypatch.setenv("COLUMNS", "80")
    runner = CliRunner()
    for arguments in (["data"], ["data", "."], ["data", "ledger", "tunesmith.yaml"], ["data", "output"]):
        done = runner.invoke(app, arguments, catch_exceptions=False)
        assert "42 records = " in " ".join(done.stdout.split())
        assert max(map(len, done.stdout.splitlines())) <= 80
    machine = json.loads(runner.invoke(app, ["data", "--json"]).stdout)
    assert list(machine["steps"]) == ["load", "clean", "split", "format"]
    assert machine["tokens"]["train"]["tokens"] == tunesmith.data(".").tokens["train"]["tokens"] > 0
    said = runner.invoke(app, ["data", "why", "data.jsonl:41"], catch_exceptions=False).stdout
    assert "same as data.jsonl:1" in said
    first = store.read_rows(next(finished.of(Path("output"), ["format"])) / "train.jsonl")[0]
    (row,) = tunesmith.data_why(f"data.jsonl:{first.line}")
    assert row.id == first.id
    assert "are learnt" in row.events[-1].told[-1]
    tunesmith.run(".", until="split", set=["data.split.test=0.4"])
    assert list(tunesmith.data(".").steps) == ["load", "clean", "split"]
    changed = tunesmith.data_diff()
    assert changed.settings == ["data.split.test: 0.2 -> 0.4"]
    assert (changed.added, changed.removed) == (0, 0)
    assert changed.moved
    shown = runner.invoke(app, ["data", "diff"], catch_exceptions=False).stdout
    assert "data.split.test: 0.2 -> 0.4" in shown
    back = tunesmith.data_diff(changed.after.identity[:8], changed.before.identity)
    assert back.settings == ["data.split.test: 0.4 -> 0.2"]


def test_refusals_of_the_verbs(project: Callable[..., Path]) -> None:
    path = project()
    with pytest.raises(ResourceError, match="no finished step of the data"):
        tunesmith.data(path)
    tunesmith.run(path, until="clean")
    with pytest.raises(ConfigError, match="no version `previous`"):
        tunesmith.data_diff(project=path)
    for nowhere in (path.parent / "nosuch.yaml", "tickets.jsonl:17", path.parent / "data.jsonl:3"):
        with pytest.raises(ConfigError, match="is no project"):
            tunesmith.data(nowhere)
    with pytest.raises(ConfigError, match="no version `beef`"):
        tunesmith.data_diff("beef", project=path)
    store.write_json(path.parent / "output/steps/load/gone", {})
    folder = next(finished.of(path.parent / "output", ["load"])).folder
    folder.rename(folder.with_name("moved-away"))
    with pytest.raises(ResourceError, match="is gone"):
        tunesmith.data(path)
