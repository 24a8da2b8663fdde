"""Near-duplicate search against comparing all pairs, against datasketch, against crowds of one template, and on texts
that are hardly any."""

import random

import duplicates as bench
import numpy as np
import pytest
from scipy.sparse import csr_array

from tunesmith.core import store
from tunesmith.core.data_section import Split
from tunesmith.core.records import Row, normalised
from tunesmith.core.step import Artifact
from tunesmith.data import similar, sketches, split


@pytest.mark.parametrize("threshold", bench.THRESHOLDS)
@pytest.mark.parametrize("name", ["banking77", "instructions"])
def test_what_is_found_is_what_datasketch_and_comparing_all_pairs_find(name, threshold, real_data):
    """At equal cuts. On all of banking77, bench/duplicates.py finds the same."""
    texts = [
        normalised(text) for text in {"banking77": bench.banking77, "instructions": bench.instructions}[name](real_data)
    ]
    texts = texts[:1500]
    truth, found = bench.by_all_pairs(texts, threshold), bench.by_bands(texts, threshold)
    theirs = bench.by_datasketch(texts, threshold, sketches.banding(threshold, len(texts)))
    assert len(truth) >= 10
    assert found <= truth
    assert theirs <= truth
    assert len(found) >= 0.95 * len(truth)
    assert len(found) >= 0.95 * len(theirs)


@pytest.mark.parametrize("edit", bench.EDITS)
def test_planted_near_duplicates_are_found_unless_a_number_or_a_negation_protects_them(edit, real_data):
    told = bench.of_planted(edit, bench.banking77(real_data)[:3000], 0.7, 300)
    assert told["precision"] == 1
    assert told["recall"] >= 0.99
    assert told["alike"] >= {"case": 300, "punctuation": 300, "1 word": 270, "2 words": 180, "3 words": 90}[edit]


SHORT = [
    "",
    "?",
    "!",
    "😀",
    "😀😀",
    "🎉",
    "a",
    "b",
    "ab",
    "ba",
    "abc",
    "1",
    "2",
    "ß",
    "é",
    "你",
    "你好",
    "...",
    " ",
    "-1",
]


def test_texts_that_are_hardly_any_are_like_none_but_themselves():
    texts = [normalised(text) for text in SHORT]
    for threshold in (0.51, 0.7, 0.9, 1.0):
        prompts = sketches.sketched([*texts, *texts], sketches.banding(threshold, 2 * len(texts)))
        found = similar.across(prompts, threshold, np.arange(len(texts)), np.arange(len(texts), 2 * len(texts)))
        assert found.uncompared == {}
        assert {place - len(texts): texts[like] for place, (like, _) in found.alike.items()} == dict(enumerate(texts))
        groups, _ = similar.joined(
            prompts, threshold, np.arange(2 * len(texts)), (np.array([], int), np.array([], int))
        )
        assert len(set(groups.tolist())) == len(set(texts))


def test_rows_of_hardly_any_text_are_told_apart():
    rows = [bench.conversation(text, line) for line, text in enumerate(SHORT)]
    assert {SHORT[place] for place in bench.near(rows, 0.51)} == {" "}  # the same as an empty one


CROWD = "where is parcel {:06d} please"  # two of them are alike where the numbers share digits: 12 of 40 shingles each
ALIKE = "could you tell me right now where on earth my parcel is, which has the number {:06d}"


def crowd(template: str, count: int = 10_000) -> list[str]:
    return [template.format(number) for number in random.Random(1).sample(range(10**6), count)]


@pytest.mark.parametrize("template", [CROWD, ALIKE])
def test_ten_thousand_texts_of_one_template_are_held_against_all_they_meet(template):
    texts, train = crowd(template), 9_800
    prompts = sketches.sketched(texts, sketches.banding(0.7, len(texts)))
    found = similar.across(prompts, 0.7, np.arange(train), np.arange(train, len(texts)))
    like_train = like_one_of(texts[:train], texts[train:])
    assert len(like_train) > 50
    assert {place - train for place in found.alike} == like_train
    assert found.uncompared == {}


