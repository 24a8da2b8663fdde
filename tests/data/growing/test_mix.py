"""General rows against forgetting: how many, which, and that none of them is the exam's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grown import grown, lines, reasons_of, row, rows_of, splits
from pydantic import ValidationError

from tunesmith.core import store
from tunesmith.core.clean_section import Clean
from tunesmith.core.data_section import Mix, Source
from tunesmith.core.errors import DataError
from tunesmith.core.step import Artifact
from tunesmith.data import load
from tunesmith.data.growing.mix import MIXED
from tunesmith.models import base as bases

EXAM = "Which documents does a traveller need to rent a bicycle in the old harbour?"
GENERAL = [f"Tell me something about the number {i * i * 7919} and its neighbours" for i in range(60)]


def own(folder: Path, count: int = 40) -> Artifact:
    rows = [row(f"{i:x}{i * 31:x} {'abcdefgh'[i % 8] * 5} question", "ok", i + 1, "train") for i in range(count)]
    return splits(folder, [*rows, row(EXAM, pin="test"), row("What is it that one validates with?", pin="validation")])


def mixed(before: Artifact, path: Path, **settings: Any) -> Artifact:
    return grown(before, {"mix": {"sources": [{"path": path}], **settings}})


@pytest.mark.parametrize(("share", "wanted"), [(0.1, 4), (0.2, 10), (0.5, 40)])
def test_the_share_is_that_of_the_resulting_rows(tmp_path: Path, share: float, wanted: int) -> None:
    before = own(tmp_path)
    after = mixed(before, lines(tmp_path / "general.jsonl", GENERAL), share=share)
    rows = rows_of(after)
    general = [r for r in rows if r.changes == [MIXED]]
    assert (len(general), len(rows)) == (wanted, 40 + wanted)
    assert {r.source for r in general} == {"general.jsonl"}
    assert after.summary["mix"]["share"] == pytest.approx(share, abs=0.01)
    assert reasons_of(after) == {"more than the share of the mix": 60 - wanted}
    assert before.summary["train"] + after.summary["made"] == len(rows) + after.summary["dropped"]


def test_which_rows_are_mixed_in_follows_from_their_content(tmp_path: Path) -> None:
    first, again = (
        {r.id for r in rows_of(mixed(own(tmp_path / name), lines(tmp_path / f"{name}.jsonl", prompts)))[40:]}
        for name, prompts in (("a", GENERAL), ("b", GENERAL[::-1]))
    )
    assert first == again
    assert len(first) == 4


def test_general_rows_that_are_like_the_exam_are_dropped_and_counted(tmp_path: Path) -> None:
    planted = [EXAM.replace("old", "new"), EXAM.upper(), "What is it that one validates with, then?"]
    after = mixed(own(tmp_path), lines(tmp_path / "general.jsonl", [*GENERAL, *planted]), share=0.5)
    assert after.summary["mix"]["like_the_exam"] == 3
    told = {d["messages"][0]["content"]: d for d in store.read_jsonl(after / "dropped.jsonl")}
    assert [told[text]["reason"] for text in planted] == ["prompt like one in test"] * 2 + [
        "prompt like one in validation"
    ]
    assert told[planted[1]]["detail"] == "1.00 like test.jsonl:1"
    assert not {r.messages[0]["content"] for r in rows_of(after)} & set(planted)


def test_too_few_general_rows_are_told_with_how_far_they_came(tmp_path: Path) -> None:
    after = mixed(own(tmp_path), lines(tmp_path / "general.jsonl", GENERAL[:5]), share=0.5)
    assert after.summary["warnings"] == [
        "the mix is 11.1% of the training rows and not 50.0%: 5 of 40 general rows are there; add 35 to "
        "data.grow.mix.sources, or lower data.grow.mix.share."
    ]
    assert "5 of 40 general rows" in after.summary["headline"]


def test_general_rows_are_cleaned_and_what_cannot_be_read_is_kept_apart(tmp_path: Path) -> None:
    path = lines(tmp_path / "general.jsonl", [*GENERAL, *GENERAL[:2]])
    path.write_text(path.read_text() + '{"prompt": "what next", "answer": ""}\nno json\n')
    after = grown(own(tmp_path), {"mix": {"sources": [{"path": path}], "share": 0.6}})
    assert after.summary["mix"]["quarantined"] == 1
    assert [item["line"] for item in store.read_jsonl(after / "quarantine.jsonl")] == [64]
    assert (reasons_of(after)["duplicate"], reasons_of(after)["empty answer"]) == (2, 1)


def test_what_cannot_be_mixed_names_its_own_settings(tmp_path: Path) -> None:
    path = tmp_path / "general.jsonl"
    path.write_text("no json\n" * 9)
    with pytest.raises(DataError) as error:
        mixed(own(tmp_path), path)
    assert "grow/mix/load/quarantine.jsonl" in error.value.next
    assert next((tmp_path / "failed/grow/mix/load").glob("quarantine.jsonl")).is_file()


@pytest.mark.parametrize(
    "options", [{"path": "general.jsonl", "split": "test"}, {"path": "general.jsonl", "split": "validation"}]
)
def test_general_rows_can_only_train(tmp_path: Path, options: dict[str, str]) -> None:
    lines(tmp_path / "general.jsonl", GENERAL)
    with pytest.raises(ValidationError, match="general rows train"):
        Mix.model_validate({"sources": [{**options, "path": tmp_path / options["path"]}]})


def test_where_the_base_has_no_answer_the_next_prompt_is_asked(
    tmp_path: Path, tiny: bases.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model never comes to an end: every prompt is tried, each is dropped, and how far it came is told."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = lines(tmp_path / "general.jsonl", GENERAL[:12])
    settings = {"mix": {"sources": [{"path": path}], "answers": "base", "max_tokens": 3, "share": 0.1}}
    after = grown(own(tmp_path), settings, base=tiny)
    assert reasons_of(after) == {"cut off at 3 tokens": 12}
    assert after.summary["mix"]["mixed"] == 0
    assert "0 of 4 general rows are there" in after.summary["warnings"][0]


def test_the_base_answers_in_its_own_words(tmp_path: Path, base: bases.Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prompts = ["What is the capital of France?", "Which city is the capital of France?"]
    path = lines(tmp_path / "general.jsonl", prompts)
    settings = {"mix": {"sources": [{"path": path}], "answers": "base", "max_tokens": 24, "share": 0.03}}
    after = grown(own(tmp_path), settings, base=base)
    answered = [r for r in rows_of(after) if r.source == "general.jsonl"]
    assert len(answered) == 1
    assert all(r.answer == "The capital of France is Paris." for r in answered)
    assert all(r.changes == [f"{MIXED}; answered by the base"] for r in answered)
    assert reasons_of(after) == {"more than the share of the mix": 1}


@pytest.mark.slow
def test_what_the_base_says_keeps_the_rules_of_cleaning(
    tmp_path: Path, base: bases.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "general.jsonl"
    store.write_jsonl(path, [{"prompt": "What is the capital of France?", "answer": "Paris."}])
    settings = {"mix": {"sources": [{"path": path}], "answers": "base", "max_tokens": 24}}
    after = grown(own(tmp_path), settings, Clean.model_validate({"length": {"max_answer": 5}}), base=base)
    assert reasons_of(after) == {"answer too long": 1}  # the base says it in six words
    assert after.summary["mix"]["mixed"] == 0


def test_notes_of_general_rows_and_what_could_not_be_read_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "general.jsonl"
    texts = [f"Write to {name}@post.example.org about {name * 9}" for name in ("ann", "bob", "cyd")]
    path.write_text("".join(f'{{"prompt": "{text}", "answer": "Done."}}\n' for text in texts) + "no json\n")
    rows = [row(f"{i:x}{i * 31:x} {'abcdefgh'[i % 8] * 5} question", "ok", i + 1) for i in range(9)]
    parts = {"balance": {"weights": {"ok": 2}}, "mix": {"sources": [{"path": path}], "share": 0.1}}
    after = grown(splits(tmp_path, rows), parts, max_quarantined=0.5)
    assert after.summary["changes"] == {"repeated to balance labels": 9, "contains: email": 2, MIXED: 2}
    assert after.summary["reasons"] == {"more than the share of the mix": 1, "not valid JSON": 1}
    assert "9 repeats and 0 drops to balance labels; 2 general rows (10.0%); 1 quarantined" in after.summary["headline"]
    assert after.summary["groups"] == {"validation": 0, "test": 0}  # nobody looked for groups among new rows


def test_a_general_row_of_a_thread_that_the_exam_knows_is_dropped(tmp_path: Path) -> None:
    """Rows with one value of `fields.group` never stand on two sides, also where they are of different files."""
    sources = []
    for name, records in {"own": [("train", "a"), ("exam", "b")], "general": [("other", "b"), ("more", "c")]}.items():
        path = tmp_path / f"{name}.jsonl"
        store.write_jsonl(path, ({"prompt": f"what of {text * 4}?", "answer": "x", "of": of} for text, of in records))
        sources.append({"path": path, "fields": {"group": "of"}})
    (tmp_path / "raw").mkdir()
    load.run([Source.model_validate(sources[0])], None, 0.0, tmp_path / "raw")
    own, exam = store.read_rows(tmp_path / "raw/rows.jsonl")
    before = splits(tmp_path, [own, replace(exam, split="test")])
    after = grown(before, {"mix": {"sources": sources[1:], "share": 0.5}})
    assert [r.messages[0]["content"] for r in rows_of(after)[1:]] == ["what of moremoremoremore?"]
    [dropped] = store.read_jsonl(after / "dropped.jsonl")
    assert (dropped["reason"], dropped["detail"]) == ("thread also in test", "of one thread with own.jsonl:2")
