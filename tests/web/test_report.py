"""The report says what the records say, adds up, shows no one's data, and stands whatever the rows hold."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core import store
from tunesmith.core.clean_section import Clean
from tunesmith.core.project import Gate
from tunesmith.core.records import Row
from tunesmith.result import Figure, Show
from tunesmith.web import report

VOID = {"meta", "link", "br", "img", "input", "wbr"}
NASTY = """</script><script>alert(1)</script><img src=x onerror=alert(2)>"'&{{ 7 * 7 }}{% raw %}"""


@dataclass
class Page(HTMLParser):
    """A page as a reader has it: its texts, tables and elements. Every element must be closed in its order."""

    source: str
    open: list[str] = field(default_factory=list)
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    sections: dict[str, str] = field(default_factory=dict)
    tables: list[list[list[str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.section = "top"
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)
        if tag == "section":
            self.section = str(dict(attrs)["id"])
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.sections[self.section] = self.sections.get(self.section, "") + data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def table(self, first: str) -> list[list[str]]:
        """The table whose first cell says `first`, its cells without runs of white space."""
        return next([[" ".join(c.split()) for c in row] for row in t] for t in self.tables if t[0] and t[0][0] == first)


def written(found: Show) -> Page:
    output = Path(found.artifacts["report"]).parent
    assert report.write(output, found) == output / "report.html"
    return Page((output / "report.html").read_text(encoding="utf-8"))


def line(prompt: str, answer: Any = "fine") -> str:
    return json.dumps({"prompt": prompt, "answer": answer if isinstance(answer, str) else json.dumps(answer)})


def cell(figure: Figure, form: str) -> str:
    if figure.value is None:
        return "–"
    bounds = f"{figure.low:.3f} to {figure.high:.3f}" if figure.low is not None else "too few rows for bounds"
    return f"{figure.value:{form}}{bounds}"


def test_every_figure_of_show_stands_in_its_place(finish: Any) -> None:
    found = finish(base=lambda row: "{}" if "3" in row.messages[-2]["content"] else "no idea")
    page = written(found)
    rows = {row[0]: row[1:4] for row in page.table("metric")[1:]}
    assert rows.keys() == found.metrics.tuned.keys()
    for name in rows:
        base, tuned, gain = (getattr(found.metrics, part)[name] for part in ("base", "tuned", "gain"))
        assert rows[name] == [cell(base, ".3f"), cell(tuned, ".3f"), cell(gain, "+.3f")]
    assert found.verdict in page.sections["top"]
    for gate in found.gates:
        assert gate.sentence in page.sections["verdict"]
    assert [row[:2] for row in page.table("setting")[1:]] == [
        ["rank", "16"], ["learning_rate", "0.0002"], ["patience", "none"]]  # fmt: skip
    assert [row[0] for row in page.table("step")[1:]] == [step.step for step in found.steps]
    for figure in ("412.3", "7.8", "3.3 GB", "4,884,480", "0.457", "best step 30", "ran out of memory"):
        assert figure in page.sections["training"]


def test_the_flow_adds_up_to_the_rows_of_show(finish: Any) -> None:
    good = [line(f"lamp {i}", {"product": "lamp"}) for i in range(6)]
    found = finish(train=[*good, good[0], good[0], "{broken", line("no answer", ""), line("prose", "not JSON")])
    flow = written(found).table("stage")[1:]
    left = 0
    for _, change, remain, _ in flow[:-1]:
        left += int(change.replace(",", ""))
        assert int(remain) == left
    rows = found.rows
    assert [rows.records, rows.quarantined, rows.dropped] == [6 + 5 + 3 + 8, 1, 4]
    assert flow[-1][2:] == [str(left), f"{rows.train} train + {rows.validation} validation + {rows.test} test"]
    assert left == rows.train + rows.validation + rows.test
    assert sum(int(n) for row in flow for n in re.findall(r"\((\d+)\)", row[3])) == rows.quarantined + rows.dropped
    assert ["exact duplicates", "-2"] in [row[:2] for row in flow]
    assert sum(rows.reasons.values()) == rows.quarantined + rows.dropped


def test_dropped_rows_are_shown_where_they_stand(finish: Any) -> None:
    bad = [line(f"question {i}", f"prose {i}") for i in range(5)]
    data = written(finish(train=[line("lamp", {"a": 1}), *bad, "{broken"])).sections["data"]
    assert "answer is not JSON: 5" in data
    assert all(f"train.jsonl:{n}" in data for n in (2, 3, 4, 7))
    assert "question 2" in data
    assert "question 3" not in data  # three for each reason
    assert "{broken" in data


def test_rows_by_outcome(finish: Any) -> None:
    def tuned(row: Row) -> str:
        number = int(re.findall(r"\d+", row.messages[-2]["content"])[0])
        near = re.sub("low|high", "sometimes", row.answer)
        return row.answer if number < 4 else near if number < 6 else "nothing"

    def base(row: Row) -> str:
        return row.answer if int(re.findall(r"\d+", row.messages[-2]["content"])[0]) in (0, 6) else "nothing"

    page = written(finish(base=base, tuned=tuned))
    verdict, answers = (" ".join(page.sections[part].split()) for part in ("verdict", "answers"))
    for count in ("3 fixed", "2 improved", "1 right before", "1 no better", "1 broken"):
        assert count in verdict
    assert "Broken The only one." in answers
    assert "Fixed All 3." in answers
    assert "Still wrong All 3." in answers
    assert [attrs["class"] for tag, attrs in page.elements if tag == "article"] == ["row json"] * 7
    assert page.source.count("<mark>&#34;sometimes&#34;</mark>") == 2  # the wrong urgency of the two that come near


def test_only_the_first_answers_of_each_kind_are_shown(finish: Any) -> None:
    test = [line(f"bell {i}", {"bell": i}) for i in range(30)]
    broken = written(finish(test=test, base=lambda row: row.answer, tuned=lambda row: "?"))
    assert "The first 10 of 30." in broken.sections["answers"]
    assert sum(tag == "article" for tag, _ in broken.elements) == 10


def test_fields_of_both_models_are_compared(finish: Any) -> None:
    page = written(finish(base=lambda row: json.dumps({"product": "hub", "colour": 1})))
    fields = {row[0]: row[1:] for row in page.table("") if len(row) == 8}
    assert fields["urgency"] == ["8", "–", "1.000", "0.000", "1.000", "0.000", "1.000"]
    assert fields["product"][1:3] == ["0.375", "1.000"]
    assert fields["(unexpected)"] == ["0", "0.000", "–", "–", "–", "0.000", "–"]


def test_the_page_asks_for_nothing_and_runs_nothing(finish: Any) -> None:
    found = finish()
    page = written(found)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img", "iframe", "object", "base", "form"})
    links = [str(attrs.get("href") or attrs.get("src")) for _, attrs in page.elements if {"href", "src"} & attrs.keys()]
    output = Path(found.artifacts["report"]).parent
    for link in links:
        assert link == "data:," or link[1:] in page.sections or (output / link).exists(), link
    assert not re.search(r"url\(|@import|https?:", page.source)
    policy = [attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_rows_cannot_break_the_page(finish: Any) -> None:
    nasty = line(NASTY, {NASTY: NASTY})
    found = finish(
        train=[nasty, nasty, "{" + NASTY, line(NASTY, NASTY), line("a question of another kind", {"a": 1})],
        test=[line(NASTY + str(i), {NASTY: i}) for i in range(3)],
        tuned=lambda row: NASTY,
    )
    page = written(found)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img"})
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert NASTY in page.sections["answers"]
    assert NASTY in page.sections["data"]


def test_long_texts_are_cut_and_say_so(finish: Any) -> None:
    long = "x" * 100_000
    found = finish(
        train=[line(long, {"a": 1}), line(f"b {long}", long), "{" + long], test=[line(long + "y", {"a": long})],
        base=lambda row: long, tuned=lambda row: row.answer,
    )  # fmt: skip
    page = written(found)
    assert len(page.source) < 100_000
    assert max(map(len, re.findall("x+", page.source))) <= 2_000
    assert "Cut here: the whole text has 100,001 characters." in page.sections["answers"]
    assert "Cut here: the whole text has 100,000 characters." in page.sections["answers"]


PERSONAL = ("ann.other@mail.example", "+44 20 7946 0958", "DE89 3704 0044 0532 0130 00")


@pytest.mark.parametrize("mode", ["replace", "drop", "report"])
def test_personal_data_is_not_shown(finish: Any, mode: str) -> None:
    held = [line(f"lamp {i}: reach me at {value}", {"lamp": value}) for i, value in enumerate(PERSONAL)]
    unread = ["{" + value for value in PERSONAL]
    early = [line(f"door {i} {value}", f"not JSON {value}") for i, value in enumerate(PERSONAL)]
    plain, asked = ([line(f"{what} {i}", {what: i}) for i in range(3)] for what in ("bell", "buzz"))
    clean = Clean.model_validate({"answer": "json", "near_duplicates": None, "personal_data": mode})
    page = written(finish(train=[*held, *held, *unread, *early, *plain],
                          test=[line(f"sign: {PERSONAL[0]}", {"a": 1}), *asked], clean=clean))  # fmt: skip
    for value in PERSONAL:
        assert value not in page.source
        assert value.replace(" ", "") not in page.source
    assert "[masked]" in page.sections["data"]
    assert ("1 row holds personal data" in page.sections["answers"]) == (mode != "drop")
    assert "reach me" not in page.sections["data"] + page.sections["tokens"]


def test_learnt_tokens_are_marked_and_the_end_is_seen(finish: Any) -> None:
    page = written(finish())
    kinds = [str(attrs.get("class")) for tag, attrs in page.elements if tag == "span"]
    answer = len(['{"product":', '"hub",', '"urgency":', '"low"}'])
    assert [kinds.count(kind) for kind in ("learnt", "end")] == [3 * answer, 3]
    assert page.sections["tokens"].count("<|end|>") == 3


def test_a_long_row_shows_its_two_ends(finish: Any) -> None:
    page = written(finish(train=[line("word " * 5000, {"a": 1})]))
    assert "tokens …" in page.sections["tokens"]
    assert "<|end|>" in page.sections["tokens"]
    assert len(page.source) < 200_000


def test_without_validation_rows(finish: Any) -> None:
    page = written(finish(validation=[]))
    assert "There are no validation rows" in page.sections["training"]
    assert "best step" not in page.sections["training"].replace("best step 40", "")
    assert ["validation", "0", "no rows"] in page.table("side")


def test_without_test_rows(finish: Any) -> None:
    found = finish(test=[])
    page = written(found)
    assert found.verdict == "NOT ENOUGH DATA"
    assert "NOT ENOUGH DATA" in page.sections["top"]
    assert "nothing was measured" in page.sections["top"]
    assert "no test rows" in page.sections["answers"]
    assert all(row[1:4] == ["–"] * 3 for row in page.table("metric")[1:])


def test_free_text_and_too_few_rows_for_bounds(finish: Any) -> None:
    found = finish(test=[line(f"bell {i}", f"ring {i}") for i in range(3)], clean=Clean(near_duplicates=None),
                   demands=[Gate(metric="rouge_l", margin=0.9), Gate(metric="perplexity")])  # fmt: skip
    page = written(found)
    assert "too few rows for bounds" in page.sections["verdict"]
    assert "There are no fields" in page.sections["verdict"]
    assert "ROUGE-L 1.000" in page.sections["answers"]
    assert not page.elements.count(("mark", {}))


def test_a_failed_gate_is_named(finish: Any) -> None:
    page = written(finish(base=lambda row: row.answer, tuned=lambda row: "?"))
    badges = [attrs["class"] for tag, attrs in page.elements if str(attrs.get("class")).startswith("badge")]
    assert badges == ["badge FAIL", "badge small FAIL"]
    assert "does not reach" in page.sections["top"]


def test_ten_thousand_rows_stay_below_a_megabyte(finish: Any) -> None:
    lost = [line(f"{i} {'y' * 2_000}", "z" * 2_000) for i in range(2_000)]
    repeats = [line("lamp", {"a": 1})] * 2_000
    broken = [f'{{"prompt": {i} {"w" * 500}' for i in range(1_000)]
    found = finish(
        train=[*lost, *repeats, *broken], base=lambda row: row.answer, tuned=lambda row: "x" * 5_000,
        clean=Clean.model_validate({"answer": "json", "near_duplicates": None, "personal_data": "drop"}),
    )  # fmt: skip
    folders = {step.step: Path(step.folder) for step in found.steps}
    for name in ("verdict/scores", "base/predictions", "tuned/predictions", "train/metrics"):
        step, file = name.split("/")
        rows = list(store.read_jsonl(folders[step] / f"{file}.jsonl"))
        copies = ({**rows[i % len(rows)], "step": i} if step == "train" else {**rows[i % len(rows)], "id": str(i)}
                  for i in range(10_000))  # fmt: skip
        store.write_jsonl(folders[step] / f"{file}.jsonl", copies)
    page = written(found)
    assert len(page.source.encode()) < 1_000_000
    assert "The first 10 of 10,000." in page.sections["answers"]
    assert "duplicate: 1,999" in page.sections["data"]


def test_a_dropped_row_stands_beside_the_one_that_it_repeats(finish: Any) -> None:
    good = line("What does the blue lamp cost?", {"a": 1})
    data = written(finish(train=[good, line("another", {"a": 2}), good])).sections["data"]
    assert "same as train.jsonl:1" in data
    assert data.count("What does the blue lamp cost?") == 2


def test_a_row_with_personal_data_is_not_shown_beside_another(finish: Any) -> None:
    """Two rows contradict each other, and only the answer of one of them holds an address."""
    said = [line("who is it?", {"a": "ann"}), line("who is it?", {"a": PERSONAL[0]}), line("bell", {"a": 1})]
    data = written(finish(train=said)).sections["data"]
    assert "contradicts: 2" in data
    assert "contradicts train.jsonl:2" in data
    assert "Not shown: it holds personal data." in data
    assert PERSONAL[0] not in data


@pytest.mark.parametrize(("mode", "became"), [("replace", "replaced"), ("drop", "dropped"), ("report", "noted")])
def test_the_kinds_of_personal_data_are_told_with_masks(finish: Any, mode: str, became: str) -> None:
    held = [line(f"lamp {i}: reach me at {value}", {"lamp": i}) for i, value in enumerate(PERSONAL)]
    clean = Clean.model_validate({"answer": "json", "near_duplicates": None, "personal_data": mode})
    page = written(finish(train=[*held, line("bell", {"a": 1})], clean=clean))
    found = {row[0]: row[1:] for row in page.table("kind")[1:]}
    assert found["email"] == ["1", became, "a***@m***.example"]
    assert found["phone"] == ["1", became, "+** ** **** **58"]
    assert found["iban"] == ["1", became, "**** **** **** **** **** 00"]


def test_the_certificate_stands_beside_a_random_split(finish: Any) -> None:
    known = [line(f"bell number {i} is broken", {"a": i}) for i in range(3)]
    found = finish(train=[*known, line("lamp", {"a": 1})])
    data = " ".join(written(found).sections["data"].split())
    assert "Certified: no exam prompt is like one that trains (3 of 8 were" in data
    assert "this split0 of 8" in data.replace("split 0", "split0")
    assert "the files as they came3 of 8" in data.replace("came 3", "came3")


def test_lengths_and_files_are_told(finish: Any) -> None:
    page = written(finish(train=[line("one two three", {"a": 1}), line("word " * 60, {"a": 2})]))
    assert "Words of a prompt, less its system message; the longest has 60." in " ".join(page.sections["data"].split())
    assert ["train.jsonl", "2", "0", "0", "2", "0", "0"] in page.table("file")


def test_nothing_else_is_left_beside_the_report(finish: Any) -> None:
    found = finish()
    output = Path(found.artifacts["report"]).parent
    before = {path.name for path in output.iterdir()}
    written(found)
    assert {path.name for path in output.iterdir()} - before == {"report.html"}
