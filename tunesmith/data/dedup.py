"""Rows that say what an earlier row says: word for word, or nearly.

Deleting is the last resort, so a row only goes when its answer stands in an earlier row too. Prompts alone are no
evidence: "the opposite of dark" and "the opposite of deep" are near-duplicates by any measure of their letters.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tunesmith.core.records import Dropped, Kept, Message, Row, content_id, normalised

_SHINGLE = 4  # characters
_NUMBER = re.compile(r"(?:[-+−*/×÷^<>=]\s*)?\d+(?:[.,:]\d+)*%?")  # normalised text has lost signs and decimal points
_NEGATION = re.compile(
    r"""n['’]t\b
  | \b(?:no|not|never|none|nobody|nothing|nowhere|neither|nor|without|cannot)\b
  | \b(?:ai|are|ca|could|did|do|does|had|has|have|is|should|was|were|wo|would)nt\b
  | \b(?:nicht|keine?[mnrs]?|nie|niemals|ohne | non?|pas|jamais|sans | nunca|sin)\b""",
    re.IGNORECASE | re.VERBOSE,
)


def exact(rows: Iterable[Row]) -> Iterator[Kept | Dropped]:
    """Drops a row whose context, and whose answer up to whitespace, are those of an earlier row.

    Streams, and remembers a hash and the place of each row kept. Preference pairs must agree in both answers.
    """
    places: dict[str, str] = {}
    for row in rows:
        key = content_id([context(row), _said(row)])
        if key in places:
            yield Dropped(row, "duplicate", f"same as {places[key]}")
        else:
            places[key] = f"{row.source}:{row.line}"
            yield Kept(row)


def near(rows: Iterable[Row], threshold: float, keep_equal: bool = False) -> Iterator[Kept | Dropped]:
    """Drops a row when an earlier kept row has its answer and a prompt of Jaccard similarity >= threshold to its own.

    Prompts are compared as sets of character 4-grams of all messages but the system's, normalised; a shorter text is
    one shingle. Every find is verified exactly. Only rows of one side with equal system message, tools, answer, numbers
    and negation words are compared. `keep_equal` spares prompts that are equal, for projects that want them repeated.

    Holds all rows in memory, and 4 bytes for each distinct 4-gram of each row of the set of comparable rows at hand.
    Time is that of shingling, some thousands of short rows a second, while few prompts are alike; it grows with the
    pairs that share rare 4-grams, so with the square of the rows where thousands of comparable prompts are cut from one
    template. Twenty thousand of those are a matter of seconds, two hundred thousand of many minutes.
    """
    rows = list(rows)
    comparable: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        comparable[_veto_key(row)].append(i)
    dropped: dict[int, Dropped] = {}
    for members in comparable.values():
        if len(members) == 1:
            continue
        for later, earlier, similarity in _similar([_prompt_text(rows[i]) for i in members], threshold, keep_equal):
            twin = rows[members[earlier]]
            dropped[members[later]] = Dropped(
                rows[members[later]], "near-duplicate", f"{similarity:.2f} like {twin.source}:{twin.line}"
            )
    for i, row in enumerate(rows):
        yield dropped.get(i) or Kept(row)


def context(row: Row) -> str:
    """The hash of all that an answer may depend on: side, tools, and every message before it, normalised.

    Rows pinned to the exam are apart from the others: where both hold a prompt, the splitter decides. Numbers count
    with their signs and points, so that 5 - 3 and 5 + 3 are two contexts although they are one group.
    """
    messages = [
        [m["role"], normalised(m["content"]), _NUMBER.findall(m["content"]), m.get("tool_calls")] for m in row.prompt
    ]
    return content_id([_side(row), row.tools, messages])


def _side(row: Row) -> str:
    return row.split if row.split in ("validation", "test") else "train"


def _said(row: Row) -> list[Any]:
    return [row.answer.split(), row.messages[-1].get("tool_calls"), row.rejected and row.rejected.split()]


def _turns(row: Row) -> list[Message]:
    return [m for m in row.prompt if m["role"] != "system"]


def _prompt_text(row: Row) -> str:
    return "\n".join(normalised(m["content"]) for m in _turns(row))


def _veto_key(row: Row) -> str:
    """Rows with different keys are never near-duplicates."""
    text = "\n".join(m["content"] for m in _turns(row))
    system = [normalised(m["content"]) for m in row.prompt if m["role"] == "system"]
    calls = [m.get("tool_calls") for m in row.prompt]
    negations = sorted(found.casefold() for found in _NEGATION.findall(text))
    return content_id([_side(row), system, row.tools, calls, _said(row), sorted(_NUMBER.findall(text)), negations])


def _similar(texts: list[str], threshold: float, keep_equal: bool) -> Iterator[tuple[int, int, float]]:
    """(later, earlier, similarity) for each text that is like an earlier one which is itself like none before it.

    Of n shingles, a set shares at least ceil(t n) with any set of Jaccard similarity t; at most `slack` = n - ceil(t n)
    are its own. So when all sets are sorted alike, the first l shared shingles stand among the first slack + l of both,
    and only pairs that meet l times in so long a prefix can be similar (prefix filtering: Bayardo et al., 2007; more
    than one meeting: Wang, Li and Feng, 2012). Sorting the rarest first keeps the meetings few. Those pairs are then
    compared in full.
    """
    frequency = Counter(shingle for text in texts for shingle in _shingles(text))
    rank = {shingle: i for i, shingle in enumerate(sorted(frequency, key=lambda s: (frequency[s], s)))}
    ranked = [np.array(sorted(rank[shingle] for shingle in _shingles(text)), np.int32) for text in texts]
    size = np.array([len(ranks) for ranks in ranked])
    slack = size - np.ceil(threshold * size - 1e-9).astype(int)
    meetings = np.minimum(slack + 1, size - slack)
    holders: dict[int, array[int]] = defaultdict(lambda: array("i"))  # rank -> the texts with it in their prefix
    for later in range(len(texts)):
        prefix = ranked[later][: slack[later] + meetings[later]].tolist()
        met = np.bincount(np.concatenate([holders[r] for r in prefix]).astype(int))
        everything = set(ranked[later].tolist())
        for earlier in np.flatnonzero(met >= np.minimum(meetings[later], meetings[: len(met)])).tolist():
            shared = len(everything.intersection(ranked[earlier].tolist()))
            similarity = shared / (len(everything) + len(ranked[earlier]) - shared)
            if similarity >= threshold and not (keep_equal and texts[earlier] == texts[later]):
                yield later, earlier, similarity
                break
        else:
            for r in prefix:
                holders[r].append(later)


def _shingles(text: str) -> set[str]:
    return {text[i : i + _SHINGLE] for i in range(max(len(text) - _SHINGLE, 0) + 1)}
