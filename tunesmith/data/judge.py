"""A model scores each row by a rubric in words, and rows below a score are dropped.

A sample is judged first, spread over the file: from what it cost and how long it took follows what all rows will,
before more is spent; it is judged a second time with another seed, since a judge that does not agree with itself is
none. Where the judge gives no score there is an abstention, counted by its cause, and never a number in its place.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tunesmith.core import store
from tunesmith.core.console import progress, say
from tunesmith.core.data_section import Judge
from tunesmith.core.endpoint_section import Endpoint
from tunesmith.core.errors import DataError, ResourceError, settings_named
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact
from tunesmith.data.cleaning import rubric
from tunesmith.data.cleaning.rubric import SCORES, Choice, Verdict
from tunesmith.models.base import Base
from tunesmith.models.endpoint import Asked, Client, Reply

VERSION = 2

_OTHER_SEED = 1  # of the sample's second round
_FEW_EQUAL = 0.7  # a judge that agrees with itself less often is warned of
_FOLLOWS_LENGTH = 0.7  # as does one whose scores go with the answers' lengths so closely


@dataclass
class _Sample:
    """Rows that were judged first, by their places: their verdicts, and what these took."""

    verdicts: dict[int, Verdict]
    equal: float | None  # share of equal scores in the second round
    cost: float  # of a row, in the mean
    seconds: float | None  # of a request; None where all replies were known


@dataclass
class _Found:
    """Counts over the rows as they are written. Of scores and lengths, sums alone: they need no memory."""

    kept: int = 0
    scores: Counter[int] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    repaired: int = 0
    passing: int = 0  # rows that the judge, asked again, may yet give a score
    products: list[float] = field(default_factory=lambda: [0.0] * 5)  # of x, y, x squared, y squared, x times y

    def enter(self, row: Row, verdict: Verdict) -> None:
        self.repaired += verdict.repaired
        if verdict.score is None:
            self.causes[verdict.cause] += 1
            self.passing += verdict.passing
            return
        self.scores[verdict.score] += 1
        x, y = float(verdict.score), math.log1p(len(row.answer))
        for i, product in enumerate((x, y, x * x, y * y, x * y)):
            self.products[i] += product

    def length_correlation(self) -> float | None:
        """Pearson's r of score and logarithm of the answer's characters; None where one of them never differs."""
        n, (x, y, xx, yy, xy) = self.scores.total(), self.products
        spread = (n * xx - x * x, n * yy - y * y)
        return (n * xy - x * y) / math.sqrt(spread[0] * spread[1]) if min(spread) > 1e-9 * n * n else None


def run(judge: Judge, base: Base | None, clean: Artifact, out: Path) -> dict[str, Any]:
    """Writes `rows.jsonl`, `dropped.jsonl` (each row with its reason and detail) and `scores.jsonl` (id, source, line,
    score, reason, abstained, repaired, cached). The base answers where the endpoint has no address.

    Raises ResourceError before the spending, where it is projected to exceed the cap, and DataError where the judge
    gives no score at all or no row is left.
    """
    rows_file = clean / "rows.jsonl"
    rows_in = sum(1 for _ in _lines(rows_file))
    found, personal = _Found(), sent_along(judge.endpoint, clean.summary.get("changes", {}))
    with (
        settings_named({"endpoint.": "data.judge.endpoint."}),
        Client(judge.endpoint, store.cache_dir() / "replies", base) as client,
    ):
        sample = _judge_sample(client, judge, rows_file, rows_in)
        projected = _project(client, judge, sample, rows_file, rows_in)
        started = time.monotonic()
        _write(judge, _judged(client, judge, sample, rows_file), rows_in, out, found)
        minutes = (time.monotonic() - started) / 60
    reasons, abstained = dict(found.reasons.most_common()), found.causes.total()
    assert rows_in == found.kept + sum(reasons.values()), f"{rows_in} in, {found.kept} kept, dropped: {reasons}"
    assert rows_in == found.scores.total() + abstained
    if not found.kept:
        raise DataError(
            "no row is left after judging",
            f"all {rows_in:,} rows were dropped: {', '.join(f'{n:,} {reason}' for reason, n in reasons.items())}",
            "read output/failed/judge/scores.jsonl, then lower data.judge.keep_from or mend data.judge.rubric",
        )
    correlation = found.length_correlation()
    warnings = _warnings(found, sample.equal, correlation)
    for warning in warnings:
        say(f"  {warning}")
    return {
        "headline": _headline(rows_in, found, reasons, client.usage.cost),
        "rows_in": rows_in,
        "kept": found.kept,
        "dropped": rows_in - found.kept,
        "reasons": reasons,
        "scores": {str(score): found.scores[score] for score in SCORES},
        "abstained": abstained,
        "abstentions": dict(found.causes.most_common()),
        "repaired": found.repaired,
        "judged_twice": len(sample.verdicts),
        "self_consistency": _rounded(sample.equal),
        "length_correlation": _rounded(correlation),
        "warnings": personal + warnings,
        "usage": asdict(client.usage),
        "projected": projected,
        "actual": {"rows": projected["rows"], "cost": client.usage.cost, "minutes": _rounded(minutes)},
    }


def choose(client: Client, prompt: str, answers: Sequence[str]) -> int | None:
    """The index of the best answer, or None where the judge cannot tell: it is asked in both orders, and has to name
    the same answer each time."""
    [choice] = choices(client, [(prompt, answers)])
    return choice.best


def choices(client: Client, contested: Iterable[tuple[str, Sequence[str]]]) -> Iterator[Choice]:
    """`choose` for many prompts with their answers, several under way at once."""
    orders: deque[list[int]] = deque()

    def questions() -> Iterator[Asked]:
        for prompt, answers in contested:
            for order in (list(range(len(answers))), list(reversed(range(len(answers))))):
                orders.append(order)
                yield rubric.choice(prompt, answers, order)

    replies = client.ask(questions())
    for one in replies:
        other = next(replies)
        first, second = (rubric.chosen(reply, orders.popleft()) for reply in (one, other))
        yield Choice(first if first == second else None, not (one.passing or other.passing))


def _judge_sample(client: Client, judge: Judge, rows_file: Path, rows_in: int) -> _Sample:
    """Two rounds over rows at even distances."""
    size = min(judge.sample, rows_in)
    places = {i * rows_in // size for i in range(size)}
    rows = {place: _row(line) for place, line in enumerate(_lines(rows_file)) if place in places}
    started, replies = time.monotonic(), []
    verdicts: list[list[Verdict]] = []
    with progress("judge", 2 * size, "rows of the sample") as bar:
        for seed in (0, _OTHER_SEED):
            verdicts.append([])
            for reply in client.ask(rubric.question(judge.rubric, row, seed) for row in rows.values()):
                verdicts[-1].append(rubric.verdict(reply))
                replies.append(reply)
                bar.advance(1)
            _require_scores(verdicts[0])
    asked = client.usage.asked - client.usage.cached
    seconds = (time.monotonic() - started) / asked if asked else None
    pairs = [(a.score, b.score) for a, b in zip(*verdicts) if a.score and b.score]
    equal = sum(a == b for a, b in pairs) / len(pairs) if pairs else None
    cost = sum(_cost(judge.endpoint, reply) for reply in replies) / max(len(replies), 1)
    return _Sample(dict(zip(rows, verdicts[0])), equal, cost, seconds)


def _require_scores(verdicts: list[Verdict]) -> None:
    """A judge that cannot do it, or does not understand what is asked, would be paid for nothing."""
    if verdicts and all(verdict.score is None for verdict in verdicts):
        causes = Counter(verdict.cause for verdict in verdicts).most_common(3)
        said = next((f"; it said: {verdict.reason}" for verdict in verdicts if verdict.reason), "")
        raise DataError(
            f"the judge scored none of {len(verdicts):,} rows of a sample",
            ", ".join(f"{cause} ({n:,})" for cause, n in causes) + said,
            "choose a stronger model in data.judge.endpoint, or give it more data.judge.endpoint.max_tokens",
        )


def _project(client: Client, judge: Judge, sample: _Sample, rows_file: Path, rows_in: int) -> dict[str, Any]:
    """What the rows that are left to judge will cost and take; those that are known from an earlier run, nothing."""
    todo = sum(
        not client.known(rubric.question(judge.rubric, _row(line)))
        for place, line in enumerate(_lines(rows_file))
        if place not in sample.verdicts
    )
    spent = client.usage.cost
    cost = spent + todo * sample.cost
    minutes = None if sample.seconds is None else todo * sample.seconds / 60
    cap = judge.endpoint.max_cost
    if cap is not None and cost > cap:
        raise ResourceError(
            f"judging {todo:,} more rows is projected to cost {cost - spent:,.4g}, after {spent:,.4g} on a sample",
            f"data.judge.endpoint.max_cost is {cap:,.6g}, and a row costs {sample.cost:,.4g} in the sample's mean",
            f"set data.judge.endpoint.max_cost to {cost * 1.1:,.4g}, or judge fewer rows: the sample's replies stay",
        )
    if todo:
        price = f" for about {cost - spent:,.4g}" if judge.endpoint.input_price is not None else ""
        length = f" in about {max(minutes, 0.1):,.1f} minutes" if minutes is not None else ""
        say(f"  {todo:,} of {rows_in:,} rows are left to judge{price}{length}")
    return {"rows": todo, "cost": cost, "minutes": _rounded(minutes)}


def _judged(client: Client, judge: Judge, sample: _Sample, rows_file: Path) -> Iterator[tuple[bytes, Row, Verdict]]:
    """Every row with its verdict, in the order of the file. Only rows whose question is under way are in memory."""
    waiting: deque[tuple[bytes, Row, Verdict | None]] = deque()

    def questions() -> Iterator[Asked]:
        for place, line in enumerate(_lines(rows_file)):
            row, known = _row(line), sample.verdicts.get(place)
            waiting.append((line, row, known))
            if known is None:
                yield rubric.question(judge.rubric, row)

    def judged_already() -> Iterator[tuple[bytes, Row, Verdict]]:
        while waiting and (verdict := waiting[0][2]):
            line, row, _ = waiting.popleft()
            yield line, row, verdict

    for reply in client.ask(questions()):
        yield from judged_already()
        line, row, _ = waiting.popleft()
        yield line, row, rubric.verdict(reply)
    yield from judged_already()


def _write(judge: Judge, judged: Iterator[tuple[bytes, Row, Verdict]], rows_in: int, out: Path, found: _Found) -> None:
    with ExitStack() as files, progress("judge", rows_in, "rows") as bar:
        kept, dropped, scores = (
            files.enter_context(open(out / f"{name}.jsonl", "wb")) for name in ("rows", "dropped", "scores")
        )
        for line, row, verdict in judged:
            found.enter(row, verdict)
            scores.write(_dump(_score_line(row, verdict)))
            if because := _why_dropped(judge, verdict):
                reason, detail = because
                found.reasons[reason] += 1
                dropped.write(_dump({**row.to_json(), "reason": reason, "detail": detail}))
            else:
                found.kept += 1
                kept.write(line)
            bar.advance(1)


def _why_dropped(judge: Judge, verdict: Verdict) -> tuple[str, str] | None:
    """Reason and detail, for a row that goes no further."""
    if verdict.score is None:
        return ("the judge abstained", verdict.cause) if judge.on_abstention == "drop" else None
    if verdict.score >= judge.keep_from:
        return None
    return f"judged below {judge.keep_from}", f"{verdict.score}: {verdict.reason}"


def _score_line(row: Row, verdict: Verdict) -> dict[str, Any]:
    told = {"score": verdict.score, "reason": verdict.reason, "abstained": verdict.cause}
    how = {"repaired": verdict.repaired, "cached": verdict.cached}
    return {"id": row.id, "source": row.source, "line": row.line, **told, **how}


def sent_along(endpoint: Endpoint | None, changes: Mapping[str, int]) -> list[str]:
    """Told before anything is sent: cleaning may have found personal data and left it where it is, as the notes in rows
    say, which `changes` counts."""
    kinds = {note.removeprefix("contains: "): n for note, n in changes.items() if note.startswith("contains: ")}
    if not kinds or endpoint is None or endpoint.url is None:
        return []
    listed = ", ".join(f"{kind} ({n:,})" for kind, n in kinds.items())
    warning = (
        f"rows go to {endpoint.url} with the personal data in them: {listed}; data.clean.personal_data replaces it"
    )
    say(f"  {warning}")
    return [warning]


def _warnings(found: _Found, equal: float | None, correlation: float | None) -> list[str]:
    warnings = []
    if equal is not None and equal < _FEW_EQUAL:
        warnings.append(f"asked twice, the judge gave the same score to {equal:.0%} of the sample's rows")
    if correlation is not None and abs(correlation) >= _FOLLOWS_LENGTH:
        warnings.append(f"the judge's scores follow the length of the answers (r = {correlation:.2f})")
    if found.passing:
        warnings.append(f"{found.passing:,} rows had no answer: `tunesmith run --force judge` asks about them again")
    if lasting := sum(n for cause, n in found.causes.items() if cause.startswith(rubric.UNANSWERED)) - found.passing:
        mend = "more data.judge.endpoint.max_tokens where it is cut off, or another model"
        warnings.append(f"{lasting:,} rows had an answer that is kept and of no use, which takes {mend}")
    if len(found.scores) == 1 and found.scores.total() > 1:
        warnings.append(f"the judge gave every row a {next(iter(found.scores))}: it tells none from another")
    return warnings


def _headline(rows_in: int, found: _Found, reasons: dict[str, int], cost: float) -> str:
    dropped = "; dropped: " + ", ".join(f"{n:,} {reason}" for reason, n in reasons.items()) if reasons else ""
    abstained = f"; no score for {found.causes.total():,}" if found.causes else ""
    return f"{found.kept:,} of {rows_in:,} rows kept{dropped}{abstained}" + (f"; cost {cost:,.4g}" if cost else "")


def _cost(endpoint: Endpoint, reply: Reply) -> float:
    prices = (endpoint.input_price or 0.0, endpoint.output_price or 0.0)
    return (reply.prompt_tokens * prices[0] + reply.answer_tokens * prices[1]) / 1e6


def _lines(rows_file: Path) -> Iterator[bytes]:
    with open(rows_file, "rb") as file:
        yield from file


def _row(line: bytes) -> Row:
    return Row.from_json(orjson.loads(line))


def _dump(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
