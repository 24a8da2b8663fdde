"""Semantic duplicates: who is compared with whom, what each kind of vectors finds, and what a server may do wrong."""

import csv
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core import store
from tunesmith.core.clean_section import Clean
from tunesmith.core.config import load_project
from tunesmith.core.errors import ConfigError, ResourceError
from tunesmith.core.interrupt import Interrupted
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact
from tunesmith.data import pipeline
from tunesmith.data.cleaning import semantic

LOST = "I lost my card while I was shopping in the city yesterday"
SAME = "while I was shopping in the town yesterday I lost my card"
MOVED = "while I was shopping in the city yesterday I lost my card"  # the same letters
OTHER = "please tell me how the exchange rate is worked out"


def row(prompt: str, line: int, answer: str = "lost_card", **more: Any) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Row(messages, "t.jsonl", line, "messages", **more)


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """Cleans rows; gives the summary, and of each dropped line the reason and the detail."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(rows: list[Row], semantic: dict[str, Any] | None, **options: Any) -> tuple[dict, dict[int, tuple]]:
        store.write_rows(tmp_path / "rows.jsonl", rows)
        (tmp_path / "out").mkdir(exist_ok=True)
        settings = Clean.model_validate({"semantic_duplicates": semantic, "near_duplicates": None, **options})
        summary = pipeline.run(settings, Artifact("load", "0", tmp_path, "done"), tmp_path / "out")
        dropped = store.read_jsonl(tmp_path / "out/dropped.jsonl")
        return summary, {line["line"]: (line["reason"], line["detail"]) for line in dropped}

    return run


@pytest.mark.parametrize("embedding", ["characters", "words"])
def test_a_row_that_asks_the_same_in_other_words_goes(clean, embedding):
    rows = [row(LOST, 1), row(OTHER, 2), row(SAME, 3)]
    summary, dropped = clean(rows, {"similarity": 0.6, "embedding": embedding})
    assert dropped.keys() == {3}
    reason, detail = dropped[3]
    assert reason == "semantic duplicate"
    assert detail.endswith("in meaning to t.jsonl:1")
    assert summary["semantic_duplicates"] == {"compared": 3, "groups": 1, "largest_group": 3, "rows": 1}
    assert clean(rows, None)[1] == clean(rows, {"similarity": 1.0, "embedding": embedding})[1] == {}


@pytest.mark.parametrize("other", [
    row(SAME, 2, "another answer"), row(f"{SAME} at 3", 2), row(f"not {SAME}", 2), row(SAME, 2, split="test"),
    row(SAME, 2, tools=[{"type": "function"}]), row(SAME, 2, rejected="worse"),
])  # fmt: skip
def test_rows_that_differ_in_what_counts_both_stay(clean, other):
    assert clean([row(LOST, 1), other], {"similarity": 0.5})[1] == {}


def test_answers_are_compared_by_meaning(clean):
    rows = [row(LOST, 1, '{"a": 1, "b": 2}'), row(SAME, 2, '{"b":2,"a":1.0}'), row(SAME, 3, '{"a": 1}')]
    assert clean(rows, {"similarity": 0.6})[1].keys() == {2}


def test_equal_prompts_are_spared_where_duplicates_are(clean):
    rows = [row(LOST, 1), row(LOST.upper(), 2), row(SAME, 3)]
    assert clean(rows, {"similarity": 0.6}, duplicates="keep")[1].keys() == {3}
    assert {line: why for line, (why, _) in clean(rows, {"similarity": 0.6})[1].items()} == {
        2: "duplicate", 3: "semantic duplicate",
    }  # fmt: skip


@given(st.lists(st.integers(0, 7), min_size=1, max_size=30), st.integers(1, 5), st.sampled_from([0.3, 0.7, 0.99]))
def test_blocks_find_what_one_by_one_finds(choices, rows_at_once, similarity):
    drawn = np.random.default_rng(3).normal(size=(8, 3)).astype(np.float32)
    vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True))[choices]
    kept: list[int] = []
    expected = {}
    for place in range(len(choices)):
        like = next((other for other in kept if vectors[place] @ vectors[other] >= similarity - 1e-6), None)
        if like is None:
            kept.append(place)
        else:
            expected[place] = like
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "_ROWS", rows_at_once)
        found = semantic._repeats(vectors, np.arange(len(choices)), similarity, None)
        assert {later: earlier for later, earlier, _ in found} == expected


@pytest.mark.parametrize(("embedding", "limit"), [("characters", "_MOST_SPARSE"), ("words", "_MOST_DENSE")])
def test_what_would_take_too_long_is_refused_before_it_begins(clean, monkeypatch, embedding, limit):
    monkeypatch.setattr(semantic, limit, 1_000)
    with pytest.raises(ResourceError, match="semantic duplicates among 40 rows take") as caught:
        clean([row(f"{OTHER} {chr(97 + i % 26)}{i // 26 * 'x'}", i) for i in range(40)], {"embedding": embedding})
    assert "40 of them have one answer" in caught.value.why


def test_words_without_the_package_say_what_to_install(clean, monkeypatch):
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(ConfigError, match="wordllama") as caught:
        clean([row(LOST, 1), row(SAME, 2)], {"embedding": "words"})
    assert "tunesmith[semantic]" in caught.value.next


@pytest.mark.parametrize(("section", "words"), [
    ("{embedding: endpoint}", "needs `endpoint"),
    ("{endpoint: {url: 'http://a/v1', model: m}}", "endpoint is not read"),
    ("{embedding: endpoint, endpoint: {url: 'http://a/v1', model: m, temperature: 1}}", "endpoint.temperature"),
])  # fmt: skip
def test_an_endpoint_that_is_not_read_is_refused(project, section, words):
    with pytest.raises(ConfigError) as caught:
        load_project(project(), [f"data.clean.semantic_duplicates={section}"])
    assert words in caught.value.why


def test_paraphrases_and_hard_negatives_by_cosine():
    """What bench/duplicates.py tells of both kinds of vectors, in short: those of words find many paraphrases that
    characters do not, and neither tells a paraphrase from a sentence of which one word is another."""
    with open(Path(__file__).parents[1] / "paraphrases.tsv", newline="", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file, delimiter="\t"))
    same = np.array([pair["same"] == "yes" for pair in pairs])
    assert (same.sum(), (~same).sum()) == (60, 60)
    both = list(semantic.of_words([[pair[side] for pair in pairs] for side in ("one", "two")]))
    one, two = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in both)
    cosines = (one * two).sum(1)
    assert (cosines[same] >= 0.6).mean() > 0.4
    assert (cosines[~same] >= 0.6).mean() > 0.4
    strangers = one[same] @ two[same].T
    np.fill_diagonal(strangers, 0)
    assert (strangers >= 0.6).mean() < 0.01


class Server:
    """An /embeddings that counts letters, real HTTP, and a list of what it does wrong before it answers."""

    def __init__(self, faults: list[Any] | None = None, retry_after: str = "0") -> None:
        self.url, self.faults, self.asked, self.keys = "", faults or [], [], []
        self.retry_after, self.dimensions, self.at_once = retry_after, 26, 1_000

    @contextmanager
    def running(self) -> Iterator["Server"]:
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    fault = server.faults.pop(0) if server.faults else None
                    server.asked.append((self.path, body))
                    server.keys.append(self.headers["Authorization"])
                if len(body["input"]) > server.at_once:
                    return self.answer(422, {"error": f"batch size > maximum allowed batch size {server.at_once}"})
                if isinstance(fault, int):
                    return self.answer(fault, {"error": {"message": "no"}}, {"Retry-After": server.retry_after})
                letters = "" if fault == "empty" else "abcdefghijklmnopqrstuvwxyz"[: server.dimensions]
                vectors = [[text.lower().count(letter) for letter in letters] for text in body["input"]]
                data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
                self.answer(200, {"data": data[1:] if fault == "short" else list(reversed(data))})

            def do_GET(self) -> None:
                self.answer(404, {})

            def answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
                sent = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(sent)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_: Any) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{http.server_port}/v1"
        try:
            yield self
        finally:
            http.shutdown()
            http.server_close()


ROWS = [row(LOST, 1), row(OTHER, 2), row(MOVED, 3), row(f"yes, {LOST}", 4)]


def by(server: Server, **options: Any) -> dict[str, Any]:
    return {"embedding": "endpoint", "similarity": 0.99, "endpoint": {"url": server.url, "model": "m", **options}}


def test_a_server_gives_vectors_once(clean, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-key")
    with Server().running() as server:
        summary, dropped = clean(ROWS, by(server, key="MY_KEY"))
        assert dropped[3] == ("semantic duplicate", "1.00 in meaning to t.jsonl:1")
        assert summary["reasons"]["semantic duplicate"] == len(dropped)
        assert server.asked == [("/v1/embeddings", {"model": "m", "input": [r.messages[0]["content"] for r in ROWS]})]
        assert server.keys == ["Bearer secret-key"]
        clean([*ROWS, row("a new one", 5)], by(server, key="MY_KEY"))
        assert [body["input"] for _, body in server.asked[1:]] == [["a new one"]]


@pytest.mark.parametrize("fault", [429, 500, 503, "short", "empty"])
def test_a_passing_fault_is_waited_out_and_told_of_once(clean, fault, capsys):
    with Server([fault, fault]).running() as server:
        assert 3 in clean(ROWS, by(server))[1]
        assert len(server.asked) == 3
    assert capsys.readouterr().err.count("asking again, up to 6 times each") == 1


def test_a_server_that_takes_few_texts_at_once_is_asked_for_few(clean):
    with Server().running() as server:
        server.at_once = 3
        rows = [*ROWS, *(row(f"{letter * 9} of another kind", 5 + i) for i, letter in enumerate("abcdefg"))]
        assert 3 in clean(rows, by(server, concurrency=1))[1]
        assert [len(body["input"]) for _, body in server.asked] == [11, 5, 2, 1, 2, 1, 2, 1, 2]


def test_a_request_that_is_refused_however_few_texts_it_holds_ends_the_step(clean):
    with Server([400] * 9).running() as server:
        with pytest.raises(ConfigError, match="refuses the request"):
            clean(ROWS, by(server))
        assert [len(body["input"]) for _, body in server.asked] == [4, 2, 1]


def test_a_server_that_says_to_come_back_tomorrow_is_not_waited_for(clean):
    with Server([429], "86400").running() as server, pytest.raises(ResourceError, match="does not answer") as caught:
        clean(ROWS, by(server))
    assert "come again in 1,440 minutes" in caught.value.why


def test_vectors_of_another_model_under_the_same_name_are_not_mixed(clean):
    with Server().running() as server:
        clean(ROWS, by(server))
        server.dimensions = 20
        with pytest.raises(ResourceError, match="vectors of 26 and of 20 numbers") as caught:
            clean([*ROWS, row("a new one", 5)], by(server))
        assert "embeddings, then run" in caught.value.next


def test_a_signal_ends_a_wait_for_vectors(clean):
    def interrupted(number: int, frame: object) -> None:
        raise Interrupted(number)

    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1)
        with Server([429], "60").running() as server, pytest.raises(Interrupted):
            clean(ROWS, by(server))
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("faults", "kind", "words"), [
    ([500] * 2, ResourceError, "does not answer"), ([401], ConfigError, "wants a key"),
    ([404], ConfigError, "serves no embeddings"),
])  # fmt: skip
def test_a_lasting_fault_ends_the_step_with_a_sentence(clean, faults, kind, words):
    with Server(faults).running() as server, pytest.raises(kind, match=words):
        clean(ROWS, by(server, retries=1))
