"""The client against a real server with a model behind it, and a proxy between them that does what networks do."""

from __future__ import annotations

import itertools
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import faults
import orjson
import pytest
import served
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tunesmith.core.endpoint_section import Endpoint
from tunesmith.core.errors import ConfigError, ResourceError, UserError
from tunesmith.core.interrupt import Interrupted
from tunesmith.core.step import _stable
from tunesmith.models import base as bases
from tunesmith.models.endpoint import Asked, Client, Reply, Usage, json_of

SECRET = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def think(tiny: bases.Base) -> served.Think:
    return served.model_of(tiny, lambda messages, seed: f"{messages[-1]['content']} with seed {seed}")


@pytest.fixture
def server(think: served.Think) -> Iterator[served.Served]:
    with served.serving(think) as running:
        yield running


Ask = Callable[..., tuple[list[Reply], Usage]]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """The replies to numbered questions, with settings laid over small ones."""

    def asked(url: str, numbers: Iterable[int], json: bool = False, **settings: Any) -> tuple[list[Reply], Usage]:
        given = {"url": url, "model": "small", "concurrency": 4, "timeout_seconds": 20, **settings}
        with Client(Endpoint.model_validate(given), tmp_path / "replies") as client:
            return list(client.ask(numbered(i, json=json) for i in numbers)), client.usage

    return asked


def numbered(i: int, seed: int = 0, json: bool = False) -> Asked:
    return Asked([{"role": "user", "content": f"question {i}"}], seed, json)


def wanted(numbers: Iterable[int]) -> list[str | None]:
    return [f"question {i} with seed 0" for i in numbers]


def texts(replies: Iterable[Reply]) -> list[str | None]:
    return [reply.text for reply in replies]


def test_replies_keep_the_order_of_their_questions_while_several_are_under_way(tiny: bases.Base, ask: Ask) -> None:
    def slowly(messages: list[dict[str, str]], seed: int) -> str:
        time.sleep(0.1 if messages[-1]["content"].endswith(("0", "5")) else 0)
        return f"{messages[-1]['content']} with seed {seed}"

    model = served.model_of(tiny, slowly)
    with served.serving(model, slow_seconds=0.05) as server:
        replies, usage = ask(server.url, range(30))
        assert texts(replies) == wanted(range(30))
        assert 2 <= server.most_at_once <= 4
    assert (usage.asked, usage.answered, usage.failed, usage.cached) == (30, 30, 0, 0)
    assert usage.prompt_tokens == sum(prompt for prompt, _ in server.tokens) == sum(r.prompt_tokens for r in replies)
    assert usage.answer_tokens == sum(made for _, made in server.tokens) == sum(r.answer_tokens for r in replies)


def test_questions_are_taken_as_they_are_needed(server: served.Served, tmp_path: Path) -> None:
    taken = itertools.count()
    with Client(Endpoint(url=server.url, model="small", concurrency=2), tmp_path) as client:
        replies = client.ask(numbered(next(taken)) for _ in itertools.repeat(None))
        assert texts(itertools.islice(replies, 20)) == wanted(range(20))
        replies.close()  # type: ignore[attr-defined]
    assert next(taken) <= 20 + 4 * 2 + 1


def test_what_was_answered_is_not_asked_again(server: served.Served, ask: Ask, tmp_path: Path) -> None:
    ask(server.url, range(6))
    replies, usage = ask(server.url, range(8))
    assert texts(replies) == wanted(range(8))
    assert [reply.cached for reply in replies] == [True] * 6 + [False] * 2
    assert (len(server.asked), usage.asked, usage.cached) == (8, 8, 6)
    assert usage.prompt_tokens == sum(prompt for prompt, _ in server.tokens[6:])
    ask(server.url, range(8), max_tokens=99)
    ask(server.url, range(8), temperature=0.5)
    assert len(server.asked) == 24
    assert [body["max_tokens"] for body in server.asked] == [512] * 8 + [99] * 8 + [512] * 8
    assert [body["temperature"] for body in server.asked] == [0.0] * 16 + [0.5] * 8
    with Client(Endpoint(url=server.url, model="small"), tmp_path / "replies") as client:
        assert client.known(numbered(3))
        assert not client.known(numbered(3, seed=1))
        assert texts(client.ask([numbered(3, seed=1)])) == ["question 3 with seed 1"]