@pytest.mark.parametrize("ends", [(700, 900), (0, 800), (700, 700), (0, 0)])
def test_each_side_is_held_against_all_earlier_ones(ends, monkeypatch):
    monkeypatch.setattr(similar, "_CROWD", 100)
    texts = [*crowd(CROWD, 500), *crowd(ALIKE, 500)]
    random.Random(2).shuffle(texts)
    sides = np.split(np.arange(len(texts)), ends)
    prompts = sketches.sketched(texts, sketches.banding(0.7, len(texts)))
    found = similar.across(prompts, 0.7, *sides, whole=True)
    first, second = ends
    expected = {place + first for place in like_one_of(texts[:first], texts[first:second])}
    expected |= {place + second for place in like_one_of(texts[:second], texts[second:])}
    assert found.alike.keys() == expected
    assert found.uncompared == {}
    assert all(np.searchsorted(ends, like, "right") < np.searchsorted(ends, place, "right")
               for place, (like, _) in found.alike.items())  # fmt: skip


def test_who_meets_too_many_is_suspected(monkeypatch):
    """A crowd that is not compared as a whole, as larger ones would not be."""
    monkeypatch.setattr(similar, "_CROWD", 10_000)
    texts, exam = crowd(CROWD, 3_000), 400
    prompts = sketches.sketched(texts, sketches.banding(0.7, len(texts)))
    found = similar.across(prompts, 0.7, np.arange(exam), np.arange(exam, len(texts)))
    like_exam = like_one_of(texts[:exam], texts[exam:])
    assert found.alike.keys() <= {place + exam for place in like_exam}
    assert found.uncompared
    assert not found.alike.keys() & found.uncompared.keys()
    assert {place + exam for place in like_exam} <= found.alike.keys() | found.uncompared.keys()
    assert all(one < exam for one in found.uncompared.values())


def test_who_might_be_like_a_pinned_exam_does_not_train_and_the_certificate_tells(monkeypatch, tmp_path):
    texts, exam = crowd(CROWD, 1_000), 150
    rows = [
        Row([{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}], "t", line, "columns",
            split="test" if line < exam else "train")
        for line, text in enumerate([*texts, *(f"{number:x} {number * 7919:x}" for number in range(50))])
    ]  # fmt: skip
    store.write_rows(tmp_path / "rows.jsonl", rows)
    told = {}
    for pairs in (10_000, similar._CROWD):
        monkeypatch.setattr(similar, "_CROWD", pairs)
        (tmp_path / f"{pairs}").mkdir()
        told[pairs] = split.run(
            Split(validation=0), [], Artifact("clean", "0", tmp_path, "done"), tmp_path / f"{pairs}"
        )
    small, large = told.values()
    doubted = small["reasons"]["prompt perhaps like one in test"]
    assert small["certificate"]["dropped_on_suspicion"] == doubted > 0
    assert large["certificate"]["dropped_on_suspicion"] == 0
    assert "prompt perhaps like one in test" not in large["reasons"]
    trained = {row.line for row in store.read_rows(tmp_path / "10000/train.jsonl")}
    assert not {line - exam for line in trained} & like_one_of(texts[:exam], texts[exam:])


def like_one_of(some: list[str], others: list[str]) -> set[int]:
    """The places of others that are like one of these, by comparing all pairs."""
    if not some or not others:
        return set()
    sets = sketches.shingled([*some, *others])
    _, columns = np.unique(sets.shingles_S, return_inverse=True)
    has = csr_array((np.ones(len(columns), np.int32), columns, np.concatenate([[0], sets.ends_N])))
    shared = (has[: len(some)] @ has[len(some) :].T).toarray()
    both = sets.sizes_N[: len(some), None] + sets.sizes_N[None, len(some) :]
    return set(np.flatnonzero((shared / (both - shared)).max(0) >= 0.7).tolist())
