"""What each test row contributes to each metric.

Every corpus figure is a ratio of two sums over the rows, so a row contributes a pair (numerator, denominator), and the
figure of any resample of the rows follows from its two sums alone.

    metric            numerator                       denominator
    exact_match       1 if the answer is the expected 1
    valid_json        1 if the answer is strict JSON  1
    schema_valid      1 if it follows the schema      1
    field_precision   items in both                   items in the answer
    field_recall      items in both                   items expected
    field_f1          twice the items in both         items in the answer + items expected
    rouge_l           F-measure of the row            1
    perplexity        nll in nats                     tokens                     (the figure is exp of the ratio)

An item is one scalar of a JSON value with its path; positions in lists do not count, repetitions do. A `false`, a
`null` or an empty string is an item, an empty list or object is none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
import orjson
from numpy.typing import NDArray

from tunesmith.core.project import Metric
from tunesmith.core.records import Message
from tunesmith.core.schemas import AnswerSchema

Answer = Literal["text", "json"]
FloatArray = NDArray[np.float64]
Scores = dict[Metric, FloatArray]  # of each metric, (rows, 2): the numerators and the denominators

UNBOUNDED: frozenset[Metric] = frozenset({"perplexity"})
BINARY: frozenset[Metric] = frozenset({"exact_match", "valid_json", "schema_valid"})
FIELDS: frozenset[Metric] = frozenset({"field_precision", "field_recall", "field_f1"})
UNEXPECTED = "(unexpected)"  # in a field table, all fields that no expected answer has
WHOLE = "(whole answer)"  # in a field table, answers that are no objects


class Prediction(TypedDict):
    """A test row with a model's greedy answer and the expected answer's likelihood; a NaN is null in the file."""

    id: str
    prompt: list[Message]
    expected: str
    answer: str
    finish: Literal["stop", "length"]
    nll: float | None
    tokens: int
    source: str
    line: int


def applicable(answer: Answer, schema: bool) -> list[Metric]:
    """The metrics that mean something for a project with such answers."""
    if answer == "text":
        return ["exact_match", "rouge_l", "perplexity"]
    with_schema: list[Metric] = ["schema_valid"] if schema else []
    return ["exact_match", "valid_json", *with_schema, "field_precision", "field_recall", "field_f1", "perplexity"]


def score(predictions: Sequence[Prediction], answer: Answer, schema: AnswerSchema | None) -> Scores:
    """The pairs of every metric that applies, rows in the order given."""
    rows = [_json_pairs(p, schema) if answer == "json" else _text_pairs(p) for p in predictions]
    return {
        metric: np.array([row[metric] for row in rows], dtype=np.float64).reshape(-1, 2)
        for metric in applicable(answer, schema is not None)
    }


def figure(metric: Metric, sums: FloatArray, nothing: float = 0.0) -> FloatArray:
    """The figures of pairs or of sums of pairs, (..., 2) -> (...).

    Nothing over nothing is `nothing`: by default 0, for the rare resample in which there is nothing to count.
    """
    numerators, denominators = sums[..., 0], sums[..., 1]
    empty = np.full(denominators.shape, nothing)
    ratios: FloatArray = np.divide(numerators, denominators, out=empty, where=denominators != 0)
    with np.errstate(over="ignore"):  # an infinite perplexity is reported as not finite
        return np.exp(ratios) if metric == "perplexity" else ratios


def gain(metric: Metric, base: FloatArray, tuned: FloatArray) -> FloatArray:
    """How much better the tuned figures are: the rise, or for perplexity the fall as a fraction of the base's."""
    return (base - tuned) / base if metric == "perplexity" else tuned - base


def best_pair(metric: Metric, scores: Scores) -> FloatArray:
    """The pair of a typical row at its best, for bounded metrics; at its worst its numerator is 0.

    A typical row of the field metrics has the median number of expected items, so that it weighs as much as the others.
    """
    if metric not in FIELDS:
        return np.ones(2)
    gold = max(1.0, float(np.median(scores["field_recall"][:, 1])))
    return np.full(2, 2 * gold if metric == "field_f1" else gold)


