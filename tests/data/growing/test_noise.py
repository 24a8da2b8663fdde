"""Typing faults: each kind does what its name says, numbers and addresses are spared, a seed makes the same faults."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.data_section import Noise
from tunesmith.data.growing.noise import noisy

TEXT = "Please tell me, when does my parcel arrive in Leeds?"


def faulty(text: str = TEXT, seed: int = 1, **options: object) -> str:
    return noisy(text, Noise.model_validate(options), seed)


@pytest.mark.parametrize("seed", range(20))
def test_each_fault_changes_what_its_name_says(seed: int) -> None:
    case = faulty(seed=seed, rate=0.5, faults=["case"])
    assert case != TEXT
    assert case.lower() == TEXT.lower()
    marks = faulty(seed=seed, rate=1, faults=["punctuation"])
    assert marks == TEXT.replace(",", "").replace("?", "")
    blanks = faulty(seed=seed, rate=0.5, faults=["whitespace"])
    assert blanks != TEXT
    assert blanks.replace(" ", "") == TEXT.replace(" ", "")
    typed = faulty(seed=seed, rate=0.1, faults=["typos"])
    assert typed != TEXT
    assert abs(len(typed) - len(TEXT)) <= 1


def test_the_rate_says_how_many_words_get_a_fault() -> None:
    def changed(rate: float) -> int:
        return sum(a != b for a, b in zip(TEXT.split(), faulty(rate=rate, faults=["case"]).split()))

    assert [changed(rate) for rate in (0.01, 0.3, 1)] == [1, 3, 10]


@given(st.text("ab1@ .,?\n", max_size=60), st.integers(0, 2**64 - 1))
def test_a_seed_makes_the_same_faults_and_numbers_stay(text: str, seed: int) -> None:
    once = faulty(text, seed, rate=0.8)
    assert once == faulty(text, seed, rate=0.8)
    assert [c for c in once if c in "1@"] == [c for c in text if c in "1@"]


def test_two_seeds_make_different_faults() -> None:
    assert len({faulty(seed=seed) for seed in range(20)}) > 10


@pytest.mark.parametrize("text", ["", " ", "12 @x", "…"])
def test_a_text_without_words_stays(text: str) -> None:
    assert faulty(text) == text