def test_equal_questions_are_asked_once_also_at_the_same_time(think: served.Think, ask: Ask) -> None:
    with served.serving(think, slow_seconds=0.1) as server:
        replies, usage = ask(server.url, [1, 1, 1, 2, 1, 2])
    assert texts(replies) == wanted([1, 1, 1, 2, 1, 2])
    assert (len(server.asked), usage.cached) == (2, 4)


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"text": "half', b'{"text": 5, "fault": "", "prompt_tokens": 1}'])
def test_a_damaged_reply_is_asked_for_anew(server: served.Served, ask: Ask, tmp_path: Path, damage: bytes) -> None:
    ask(server.url, range(3))
    [victim, *_] = sorted((tmp_path / "replies").rglob("*.json"))
    victim.write_bytes(damage)
    replies, usage = ask(server.url, range(3))
    assert texts(replies) == wanted(range(3))
    assert (len(server.asked), usage.cached) == (4, 2)
    assert orjson.loads(victim.read_bytes())["text"] in wanted(range(3))


@pytest.mark.parametrize("fault", faults.PASSING)
def test_what_passes_is_waited_out(server: served.Served, ask: Ask, fault: faults.Fault) -> None:
    with faults.between(server.url, faults.first_time((fault,))) as proxy:
        replies, usage = ask(proxy.url, range(4), timeout_seconds=0.7)
    assert texts(replies) == wanted(range(4))
    assert proxy.done[fault] == 4
    assert (usage.answered, usage.failed) == (4, 0)
    assert usage.retried >= 4


def test_a_server_that_says_when_to_come_again_is_left_alone_until_then(server: served.Served, ask: Ask) -> None:
    def first_of_all(body: dict[str, Any], seen: int) -> faults.Fault:
        return "429 retry-after" if "question 0" in str(body) and not seen else "none"

    with faults.between(server.url, first_of_all, retry_after="2") as proxy:
        replies, _ = ask(proxy.url, range(4), concurrency=1)
    assert texts(replies) == wanted(range(4))
    assert proxy.came[1] - proxy.came[0] >= 2


def test_a_wait_that_is_too_long_ends_the_run(server: served.Served, ask: Ask) -> None:
    with (
        faults.between(server.url, lambda *_: "429 retry-after", retry_after="7200") as proxy,
        pytest.raises(ResourceError) as error,
    ):
        ask(proxy.url, range(4))
    assert "come again in 120 minutes" in error.value.why


@pytest.mark.parametrize(
    ("fault", "named", "kept"),
    [
        ("truncated", "cut off at 40 tokens", True),
        ("null", "an empty answer", True),
        ("no choices", "an answer without choices", False),
        ("html", "HTML in place of an answer", False),
        ("broken body", "an answer that is no JSON", False),
        ("500", "status 500", False),
        ("dropped", "the connection broke off", False),
    ],
)
def test_a_question_without_an_answer_is_a_fault_by_name(
    server: served.Served, ask: Ask, fault: faults.Fault, named: str, kept: bool
) -> None:
    """And what was paid for is kept: it would come to the same."""

    def one(body: dict[str, Any], seen: int) -> faults.Fault:
        return fault if body["messages"][-1]["content"] == "question 1" else "none"

    with faults.between(server.url, one) as proxy:
        for attempt in range(2):
            replies, usage = ask(proxy.url, range(4), retries=0, max_tokens=40)
            assert texts(replies) == [f"question {i} with seed 0" if i != 1 else None for i in range(4)]
            assert [reply.fault for reply in replies] == ["", named, "", ""]
            assert (usage.answered, usage.failed) == (3, 1)
            assert replies[1].cached == (kept and attempt == 1)


def test_retries_are_as_many_as_the_settings_say(server: served.Served, ask: Ask) -> None:
    def never(body: dict[str, Any], seen: int) -> faults.Fault:
        return "500" if body["messages"][-1]["content"] == "question 1" else "none"

    for retries in (0, 2):
        with faults.between(server.url, never) as proxy:
            _, usage = ask(proxy.url, range(3), retries=retries)
            assert (proxy.done["500"], usage.retried) == (1 + retries, retries)


def test_a_dead_address_ends_clearly(ask: Ask) -> None:
    url = faults.dead_url()
    for questions in (range(100), range(1)):
        with pytest.raises(ResourceError) as error:
            ask(url, questions, retries=1)
        assert f"{url} does not answer" in error.value.what
        assert "2 attempts each" in error.value.why
        assert "no connection" in error.value.why
        assert "are kept" in error.value.next


