"""Passages: nothing lost, nothing too long, code and tables whole, each with the place and the titles that it has."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.reading import documents
from tunesmith.data.reading.documents import Document
from tunesmith.data.reading.passages import count_words, passages

ROOT = Path(__file__).parents[3]


def words(count: int, word: str = "word") -> str:
    return " ".join(f"{word}{i}" for i in range(count))


def sentences(count: int, length: int = 10) -> str:
    return " ".join(f"S{i} {words(length - 1)}." for i in range(count))


def document(text: str, markdown: bool = True, **more: object) -> Document:
    return Document("a.md", 1, text, markdown=markdown, **more)  # type: ignore[arg-type]


def test_sections_are_passages_with_their_titles_and_lines() -> None:
    text = f"# Shop\n\n{words(80)}\n\n## *Returns* of `goods`\n\n{words(90)}\n\n### Fees\n\n{words(70)}\n"
    found = list(passages(document(text), 100))
    assert [(p.titles, p.line, p.where) for p in found] == [
        (("Shop",), 1, "a.md:1"),
        (("Shop", "Returns of goods"), 5, "a.md:5"),
        (("Shop", "Returns of goods", "Fees"), 9, "a.md:9"),
    ]
    assert found[2].text == f"### Fees\n\n{words(70)}"


def test_short_sections_join_their_neighbours_and_long_ones_do_not() -> None:
    text = f"# A\n\n{words(15)}\n\n## B\n\n{words(60)}\n\n## C\n\nTwo words.\n\n# D\n\n{words(90)}\n"
    found = list(passages(document(text), 100))
    assert [p.titles for p in found] == [("A",), ("D",)]
    assert found[0].text == text[: text.index("# D")].strip()


def test_a_heading_without_text_goes_with_what_follows() -> None:
    text = f"# A\n\n{words(90)}\n\n## B\n\n### C\n\n```\n{words(120)}\n```\n\nAs one sees.\n"
    assert [(p.titles, p.line) for p in passages(document(text), 100)] == [(("A",), 1), (("A", "B"), 5)]


def test_a_heading_is_never_parted_from_what_it_stands_above() -> None:
    text = f"# A\n\n{sentences(30)}\n\n## B\n\n{sentences(9)}\n\n```\n{words(300)}\n```\n"
    for longest in range(20, 120, 7):
        assert not any(p.text.split("\n")[-1].startswith("#") for p in passages(document(text), longest))


@pytest.mark.parametrize(
    "block", [f"```\n{words(50)}\n\n# no heading\n{words(50)}\n```", "|a|b|\n|-|-|\n" + "|1|2|\n" * 80]
)
def test_code_and_tables_are_never_divided(block: str) -> None:
    text = f"# A\n\n{words(30)}\n\n{block}\n\n{words(30)}"
    found = list(passages(document(text), 40))
    assert sum(block.strip() in p.text for p in found) == 1
    assert {p.titles for p in found} == {("A",)}


def test_a_long_paragraph_is_divided_between_sentences_into_like_parts() -> None:
    found = list(passages(document(sentences(23), markdown=False), 100))
    assert len(found) == 3
    assert all(60 <= p.words <= 100 and p.text.endswith(".") for p in found)
    assert " ".join(p.text for p in found) == sentences(23)


def test_overlap_repeats_whole_sentences_of_the_passage_before() -> None:
    found = list(passages(document(sentences(20)), 50, overlap=25))
    for before, after in pairwise(found):
        repeated, _, _ = after.text.partition("\n\n")
        assert repeated.startswith("S")
        assert before.text.endswith(repeated)
        assert count_words(repeated) == 20
    assert all(p.words <= 75 for p in found)


def test_front_matter_gives_the_title_and_no_text() -> None:
    (found,) = passages(document(f'---\ntitle: "My page"\ntags: [a]\n---\n\nIntro {words(30)}\n'))
    assert (found.titles, found.text, found.line) == (("My page",), f"Intro {words(30)}", 6)


def test_scripts_without_spaces_are_counted_by_characters() -> None:
    text = "今天天气很好。" * 50
    assert count_words(text) == 350
    found = list(passages(document(text, markdown=False), 70))
    assert all(p.words <= 70 for p in found)
    assert "".join(p.text for p in found) == text


def test_the_same_text_has_the_same_id_wherever_it_stands() -> None:
    one, two = (
        passages(document("# A\n\n" + words(50))),
        passages(Document("b.md", 7, "# A\n\n" + words(50), markdown=True)),
    )
    first, second = next(one), next(two)
    assert first.id == second.id
    assert (second.source, second.line) == ("b.md", 7)


def test_a_record_has_one_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\\n\\ntwo"}\n')
    (read,) = documents.read(path)
    assert isinstance(read, Document)
    assert [(p.line, p.unit) for p in passages(read, 1)] == [(1, "record"), (1, "record")]


LINE = st.sampled_from([
    "# One", "## Two", "#### Four #", "Under\n-----", "", "", "plain words here", "- item one\n- item two", "1. first",
    "```py\ncode here\n\nmore = 1\n```", "| a | b |\n|---|---|\n| 1 | 2 |", "> quoted", "    indented", "[ref]: http://x.y",
    "A sentence. Another one! " + words(30), "---", "<div>html</div>", "中文没有空格。" * 4, "~~~\nnever closed",
])  # fmt: skip


@given(st.lists(LINE, max_size=25).map("\n".join), st.integers(4, 60), st.booleans())
def test_without_overlap_each_word_stands_in_one_passage(text: str, longest: int, markdown: bool) -> None:
    found = list(passages(document(text, markdown), longest))
    assert "".join("".join(p.text.split()) for p in found) == "".join(_without_front_matter(text, markdown).split())
    for passage in found:
        first = passage.text.split("\n")[0].strip()
        assert first in text.split("\n")[passage.line - 1]
        assert passage.words <= longest or re.search(r"```|~~~|\||<div>|    |---", text)


def _without_front_matter(text: str, markdown: bool) -> str:
    return re.sub(r"\A---[ \t]*\n.*?\n---[ \t]*(\n|\Z)", "", text, flags=re.DOTALL) if markdown else text


def test_the_projects_own_pages_come_to_passages_of_sensible_lengths() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        (read,) = documents.read(path)
        assert isinstance(read, Document)
        found = list(passages(read))
        assert all(10 <= p.words <= 300 or "|" in p.text or "```" in p.text for p in found), path
        lines = path.read_text(encoding="utf-8").split("\n")
        assert all(lines[p.line - 1].endswith(p.text.split("\n")[0]) for p in found), path
