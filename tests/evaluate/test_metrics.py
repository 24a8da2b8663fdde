"""Metrics by hand-made cases, by a second way of counting, and against rouge-score."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tunesmith.core.errors import ConfigError
from tunesmith.core.schemas import AnswerSchema
from tunesmith.evaluate import metrics

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}

short = st.text("ab.", max_size=2)
scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, -2.0]) | short
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(short, v, max_size=3), max_leaves=8)
objects = st.dictionaries(short, values, max_size=3)


def prediction(expected, answer, nll=1.0, tokens=2):
    return {
        "id": "0",
        "prompt": [],
        "expected": expected,
        "answer": answer,
        "finish": "stop",
        "nll": nll,
        "tokens": tokens,
        "source": "rows.jsonl",
        "line": 1,
    }


def corpus(pairs, metric, answer="json", schema=None):
    scores = metrics.score([prediction(*pair) for pair in pairs], answer, schema)
    return float(metrics.figure(metric, scores[metric].sum(0)))


@pytest.mark.parametrize(
    ("expected", "answer", "equal"),
    [
        ('{"a": 1, "b": [1, 2]}', ' {"b":[1,2],\n"a":1.0} ', True),
        ('{"b": [1, 2]}', '{"b": [2, 1]}', False),
        ('{"a": 1}', '{"a": true}', False),
        ('{"a": 1}', '{"a": "1"}', False),
        ('{"a": []}', '{"a": {}}', False),
        ('{"a": []}', '{"a": "[]"}', False),
        ('{"a": []}', "{}", False),
        ('{"a.b": 1}', '{"a": {"b": 1}}', False),
        ('{"0": 1}', "[1]", False),
        ("null", "null", True),
        ("not JSON", "not JSON", False),
        ('{"a": 1}', '```json\n{"a": 1}\n```', False),
    ],
)
def test_json_is_compared_after_parsing(expected, answer, equal):
    assert metrics.json_equal(expected, answer) is equal
    assert metrics.json_equal(answer, expected) is equal


@given(values, values)
def test_json_equality_is_that_of_typed_values(a, b):
    def typed(v):
        if isinstance(v, dict):
            return ("object", frozenset((k, typed(x)) for k, x in v.items()))
        if isinstance(v, list):
            return ("list", tuple(map(typed, v)))
        return ("boolean" if isinstance(v, bool) else "scalar", v)

    assert metrics.json_equal(json.dumps(a), json.dumps(b)) == (typed(a) == typed(b))
    assert metrics.json_equal(json.dumps(a), json.dumps(a, indent=2))


def test_text_is_compared_after_whitespace():
    assert metrics.text_equal("a  b\n", " a b")
    assert not metrics.text_equal("a b", "A b")
    assert not metrics.text_equal("a b", "ab")


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": [1, null]}', True),
        ("7", True),
        ("", False),
        ("NaN", False),
        ('{"a": Infinity}', False),
        ("1e999", False),
        ("{'a': 1}", False),
        ('{"a": 1,}', False),
        ('{"a": 1} so', False),
        ("[" * 5000, False),
        ("[" * 900 + "]" * 900, True),
        ("[" * 5000 + "]" * 5000, False),
    ],
)
def test_only_strict_json_is_valid(text, valid):
    assert metrics.valid_json(text) is valid
    metrics.field_counts(text, text)  # whatever a model says is counted without a crash


def test_schema(tmp_path):
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(SCHEMA))
    schema = AnswerSchema.read(path)
    answers = ['{"n": 1}', '{"n": 1.0}', '{"n": "1"}', "{}", '{"n": 1, "m": 2}', "n = 1"]
    assert [metrics.schema_valid(answer, schema) for answer in answers] == [True, True, False, False, False, False]
    assert corpus([('{"n": 1}', answer) for answer in answers], "schema_valid", schema=schema) == 2 / 6


def test_an_answer_too_deep_for_a_recursive_schema_is_invalid(tmp_path):
    path = tmp_path / "answer.json"
    path.write_text('{"type": "array", "items": {"$ref": "#"}}')
    schema = AnswerSchema.read(path)
    assert metrics.schema_valid("[[[]]]", schema)
    assert not metrics.schema_valid("[" * 1000 + "]" * 1000, schema)


@pytest.mark.parametrize("text", ['{"type": "objct"}', "{", "[]", "3"])
def test_a_broken_schema_is_the_users_mistake(tmp_path, text):
    path = tmp_path / "answer.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"answer\.json (cannot be read as JSON|is no valid JSON Schema)") as error:
        AnswerSchema.read(path)
    assert error.value.why
    assert "data.clean.answer_schema" in error.value.what


@pytest.mark.parametrize(
    ("expected", "answer", "counts"),
    [
        ('{"time": "7 pm", "people": "2"}', '{"time": "7 pm", "people": "3"}', (1, 2, 2)),
        ('{"time": "7 pm", "people": "2"}', '{"time": "7 pm", "date": "today", "people": "2"}', (2, 3, 2)),
        ('{"time": "7 pm", "people": "2"}', "7 pm for 2", (0, 0, 2)),
        ('{"time": "7 pm"}', '{"date": "7 pm"}', (0, 1, 1)),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}, "b": 1}', (1, 2, 1)),
        ('{"tags": ["x", "y", "x"]}', '{"tags": ["y", "x", "z", "y"]}', (2, 4, 3)),
        ('{"rows": [{"k": 1}, {"k": 2}]}', '{"rows": [{"k": 2}]}', (1, 1, 2)),
        ('{"a": 1}', '{"a": true}', (0, 1, 1)),
        ('{"a": null, "b": ""}', '{"a": null}', (1, 1, 2)),
        ('{"a": [], "b": {}}', "{}", (0, 0, 0)),
        ('{"a": "[]"}', '{"a": "[]"}', (1, 1, 1)),
        ('["x", "y"]', '["y"]', (1, 1, 2)),
        ('"x"', '"x"', (1, 1, 1)),
    ],
)
def test_field_counts(expected, answer, counts):
    assert metrics.field_counts(expected, answer) == counts


def recount(value, path=()):
    """The items of a value by plain recursion, as text."""
    if isinstance(value, dict):
        return [item for key, v in value.items() for item in recount(v, (*path, key))]
    if isinstance(value, list):
        return [item for v in value for item in recount(v, path)]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return [f"{path} {float(value) if number else json.dumps(value)}"]


@given(st.lists(st.tuples(objects, objects | st.none()), min_size=1, max_size=5))
def test_micro_averages_agree_with_a_recount(pairs):
    texts = [(json.dumps(gold), "no JSON {" if found is None else json.dumps(found)) for gold, found in pairs]
    matched = predicted = expected = 0
    for gold, found in pairs:
        left = recount(gold)
        expected += len(left)
        for item in [] if found is None else recount(found):
            predicted += 1
            if item in left:
                left.remove(item)
                matched += 1
    precision = matched / predicted if predicted else 0
    recall = matched / expected if expected else 0
    f1 = 2 * precision * recall / (precision + recall) if matched else 0
    assert corpus(texts, "field_precision") == pytest.approx(precision)
    assert corpus(texts, "field_recall") == pytest.approx(recall)
    assert corpus(texts, "field_f1") == pytest.approx(f1)
    table = metrics.field_table([prediction(*pair) for pair in texts])
    assert sum(row["support"] for row in table.values()) == expected
    by_field = Counter(key for gold, _ in pairs for key in gold for _ in recount(gold[key]))
    assert {name: row["support"] for name, row in table.items() if row["support"]} == dict(by_field)


def test_field_table():
    table = metrics.field_table(
        [
            prediction('{"time": "7", "people": "2"}', '{"time": "7", "people": "3"}'),
            prediction('{"time": "8"}', '{"time": "8", "mood": "good", "name": "Eve"}'),
            prediction('{"time": "9", "tags": ["a", "b"]}', "no idea"),
        ]
    )
    assert list(table) == ["time", "tags", "people", metrics.UNEXPECTED]
    assert table["time"] == {"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "support": 3}
    assert table["people"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert table["tags"] == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 2}
    assert table[metrics.UNEXPECTED] == {"precision": 0.0, "recall": None, "f1": 0.0, "support": 0}
    assert list(metrics.field_table([prediction('["x"]', '["y"]')])) == [metrics.WHOLE]


REAL_PAIRS = [
    (
        'The spelling of the given phrase "freind" is incorrect, the correct spelling is "friend".',
        'The spelling of the phrase "freind" is flat out wrong; the correct spelling is "friend".',
    ),
    ("45 kilometers is equivalent to 45000 meters.", "45 kilometers is 45,000 meters."),
    ("Although it was raining, they went for a walk.", "They went for a walk although it was raining."),
    ("1, 4, 9, 16, 25, 36, 49, 64, 81, 100.", "Here are the squares: 1, 4, 9, 16, 25, 36, 49, 64, 81, 100."),
    ("The cat sat on the mat", "on the mat the cat sat on the mat the cat"),
    ("snake_case and camelCase", "snake case and camelcase"),
    ("", "anything"),
    ("?!", "?!"),
]


characters = st.text("aAbc1 -_.\n", max_size=40)
sentences = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "The", "CAT"]), max_size=90).map(" ".join)


@given(st.tuples(characters, characters) | st.tuples(sentences, sentences) | st.sampled_from(REAL_PAIRS))
def test_rouge_l_is_that_of_rouge_score(pair):
    oracle = RougeScorer(["rougeL"], use_stemmer=False).score(*pair)["rougeL"].fmeasure
    assert metrics.rouge_l(*pair) == pytest.approx(oracle, abs=1e-12)


def test_rouge_l_reads_other_scripts():
    assert metrics.rouge_l("Привет, мир", "привет мир!") == 1
    assert metrics.rouge_l("café crème", "café noir") == 0.5


def test_perplexity_weighs_tokens_not_rows():
    rows = [("x", "y", 2.0, 1), ("x", "y", 4.0, 9)]
    assert corpus(rows, "perplexity", "text") == pytest.approx(math.exp(6 / 10))
    assert math.isnan(corpus([*rows, ("x", "y", None, 3)], "perplexity", "text"))


def test_nothing_over_nothing():
    silent = [('{"a": 1}', "I cannot say"), ('{"a": 2}', "{}")]
    assert corpus(silent, "field_precision") == 0
    scores = metrics.score([prediction(*pair) for pair in silent], "json", None)
    assert np.isnan(metrics.figure("field_precision", scores["field_precision"], nothing=math.nan)).all()


def test_gain_is_a_rise_or_a_relative_fall():
    assert metrics.gain("field_f1", np.array(0.2), np.array(0.5)) == pytest.approx(0.3)
    assert metrics.gain("perplexity", np.array(8.0), np.array(2.0)) == pytest.approx(0.75)


def test_a_pseudo_row_has_the_median_size():
    rows = [prediction(json.dumps({str(i): 0 for i in range(n)}), "{}") for n in (0, 3, 9)]
    scores = metrics.score(rows, "json", None)
    assert metrics.best_pair("field_recall", scores).tolist() == [3, 3]
    assert metrics.best_pair("field_f1", scores).tolist() == [6, 6]
    assert metrics.best_pair("exact_match", scores).tolist() == [1, 1]


def test_what_applies():
    assert metrics.applicable("text", False) == ["exact_match", "rouge_l", "perplexity"]
    assert "schema_valid" in metrics.applicable("json", True)
    assert "schema_valid" not in metrics.applicable("json", False)
    assert "rouge_l" not in metrics.applicable("json", True)