def test_a_server_that_dies_ends_clearly_and_what_it_said_is_kept(server: served.Served, ask: Ask) -> None:
    def mortal(body: dict[str, Any], seen: int) -> faults.Fault:
        return "500" if len(server.asked) >= 10 else "none"

    with faults.between(server.url, mortal) as proxy:
        with pytest.raises(ResourceError) as error:
            ask(proxy.url, range(60), retries=0, concurrency=1)
        assert "12 questions in a row" in error.value.why
        assert "the 10 answers that came are kept" in error.value.next
        with pytest.raises(ResourceError):
            ask(proxy.url, range(60), retries=0)
        assert proxy.done["none"] == len(server.asked) == 10
    replies, usage = ask(server.url, range(10))
    assert usage.cached == 0  # another address is another model, for all that is known
    assert texts(replies) == wanted(range(10))


def test_an_outage_costs_nothing_twice(server: served.Served, ask: Ask) -> None:
    outage: list[bool] = []

    def switched(body: dict[str, Any], seen: int) -> faults.Fault:
        return "500" if outage else "none"

    with faults.between(server.url, switched) as proxy:
        ask(proxy.url, range(10))
        outage.append(True)
        with pytest.raises(ResourceError):
            ask(proxy.url, range(60), retries=0)
        outage.clear()
        replies, usage = ask(proxy.url, range(20))
    assert texts(replies) == wanted(range(20))
    assert (usage.cached, len(server.asked)) == (10, 20)


def test_requests_are_sent_no_faster_than_the_limit(server: served.Served, ask: Ask) -> None:
    with faults.between(server.url, faults.first_time(("none", "none", "500"))) as proxy:
        ask(proxy.url, range(9), requests_per_minute=300, concurrency=9)
    assert len(proxy.came) > 9
    assert proxy.came[-1] - proxy.came[0] >= 0.8 * (len(proxy.came) - 1) * 60 / 300


def test_no_more_is_spent_than_the_cap(server: served.Served, ask: Ask) -> None:
    """By the server's own count, with many requests under way, whose answers are shorter than they might be."""
    prices = {"input_price": 1000, "output_price": 2000, "max_tokens": 50}

    def spent() -> float:
        return sum(1000 * prompt + 2000 * made for prompt, made in server.tokens) / 1e6

    with pytest.raises(ResourceError) as error:
        ask(server.url, range(100), **prices, max_cost=1.0, concurrency=8)
    first = len(server.asked)
    assert 0.8 < spent() <= 1.0
    assert "max_cost is 1" in error.value.what
    assert f"were spent on {first} answers" in error.value.why
    replies, usage = ask(server.url, range(100), **prices, max_cost=100)
    assert texts(replies) == wanted(range(100))
    assert (len(server.asked), usage.cached) == (100, first)
    assert usage.cost == pytest.approx(sum(1000 * p + 2000 * a for p, a in server.tokens[first:]) / 1e6)


