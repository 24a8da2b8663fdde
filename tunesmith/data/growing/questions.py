"""Questions and answers from documents: passage by passage, in the order of a hash, so that few cover all documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.core import store
from tunesmith.core.data_section import Questions
from tunesmith.core.errors import DataError, settings_named
from tunesmith.core.records import Message, Quarantined, Row
from tunesmith.data.growing import grounded
from tunesmith.data.growing.attempts import Attempt, Unread, assistant, synthetic, text_of, user
from tunesmith.data.growing.lines import Lines, ranks
from tunesmith.data.reading import collect, documents
from tunesmith.data.reading.passages import Passage, passages
from tunesmith.models.endpoint import Asked, json_of

_SETTING = "data.grow.synthesise.questions.documents"
_PAIRS = """Here is a passage{}.

{}

Write {} questions that this passage answers, each with its answer. Use only what the passage says. A question must be
clear to somebody who does not have the passage. Reply with a JSON list of objects that have the keys "question" and
"answer", and with nothing else."""
_TO_THIS = "Write the question to this answer.\n\nAnswer: {}"
_EXAMPLES = (
    ("The shop opens at nine in the morning.", "When does the shop open?"),
    ("Guests leave their keys in the box beside the door.", "Where do guests leave their keys?"),
    ("A ticket for children costs four pounds.", "How much does a ticket for children cost?"),
    ("The gardener waters the roses every evening.", "Who waters the roses every evening?"),
    ("A letter that has no stamp is sent back.", "What happens to a letter that has no stamp?"),
    ("The north tower has 112 steps.", "How many steps does the north tower have?"),
)
_SENTENCE = re.compile(r"(?<=[.!?])(?<!\s[A-Z]\.)\s+(?=[\"“'(]?[^\W\d_])")
_FEWEST_WORDS, _MOST_WORDS = 4, 50  # of a sentence that can be an answer
_COVERED = 1 / 3  # of a sentence's content words, in the question that it answers
_LEANING = "but he her his however it its she that their then there these they this those thus"
_LEANS = frozenset(_LEANING.split())  # a sentence that begins so leans on the one before
_MARKUP = re.compile(r"^\s*(#|\||```|~~~|---|===|>|<)")
_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+")


@dataclass(frozen=True)
class Asking:
    """The passages that are asked about, on disk, and what became of the documents."""

    lines: Lines
    order: list[int]
    told: dict[str, Any]

    def passages(self) -> Iterator[Passage]:
        for item in self.lines.at(self.order):
            yield Passage(**{**item, "titles": tuple(item["titles"])})


def read(settings: Questions, work: Path, quarantine: Path) -> Asking:
    """The passages of all documents. What cannot be read of them goes to the quarantine; raises DataError where nothing
    can."""
    told, unread = {"documents": 0, "quarantined": 0, "passages": 0}, list[Quarantined]()
    skipped: list[collect.Skipped] = []

    def found(unpacked: Path) -> Iterator[dict[str, Any]]:
        for number, path in enumerate(settings.documents):
            for one in collect.collected(path, documents.why_not, unpacked / f"{number:03d}"):
                if isinstance(one, collect.Skipped):
                    skipped.append(one)
                else:
                    yield from _of_file(settings, one, unread, told)

    with (
        settings_named({"data.sources": _SETTING, "pretrain.texts": _SETTING}),
        collect.workplace(None, work) as unpacked,
    ):
        store.write_jsonl(work / "passages.jsonl", found(unpacked))
    store.write_jsonl(quarantine, map(asdict, unread))
    if not told["passages"]:
        why = f"{told['documents']:,} documents were read, and {told['quarantined']:,} could not be"
        raise DataError(
            f"there is no passage in {_SETTING}",
            "; ".join(filter(None, [why, collect.sentence(collect.told(skipped))])),
            f"name files of {documents.KINDS}, with text in them",
        )
    lines = Lines(work / "passages.jsonl")
    ids = [f"{item['source']} {item['line']} {item['text']}" for item in lines.at(range(len(lines)))]
    order = np.argsort(ranks("questions", ids), kind="stable").tolist()
    return Asking(lines, order, {**told, "skipped": collect.told(skipped)})


def _of_file(
    settings: Questions, file: collect.Item, unread: list[Quarantined], told: dict[str, int]
) -> Iterator[dict[str, Any]]:
    for document in documents.read(file.path, file.name):
        if isinstance(document, Quarantined):
            told["quarantined"] += 1
            unread.append(document)
            continue
        told["documents"] += 1
        for passage in passages(document, settings.longest_words, settings.overlap_words):
            told["passages"] += 1
            yield asdict(passage)


def attempts(settings: Questions, system: str | None, asking: Asking) -> Iterator[Attempt]:
    """All passages once, then again where more tries are wanted."""
    head: list[Message] = [{"role": "system", "content": system}] if system else []
    for turn in range(settings.tries):
        for passage in asking.passages():
            yield from (_pairs if settings.form == "pairs" else _sentences)(settings, head, passage, turn)


def _pairs(settings: Questions, head: list[Message], passage: Passage, turn: int) -> Iterator[Attempt]:
    about = f" of {' / '.join(passage.titles)}" if passage.titles else ""
    asked = Asked([user(_PAIRS.format(about, passage.text, settings.per_passage))], seed=turn)
    row = _row(head, passage, "", "")
    read, fault = partial(_parsed, head, passage), partial(_fault, settings, passage)
    yield Attempt(passage.id, row, asked, read=read, fault=fault, rows=settings.per_passage)


def _sentences(settings: Questions, head: list[Message], passage: Passage, turn: int) -> Iterator[Attempt]:
    """Sentences that can be an answer: they stand by themselves, and are neither very short nor very long."""
    shown = [said for answer, question in _EXAMPLES for said in (user(_TO_THIS.format(answer)), assistant(question))]
    for sentence in sentences(passage.text):
        yield Attempt(
            passage.id,
            _row(head, passage, "", sentence),
            Asked([*shown, user(_TO_THIS.format(sentence))], seed=turn),
            read=partial(_question, head, passage, sentence),
            fault=partial(_fault_to_sentence, settings, passage),
        )


def sentences(text: str) -> Iterator[str]:
    """Those of a passage that can be an answer by themselves. Headings, tables, code and quotes have none."""
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+[.)])\s)|\n(?=#)|(?<=#)\n", text)
    for paragraph in paragraphs:
        lines = [_ITEM.sub("", line).strip() for line in paragraph.splitlines() if not _MARKUP.match(line)]
        for sentence in _SENTENCE.split(" ".join(filter(None, lines))):
            words = sentence.split()
            whole = sentence.endswith((".", "!")) and _FEWEST_WORDS <= len(words) <= _MOST_WORDS
            if whole and words[0].casefold().strip(",") not in _LEANS:
                yield sentence


def _parsed(head: list[Message], passage: Passage, reply: str) -> list[Row]:
    try:
        found = json_of(reply)
    except ValueError as error:
        raise Unread("the reply is not JSON", str(error)) from None
    found = next(iter(found.values())) if isinstance(found, dict) and len(found) == 1 else found
    pairs = [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict)]
    rows = [
        _row(head, passage, text_of(one["question"]), text_of(one["answer"]))
        for one in pairs
        if {"question", "answer"} <= one.keys()
    ]
    if not rows:
        raise Unread("the reply has no question and answer", reply)
    return rows


def _question(head: list[Message], passage: Passage, sentence: str, reply: str) -> list[Row]:
    """The first line that the model wrote, where it is a question."""
    said = reply.strip().splitlines()[0].strip(' "“”*').removeprefix("Question:").strip()
    if not said.endswith("?"):
        raise Unread("the reply is no question", reply)
    return [_row(head, passage, said, sentence)]


def _fault(settings: Questions, passage: Passage, row: Row) -> str:
    question = str(row.prompt[-1]["content"])
    return grounded.fault(question, row.answer, passage.text, " ".join(passage.titles), settings.grounded_from)


def _fault_to_sentence(settings: Questions, passage: Passage, row: Row) -> str:
    """A question to a sentence also has some of the sentence: what has little is a question to another one."""
    if grounded.covered(str(row.prompt[-1]["content"]), row.answer) < _COVERED:
        return "the question is not about the sentence"
    return _fault(settings, passage, row)


def _row(head: list[Message], passage: Passage, question: str, answer: str) -> Row:
    messages = [*head, user(question), assistant(answer)]
    return synthetic("questions", passage.source, passage.line, messages, [passage.id])
