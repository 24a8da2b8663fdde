"""Typing faults, as people make them: what a tuned model reads in service is not as tidy as its training rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from tunesmith.core.data_section import Noise

_WORD = re.compile(r"\S+ ?")  # with the blank behind it
_MARKS = re.compile(r"[.,;:!?'\"’()-]")
_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_SPARED = re.compile(r"[\d@/\\_<>{}\[\]=]")  # numbers, addresses, placeholders, code: another one is another question


def noisy(text: str, noise: Noise, seed: int) -> str:
    """The text with faults in some of its words; the same one for the same seed. It may be the text itself, where no
    word can have any of the faults."""
    draw = np.random.default_rng(seed)
    words = [match for match in _WORD.finditer(text) if not _SPARED.search(match[0])]
    faulty: dict[int, str] = {}
    for at in draw.permutation(len(words)).tolist():
        if len(faulty) >= max(1, math.floor(noise.rate * len(words) + 0.5)):
            break
        made = (_FAULTS[kind](words[at][0], draw) for kind in draw.permutation(noise.faults).tolist())
        if other := next((other for other in made if other != words[at][0]), None):
            faulty[at] = other
    for at in sorted(faulty, reverse=True):
        text = text[: words[at].start()] + faulty[at] + text[words[at].end() :]
    return text


def _typo(word: str, draw: np.random.Generator) -> str:
    """One letter goes wrong, in a word of at least three."""
    letters = [i for i, letter in enumerate(word) if letter.isalpha()]
    if len(letters) < 3:
        return word
    at = letters[int(draw.integers(len(letters) - 1))]
    letter = word[at]
    faulty = [
        word[:at] + word[at + 1] + letter + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[:at] + letter + word[at:],
        word[:at] + _beside(letter, draw) + word[at + 1 :],
    ]
    made = [other for other in faulty if other != word]
    return made[int(draw.integers(len(made)))]


def _beside(letter: str, draw: np.random.Generator) -> str:
    """Another letter that lies next to this one on the keyboard; where it does not lie there, the letter itself."""
    for line in _KEYBOARD:
        if (at := line.find(letter.lower())) >= 0:
            beside = line[max(at - 1, 0) : at] + line[at + 1 : at + 2]
            found = beside[int(draw.integers(len(beside)))]
            return found.upper() if letter.isupper() else found
    return letter


def _case(word: str, draw: np.random.Generator) -> str:
    made = [other for other in (word.lower(), word.upper()) if other != word]
    return made[int(draw.integers(len(made)))] if made else word


def _punctuation(word: str, draw: np.random.Generator) -> str:
    left = _MARKS.sub("", word)
    return left if left.strip() else word


def _whitespace(word: str, draw: np.random.Generator) -> str:
    if not word.endswith(" "):
        return word
    return word.rstrip() if draw.random() < 0.5 else f"{word} "


_FAULTS: dict[str, Callable[[str, np.random.Generator], str]] = {
    "typos": _typo,
    "case": _case,
    "punctuation": _punctuation,
    "whitespace": _whitespace,
}