def test_a_server_that_counts_no_tokens_has_them_estimated(
    server: served.Served, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    with faults.between(server.url, lambda *_: "no counts") as proxy:
        replies, usage = ask(proxy.url, range(3), input_price=1, output_price=1)
    assert all(reply.prompt_tokens and reply.answer_tokens for reply in replies)
    assert usage.cost > 0
    assert capsys.readouterr().err.count("counts no tokens") == 1


@pytest.mark.parametrize(
    ("changes", "what", "following"),
    [
        ({"model": "smal"}, "has no model `smal`", "did you mean `small`?"),
        ({"url": "/v2"}, "serves no chat completions", "endpoint.url"),
        ({"key": "WRONG_KEY"}, "refuses the key", "endpoint.key"),
        ({"key": None}, "wants a key", "endpoint.key"),
        ({"key": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set", "export NO_SUCH_KEY"),
        ({"key": "BLANK_KEY"}, "BLANK_KEY is not set", "export BLANK_KEY"),
        ({"key": "CURLED_KEY"}, "CURLED_KEY holds no API key", "export CURLED_KEY"),
        ({"key": "BROKEN_KEY"}, "BROKEN_KEY holds no API key", "export BROKEN_KEY"),
        ({"url": "/v1\0"}, "is no address of a server", "endpoint.url"),
    ],
)
def test_what_no_repetition_mends_ends_the_run_at_once(
    think: served.Think,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    changes: dict[str, Any],
    what: str,
    following: str,
) -> None:
    monkeypatch.setenv("RIGHT_KEY", "right-" + SECRET)
    monkeypatch.setenv("WRONG_KEY", SECRET)
    monkeypatch.setenv("BLANK_KEY", " ")
    monkeypatch.setenv("CURLED_KEY", f"“{SECRET}”")
    monkeypatch.setenv("BROKEN_KEY", SECRET.replace("very", "\n"))
    with served.serving(think, key="right-" + SECRET) as server:
        address = server.url.removesuffix("/v1") + changes.pop("url", "/v1")
        with pytest.raises(ConfigError) as error:
            ask(address, range(50), **{"key": "RIGHT_KEY", **changes})
    assert what in error.value.what
    assert following in error.value.next
    assert not server.asked
    assert not re.search("very|secret", str(error.value))


def test_the_key_is_sent_and_written_nowhere(
    ask: Ask, tiny: bases.Base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even where the model repeats it."""
    monkeypatch.setenv("GOOD_KEY", SECRET)
    with served.serving(served.model_of(tiny, lambda *_: f"your key is {SECRET}"), key=SECRET) as server:
        replies, _ = ask(server.url, range(2), key="GOOD_KEY")
    assert server.keys == [f"Bearer {SECRET}"] * 2
    assert texts(replies) == ["your key is [key]"] * 2
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert not any(SECRET in path.read_text() for path in files)
    assert SECRET not in capsys.readouterr().err


def test_options_that_a_server_does_not_know_are_left_out(
    think: served.Think, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    refuses = ("response_format", "seed", "temperature", "max_tokens")
    with served.serving(think, refuses=refuses) as server:
        replies, usage = ask(server.url, range(6), json=True)
    assert texts(replies) == wanted(range(6))
    assert all(set(body) == {"model", "messages", "max_completion_tokens"} for body in server.asked)
    told = capsys.readouterr().err
    assert all(told.count(f"`{option}`") == 1 for option in refuses)
    assert usage.retried == 0


def test_a_json_object_is_asked_for_where_it_is_wanted(server: served.Served, ask: Ask) -> None:
    ask(server.url, [1], json=True)
    ask(server.url, [1])
    assert [body.get("response_format") for body in server.asked] == [{"type": "json_object"}, None]


def test_a_signal_ends_what_is_under_way(think: served.Think, tmp_path: Path) -> None:
    """The main thread is told, and the thread that waits for the server ends with it."""

    def interrupted(number: int, frame: object) -> None:
        raise Interrupted(number)

    def asks(url: str) -> None:
        with Client(Endpoint(url=url, model="small"), tmp_path) as client:
            list(client.ask(numbered(i) for i in range(50)))

    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        with served.serving(think, slow_seconds=3) as server:
            started = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(Interrupted):
                asks(server.url)
            assert time.monotonic() - started < 2
            assert len(server.asked) <= 8
    finally:
        signal.signal(signal.SIGALRM, before)
    assert "endpoint" not in [thread.name for thread in threading.enumerate()]


def test_settings_that_change_no_answer_change_no_identity() -> None:
    plain = Endpoint(url="http://localhost:1/v1", model="a")
    paced = plain.model_copy(update={"concurrency": 2, "retries": 1, "timeout_seconds": 3.0, "key": "KEY"})
    assert _stable(plain) == _stable(paced)
    assert _stable(plain) != _stable(plain.model_copy(update={"temperature": 1.0}))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"url": "http://a/v1", "model": "m", "key": "sk-abc123"}, "looks like the key itself"),
        ({"url": "http://a/v1", "model": "m", "key": "gsk_abc123DEF"}, "looks like the key itself"),
        ({"url": "http://a/v1", "model": "m", "key": "${A_KEY}"}, "name alone"),
        ({"url": "http://u:p@a/v1", "model": "m"}, "no user, password or query"),
        ({"url": "http://a/v1?key=1", "model": "m"}, "no user, password or query"),
        ({"url": "localhost:8000", "model": "m"}, "no address of a server"),
        ({"url": "http://a/v1"}, "`url` needs `model`"),
        ({"model": "m"}, "`model` needs `url`"),
        ({"url": "http://a/v1", "model": "m", "max_cost": 1}, "needs `input_price`"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as error:
        Endpoint.model_validate(settings)
    [fault] = error.value.errors()
    assert told in fault["msg"]
    assert not re.search("abc123", fault["msg"])


def test_an_address_may_be_written_as_far_as_the_completions() -> None:
    assert Endpoint(url="http://a:1/v1/chat/completions", model="m").url == "http://a:1/v1"
    assert Endpoint(url="http://a:1/v1/", model="m").url == "http://a:1/v1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Sure!\n```json\n{"a": [1, 2]}\n```\nBye', {"a": [1, 2]}),
        ('{"a": "half an emoji: \\ud83d"}', {"a": "half an emoji: ?"}),  # what no row file can hold
        ('{"a": 123456789012345678901,}', {"a": 123456789012345678901.0}),
        ('```\n{"a": 1,}\n```', {"a": 1}),
        ("{'a': 'b'", {"a": "b"}),
        ('<think>maybe {"score": 1}?</think>\n{"score": 4}', {"score": 4}),
        ('The score is {"score": 4, "reason": "good"} as I said', {"score": 4, "reason": "good"}),
    ],
)
def test_json_is_found_in_what_models_write(text: str, value: Any) -> None:
    assert json_of(text) == value


@pytest.mark.parametrize("text", ["", "I cannot do that.", "four of five", "[" * 5000])
def test_where_no_json_is_there_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="no JSON"):
        json_of(text)


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.integers(0, 9), min_size=1), st.booleans())
def test_json_is_what_was_written(value: dict[str, Any], fenced: bool) -> None:
    text = orjson.dumps(value).decode()
    assert json_of(f"```json\n{text}\n```" if fenced and "```" not in text else text) == value


def test_the_base_answers_where_no_address_is_named(lively: bases.Base, tmp_path: Path) -> None:
    """Drawn answers come from their seeds, whatever else is asked in the same batch."""

    def asked(folder: str, concurrency: int, temperature: float, seeds: range) -> list[Reply]:
        settings = Endpoint(concurrency=concurrency, temperature=temperature, max_tokens=6)
        with Client(settings, tmp_path / folder, lively) as client:
            replies = list(client.ask(numbered(i % 3, seed=seed) for i, seed in enumerate(seeds)))
            assert client.usage.asked == len(replies) == client.usage.answered + client.usage.failed
            return replies

    def told(replies: list[Reply]) -> list[tuple[str | None, str, int]]:
        return [(reply.text, reply.fault, reply.answer_tokens) for reply in replies]

    assert told(asked("a", 8, 1.5, range(8))) == told(asked("b", 3, 1.5, range(8)))
    assert all(reply.cached for reply in asked("a", 8, 1.5, range(8)))
    assert all(reply.fault in ("", "cut off at 6 tokens") for reply in asked("a", 8, 1.5, range(8)))


def test_what_the_base_cannot_read_is_a_fault(tiny: bases.Base, tmp_path: Path) -> None:
    with Client(Endpoint(max_tokens=4), tmp_path, tiny) as client:
        long, short = Asked([{"role": "user", "content": "word " * 5000}]), numbered(1)
        replies = list(client.ask([long, short]))
    assert replies[0].fault == "longer than the model reads"
    assert replies[1].answer_tokens > 0


def test_the_real_model_answers_in_process_and_behind_an_address(base: bases.Base, tmp_path: Path) -> None:
    question = Asked([{"role": "user", "content": "What is the capital of France?"}])
    with Client(Endpoint(max_tokens=24), tmp_path, base) as client:
        [here] = client.ask([question])
    with (
        served.serving(served.model_of(base), model="smollm2") as server,
        Client(Endpoint(url=server.url, model="smollm2", max_tokens=24), tmp_path) as client,
    ):
        [there] = client.ask([question])
    assert here.text == there.text == "The capital of France is Paris."
    assert (here.prompt_tokens, here.answer_tokens) == (there.prompt_tokens, there.answer_tokens)


def test_errors_name_the_settings_of_whoever_asks(ask: Ask) -> None:
    from tunesmith.core.errors import settings_named

    with settings_named({"endpoint.": "data.judge.endpoint."}), pytest.raises(UserError) as error:
        ask("http://127.0.0.1:9/v1", [1], key="NO_SUCH_KEY")
    assert "data.judge.endpoint.key" in error.value.why
