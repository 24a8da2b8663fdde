"""Which rows a report shows, and how much of their text.

Personal data stays out of it. A row in which personal data was found shows no text, whether that was then replaced,
dropped or only counted. Records that were quarantined, and rows that were dropped, may have left before anything looked
for personal data: in their texts, all that is like an address or a long number is masked. It may be an order number.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from tunesmith.core import store
from tunesmith.core.finished import Finished
from tunesmith.data.cleaning import pii
from tunesmith.data.growing import admission, balance
from tunesmith.data.telling import history
from tunesmith.data.telling.ledger import PERSONAL, left_files, row_files

CHARACTERS = 2_000  # of one text
_SHORT_CHARACTERS = 200  # of a text that only has to be recognised, and of a token
_SAMPLES = 3  # rows for each reason
_TOKENS = 400  # of one row
_SHOWN = {"fixed": 4, "broken": 10, "wrong": 4}  # test rows
_COMPARED_WORDS = 400  # of one answer: the time to compare is that of their square

# By the outcome in scores.jsonl and whether the tuned model's answer is the expected one. A broken one never is.
OUTCOMES = {
    ("fixed", True): "fixed",
    ("fixed", False): "improved",
    ("same", True): "right",
    ("same", False): "wrong",
    ("broken", False): "broken",
}

_ADDRESS = re.compile(r"""[^\s"'<>(){}\[\],;:\\]{1,64}@[^\s"'<>(){}\[\],;:\\]{1,255}""")
_ACCOUNT = re.compile(r"\b[A-Z]{2}\d\d(?:[ -]?[A-Z0-9]){11,30}\b")
_NUMBER = re.compile(r"(?<![\d-])(?!(?:19|20)\d\d-\d\d-\d\d)[+(]{0,2}\d(?:[ ()./-]{0,3}\d){6,}")
_PERSONAL = tuple(PERSONAL)
_NOTES_PERSONAL = re.compile(rb'"(?:replaced|contains): |"reason":"personal data"').search
_PLACE = re.compile(r" \S.*:\d+$")  # that a note may end with
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\s+|[^\s"]+|"')


@dataclass(frozen=True)
class Excerpt:
    """A text, or the beginning of one that has so many `characters`."""

    text: str
    characters: int
    cut: bool


@dataclass(frozen=True)
class Sample:
    """A row that was dropped or a record that was quarantined. Its texts are None where they hold personal data."""

    where: str
    detail: str
    prompt: Excerpt | None
    answer: Excerpt | None = None
    other: Sample | None = None  # that it repeats or contradicts


@dataclass(frozen=True)
class Personal:
    """A kind of personal data: in how many rows it was replaced, noted or dropped, and what some of it looks like."""

    kind: str
    rows: dict[str, int]
    masks: list[str]


@dataclass
class Loss:
    """The rows that left at one stage for one reason, or that were kept with a note, and the first few of them."""

    stage: str
    reason: str
    count: int = 0
    samples: list[Sample] = field(default_factory=list)


@dataclass(frozen=True)
class Given:
    """A model's answer: `pieces` of its text, each with whether it is what was expected."""

    pieces: list[tuple[str, bool]]
    whole: Excerpt
    finish: str
    score: float | None


@dataclass(frozen=True)
class Answered:
    """A test row with both models' answers; `prompt` holds role and text of each message after the system's."""

    where: str
    system: Excerpt | None
    prompt: list[tuple[str, Excerpt]]
    expected: Excerpt
    base: Given
    tuned: Given


@dataclass(frozen=True)
class Answers:
    """Test rows by what became of them: how many, and the first few. `hidden` of them hold personal data.

    `metric` is the figure of a single row that is shown with it; it is None where there are no rows.
    """

    counts: dict[str, int]
    shown: dict[str, list[Answered]]
    metric: str | None
    hidden: int


@dataclass(frozen=True)
class TokenRow:
    """A row's tokens, each with its class: `ignored`, `learnt`, `end` (learnt, and ends the turn), `gap` for many."""

    where: str
    tokens: list[tuple[str, str]]
    learnt: int
    count: int


def excerpt(text: str, limit: int = CHARACTERS) -> Excerpt:
    return Excerpt(text[:limit], len(text), len(text) > limit)


def masked(text: str, limit: int = _SHORT_CHARACTERS) -> Excerpt:
    """An excerpt without what is personal data, nor what may be an address, an account or any other long number."""
    seen = text[: 2 * limit + 300]  # more than is shown: what is cut in two would not be recognised
    for _, start, end in reversed(pii.find(seen)):
        seen = f"{seen[:start]}[masked]{seen[end:]}"
    for pattern in (_ADDRESS, _ACCOUNT, _NUMBER):
        seen = pattern.sub("[masked]", seen)
    return Excerpt(seen[:limit], len(text), len(text) > limit)


def is_personal(row: dict[str, Any]) -> bool:
    """Whether personal data was found in a row, as cleaning notes it."""
    noted = any(note.startswith(_PERSONAL) for note in row["changes"])
    return noted or row.get("reason") == "personal data"


def quarantined(file: Path, stage: str) -> list[Loss]:
    """The records that are no rows, by reason, with their fixes."""
    return _losses(
        store.read_jsonl(file),
        stage,
        lambda record: Sample(_where(record), masked(record["fix"]).text, masked(record["record"])),
    )


def dropped(file: Path, stage: str) -> list[Loss]:
    """The dropped rows by reason; `stage` is the name of theirs where they do not say it."""
    return _losses(store.read_jsonl(file), stage, lambda row: _sample(row, _detail(row)))


def noted(step: Finished, counts: dict[str, int]) -> list[Loss]:
    """The first rows with each of these notes, as a step left them; notes of personal data are told by `personal`."""
    found = {note: Loss(step.step, note, count) for note, count in counts.items() if not note.startswith(_PERSONAL)}
    for line in _promising(row_files(step).values(), lambda line: b'"changes":[]' not in line):
        for note in line["changes"]:
            loss = found.get(_PLACE.sub("", note))
            if loss and len(loss.samples) < _SAMPLES:
                loss.samples.append(_sample(line, note))
    return list(found.values())


def with_others(losses: Sequence[Loss], steps: Sequence[Finished]) -> None:
    """Puts beside each sample the row that it repeats or contradicts, as it was read. No text of one in which any step
    found personal data."""
    details = {sample.detail for loss in losses for sample in loss.samples if sample.prompt}
    found = [history.referred(step, details) for step in steps]
    for loss in losses:
        for i, sample in enumerate(loss.samples):
            others = [of_step[sample.detail] for of_step in found if sample.detail in of_step]
            if others and sample.prompt:
                other = _sample(others[0], "", hidden=any(map(is_personal, others)))
                loss.samples[i] = replace(sample, other=other)


def personal(steps: Sequence[Finished]) -> list[Personal]:
    """What was found, by kind, by cleaning and in rows that a later step made. Only masks of it leave this function."""
    looked = [step for step in steps[1:] if step is steps[1] or step.summary.get("made")]
    files = [path for step in looked for path in (*row_files(step).values(), *left_files(step).values())]
    counts: dict[str, Counter[str]] = {}
    shown: dict[str, list[dict[str, Any]]] = {}
    seen: set[tuple[str, int, str]] = set()  # rows count once, however many steps left them, and however often
    for line in _promising(files, _NOTES_PERSONAL):
        if (row := (line["source"], line["line"], line.get("id", ""))) in seen:
            continue
        seen.add(row)
        for kind, what in _kinds(line):
            counts.setdefault(kind, Counter())[what] += 1
            if len(shown.setdefault(kind, [])) < _SAMPLES:
                shown[kind].append(line)
    raw = history.referred(steps[0], {_where(line) for some in shown.values() for line in some})
    masks: dict[str, dict[str, None]] = {kind: {} for kind in counts}
    for kind, some in shown.items():
        for text in (str(m["content"]) for line in some for m in raw.get(_where(line), line)["messages"]):
            masks[kind].update({mask(text[a:b]): None for its, a, b in pii.find(text) if its == kind})
    kinds = sorted(counts, key=lambda kind: -counts[kind].total())
    return [Personal(kind, dict(counts[kind]), list(masks[kind])[:_SAMPLES]) for kind in kinds]


def mask(value: str) -> str:
    """What a piece of personal data looks like, without saying it: an address keeps two letters and its ending, a
    number its last two digits, a name its first letter."""
    name, at, domain = value.partition("@")
    if at:
        return f"{name[:1]}***@{domain[:1]}***.{domain.rpartition('.')[2]}"
    if len(value) > 6 and any(c.isdigit() for c in value):
        return re.sub(r"\w", "*", value[:-2]) + value[-2:]
    return f"{value[:1]}***"


def _kinds(line: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The kinds of personal data that cleaning found in a row, and what became of them."""
    for note in line.get("changes", []):
        if note.startswith(_PERSONAL):
            done, _, kind = note.partition(": ")
            yield kind, PERSONAL[f"{done}: "]
    if line.get("reason") == "personal data":
        yield from ((word, "dropped") for word in line["detail"].split(", ") if " " not in word)


def _promising(paths: Iterable[Path], promising: Callable[[bytes], object]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with open(path, "rb") as file:
            yield from (orjson.loads(line) for line in file if promising(line))


def _detail(row: dict[str, Any]) -> str:
    """What a judge says, a reply that is no row, and a label are text about the row's, or of it: of a row with personal
    data, the score alone is shown."""
    detail = str(row.get("detail", ""))
    if not is_personal(row):
        return detail
    if row["reason"].startswith("judged below"):
        return detail.partition(":")[0]
    return "" if row.get("stage") in (admission.STAGE, balance.STAGE) and not _PLACE.search(detail) else detail


def answers(scores: Path, base: Path, tuned: Path, test: Path) -> Answers:
    """Counts over all test rows, and some rows of each outcome with what both models said.

    Rows stand in the order of the hash of their content, so that the first of them are no one's choice.
    """
    personal = {row["id"] for row in store.read_jsonl(test) if is_personal(row)}
    counts = dict.fromkeys(OUTCOMES.values(), 0)
    chosen: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _SHOWN}
    metric = None
    for row in store.read_jsonl(scores):
        right = row["tuned"]["exact_match"] == 1
        counts[OUTCOMES[row["outcome"], right]] += 1
        metric = next(m for m in ("field_f1", "rouge_l", "exact_match") if m in row["tuned"])
        kind = "wrong" if row["outcome"] != "broken" and not right else row["outcome"]
        if row["id"] not in personal and kind in chosen and len(chosen[kind]) < _SHOWN[kind]:
            chosen[kind].append(row)
    ids = {row["id"] for rows in chosen.values() for row in rows}
    of_base, of_tuned = ({p["id"]: p for p in store.read_jsonl(file) if p["id"] in ids} for file in (base, tuned))
    shown = {
        kind: [_answered(row, of_base[row["id"]], of_tuned[row["id"]], str(metric)) for row in rows]
        for kind, rows in chosen.items()
    }
    return Answers(counts, shown, metric, len(personal))


def token_rows(samples: Path, train: Path, ends: Sequence[str]) -> list[TokenRow]:
    """The first training rows as the model sees them, less those with personal data; `ends` are the end tokens."""
    return [
        _token_row(sample, ends)
        for sample, row in zip(store.read_json(samples), store.read_jsonl(train))
        if not is_personal(row)
    ]


def _losses(records: Iterable[dict[str, Any]], stage: str, sample: Callable[[dict[str, Any]], Sample]) -> list[Loss]:
    found: dict[tuple[str, str], Loss] = {}
    for record in records:
        key = record.get("stage", stage), record["reason"]
        loss = found.setdefault(key, Loss(*key))
        loss.count += 1
        if len(loss.samples) < _SAMPLES:
            loss.samples.append(sample(record))
    return sorted(found.values(), key=lambda loss: -loss.count)


def _sample(row: dict[str, Any], detail: str, hidden: bool = False) -> Sample:
    told = _where(row), masked(detail).text
    if hidden or is_personal(row):
        return Sample(*told, None)
    return Sample(*told, masked(_question(row["messages"][:-1])), masked(str(row["messages"][-1]["content"])))


def _where(row: dict[str, Any]) -> str:
    return f"{row['source'][:120]}:{row['line']}"


def _question(messages: Sequence[dict[str, Any]]) -> str:
    """What was said before the answer, less the system message."""
    return "\n".join(str(m["content"]) for m in messages if m["role"] != "system")


def _answered(score: dict[str, Any], base: dict[str, Any], tuned: dict[str, Any], metric: str) -> Answered:
    prompt = [(m["role"], excerpt(str(m["content"]))) for m in base["prompt"]]
    system = prompt.pop(0)[1] if prompt and prompt[0][0] == "system" else None
    expected = excerpt(base["expected"])

    def given(prediction: dict[str, Any], figure: float | None) -> Given:
        whole = excerpt(prediction["answer"])
        return Given(_pieces(expected.text, whole.text, metric == "field_f1"), whole, prediction["finish"], figure)

    return Answered(
        _where(base), system, prompt, expected, given(base, score["base"][metric]), given(tuned, score["tuned"][metric])
    )


def _pieces(expected: str, answer: str, is_json: bool) -> list[tuple[str, bool]]:
    """The answer's words, joined where they agree with the expected ones and where they do not.

    Prose of one meaning has many wordings, so that only the words of JSON, and of what comes near it, are compared.
    """
    wanted, found = _WORD.findall(expected), _WORD.findall(answer)
    if not is_json or max(len(wanted), len(found)) > _COMPARED_WORDS:
        return [(answer, True)]
    matcher = difflib.SequenceMatcher(None, wanted, found, autojunk=False)
    if matcher.ratio() < 0.5:
        return [(answer, True)]
    return [("".join(found[b1:b2]), kind == "equal") for kind, _, _, b1, b2 in matcher.get_opcodes() if b2 > b1]


def _token_row(sample: dict[str, Any], ends: Sequence[str]) -> TokenRow:
    tokens = [
        (("end" if text in ends else "learnt") if learnt else "ignored", text[:_SHORT_CHARACTERS].replace("\n", "⏎\n"))
        for text, learnt in zip(sample["tokens"], sample["learnt"])
    ]
    if len(tokens) > _TOKENS:
        half = _TOKENS // 2
        tokens = [*tokens[:half], ("gap", f"{len(tokens) - _TOKENS:,}"), *tokens[-half:]]
    return TokenRow(_where(sample), tokens, sum(sample["learnt"]), len(sample["tokens"]))
