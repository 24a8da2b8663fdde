"""Whether a question and its answer stand on the passage that they were made from.

The rule, which asks no model: of the content words of question and answer (words of three letters or more that are no
function words, without their endings), at least a given share stands in the passage or in the titles above it, and so
does every number and every name. Words that questions are made with, such as "happens" or "price", may be new. The
question does not give the whole answer away, and where it asks how much or how many, the answer tells an amount that
the question does not. It is a rule about words: it finds what was made up, not all that is beside the point.
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
_ASKING = """
    age amount become becomes between called cost day days difference early far fast happen happens heavy high hour
    hours kind kinds large late length limit long made maximum mean meaning means minimum minute minutes month months
    name number often old people person place price purpose reason size someone time times week weeks wide year years"""
_HOW_MUCH = re.compile(r"how (?:many|much|long|old|far|fast|heavy|high|wide|often|large|big)\b", re.IGNORECASE)
_AMOUNTS = """
    one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million half quarter once twice free
    nothing none never always every no"""
_AMOUNT_WORDS = frozenset(_AMOUNTS.split())
_FUNCTION_WORDS = frozenset(_FUNCTION.split())


def fault(question: str, answer: str, passage: str, titles: str, share: float) -> str:
    """What keeps the pair from standing on its passage; empty where nothing does."""
    there = f"{titles}\n{passage}"
    for what, text, usual in (("question", question, _ASKING_STEMS), ("answer", answer, frozenset[str]())):
        if strange := sorted(numbers(text) - numbers(there)):
            return f"a number of the {what} is not in the passage: {strange[0]}"
        if strange := sorted(names(text) - words(there)):
            return f"a name of the {what} is not in the passage: {strange[0]}"
        strange = sorted(content(text) - content(there) - usual)
        if len(strange) > (1 - share) * len(content(text)) + 1e-9:
            return f"words of the {what} are not in the passage: {', '.join(strange[:5])}"
    asked, said = content(question), content(answer)
    if said and said <= asked and numbers(answer) <= numbers(question):
        return "the question gives the answer away"
    if _HOW_MUCH.match(question) and not _amounts(answer) - _amounts(question):
        return "the question asks for a number, and the answer tells none"
    return ""


def covered(question: str, answer: str) -> float:
    """The share of the answer's content words that the question has: little of it means another question."""
    said = content(answer)
    return len(said & content(question)) / max(len(said), 1)


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


def _amounts(text: str) -> set[str]:
    return numbers(text) | words(text) & _AMOUNT_WORDS


def _stem(word: str) -> str:
    """Endings of English; other languages keep most of theirs, and so need the very word."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _FEWEST_LETTERS:
            return word.removesuffix(ending)
    return word


_ASKING_STEMS = frozenset(map(_stem, _ASKING.split()))
