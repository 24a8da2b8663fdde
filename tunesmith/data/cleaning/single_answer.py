"""Whether a prompt has one right answer, as the rows themselves show: only then is a contradiction a fault.

"A formal synonym for happy" has several right answers, "which of our 77 topics is this message about" has one. A task
is what a system message and its tools ask for. Its prompts have one right answer

- by form, where answers are JSON objects or lists or calls of tools: a machine reads them, and expects one value;
- by form, where short answers are a closed set of labels: it is unlikely that the next row brings a new one, as the
  share of answers that only one prompt has tells (Good, 1953);
- by evidence, where prompts that stand there more than once have one answer more often than not.

Shares are held against their exact binomial bound, so that a few rows prove nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.traits import Places, Traits, together_with

SHORT = 8  # words: a longer answer that two rows share to the letter was copied, not given twice

_NEW_LABELS = 0.1  # the highest chance of a new answer that leaves a set of labels closed
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Task:
    """What a task's rows show: how many of its prompts that stand there more than once have one answer, and beside it
    how many answers there are in all."""

    rows: int
    answers: int
    repeated: int
    agreeing: int
    one_right: bool
    why: str


def shown(traits: Traits, left: Places, contested: Places) -> tuple[NDArray[np.bool_], list[Task]]:
    """Whether each of the contested rows is of a prompt with one right answer, and what shows it of each task that is
    no matter of form alone, that with most rows first."""
    by_form = ~np.isin(traits["context"][contested], traits["context"][contested[~traits["structured"][contested]]])
    tasks = np.unique(traits["task"][contested[~by_form]])
    mine = left[np.isin(traits["task"][left], tasks)]
    order = mine[np.argsort(traits["task"][mine], kind="stable")]
    begins = np.flatnonzero(np.diff(traits["task"][order], prepend=~traits["task"][order][:1]))
    found = [evidence(traits, rows) for rows in np.split(order, begins[1:])] if len(order) else []
    proven = tasks[[task.one_right for task in found]] if found else tasks
    one_right = by_form | np.isin(traits["task"][contested], proven)
    return one_right, sorted(found, key=lambda task: -task.rows)


def evidence(traits: Traits, rows: Places) -> Task:
    """Of one task's rows. A row that repeats another to the letter is another vote only where the answer is short."""
    context, meaning = traits["context"][rows], traits["meaning"][rows]
    _, pairs = np.unique(together_with(context, meaning), return_index=True)
    prompts_of_answers = np.unique(meaning[pairs], return_counts=True)[1]
    answers_of_prompts = np.unique(context[pairs], return_counts=True)[1]
    votes = traits["answer_words"][rows] <= SHORT
    votes[np.unique(together_with(context, traits["id"][rows]), return_index=True)[1]] = True
    repeated = np.unique(context[votes], return_counts=True)[1] > 1
    agreeing = int((answers_of_prompts[repeated] == 1).sum())
    counts = len(rows), len(prompts_of_answers), int(repeated.sum()), agreeing
    short = np.median(traits["answer_words"][rows]) <= SHORT
    return Task(*counts, *_decided(*counts, int((prompts_of_answers == 1).sum()), len(pairs), bool(short)))


def _decided(
    rows: int, answers: int, repeated: int, agreeing: int, of_one_prompt: int, pairs: int, short: bool
) -> tuple[bool, str]:
    if short and _at_most(of_one_prompt, pairs) < _NEW_LABELS:
        return True, f"{answers:,} short answers serve {rows:,} rows: they are labels, of which one is right"
    told = f"of {repeated:,} prompts that stand there more than once, {agreeing:,} have one answer"
    if _at_least(agreeing, repeated) > 0.5:
        return True, told
    return False, f"{told}, which does not show that one answer is right"


def _at_most(some: int, of: int) -> float:
    """The highest share that so many of so many leave likely (Clopper and Pearson, 1934), on one side."""
    from scipy.special import betaincinv  # a tenth of a second, for the few data sets that contradict themselves

    return float(betaincinv(some + 1, of - some, _CONFIDENCE)) if some < of else 1.0


def _at_least(some: int, of: int) -> float:
    return 1 - _at_most(of - some, of)
