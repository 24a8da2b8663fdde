"""What texts are about, without a model: clusters of the letters that they have in common.

A text is the set of its character 4-grams, hashed to a fixed number of features, each weighted by how rare it is
(TF-IDF with terms that count once). Spherical k-means (Dhillon and Modha, 2001) finds the centres on a sample, and then
each text goes to the nearest one. All draws are seeded: the same texts make the same topics.

    features_NF   a sparse row of unit length for each text
    centres_KF    a dense row of unit length for each topic
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tunesmith.data import sketches

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.float32]

_FEATURES = 1 << 15
_SAMPLE = 20_000  # texts on which the centres are found: the first ones
_AT_ONCE = 5_000  # texts whose features are in memory
_ROUNDS = 25
_DRAWS = 5  # of first centres: k-means finds the nearest arrangement, not the best
_WORDS = 6  # that a topic is told by
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class Topics:
    """Each text's topic, numbered by size, the largest first; and the most telling words of each."""

    topic_N: NDArray[np.int64]
    words: list[list[str]]


def clusters(texts: Iterable[str], topics: int) -> Topics:
    """At most so many topics: fewer where there are fewer different texts. Texts are read once, a batch at a time."""
    draw = np.random.default_rng(0)
    batches = _batches(texts)
    first = list(itertools.islice(batches, _SAMPLE // _AT_ONCE))
    sample = [text for batch in first for text in batch]
    idf_F = _idf(sample)
    features = _features(sample, idf_F)
    centres_KF = _centres(features, topics, draw)
    found, seen = [], [Counter[str]() for _ in centres_KF]
    for batch in itertools.chain(first, batches):
        nearest = np.asarray(_features(batch, idf_F) @ centres_KF.T).argmax(1)
        found.append(nearest)
        for topic, text in zip(nearest.tolist(), batch):
            seen[topic].update(set(_WORD.findall(text)))
    topic_N = np.concatenate(found) if found else np.zeros(0, np.int64)
    sizes = np.bincount(topic_N, minlength=len(centres_KF))
    order = [topic for topic in np.argsort(-sizes, kind="stable").tolist() if sizes[topic]]
    renamed = np.zeros(len(centres_KF), np.int64)
    renamed[order] = np.arange(len(order))
    return Topics(renamed[topic_N], [_telling(seen[topic], seen, int(sizes[topic]), len(topic_N)) for topic in order])


def _batches(texts: Iterable[str]) -> Iterator[Sequence[str]]:
    remaining = iter(texts)
    while batch := list(itertools.islice(remaining, _AT_ONCE)):
        yield batch


def _idf(texts: Sequence[str]) -> Floats:
    sets = sketches.shingled(texts)
    having = np.bincount(sets.shingles_S % _FEATURES, minlength=_FEATURES)
    return np.log((1 + len(texts)) / (1 + having)).clip(0).astype(np.float32)


def _features(texts: Sequence[str], idf_F: Floats) -> csr_array:
    from scipy.sparse import csr_array  # a tenth of a second, for those who balance by topic

    sets = sketches.shingled(texts)
    columns = (sets.shingles_S % _FEATURES).astype(np.int64)
    shape = (len(texts), _FEATURES)
    rows = csr_array((idf_F[columns], columns, np.concatenate([[0], sets.ends_N])), shape=shape)
    lengths_N = np.sqrt(rows.multiply(rows).sum(1)).clip(1e-9)
    return csr_array(rows.multiply(1 / lengths_N[:, None]), dtype=np.float32)


def _centres(features: csr_array, topics: int, draw: np.random.Generator) -> Floats:
    """The best of a few draws: those whose texts are nearest to their centres."""
    drawn = [_converged(features, _first_centres(features, topics, draw)) for _ in range(_DRAWS)]
    return max(drawn, key=lambda one: one[1])[0]


def _first_centres(features: csr_array, topics: int, draw: np.random.Generator) -> Floats:
    """By k-means++ (Arthur and Vassilvitskii, 2007): texts that are far from those chosen before."""
    chosen = [int(draw.integers(features.shape[0]))]
    nearest_N = np.full(features.shape[0], np.inf)
    while len(chosen) < topics:
        closeness_N = (features @ features[[chosen[-1]]].toarray().T)[:, 0]
        nearest_N = np.minimum(nearest_N, (1 - closeness_N).clip(0))
        if nearest_N.sum() < 1e-6:
            break
        chosen.append(int(draw.choice(len(nearest_N), p=nearest_N / nearest_N.sum())))
    centres_KF: Floats = features[chosen].toarray()
    return centres_KF


def _converged(features: csr_array, centres_KF: Floats) -> tuple[Floats, float]:
    """Centres that are the means of their texts, and how near these are in all."""
    topic_N = np.full(features.shape[0], -1)
    for _ in range(_ROUNDS):
        before, topic_N = topic_N, np.asarray(features @ centres_KF.T).argmax(1)
        if np.array_equal(before, topic_N):
            break
        for topic in range(len(centres_KF)):
            if (its := topic_N == topic).any():
                centre_F = np.asarray(features[its].sum(0))
                centres_KF[topic] = centre_F / max(float(np.linalg.norm(centre_F)), 1e-9)
    return centres_KF, float(np.asarray(features @ centres_KF.T).max(1).sum())


def _telling(its: Counter[str], all: list[Counter[str]], size: int, texts: int) -> list[str]:
    """Words that stand in many of the topic's texts, and in more of them than of the others."""
    score = {}
    for word, having in its.items():
        elsewhere = sum(other[word] for other in all) - having
        score[word] = having / size - elsewhere / max(texts - size, 1)
    return sorted(score, key=lambda word: (-score[word], word))[:_WORDS]
