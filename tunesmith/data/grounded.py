"""Whether a question and its answer stand on the passage that they were made from.

The rule, which asks no model: of the content words of question and answer (words of three letters or more that are no
function words, without their endings), at least a given share stands in the passage or in the titles above it; every
number and every name in them stands there too; the question has a content word in common with the answer or the
titles; and it does not give the whole answer away.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_ENDINGS = ("ings", "ing", "edly", "ed", "ies", "es", "s", "ly", "e", "y")
_FEWEST_LETTERS = 3  # that are left of a word without its ending
_SENTENCE_START = re.compile(r"(?:^|[.!?:]\s+|[\"“(]\s*)([^\W\d_]+)")
_FUNCTION = """
    about after again all also and any are because been before being but can could did does doing done each either else
    ever every for from get gets give given had has have having her here hers him his how into its itself just kind
    like make many may might more most much must need nor not now off often one only onto other others our out over own
    per please same shall she should some someone something sort such take tell than that the their them then there
    these they thing things this those through too under until upon use used using very was way well were what whatever
    when whenever where whether which while who whom whose why will with within without would you your"""
_FUNCTION_WORDS = frozenset(_FUNCTION.split())


def fault(question: str, answer: str, passage: str, titles: str, share: float) -> str:
    """What keeps the pair from standing on its passage; empty where nothing does."""
    there = f"{titles}\n{passage}"
    for what, text in (("question", question), ("answer", answer)):
        if strange := sorted(numbers(text) - numbers(there)):
            return f"a number of the {what} is not in the passage: {strange[0]}"
        if strange := sorted(names(text) - words(there)):
            return f"a name of the {what} is not in the passage: {strange[0]}"
        said, known = content(text), content(there)
        if len(said & known) < share * len(said):
            return f"words of the {what} are not in the passage: {', '.join(sorted(said - known)[:5])}"
    asked, said = content(question), content(answer)
    if not asked & (said | content(titles)):
        return "the question has no word in common with the answer"
    if said and said <= asked and numbers(answer) <= numbers(question):
        return "the question gives the answer away"
    return ""


def content(text: str) -> set[str]:
    """The content words of a text without their endings."""
    return {_stem(word) for word in words(text) if len(word) >= 3 and word not in _FUNCTION_WORDS}


def words(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(text)}


def numbers(text: str) -> set[str]:
    return set(_NUMBER.findall(text))


def names(text: str) -> set[str]:
    """Words with a capital that no beginning of a sentence accounts for."""
    begins = {match.start(1) for match in _SENTENCE_START.finditer(text)}
    found = (match for match in _WORD.finditer(text) if match.start() not in begins)
    return {match[0].casefold() for match in found if match[0][0].isupper() and len(match[0]) > 1}


def _stem(word: str) -> str:
    """Endings of English; other languages keep most of theirs, and so need the very word."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _FEWEST_LETTERS:
            return word.removesuffix(ending)
    return word