def leaves(text: str) -> dict[tuple[str | int, ...], bytes] | None:
    """The scalars and empty containers of a JSON text by their paths, each as JSON; None where the text is no JSON.

    Two texts mean the same exactly when their leaves are equal: 1 and 1.0 are one number, 1 and true are not.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:  # also NaN, Infinity and numbers beyond a double, which are no JSON
        return None
    found: dict[tuple[str | int, ...], bytes] = {}
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), value)]  # recursion would end at a model's [[[[[[...
    while stack:
        path, node = stack.pop()
        if isinstance(node, dict) and node:
            stack.extend(((*path, key), item) for key, item in node.items())
        elif isinstance(node, list) and node:
            stack.extend(((*path, i), item) for i, item in enumerate(node))
        else:
            whole = isinstance(node, float) and node.is_integer() and abs(node) < 2**53
            found[path] = orjson.dumps(int(node) if whole else node)
    return found


def json_equal(expected: str, answer: str) -> bool:
    """Whether both are JSON and equal after parsing: the order of keys does not matter, that of lists does."""
    wanted = leaves(expected)
    return wanted is not None and wanted == leaves(answer)


def text_equal(expected: str, answer: str) -> bool:
    """Whether both are the same words: runs of whitespace count as one space."""
    return expected.split() == answer.split()


def valid_json(answer: str) -> bool:
    """Whether the whole answer is strict JSON (RFC 8259)."""
    return leaves(answer) is not None


def schema_valid(answer: str, schema: AnswerSchema) -> bool:
    """Whether the answer is JSON that follows the schema. ConfigError for a schema with a reference to elsewhere."""
    try:
        return schema.fault(orjson.loads(answer)) is None
    except orjson.JSONDecodeError:
        return False


def items(text: str) -> Counter[tuple[tuple[str, ...], bytes]]:
    """The items of a JSON text, (keys, scalar as JSON), counted; none where the text is no JSON."""
    return Counter(
        (tuple(key for key in path if isinstance(key, str)), leaf)
        for path, leaf in (leaves(text) or {}).items()
        if leaf not in (b"{}", b"[]")
    )


def field_counts(expected: str, answer: str) -> tuple[int, int, int]:
    """How many items are in both, in the answer, and expected."""
    gold, predicted = items(expected), items(answer)
    return (gold & predicted).total(), predicted.total(), gold.total()


def field_table(predictions: Sequence[Prediction]) -> dict[str, dict[str, float | None]]:
    """Precision, recall and F1 of each top-level field and its support (items expected), the commonest field first.

    A figure that is nothing over nothing is None. The rows of the table add up to the corpus's counts.
    """
    gold, predicted, matched = Counter[str](), Counter[str](), Counter[str]()
    known = {_field(path) for p in predictions for path, _ in items(p["expected"])}
    for p in predictions:
        wanted, found = items(p["expected"]), items(p["answer"])
        for counts, some in ((gold, wanted), (predicted, found), (matched, wanted & found)):
            for (path, _), count in some.items():
                counts[name if (name := _field(path)) in known else UNEXPECTED] += count
    return {
        name: {
            "precision": _share(matched[name], predicted[name]),
            "recall": _share(matched[name], gold[name]),
            "f1": _share(2 * matched[name], predicted[name] + gold[name]),
            "support": gold[name],
        }
        for name in sorted(gold.keys() | predicted.keys(), key=lambda name: (-gold[name], name))
    }


def rouge_l(expected: str, answer: str) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004); 0 where either has none.

    On ASCII it is rouge-score's figure without stemming; letters of other scripts are words here and nothing there.
    """
    wanted, found = (re.findall(r"[^\W_]+", text.lower()) for text in (expected, answer))
    return 2 * _lcs_length(wanted, found) / max(1, len(wanted) + len(found))


def _lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, one word of `b` a step, all of `a` in the bits of an integer.

    Hyyrö, "Bit-parallel LCS-length computation revisited" (2004): bit i of `row` is 0 where the length grows at a[i].
    """
    ones = (1 << len(a)) - 1
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    row = ones
    for word in b:
        hits = row & places.get(word, 0)
        row = (row + hits | row - hits) & ones
    return len(a) - row.bit_count()


def _json_pairs(p: Prediction, schema: AnswerSchema | None) -> Mapping[Metric, tuple[float, float]]:
    matched, predicted, gold = field_counts(p["expected"], p["answer"])
    pairs: dict[Metric, tuple[float, float]] = {
        "exact_match": (json_equal(p["expected"], p["answer"]), 1),
        "valid_json": (valid_json(p["answer"]), 1),
        "field_precision": (matched, predicted),
        "field_recall": (matched, gold),
        "field_f1": (2 * matched, predicted + gold),
        "perplexity": _likelihood(p),
    }
    if schema is not None:
        pairs["schema_valid"] = (schema_valid(p["answer"], schema), 1)
    return pairs


def _text_pairs(p: Prediction) -> Mapping[Metric, tuple[float, float]]:
    return {
        "exact_match": (text_equal(p["expected"], p["answer"]), 1),
        "rouge_l": (rouge_l(p["expected"], p["answer"]), 1),
        "perplexity": _likelihood(p),
    }


def _likelihood(p: Prediction) -> tuple[float, float]:
    return (float("nan") if p["nll"] is None else p["nll"]), p["tokens"]


def _field(path: tuple[str, ...]) -> str:
    return path[0] if path else WHOLE


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
