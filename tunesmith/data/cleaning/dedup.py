"""Rows that say what an earlier row says: word for word, or nearly.

Deleting is the last resort, so a row only goes when its answer stands in an earlier row too. Prompts alone are no
evidence: "the opposite of dark" and "the opposite of deep" are near-duplicates by any measure of their letters.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tunesmith.data import similar, sketches
from tunesmith.data.traits import Places, Ruling, Traits, together_with


def exact(traits: Traits, left: Places) -> Iterator[Ruling]:
    """Drops a row whose context, and whose answer up to whitespace, are those of an earlier row. Preference pairs must
    agree in both answers."""
    order = left[np.lexsort((left, traits["said"][left], traits["context"][left]))]
    said, context = traits["said"][order], traits["context"][order]
    begins = np.ones(len(order), bool)
    begins[1:] = (said[1:] != said[:-1]) | (context[1:] != context[:-1])
    first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    for place, other in sorted(zip(order[~begins].tolist(), first[~begins].tolist())):
        yield Ruling(place, other, "duplicate", "same as {}")


def near(
    traits: Traits, left: Places, prompts: sketches.Sketches, threshold: float, keep_equal: bool
) -> Iterator[Ruling]:
    """Drops a row when an earlier kept row has its answer and a prompt of Jaccard similarity >= threshold to its own.

    Prompts are compared as sets of character 4-grams of all messages but the system's, normalised. Only rows of one
    side with equal system message, tools, answer, numbers and negation words are compared. `keep_equal` spares prompts
    that are equal, for projects that want them repeated.
    """
    same = traits["prompt"] if keep_equal else None
    kinds = together_with(traits["kind"], traits["said"])
    for place, (other, similarity) in similar.repeats(prompts, threshold, left, kinds, same).items():
        yield Ruling(place, other, "near-duplicate", f"{similarity:.2f} like {{}}")
