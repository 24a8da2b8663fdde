"""How new rows are made, one function for each kind: what is tried, in which order, and what comes of a reply."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from tunesmith.core.data_section import BackTranslation, Noise, Paraphrase
from tunesmith.core.data_section import Seeds as FromSeeds
from tunesmith.core.records import Message, Row
from tunesmith.data.growing import grounded
from tunesmith.data.growing.attempts import Attempt, Unread, assistant, synthetic, text_of, user
from tunesmith.data.growing.noise import noisy
from tunesmith.data.growing.seeds import Seeds
from tunesmith.data.telling.ledger import PERSONAL
from tunesmith.models.endpoint import Asked, json_of

_QUOTES = "\"'“”‘’«»` \n"
_LIKE_THESE = """Here are examples of prompts and their answers.

{}

Write one new prompt of the same kind, about something else, and its answer. Reply with a JSON object that has the keys
"prompt" and "answer", and with nothing else."""
_OTHER_WORDS = """Say this in other words, as somebody else would ask it. Keep every name and number. Reply with the new
text alone.

{}"""
_PARAPHRASED = [
    user(_OTHER_WORDS.format("At what time do you open on Saturday?")),
    assistant("When are you open from on Saturday?"),
    user(_OTHER_WORDS.format("My order 5512 came without the cable, what now?")),
    assistant("The cable is missing from order 5512. What should I do?"),
]
_TRANSLATE = "Translate from {} into {}. Reply with the translation alone.\n\n{}"


def seeds(settings: FromSeeds, rows: Seeds, is_open: Callable[[str], bool]) -> Iterator[Attempt]:
    """Rows as examples, a few at a time, and again in another order as long as any of them may have more."""
    left = True
    for turn in itertools.count():
        if not left:
            return
        shuffled, left = rows.shuffled(f"seeds {turn}"), False
        while shown := list(itertools.islice(shuffled, settings.examples)):
            shown.sort(key=lambda row: not is_open(row.id))  # one that may have more comes first
            first = shown[0]
            if not is_open(first.id):
                continue
            left = True
            system = [m for m in first.prompt if m["role"] == "system"]
            asks = synthetic("seeds", first.source, first.line, [*first.prompt, assistant("")], [r.id for r in shown])
            row = replace(asks, changes=_personal(first))
            asked = Asked([user(_LIKE_THESE.format("\n\n".join(map(_example, shown))))], seed=turn, json=True)
            yield Attempt(first.id, row, asked, read=partial(_from_json, row, system))


def paraphrase(settings: Paraphrase, rows: Seeds) -> Iterator[Attempt]:
    """Each row's last question in other words: once for all rows, then again."""
    for turn in range(settings.per_row):
        for row in rows.shuffled(f"paraphrase {turn}"):
            asked = Asked([*_PARAPHRASED, user(_OTHER_WORDS.format(_question(row)))], seed=turn)
            yield Attempt(
                row.id,
                _child("paraphrase", row, _question(row)),
                asked,
                read=partial(_reworded, "paraphrase", row),
                fault=partial(_same_facts, _question(row)),
            )


def back_translation(settings: BackTranslation, rows: Seeds) -> Iterator[Attempt]:
    """Each row's last question there and back."""
    there, home = settings.language, settings.from_language
    for row in rows.shuffled("back translation"):
        yield Attempt(
            row.id,
            _child("back_translation", row, _question(row)),
            Asked([user(_TRANSLATE.format(home, there, _question(row)))]),
            then=lambda reply: Asked([user(_TRANSLATE.format(there, home, reply))]),
            read=partial(_reworded, "back_translation", row),
            fault=partial(_same_facts, _question(row)),
        )


def noise(settings: Noise, rows: Seeds) -> Iterator[Attempt]:
    """Each row with faults in its last question: one noisy copy of all rows, then the next."""
    for turn in range(settings.per_row):
        for row in rows.shuffled(f"noise {turn}"):
            faulty = noisy(_question(row), settings, seed=int(row.id, 16) + turn)
            yield Attempt(row.id, _child("noise", row, faulty))


def _child(kind: str, parent: Row, question: str) -> Row:
    """The parent with another last question."""
    at = _asked_at(parent)
    messages = [{**message, "content": question} if i == at else message for i, message in enumerate(parent.messages)]
    made = synthetic(kind, parent.source, parent.line, messages, [parent.id])
    return replace(made, tools=parent.tools, rejected=parent.rejected, changes=_personal(parent))


def _personal(parent: Row) -> list[str]:
    """That it holds personal data, or did: a misspelt name is no name to whoever looks for names, and yet is one."""
    return [note for note in parent.changes if note.startswith(tuple(PERSONAL))]


def _question(row: Row) -> str:
    return str(row.messages[_asked_at(row)]["content"])


def _asked_at(row: Row) -> int:
    return max(i for i, message in enumerate(row.messages) if message["role"] == "user")


def _reworded(kind: str, parent: Row, reply: str) -> list[Row]:
    said = reply.strip(_QUOTES)
    if not said or "\n\n" in said:
        raise Unread("the reply is not one text", reply)
    return [_child(kind, parent, said)]


def _same_facts(before: str, row: Row) -> str:
    """Other words for the same question have its numbers and no other name."""
    now = _question(row)
    if strange := grounded.numbers(before) ^ grounded.numbers(now):
        return f"a number was lost or added: {min(strange)}"
    if strange := grounded.names(now) - grounded.words(before):
        return f"a name was added: {min(strange)}"
    return ""


def _from_json(row: Row, system: Sequence[Message], reply: str) -> list[Row]:
    try:
        found = json_of(reply)
    except ValueError as error:
        raise Unread("the reply is not JSON", str(error)) from None
    found = found[0] if isinstance(found, list) and found else found
    if not isinstance(found, dict) or not {"prompt", "answer"} <= found.keys():
        raise Unread("the reply has no prompt and answer", reply)
    prompt, answer = (text_of(found[name]) for name in ("prompt", "answer"))
    return [replace(row, messages=[*system, user(prompt), assistant(answer)], changes=[])]


def _example(row: Row) -> str:
    return f"Prompt: {_question(row)}\nAnswer: {row.answer}"
