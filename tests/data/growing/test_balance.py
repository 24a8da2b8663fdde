"""Caps and weights: what they keep, that nothing is lost, and that the same rows are kept whatever their order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
import pytest
from grown import grown, reasons_of, row, rows_of, splits
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tunesmith.core import store
from tunesmith.core.data_section import Balance, Grow
from tunesmith.core.errors import DataError
from tunesmith.core.records import Row
from tunesmith.data.growing import balance, topics
from tunesmith.data.growing.drops import Drops

THEMES = {
    "cards": ["my bank card was declined at the shop {}", "the new bank card has not arrived {}"],
    "weather": ["will it rain in the mountains tomorrow {}", "how much snow and rain fell on the mountains {}"],
    "cooking": ["how long do I boil potatoes for the soup {}", "which herbs go into a potato soup {}"],
}


def run(folder: Path, rows: list[Row], **options: Any) -> tuple[list[Row], list[dict[str, Any]], dict[str, Any]]:
    """The balanced rows, the dropped ones, and the summary."""
    folder = Path(mkdtemp(dir=folder))
    store.write_rows(folder / "train.jsonl", rows)
    with Drops(folder / "dropped.jsonl") as drops:
        chosen = Balance.model_validate(options)
        told = balance.run(chosen, folder / "train.jsonl", folder / "balanced.jsonl", folder, drops)
    return store.read_rows(folder / "balanced.jsonl"), list(store.read_jsonl(folder / "dropped.jsonl")), told


def labelled(**counts: int) -> list[Row]:
    return [row(f"{label} {i}", label, i + 1) for label, count in counts.items() for i in range(count)]


def answers(rows: list[Row]) -> dict[str, int]:
    return dict(Counter(r.answer for r in rows))


def test_a_cap_keeps_at_most_so_many_rows_of_a_label(tmp_path: Path) -> None:
    kept, dropped, told = run(tmp_path, labelled(a=30, b=10, c=3), cap=10)
    assert answers(kept) == {"a": 10, "b": 10, "c": 3}
    assert Counter((d["reason"], d["stage"]) for d in dropped) == {("over the cap of its label", "balancing"): 20}
    assert dropped[0]["detail"] == "label a: 30 rows, at most 10"
    assert told["values"]["a"] == {"before": 30, "after": 10}


def test_a_weight_keeps_a_share_or_repeats_and_says_so(tmp_path: Path) -> None:
    kept, dropped, told = run(tmp_path, labelled(a=40, b=10, c=4), weights={"a": 0.25, "b": 2.5})
    assert answers(kept) == {"a": 10, "b": 25, "c": 4}
    assert {d["reason"] for d in dropped} == {"weighted down by label"}
    again = [r for r in kept if r.changes == ["repeated to balance labels"]]
    assert (len(again), {r.answer for r in again}, told["repeats"]) == (15, {"b"}, 15)
    assert set(Counter(r.id for r in kept if r.answer == "b").values()) == {2, 3}


def test_the_cap_holds_after_the_weights(tmp_path: Path) -> None:
    kept, dropped, _ = run(tmp_path, labelled(a=40, b=10), weights={"b": 3, "a": 0.5}, cap=15)
    assert answers(kept) == {"a": 15, "b": 15}
    assert {d["reason"] for d in dropped} == {"over the cap of its label"}


def test_a_field_of_json_answers_is_the_label(tmp_path: Path) -> None:
    made = [{"team": "it", "n": i} for i in range(9)] + [{"team": 4, "n": i} for i in range(5)] + [{"n": 1}, [2]]
    rows = [row(f"prompt {i}", json.dumps(answer), i) for i, answer in enumerate(made)]
    kept, _, told = run(tmp_path, rows, field="team", cap=2)
    assert {name: told["values"][name]["after"] for name in told["values"]} == {"it": 2, "4": 2, "(none)": 2}
    assert len(kept) == 6
    with pytest.raises(DataError, match="no answer has the field `taem`"):
        run(tmp_path, rows, field="taem", cap=2)


def test_lengths_are_bins_of_equally_many_rows(tmp_path: Path) -> None:
    rows = [row("word " * i, "yes", i) for i in range(1, 101)]
    kept, _, told = run(tmp_path, rows, by="length", groups=4, weights={"1": 0.2}, cap=20)
    assert [told["values"][str(i)]["before"] for i in range(1, 5)] == [25] * 4
    assert told["values"]["1"] == {"before": 25, "after": 5, "told": "2 to 26 words"}
    assert len(kept) == 5 + 3 * 20
    assert run(tmp_path, rows, by="length", groups=2, cap=20)[2]["values"].keys() == {"1", "2"}


def test_topics_are_found_and_told_by_their_words(tmp_path: Path) -> None:
    rows = [
        row(text.format(i), "yes", i)
        for theme, count in zip(THEMES, (60, 30, 20))
        for i in range(count)
        for text in [THEMES[theme][i % 2]]
    ]
    _, _, told = run(tmp_path, rows, by="topic", groups=3, cap=20)
    assert [told["values"][str(i)]["before"] for i in (1, 2, 3)] == [60, 30, 20]
    assert [its["after"] for its in told["values"].values()] == [20, 20, 20]
    for name, word in (("1", "bank"), ("2", "mountains"), ("3", "soup")):
        assert word in told["values"][name]["told"]


def test_topics_are_the_same_in_every_run_and_fewer_where_texts_are_few() -> None:
    texts = [text.format(i) for i in range(30) for its in THEMES.values() for text in its]
    first, again = topics.clusters(texts, 5), topics.clusters(iter(texts), 5)
    assert np.array_equal(first.topic_N, again.topic_N)
    assert first.words == again.words
    assert len(topics.clusters(["the same text"] * 9, 5).words) == 1


def test_a_weight_for_a_value_that_no_row_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training row has the value `bb`") as error:
        run(tmp_path, labelled(a=3, b=3), weights={"bb": 2})
    assert error.value.why == "the values are `a`, `b`"


@pytest.mark.parametrize(
    ("options", "words"), [({}, "write `cap` or `weights`"), ({"by": "topic", "field": "x", "cap": 1}, "`by: label`")]
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Grow.model_validate({"balance": options})


texts = st.text("ab 1", min_size=1, max_size=6)
options = st.fixed_dictionaries(
    {"by": st.sampled_from(["label", "length", "topic"]), "cap": st.integers(1, 6)},
    optional={"groups": st.integers(2, 5)},
)


@settings(max_examples=40)
@given(st.lists(st.tuples(texts, st.sampled_from("xyz")), min_size=1, max_size=30), options, st.data())
def test_nothing_is_lost_and_the_order_of_the_file_does_not_matter(
    pairs: list[tuple[str, str]], options: dict[str, Any], data: st.DataObject
) -> None:
    rows = [row(prompt, answer, i) for i, (prompt, answer) in enumerate(pairs)]
    if options["by"] == "label":
        options["weights"] = {rows[0].answer: data.draw(st.sampled_from([0, 0.3, 1, 2.5]))}
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        kept, dropped, told = run(Path(one), rows, **options)
        shuffled = data.draw(st.permutations(rows))
        again, _, _ = run(Path(other), list(shuffled), **options)
    assert len(rows) + told["made"] == len(kept) + len(dropped)
    assert Counter({r.line for r in kept} | {d["line"] for d in dropped}) == Counter(r.line for r in rows)
    assert not {r.line for r in kept} & {d["line"] for d in dropped}
    if options["by"] != "topic":  # whose first centre is drawn among the rows as they stand
        assert Counter(r.id for r in kept) == Counter(r.id for r in again)


def test_the_step_writes_what_balancing_leaves(tmp_path: Path) -> None:
    before = splits(tmp_path, labelled(a=30, b=4))
    after = grown(before, {"balance": {"cap": 5}})
    assert answers(rows_of(after)) == {"a": 5, "b": 4}
    assert reasons_of(after) == after.summary["reasons"] == {"over the cap of its label": 25}
    assert "25 drops to balance labels" in after.summary["headline"]


def test_values_that_yaml_reads_as_no_text_are_meant_as_they_are_written() -> None:
    weights = {2: 0.5, True: 2, None: 1, 0.5: 1, "a": 3}
    assert Balance.model_validate({"weights": weights}).weights == {"2": 0.5, "true": 2, "null": 1, "0.5": 1, "a": 3}
