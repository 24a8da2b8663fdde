"""The growing step: the exam stays as it is, nothing is lost, and the certificate is made anew."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from grown import SIDES, grown, lines, reasons_of, row, rows_of, splits
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.core import certificate, finished, store
from tunesmith.core.clean_section import Clean
from tunesmith.core.data_section import Noise
from tunesmith.core.errors import DataError
from tunesmith.core.step import Artifact
from tunesmith.data.growing import mix
from tunesmith.data.growing.noise import noisy
from tunesmith.data.telling import history

QUESTIONS = [f"How do I return parcel {i * 7919:x} that came {'abcdefgh'[i % 8] * 4} late to me?" for i in range(48)]
GENERAL = [f"Tell me something about the number {i * i * 7919} and its neighbours" for i in range(40)]


def some(count: int) -> list[Any]:
    return [row(QUESTIONS[i], f"answer {i % 5}", i + 1) for i in range(count)]


def test_validation_and_test_pass_through_byte_for_byte(tmp_path: Path) -> None:
    before = splits(tmp_path, some(48), validation=0.2, test=0.2)
    everything = {
        "balance": {"cap": 4, "weights": {"answer 0": 2}},
        "synthesise": {"noise": {}},
        "mix": {"sources": [{"path": lines(tmp_path / "general.jsonl", GENERAL)}], "share": 0.3},
    }
    after = grown(before, everything)
    for side in SIDES[1:]:
        assert (after / f"{side}.jsonl").read_bytes() == (before / f"{side}.jsonl").read_bytes() != b""
        assert after.summary[side] == before.summary[side]
    assert after.summary["train"] == len(rows_of(after)) != before.summary["train"]


def test_the_certificate_is_made_anew_and_keeps_what_the_split_found(tmp_path: Path) -> None:
    before = splits(tmp_path, some(48), validation=0.2, test=0.2)
    after = grown(before, {"synthesise": {"noise": {}}})
    old, new = certificate.require(before.folder), certificate.require(after.folder)
    assert {fact: new[fact] for fact in old if fact != "files"} == {fact: old[fact] for fact in old if fact != "files"}
    assert new["grown"] == {
        "training_rows": after.summary["train"],
        "held_out_rows": before.summary["validation"] + before.summary["test"],
        "leaks": 0,
    }
    assert "none is like one of the exam" in after.summary["vouched"]
    (after / "train.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match="is not the file that was certified"):
        certificate.require(after.folder)


def test_a_split_that_was_tampered_with_is_not_grown(tmp_path: Path) -> None:
    before = splits(tmp_path, some(48), test=0.2)
    (before / "test.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match="is not the file that was certified"):
        grown(before, {"balance": {"cap": 1}})


def test_a_leak_that_gets_through_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last look does not rely on the looks before it."""
    before = splits(tmp_path, [*some(30), row("What does the exam ask in its only question?", pin="test")])
    path = lines(tmp_path / "general.jsonl", ["What does the exam ask in its only question?"])
    monkeypatch.setattr(mix.known.Exam, "knows", lambda exam, folders: {})
    with pytest.raises(AssertionError, match="1 rows of the exam"):
        grown(before, {"mix": {"sources": [{"path": path}]}})


def test_a_noisy_row_that_is_like_the_exam_is_dropped(tmp_path: Path) -> None:
    """Its parent is not: typing faults make of it what the exam asks."""
    parent = row("May I bring my folding bicycle along on the last night ferry to the islands", pin="train")
    exam = noisy(parent.messages[0]["content"], Noise(rate=1), seed=int(parent.id, 16))
    before = splits(tmp_path, [parent, *some(20), row(exam, pin="test")])
    assert before.summary["train"] == 21  # so that the split saw no likeness
    after = grown(before, {"synthesise": {"noise": {"rate": 1}}})
    assert reasons_of(after) == {"prompt like one in test": 1}
    [dropped] = store.read_jsonl(after / "dropped.jsonl")
    assert (dropped["parents"], dropped["shape"], dropped["stage"]) == ([parent.id], "synthetic:noise", "growing")


def test_nothing_left_to_train_on_is_refused(tmp_path: Path) -> None:
    before = splits(tmp_path, some(5))
    with pytest.raises(DataError, match="no training row is left after growing") as error:
        grown(before, {"balance": {"weights": {f"answer {i}": 0 for i in range(5)}}})
    assert error.value.why == "5 weighted down by label"


