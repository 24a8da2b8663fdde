"""A model chooses among contradicting answers: what it is asked over the network, and what becomes of the rows."""

import json
from typing import Any

import faults
import pytest
from served import serving

from tunesmith.core import store
from tunesmith.core.clean_section import Clean
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact
from tunesmith.data import pipeline


def row(prompt: str, answer: str, line: int, **more: Any) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer, **more}]
    return Row(messages, "t.csv", line, "columns")


ROWS = [
    row("Up or down?", "up", 1), row("Up or down?", "down", 2), row("up or down", "up", 3),
    row("Left or right?", "left", 4), row("Left or right?", "right", 5), row("Here?", "yes", 6),
    row("Call it.", "", 7, tool_calls=[{"type": "function", "function": {"name": "f", "arguments": "{}"}}]),
    row("Call it.", "", 8, tool_calls=[{"type": "function", "function": {"name": "g", "arguments": "{}"}}]),
]  # fmt: skip


def likes(*words: str):
    """A judge that names the answer with one of these words, wherever it stands; the first one if there is none."""

    def think(messages: list[dict[str, str]], max_tokens: int, seed: int) -> tuple[str, int, int, bool]:
        answers = messages[-1]["content"].split("# Answer ")[1:]
        best = next((n for n, answer in enumerate(answers, 1) if any(word in answer for word in words)), 1)
        return json.dumps({"reason": "so it is", "best": best}), 9, 9, True

    return think


@pytest.fixture
def clean(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(url: str, rows: list[Row] = ROWS, **options: Any) -> tuple[list[int], dict[int, str]]:
        store.write_rows(tmp_path / "rows.jsonl", rows)
        (tmp_path / "out").mkdir(exist_ok=True)
        judge = {"contradictions": "judge", "judge": {"url": url, "model": "small"}, "duplicates": "keep"}
        settings = Clean.model_validate({**judge, "near_duplicates": None, "single_answer": "yes", **options})
        summary = pipeline.run(settings, Artifact("load", "0", tmp_path, "done"), tmp_path / "out")
        store.write_json(tmp_path / "out/summary.json", summary)
        dropped = {line["line"]: line["detail"] for line in store.read_jsonl(tmp_path / "out/dropped.jsonl")}
        return [r.line for r in store.read_rows(tmp_path / "out/rows.jsonl")], dropped

    return run


def test_the_answer_that_the_judge_chooses_in_both_orders_stays(clean):
    """It has no liking for left or right and names the first one: then it cannot tell."""
    with serving(likes("down", '"g"')) as served:
        kept, dropped = clean(served.url)
        assert kept == [2, 6, 8]
        assert dropped == {
            1: "the judge chose t.csv:2",
            3: "the judge chose t.csv:2",
            4: "the judge cannot tell; see t.csv:5",
            5: "the judge cannot tell; see t.csv:4",
            7: "the judge chose t.csv:8",
        }
        assert len(served.asked) == 6
        assert clean(served.url)[0] == [2, 6, 8]
        assert len(served.asked) == 6


def test_a_judge_that_does_not_answer_is_told_from_one_that_cannot_tell(clean, tmp_path):
    """Its rows are dropped, and the run says so and how to ask again."""

    def one(body: dict[str, Any], seen: int) -> faults.Fault:
        return "500" if "Left" in body["messages"][-1]["content"] and not outage_is_over else "none"

    outage_is_over = False
    with serving(likes("down", '"g"', "left")) as served, faults.between(served.url, one) as proxy:
        judge = {"url": proxy.url, "model": "small", "retries": 0}
        kept, dropped = clean(proxy.url, judge=judge)
        assert kept == [2, 6, 8]
        assert dropped[4] == "the judge did not answer; see t.csv:5"
        summary = store.read_json(tmp_path / "out/summary.json")
        assert summary["warnings"] == [
            "The judge did not answer about 1 prompts, whose rows were dropped: "
            "`tunesmith run --force clean` asks it again."
        ]
        outage_is_over = True
        assert clean(proxy.url, judge=judge)[0] == [2, 4, 6, 8]


def test_nobody_is_asked_where_several_answers_may_be_right(clean):
    with serving(likes("down")) as served:
        kept, dropped = clean(served.url, single_answer="no")
        assert (len(kept), dropped, served.asked) == (len(ROWS), {}, [])


def test_personal_data_that_goes_to_a_server_is_told_of(clean, tmp_path, capsys):
    with serving(likes("down")) as served:
        told = (
            f"rows go to {served.url} with the personal data in them: email (2); data.clean.personal_data replaces it"
        )
        clean(served.url, rows=[*ROWS, row("Who?", "a@x.com", 9), row("And who?", "b@x.com", 10)])
        assert store.read_json(tmp_path / "out/summary.json")["warnings"] == [told]
        assert told in capsys.readouterr().err
        clean(served.url, rows=[*ROWS, row("Who?", "a@x.com", 9)], personal_data="replace")
        assert store.read_json(tmp_path / "out/summary.json")["warnings"] == []
