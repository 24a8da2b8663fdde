"""Known faults planted into real rows: each cleaner finds at least so many of them, and hardly anything else.

`bench/cleaners.py` prints the whole table. Bounds stand a little under what it shows, as other seeds plant others.
"""

import json
from pathlib import Path
from random import Random

import pytest
from cleaning import planted, values

CHECKSUM = ["email", "card", "iban", "ssn", "ip address", "json web token"]
LEAST_FOUND = dict.fromkeys(CHECKSUM, 0.97) | {
    "phone": 0.95, "key of a service": 0.95, "private key": 1, "labelled token": 0.95, "password in a url": 0.95,
    "token in a url": 0.95,
    "labelled password": 0.65,  # two words one after the other are told from no other word
}  # fmt: skip
LEAST_REPAIRED = {
    "mojibake": 0.97, "invisible characters": 1, "control characters": 0.97, "Unicode form": 1, "byte order mark": 1
}  # fmt: skip
LEAST_DROPPED = {"repetition": 0.8, "another language": 0.9, "toxicity": 0.7}


@pytest.fixture(scope="module")
def rows(real_data):
    return planted.rows(real_data)


def test_gold_personal_data_is_found(real_data):
    scores = planted.gold(real_data)
    assert sorted(scores) == ["card", "email", "iban", "ip", "phone", "ssn"]
    for kind, score in scores.items():
        assert score.to_json()["precision"] >= 0.95, kind
        assert score.to_json()["recall"] == 1, kind


def test_planted_personal_data_are_found(rows):
    scores = planted.personal(rows, Random(11))
    assert sorted(scores) == sorted(LEAST_FOUND) == sorted(values.KINDS)
    for kind, score in scores.items():
        told = score.to_json()
        assert told["recall"] >= LEAST_FOUND[kind], (kind, told)
        assert told["precision"] >= 0.95, (kind, told)
        assert score.exact >= 0.95 * score.found, (kind, told)


def test_what_only_looks_like_personal_data_is_left_alone(rows):
    taken = planted.alike(rows, Random(11))
    assert len(taken) <= 0.002 * planted.ROWS * len(values.ALIKE), taken


def test_broken_texts_are_mended_to_what_they_were_and_others_left_alone(rows):
    scores = planted.repairs(rows, Random(11))
    assert sorted(scores) == sorted(LEAST_REPAIRED)
    for kind, score in scores.items():
        assert score.exact >= LEAST_REPAIRED[kind] * score.planted, (kind, score)
        assert score.false == 0, (kind, score)


def test_filters_drop_what_they_should_and_little_else(rows):
    scores = planted.dropped(rows, Random(11))
    for kind, score in scores.items():
        told = score.to_json()
        assert told["recall"] >= LEAST_DROPPED[kind], (kind, told)
        assert told["precision"] >= 0.95, (kind, told)
        assert score.false <= 0.002 * len(rows), (kind, told)
    assert {*scores, "toxicity"} == {*LEAST_DROPPED}


def test_kept_figures_are_of_the_same_kinds():
    kept = json.loads((Path(__file__).parents[2] / "bench/results/cleaners.json").read_text())
    assert list(kept["personal data: planted"]) == list(values.KINDS)
    assert list(kept["text repair: planted"]) == list(LEAST_REPAIRED)
    assert list(kept["filters: planted"]) == list(LEAST_DROPPED)