def test_the_order_of_the_parts_is_balance_grow_mix(tmp_path: Path) -> None:
    """Repeats are no seeds, and the share of the mix counts all that came before it."""
    before = splits(tmp_path, some(40))
    path = lines(tmp_path / "general.jsonl", GENERAL)
    parts = {"balance": {"weights": {"answer 0": 3}}, "synthesise": {"noise": {}}}
    after = grown(before, {**parts, "mix": {"sources": [{"path": path}], "share": 0.25}})
    shapes = [r.shape for r in rows_of(after)]
    assert shapes[:56] == ["messages"] * 56
    assert shapes[56:96] == ["synthetic:noise"] * 40
    assert after.summary["mix"]["wanted"] == 32
    assert len(shapes) == 56 + 40 + 32


def histories(after: Artifact, query: str) -> list[history.History]:
    output = after.folder.parents[2]
    return history.of([next(finished.of(output, [name])) for name in ("split", "grow")], query, {})


def test_a_rows_children_and_repeats_have_histories_of_their_own(tmp_path: Path) -> None:
    """All stand at its place. The id of one names it alone, also where they are too many to be told at once."""
    parent = row("Which of the boats may carry my folding bicycle over to the far islands today", "That one.", 7)
    noise = {"noise": {"per_row": 12, "rate": 0.3}, "max_per_parent": 12}
    after = grown(splits(tmp_path, [parent]), {"balance": {"weights": {"That one.": 3}}, "synthesise": noise})
    children = [r for r in rows_of(after) if r.parents]
    assert len(children) == 12
    assert [len(histories(after, child.id)) for child in children] == [1] * 12
    [child] = histories(after, children[-1].id)
    assert [event.told for event in child.events] == [["added here, to train", f"made from {parent.id}"]]
    assert [one.events[-1].told[-1] for one in histories(after, parent.id)] == [
        "kept as it was",
        *["repeated to balance labels"] * 2,
    ]
    all_of_them = histories(after, "auto.jsonl:7")
    assert (len(all_of_them), [one.more for one in all_of_them]) == (10, [0] * 9 + [5])


def test_a_row_that_was_made_and_dropped_is_told_as_such(tmp_path: Path) -> None:
    path = lines(tmp_path / "general.jsonl", [*GENERAL, "What does the exam ask in its only question?"])
    before = splits(tmp_path, [*some(30), row("What does the exam ask in its only question?", pin="test")])
    [found] = histories(grown(before, {"mix": {"sources": [{"path": path}]}}), f"general.jsonl:{len(GENERAL) + 1}")
    assert found.events[0].told == ["added here", "dropped at mixing: prompt like one in test, 1.00 like test.jsonl:1"]


choices = st.fixed_dictionaries(
    {},
    optional={
        "balance": st.fixed_dictionaries({"cap": st.integers(1, 9), "weights": st.just({"answer 0": 1.5})}),
        "synthesise": st.fixed_dictionaries(
            {"noise": st.fixed_dictionaries({"per_row": st.integers(1, 3), "rate": st.sampled_from([0.1, 0.9])})},
            optional={"max_share": st.sampled_from([0.1, 0.5]), "max_per_parent": st.integers(1, 2)},
        ),
        "mix": st.fixed_dictionaries({"share": st.sampled_from([0.1, 0.6]), "sources": st.just([{"path": "general"}])}),
    },
)


@settings(max_examples=8)
@given(choices, st.integers(5, 48))
def test_nothing_is_lost_and_a_second_run_makes_the_same(settings: dict[str, Any], count: int) -> None:
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        made = []
        for folder in map(Path, (one, other)):
            path = lines(folder / "general.jsonl", GENERAL)
            wanted = (
                {**settings, "mix": {**settings["mix"], "sources": [{"path": path}]}} if "mix" in settings else settings
            )
            before = splits(folder, some(count), test=0.2)
            after = grown(before, wanted)
            dropped = list(store.read_jsonl(after / "dropped.jsonl"))
            assert before.summary["train"] + after.summary["made"] == len(rows_of(after)) + len(dropped)
            assert after.summary["dropped"] == len(dropped)
            assert all(item["reason"] and item["stage"] for item in dropped)
            made.append(((after / "train.jsonl").read_bytes(), (after / "dropped.jsonl").read_bytes()))
        assert made[0] == made[1]


def test_what_new_rows_must_be_follows_cleaning(tmp_path: Path) -> None:
    """Personal data that noise leaves in a row is treated as cleaning treats it."""
    rows = [row(f"{QUESTIONS[i]} Write to ann.lee{i}@example.com please", "yes", i + 1) for i in range(9)]
    before = splits(tmp_path, rows)
    after = grown(before, {"synthesise": {"noise": {}}}, Clean(personal_data="drop"))
    assert reasons_of(after) == {"personal data": 9}
