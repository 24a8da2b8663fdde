"""What may be seen of a row: the beginnings of texts, and nothing that looks like an address or a number of someone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core import store
from tunesmith.core.finished import Finished
from tunesmith.core.records import Row
from tunesmith.data.cleaning import pii
from tunesmith.web import excerpts


@pytest.mark.parametrize(
    "text",
    [
        "ann@mail.example", '{"to": "ann.other+x@mail.example"}', "+44 20 7946 0958", "(0)171 123-45-67",
        "4111 1111 1111 1111",
        "DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "07700900123",
    ],
)  # fmt: skip
def test_personal_data_is_masked(text: str) -> None:
    shown = excerpts.masked(f"before {text} after").text
    assert "[masked]" in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert not pii.find(shown)
    assert sum(character.isdigit() for character in shown) < 4


@pytest.mark.parametrize("text", ["order FH-44127", "2025-02-11 03:14:07 export", "a @ b", "1, 2, 3", "12 of 345"])
def test_what_is_no_one_s_stays(text: str) -> None:
    assert excerpts.masked(text) == excerpts.Excerpt(text, len(text), False)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("ann.other@mail.example.org", "a***@m***.org"), ("4111 1111 1111 1111", "**** **** **** **11"),
        ("Ann Other", "A***"), ("12-34", "1***"), ("sk-AbCd1234efGh", "**-**********Gh"),
    ],
)  # fmt: skip
def test_a_mask_keeps_what_a_kind_is_known_by(value: str, shown: str) -> None:
    assert excerpts.mask(value) == shown


@given(st.integers(0, 200))
def test_a_number_at_the_cut_is_masked_too(start: int) -> None:
    shown = excerpts.masked("x " * (start // 2) + "call +44 20 7946 0958 or ann@mail.example now" + " y" * 200)
    assert shown.cut
    assert len(shown.text) <= 200
    assert "7946" not in shown.text
    assert "ann" not in shown.text


def test_masking_a_long_line_is_quick() -> None:
    shown = excerpts.masked("a" * 100_000 + "@" + "1" * 100_000)
    assert shown.characters == 200_001
    assert len(shown.text) == 200


def test_an_excerpt_says_that_it_is_cut() -> None:
    assert excerpts.excerpt("abc", 3) == excerpts.Excerpt("abc", 3, False)
    assert excerpts.excerpt("abcd", 3) == excerpts.Excerpt("abc", 4, True)


@pytest.mark.parametrize(
    ("row", "personal"),
    [
        ({"changes": []}, False),
        ({"changes": ["contradicts a.jsonl:3"], "reason": "duplicate"}, False),
        ({"changes": ["replaced: email"]}, True),
        ({"changes": ["contains: phone"]}, True),
        ({"changes": [], "reason": "personal data"}, True),
    ],
)
def test_personal_rows_are_told_by_their_notes(row: dict[str, object], personal: bool) -> None:
    assert excerpts.is_personal(row) == personal


def held(text: str, line: int, *changes: str, **more: object) -> dict[str, object]:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    return {**Row(messages, "a.jsonl", line, "messages", changes=list(changes)).to_json(), **more}


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({"stage": "growing", "reason": "the reply is not JSON", "detail": "Zoe Marlowe says hello"}, ""),
        ({"stage": "balancing", "reason": "over the cap of its label", "detail": "label Zoe Marlowe: 9 rows"}, ""),
        (
            {"stage": "growing", "reason": "prompt like one in test", "detail": "0.80 like b.jsonl:3"},
            "0.80 like b.jsonl:3",
        ),
        ({"stage": "judge", "reason": "judged below 3", "detail": "1: Zoe Marlowe is not helped"}, "1"),
    ],
)
def test_a_detail_tells_no_text_of_a_row_with_personal_data(tmp_path: Path, told: dict[str, str], shown: str) -> None:
    store.write_jsonl(tmp_path / "dropped.jsonl", [held("a", 1, "contains: person", **told), held("b", 2, **told)])
    [loss] = excerpts.dropped(tmp_path / "dropped.jsonl", "")
    assert [sample.detail for sample in loss.samples] == [shown, told["detail"]]


def test_personal_data_of_rows_that_a_later_step_made_is_counted_once(tmp_path: Path) -> None:
    """What cleaning noted stands in the files of all later steps, and repeats have it again."""
    mail = "write to {}@post.example.org"
    read = [held(mail.format("ann"), 1), held("nothing", 2)]
    clean = [held(mail.format("ann"), 1, "contains: email"), held("nothing", 2)]
    grown = [*clean, clean[0], held(mail.format("bob"), 9, "contains: email")]
    steps = []
    for name, rows, made in (("load", read, 0), ("clean", clean, 0), ("grow", grown, 2)):
        (tmp_path / name).mkdir()
        store.write_jsonl(tmp_path / name / "rows.jsonl", rows)
        steps.append(Finished(tmp_path / name, {"step": name, "summary": {"made": made}}))
    [found] = excerpts.personal(steps)
    assert found.rows == {"noted": 2}
    assert found.masks == ["a***@p***.org", "b***@p***.org"]
