"""The judge step against a real server with a model behind it, over a proxy that breaks what can break."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faults
import pytest
import served
from hypothesis import given
from hypothesis import strategies as st

import tunesmith
from tunesmith.core import store
from tunesmith.core.config import load_project
from tunesmith.core.data_section import Judge
from tunesmith.core.errors import ConfigError, DataError, ResourceError
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact, _stable
from tunesmith.data import judge
from tunesmith.data.cleaning import rubric
from tunesmith.data.cleaning.rubric import Verdict
from tunesmith.models import base as bases
from tunesmith.models.endpoint import Client, Reply

_NUMBER = re.compile(r"number (\d+)")


def scored(messages: list[dict[str, str]], seed: int) -> str:
    """1, 2, 3, 4, 5, 1 and so on, by the number in the question."""
    number = int(_NUMBER.search(messages[-1]["content"])[1])  # type: ignore[index]
    return json.dumps({"reason": f'row {number} is "so"', "score": number % 5 + 1})


@pytest.fixture(scope="module")
def think(tiny: bases.Base) -> served.Think:
    return served.model_of(tiny, scored)


@pytest.fixture
def server(think: served.Think) -> Iterator[served.Served]:
    with served.serving(think) as running:
        yield running


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "cache_dir", lambda: tmp_path / "cache")


def row_of(prompt: str, answer: str, line: int) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Row(messages, "data.jsonl", line, "messages")


def written(folder: Path, count: int, answer: Callable[[int], str] = lambda i: f"answer {i}") -> Artifact:
    """Rows as cleaning leaves them."""
    clean = folder / "clean"
    clean.mkdir(exist_ok=True)
    store.write_rows(clean / "rows.jsonl", (row_of(f"number {i}", answer(i), i + 1) for i in range(count)))
    return Artifact("clean", "0", clean, "done")


def judged(folder: Path, clean: Artifact, url: str, **settings: Any) -> dict[str, Any]:
    """The summary, checked against the files: nothing is lost, and nothing is counted twice."""
    endpoint = {"url": url, "model": "small", "timeout_seconds": 20, **settings.pop("endpoint", {})}
    out = folder / "judged"
    out.mkdir(exist_ok=True)
    summary = judge.run(Judge.model_validate({"endpoint": endpoint, "sample": 5, **settings}), None, clean, out)
    before, kept, dropped = (
        [line["id"] for line in store.read_jsonl(path)]
        for path in (clean / "rows.jsonl", out / "rows.jsonl", out / "dropped.jsonl")
    )
    scores = list(store.read_jsonl(out / "scores.jsonl"))
    assert [line["id"] for line in scores] == before
    assert sorted(kept + dropped) == sorted(before)
    assert kept == [id for id in before if id in set(kept)]
    assert summary["rows_in"] == len(before) == summary["kept"] + summary["dropped"]
    assert (summary["kept"], summary["dropped"]) == (len(kept), len(dropped))
    assert summary["scores"] == {str(n): sum(line["score"] == n for line in scores) for n in range(1, 6)}
    assert summary["abstentions"] == Counter(line["abstained"] for line in scores if line["score"] is None)
    return summary


def kept_lines(folder: Path) -> list[int]:
    return [line["line"] for line in store.read_jsonl(folder / "judged/rows.jsonl")]


def test_rows_below_the_score_are_dropped_with_the_judges_reason(server: served.Served, tmp_path: Path) -> None:
    clean = written(tmp_path, 23)
    summary = judged(tmp_path, clean, server.url, keep_from=4)
    assert kept_lines(tmp_path) == [i + 1 for i in range(23) if i % 5 + 1 >= 4]
    assert summary["scores"] == {"1": 5, "2": 5, "3": 5, "4": 4, "5": 4}
    assert summary["reasons"] == {"judged below 4": 15}
    assert summary["headline"] == "8 of 23 rows kept; dropped: 15 judged below 4"
    first = next(store.read_jsonl(tmp_path / "judged/dropped.jsonl"))
    assert (first["reason"], first["detail"]) == ("judged below 4", '1: row 0 is "so"')
    assert Row.from_json({k: v for k, v in first.items() if k not in ("reason", "detail")}).line == 1
    assert (summary["repaired"], summary["abstained"], summary["self_consistency"]) == (0, 0, 1.0)
    assert len(server.asked) == 23 + 5 == summary["usage"]["asked"]
    lines = (clean / "rows.jsonl").read_bytes().splitlines()
    assert (tmp_path / "judged/rows.jsonl").read_bytes().splitlines() == [
        line for i, line in enumerate(lines) if i % 5 + 1 >= 4
    ]


def test_another_limit_asks_for_nothing_again_and_another_rubric_for_all(server: served.Served, tmp_path: Path) -> None:
    clean = written(tmp_path, 12)
    judged(tmp_path, clean, server.url)
    summary = judged(tmp_path, clean, server.url, keep_from=5)
    assert kept_lines(tmp_path) == [5, 10]
    assert len(server.asked) == 12 + 5
    assert summary["usage"]["cached"] == 12 + 5
    assert all(line["cached"] for line in store.read_jsonl(tmp_path / "judged/scores.jsonl"))
    judged(tmp_path, clean, server.url, rubric="Every answer should rhyme.")
    assert len(server.asked) == 2 * (12 + 5)
    assert "Every answer should rhyme." in server.asked[-1]["messages"][0]["content"]
    assert Judge().rubric in server.asked[0]["messages"][0]["content"]


def test_faults_of_network_and_server_change_no_verdict(server: served.Served, tmp_path: Path) -> None:
    """Every kind that passes, some of them twice; and then answers in fences, or broken."""
    clean = written(tmp_path, 24)
    judged(tmp_path, clean, server.url, keep_from=3)
    calm = kept_lines(tmp_path)

    def plan(body: dict[str, Any], seen: int) -> faults.Fault:
        number = int(_NUMBER.search(body["messages"][-1]["content"])[1])  # type: ignore[index]
        if seen < 1 + (number % 4 == 0):
            return faults.PASSING[number % len(faults.PASSING)]
        return ("none", "broken answer", "fenced answer")[number % 3]

    endpoint = {"timeout_seconds": 0.8, "concurrency": 24}
    with faults.between(server.url, plan) as proxy:
        summary = judged(tmp_path, clean, proxy.url, keep_from=3, endpoint=endpoint)
    assert kept_lines(tmp_path) == calm
    assert summary["abstained"] == 0
    assert summary["repaired"] == sum(i % 3 != 0 for i in range(24))
    assert set(faults.PASSING) <= set(proxy.done)
    assert summary["usage"]["retried"] >= 24 + 6


@pytest.mark.parametrize("on_abstention", ["keep", "drop"])
def test_where_there_is_no_score_there_is_none(tiny: bases.Base, tmp_path: Path, on_abstention: str) -> None:
    says = {
        0: '{"reason": "x", "score": 5}',
        1: '{"reason": "x", "score": 6}',
        2: '{"reason": "x", "score": "high"}',
        3: '{"reason": "no score"}',
        4: "I would rather not judge this.",
        5: '{"score": true}',
        6: '{"score": 3.5}',
        7: '{"score": "4"}',
    }

    def odd(messages: list[dict[str, str]], seed: int) -> str:
        return says[int(_NUMBER.search(messages[-1]["content"])[1]) % 8]  # type: ignore[index]

    def plan(body: dict[str, Any], seen: int) -> faults.Fault:
        number = int(_NUMBER.search(body["messages"][-1]["content"])[1])  # type: ignore[index]
        return {8: "truncated", 9: "null", 10: "500"}.get(number, "none")  # type: ignore[return-value]

    with served.serving(served.model_of(tiny, odd)) as server, faults.between(server.url, plan) as proxy:
        summary = judged(
            tmp_path, written(tmp_path, 11), proxy.url, on_abstention=on_abstention, endpoint={"retries": 0}
        )
    assert summary["abstentions"] == {
        "its score is not on the scale": 4,
        "its answer has no score": 1,
        "its answer is no JSON": 1,
        "no answer: cut off at 512 tokens": 1,
        "no answer: an empty answer": 1,
        "no answer: status 500": 1,
    }
    assert summary["scores"] == {"1": 0, "2": 0, "3": 0, "4": 1, "5": 1}
    assert kept_lines(tmp_path) == ([1, 8] if on_abstention == "drop" else list(range(1, 12)))
    assert summary["reasons"] == ({"the judge abstained": 9} if on_abstention == "drop" else {})
    assert "no score for 9" in summary["headline"]
    assert summary["warnings"] == [
        "1 rows had no answer: `tunesmith run --force judge` asks about them again",
        "2 rows had an answer that is kept and of no use, which takes more data.judge.endpoint.max_tokens where it is "
        "cut off, or another model",
    ]


def test_a_judge_that_cannot_judge_is_found_out_by_the_sample(tiny: bases.Base, tmp_path: Path) -> None:
    with served.serving(served.model_of(tiny, lambda *_: "As a language model I like all answers.")) as server:
        with pytest.raises(DataError) as error:
            judged(tmp_path, written(tmp_path, 100), server.url, sample=10)
        assert len(server.asked) == 10
    assert "none of 10 rows" in error.value.what
    assert "As a language model I like all answers." in error.value.why


def test_too_dear_a_judge_is_stopped_after_the_sample(server: served.Served, tmp_path: Path) -> None:
    clean = written(tmp_path, 60)
    prices = {"input_price": 1000.0, "output_price": 2000.0, "max_tokens": 60}
    with pytest.raises(ResourceError) as error:
        judged(tmp_path, clean, server.url, endpoint={**prices, "max_cost": 5.0})
    assert len(server.asked) == 10
    spent = sum(1000 * prompt + 2000 * made for prompt, made in server.tokens) / 1e6
    told = re.search(r"judging 55 more rows is projected to cost ([\d.]+), after ([\d.]+) on", error.value.what)
    assert told is not None, error.value.what
    assert float(told[2]) == pytest.approx(spent, rel=1e-3)
    summary = judged(tmp_path, clean, server.url, endpoint={**prices, "max_cost": 100.0})
    assert len(server.asked) == 10 + 55
    assert summary["usage"]["cached"] == 10
    assert summary["projected"]["cost"] == pytest.approx(float(told[1]), rel=1e-3)
    assert summary["actual"]["cost"] == pytest.approx(summary["projected"]["cost"], rel=0.1)
    paid = sum(1000 * prompt + 2000 * made for prompt, made in server.tokens[10:]) / 1e6
    assert summary["actual"]["cost"] == summary["usage"]["cost"] == pytest.approx(paid)


def test_the_sample_is_spread_over_the_file(server: served.Served, tmp_path: Path) -> None:
    judged(tmp_path, written(tmp_path, 24), server.url, sample=4, endpoint={"concurrency": 1})
    first = [_NUMBER.search(body["messages"][-1]["content"])[1] for body in server.asked[:8]]  # type: ignore[index]
    assert first == ["0", "6", "12", "18"] * 2
    assert [body["seed"] for body in server.asked[:8]] == [0] * 4 + [1] * 4
    assert len(server.asked) == 24 + 4


def test_a_judge_that_disagrees_with_itself_is_told_of(tiny: bases.Base, tmp_path: Path) -> None:
    def moody(messages: list[dict[str, str]], seed: int) -> str:
        number = int(_NUMBER.search(messages[-1]["content"])[1])  # type: ignore[index]
        return json.dumps({"reason": "", "score": 3 + (seed if number % 2 else 0)})

    with served.serving(served.model_of(tiny, moody)) as server:
        summary = judged(tmp_path, written(tmp_path, 10), server.url, sample=10)
    assert summary["self_consistency"] == 0.5
    assert summary["judged_twice"] == 10
    assert any("same score to 50%" in warning for warning in summary["warnings"])


def test_a_judge_that_only_likes_length_is_told_of(tiny: bases.Base, tmp_path: Path) -> None:
    def counting(messages: list[dict[str, str]], seed: int) -> str:
        return json.dumps({"reason": "", "score": min(5, 1 + messages[-1]["content"].count("word"))})

    clean = written(tmp_path, 15, lambda i: "word " * (i % 5) + "end")
    with served.serving(served.model_of(tiny, counting)) as server:
        summary = judged(tmp_path, clean, server.url)
        assert summary["length_correlation"] > 0.95
        assert any("follow the length" in warning for warning in summary["warnings"])
    with served.serving(served.model_of(tiny, lambda *_: '{"score": 5}')) as server:
        summary = judged(tmp_path, clean, server.url)
    assert summary["length_correlation"] is None
    assert any("tells none from another" in warning for warning in summary["warnings"])


def test_no_row_left_is_an_error(server: served.Served, tmp_path: Path) -> None:
    clean = written(tmp_path, 1)
    with pytest.raises(DataError) as error:
        judged(tmp_path, clean, server.url)
    assert "all 1 rows were dropped: 1 judged below 3" in error.value.why


def test_a_dead_endpoint_ends_clearly(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as error:
        judged(tmp_path, written(tmp_path, 30), faults.dead_url(), endpoint={"retries": 1})
    assert "does not answer" in error.value.what
    assert "are kept" in error.value.next


@given(st.text(max_size=60) | st.from_regex(r'\{"score": ?[-"0-9./a-z]{1,8},? ?("reason": "[^"]{0,9}"?)?\}?'))
def test_whatever_a_judge_says_is_a_score_on_the_scale_or_an_abstention(text: str) -> None:
    found = rubric.verdict(Reply(text))
    assert (found.score in range(1, 6)) != bool(found.cause)
    assert store.orjson.dumps(found.reason)


def test_an_answer_that_asks_for_a_score_is_part_of_the_question() -> None:
    row = Row([{"role": "user", "content": "Hi {rubric}"}, {"role": "assistant", "content": "{score: 5}"}], "a", 1, "m")
    system, user = rubric.question("Be {brief}.", row).messages
    assert "Be {brief}." in system["content"]
    assert "data" in system["content"]
    assert user["content"].endswith("# Answer to judge\n\n{score: 5}")


def test_what_is_called_is_part_of_what_is_said() -> None:
    """An answer may be nothing but a call: shown without it, the judge would find it empty."""

    def calls(name: str) -> list[dict[str, Any]]:
        return [{"type": "function", "function": {"name": name, "arguments": {"city": "Köln"}}}]

    messages = [
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": "", "tool_calls": calls("where_am_i")},
        {"role": "tool", "content": "Köln"},
        {"role": "assistant", "content": "I look.", "tool_calls": calls("weather")},
    ]
    shown = rubric.question("Be brief.", Row(messages, "a", 1, "m")).messages[-1]["content"]
    before, answer = shown.split("# Answer to judge")
    assert '[assistant]\n[{"type":"function","function":{"name":"where_am_i"' in before
    assert answer.startswith(
        '\n\nI look.\n[{"type":"function","function":{"name":"weather","arguments":{"city":"Köln"}}'
    )


def test_of_several_answers_the_one_is_chosen_that_wins_in_both_orders(tiny: bases.Base, tmp_path: Path) -> None:
    def best(messages: list[dict[str, str]], seed: int) -> str:
        text = messages[-1]["content"]
        if "first" in text:
            return '{"reason": "I take what comes first", "best": 1}'
        if "silent" in text:
            return "hm"
        shown = re.findall(r"# Answer (\d)\n(\w+)", text)
        return json.dumps({"best": next(int(place) for place, answer in shown if answer == "right")})

    with (
        served.serving(served.model_of(tiny, best)) as server,
        Client(Judge.model_validate({"endpoint": {"url": server.url, "model": "small"}}).endpoint, tmp_path) as client,
    ):
        assert judge.choose(client, "which?", ["wrong", "right"]) == 1
        contested = [("which?", ["right", "a", "b"]), ("first?", ["a", "b"]), ("silent?", ["a", "right"])]
        assert [choice.best for choice in judge.choices(client, contested)] == [0, None, None]
    assert len(server.asked) == 2 + 6


def project_of(folder: Path, url: str, rows: int, extra: str = "", personal: tuple[int, ...] = ()) -> Path:
    answers = ("write to me@example.com" if i in personal else "ok" for i in range(rows))
    records = ({"prompt": f"number {i}", "completion": answer} for i, answer in enumerate(answers))
    store.write_jsonl(folder / "data.jsonl", records)
    (folder / "tunesmith.yaml").write_text(
        "name: small\ndata:\n  sources:\n    - path: data.jsonl\n  clean: {near_duplicates: null}\n"
        f"  judge:\n    sample: 4\n    endpoint: {{url: {url}, model: small, concurrency: 4{extra}}}\n"
    )
    return folder / "tunesmith.yaml"


def numbers_asked(server: served.Served) -> Counter[tuple[int, int]]:
    """How often each row was asked about, by number and seed."""
    numbers = (_NUMBER.search(body["messages"][-1]["content"]) for body in server.asked)
    return Counter((int(n[1]), body["seed"]) for n, body in zip(numbers, server.asked) if n)


def test_a_run_that_was_ended_pays_nothing_twice(think: served.Think, base: bases.Base, tmp_path: Path) -> None:
    """Once by Ctrl-C and once by a kill; what was under way then, four requests each time, came to nobody."""
    assert base.folder is not None
    home = tmp_path / "home/tunesmith"
    home.mkdir(parents=True)
    (home / "models").symlink_to(base.folder.parent)
    with served.serving(think, slow_seconds=0.15) as server:
        project_of(tmp_path, server.url, 40)
        command = [sys.executable, "-m", "tunesmith", "run", "--until", "judge"]
        environment = {**os.environ, "XDG_CACHE_HOME": str(home.parent)}
        lost = 0
        for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
            process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment)
            wanted, end = len(server.asked) + 14, time.monotonic() + 60
            while len(server.asked) < wanted:
                assert time.monotonic() < end
                assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
                time.sleep(0.01)
            process.send_signal(number)
            ended = time.monotonic()
            told = process.communicate(timeout=30)[1]
            assert time.monotonic() - ended < 5
            assert process.returncode == status, told
            assert "Traceback" not in told
            kept = len(list((home / "replies").rglob("[!.]*.json")))
            assert kept >= wanted - lost - 14
            assert len(server.asked) - kept - lost <= 4
            lost = len(server.asked) - kept
        again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert again.returncode == 0, again.stderr
        asked = numbers_asked(server)
    assert set(asked) == {(i, 0) for i in range(40)} | {(i, 1) for i in (0, 10, 20, 30)}
    assert len(server.asked) == 44 + lost
    assert "24 of 40 rows kept; dropped: 16 judged below 3" in again.stderr


def test_the_step_stands_between_cleaning_and_the_split(
    server: served.Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: bases.Base
) -> None:
    monkeypatch.setattr(bases, "fetch", lambda *_: base)
    path = project_of(tmp_path, server.url, 20)
    assert [step.step for step in tunesmith.status(path)][:5] == ["load", "clean", "judge", "split", "format"]
    tunesmith.run(path, until="split")
    [split] = (tmp_path / "output/steps/split").glob("[!.]*")
    sides = [store.read_rows(split / f"{side}.jsonl") for side in ("train", "validation", "test")]
    assert sum(map(len, sides)) == 12
    assert tunesmith.why("judge", path, set=["data.judge.keep_from=4"]) == ["data.judge.keep_from: 3 -> 4"]
    states = {step.step: step.state for step in tunesmith.status(path, set=["data.judge.endpoint.concurrency=9"])}
    assert (states["judge"], states["split"]) == ("done", "done")
    with pytest.raises(ConfigError, match="without a `data"):
        tunesmith.run(path, until="judge", set=["data.judge=null"])


def test_a_whole_run_tells_what_the_judge_did(tiny: bases.Base, server: served.Served, tmp_path: Path) -> None:
    short = ["train.epochs=1", "train.evaluations=1", "evaluate.generation.max_new_tokens=2"]
    path = project_of(tmp_path, server.url, 40, personal=(5,))
    shown = tunesmith.run(path, set=[f"model={tiny.folder}", *short])
    assert isinstance(shown, tunesmith.Show)
    assert [step.step for step in shown.steps][1:4] == ["clean", "judge", "split"]
    assert shown.rows.reasons["judged below 3"] == 16
    assert shown.rows.dropped >= 16
    record = store.read_json(Path(shown.artifacts["judge_scores"]).with_name("record.json"))
    assert len(list(store.read_jsonl(Path(shown.artifacts["judge_scores"])))) == 40
    assert len(list(store.read_jsonl(Path(shown.artifacts["dropped_in_judging"])))) == 16
    page = " ".join(Path(shown.artifacts["report"]).read_text().split())
    assert "judged below 3: 16 <small>judging</small>" in page
    assert "2: row 1 is" in page
    assert "row 5 is" not in page, "a judge's words on a row with personal data"
    assert any("email (1)" in warning for warning in record["summary"]["warnings"])


def test_a_key_in_the_project_file_is_refused_and_not_repeated(server: served.Served, tmp_path: Path) -> None:
    path = project_of(tmp_path, server.url, 3, ", key: sk-1234567890abcdef")
    with pytest.raises(ConfigError) as error:
        load_project(path)
    assert "looks like the key itself" in error.value.why
    assert "1234567890abcdef" not in str(error.value)


def test_the_base_is_an_input_only_where_it_judges(tiny: bases.Base, tmp_path: Path) -> None:
    assert _stable(Judge()) == _stable(Judge.model_validate({"endpoint": {"concurrency": 3}}))
    with pytest.raises(DataError, match="none of 3 rows"):  # random weights know no JSON
        judge.run(
            Judge.model_validate({"sample": 3, "endpoint": {"max_tokens": 4}}), tiny, written(tmp_path, 9), tmp_path
        )


def test_a_real_model_that_is_too_small_to_judge_is_found_out(
    base: bases.Base, real_data: Path, tmp_path: Path
) -> None:
    """A hundred million parameters answer the question again, in place of judging its answer: that is no score."""
    found = json.loads((real_data / "instructions/instruction-data.json").read_text())[:40]
    clean = tmp_path / "clean"
    clean.mkdir()
    asked = [f"{row['instruction']}\n{row['input']}".strip() for row in found]
    rows = [row_of(prompt, row["output"], i) for i, (prompt, row) in enumerate(zip(asked, found), 1)]
    store.write_rows(clean / "rows.jsonl", rows)
    with served.serving(served.model_of(base)) as server:
        settings = {"sample": 2, "endpoint": {"max_tokens": 20, "timeout_seconds": 200, "concurrency": 2}}
        with pytest.raises(DataError, match="scored none of 2 rows"):
            judged(tmp_path, Artifact("clean", "0", clean, "done"), server.url, **settings)
        assert len(server.asked) == 2


def test_a_verdict_says_where_it_comes_from() -> None:
    assert rubric.verdict(Reply('{"score": 4, "reason": "ok"}', cached=True)) == Verdict(4, "ok", cached=True)
    assert rubric.verdict(Reply("```json\n{'score': 2}\n```")) == Verdict(2, "", repaired=True)
    assert rubric.verdict(Reply(None, "status 500")).cause == "no answer: status 500"
