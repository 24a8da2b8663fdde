"""One prompt, several answers: noise where one answer is right, and all well where many are.

A model can only learn how often each of them was given: the entropy of a prompt's answers is a loss that no training
takes away. What is to go is a matter of the resolver, but nothing goes where rows do not show that one answer is right.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.cleaning import single_answer
from tunesmith.data.cleaning.choosing import Choose
from tunesmith.data.cleaning.rubric import Choice
from tunesmith.data.traits import Finding, Places, Ruling, Traits

Mode = Literal["drop", "majority", "newest", "judge", "review", "report"]
OneRight = Literal["auto", "yes", "no"]

WAITS = "contradiction, waits for a review"

_TOLD_TASKS = 5  # tasks whose evidence is told


@dataclass(frozen=True)
class Contest:
    """The rows of one context in their order, what each of them answers, and when."""

    places: list[int]
    meanings: list[int]
    times: list[float]

    @cached_property
    def votes(self) -> Counter[int]:
        return Counter(self.meanings)

    @property
    def nats(self) -> float:
        """The entropy of the answers."""
        return -sum(n / len(self.places) * math.log(n / len(self.places)) for n in self.votes.values())

    @property
    def answering(self) -> list[int]:
        """The first row that gives each answer."""
        return [self.first(meaning) for meaning in self.votes]

    def against(self, meaning: int) -> int:
        """The first row that gives the commonest other answer."""
        return self.first(next(other for other, _ in self.votes.most_common() if other != meaning))

    def first(self, meaning: int) -> int:
        return self.places[self.meanings.index(meaning)]


def resolve(
    traits: Traits,
    left: Places,
    mode: Mode,
    one_right: OneRight = "auto",
    reviewed: Mapping[int, bool] | None = None,
    choose: Choose | None = None,
) -> Iterator[Ruling | Finding]:
    """Finds rows of one context whose answers differ, and drops those that the mode says, if the task has one right
    answer (data/cleaning/single_answer.py; `one_right` overrules it): otherwise it notes in each row one that it
    contradicts.

    JSON answers are compared by value, others up to whitespace. `drop` drops them all. In a majority each row has one
    vote and a tie drops all. `newest` keeps the answer of the row with the latest time, or of the last one read.
    `judge` keeps the answer that a model chooses, and drops all where it cannot tell.
    `review` goes by a person's decisions, by content id, and what waits for one is dropped. Rows pinned to the exam
    have no part in the votes of the others.
    """
    contested = _contested(traits, left)
    one_right_K, tasks = _one_right(traits, left, contested, one_right)
    contests = list(_contests(traits, contested, one_right_K))
    resolved, contexts = sum(sure for _, sure in contests), len(contests)
    nats = sum(contest.nats * len(contest.places) for contest, _ in contests)
    chosen = list(choose([c.answering for c, sure in contests if sure]) if mode == "judge" and choose else ())
    choices = iter(chosen)
    for contest, sure in contests:
        if mode == "report" or not sure:
            yield from (Ruling(p, contest.against(m), None, "contradicts {}") for p, m in _rows(contest))
        elif mode == "review":
            yield from _reviewed(traits, contest, reviewed or {})
        elif mode == "judge":
            yield from _chosen(contest, next(choices))
        else:
            yield from _newest(contest) if mode == "newest" else _voted(contest, mode == "majority")
    facts: dict[str, Any] = {
        "rows": len(contested),
        "prompts": contexts,
        "with_one_right_answer": resolved,
        "nats_per_row": round(nats / max(len(contested), 1), 4),
        "tasks": [asdict(task) for task in tasks[:_TOLD_TASKS]],
    }
    warnings = [
        *_unresolved(contexts - resolved, tasks, mode),
        *_unanswered(sum(not choice.answered for choice in chosen)),
        *_stale(traits, contested, reviewed),
    ]
    yield Finding("contradictions", facts, warnings)


def _contested(traits: Traits, left: Places) -> Places:
    """The rows, of those that are left, in whose context not all answers say the same."""
    order = left[np.lexsort((traits["meaning"][left], traits["context"][left]))]
    context, meaning = traits["context"][order], traits["meaning"][order]
    differs = (context[1:] == context[:-1]) & (meaning[1:] != meaning[:-1])
    return left[np.isin(traits["context"][left], np.unique(context[1:][differs]))]


def _one_right(
    traits: Traits, left: Places, contested: Places, one_right: OneRight
) -> tuple[NDArray[np.bool_], list[single_answer.Task]]:
    if one_right == "auto":
        return single_answer.shown(traits, left, contested)
    return np.full(len(contested), one_right == "yes"), []


def _contests(traits: Traits, contested: Places, one_right_K: NDArray[np.bool_]) -> Iterator[tuple[Contest, bool]]:
    order = np.argsort(traits["context"][contested], kind="stable")
    begins = np.flatnonzero(np.diff(traits["context"][contested[order]]))
    for rows in np.split(order, begins + 1) if len(order) else ():
        places = contested[rows]
        meanings, times = (traits[name][places].tolist() for name in ("meaning", "time"))
        yield Contest(places.tolist(), meanings, times), bool(one_right_K[rows[0]])


def _rows(contest: Contest) -> Iterator[tuple[int, int]]:
    return zip(contest.places, contest.meanings)


def _voted(contest: Contest, by_majority: bool) -> Iterator[Ruling]:
    """Drops all, or all that do not have more votes than each other answer."""
    for place, meaning in _rows(contest):
        if not by_majority or any(contest.votes[meaning] <= n for m, n in contest.votes.items() if m != meaning):
            detail = f"{len(contest.votes)} answers to one prompt; see {{}}"
            yield Ruling(place, contest.against(meaning), "contradiction", detail)


def _newest(contest: Contest) -> Iterator[Ruling]:
    *_, (_, newest, answer) = sorted(zip(contest.times, contest.places, contest.meanings))
    for place, meaning in _rows(contest):
        if meaning != answer:
            yield Ruling(place, newest, "contradiction", "a newer answer is in {}")


def _chosen(contest: Contest, choice: Choice) -> Iterator[Ruling]:
    for place, meaning in _rows(contest):
        if choice.best is None:
            why = "the judge cannot tell" if choice.answered else "the judge did not answer"
            yield Ruling(place, contest.against(meaning), "contradiction", f"{why}; see {{}}")
        elif meaning != list(contest.votes)[choice.best]:
            yield Ruling(place, contest.answering[choice.best], "contradiction", "the judge chose {}")


def _reviewed(traits: Traits, contest: Contest, decisions: Mapping[int, bool]) -> Iterator[Ruling]:
    """Where a person keeps an answer, the others go, unless he keeps them, too."""
    said = [decisions.get(int(key)) for key in traits["id"][contest.places]]
    kept = {meaning for meaning, keep in zip(contest.meanings, said) if keep}
    for (place, meaning), keep in zip(_rows(contest), said):
        if keep is None and not kept:
            yield Ruling(place, contest.against(meaning), WAITS, "see {}")
        elif keep is False:
            yield Ruling(place, contest.against(meaning), "contradiction", "a review dropped it; see {}")
        elif meaning not in kept:
            yield Ruling(place, contest.first(min(kept)), "contradiction", "a review kept {}")


def _unresolved(prompts: int, tasks: list[single_answer.Task], mode: Mode) -> Iterator[str]:
    """Why rows that contradict others were not resolved, though somebody wanted them to be."""
    why = next((task.why for task in tasks if not task.one_right), None)
    if mode != "report" and why:
        yield (
            f"{prompts:,} prompts with several answers were left as they are: {why}. "
            "If each prompt has one right answer, say `data.clean.single_answer: yes`."
        )


def _unanswered(prompts: int) -> Iterator[str]:
    if prompts:
        yield (
            f"The judge did not answer about {prompts:,} prompts, whose rows were dropped: "
            "`tunesmith run --force clean` asks it again."
        )


def _stale(traits: Traits, contested: Places, reviewed: Mapping[int, bool] | None) -> Iterator[str]:
    gone = sorted(set(reviewed or ()) - set(traits["id"][contested].tolist()))
    if gone:
        yield (
            f"{len(gone):,} decisions in data.clean.reviewed are about rows that contradict none any more, "
            f"as {gone[0]:016x}."
        )
