"""Gates from prediction files to the verdict: the truth table, what cannot be measured, what is written."""

import json
import math
import random
import time

import pytest

from tunesmith.core import store
from tunesmith.core.errors import ConfigError
from tunesmith.core.project import Gate
from tunesmith.core.step import Artifact
from tunesmith.evaluate import gates
from tunesmith.evaluate.stats import mcnemar

WORDS = ["seven", "today", "noon", "Eve", "two"]


def rows(expected, answers, nll=1.0, tokens=4):
    """Predictions; `nll` is one number for all rows or one for each."""
    nlls = nll if isinstance(nll, list) else [nll] * len(expected)
    return [
        {
            "id": f"row-{i}",
            "prompt": [{"role": "user", "content": f"question {i}"}],
            "expected": gold,
            "answer": answer,
            "finish": "stop" if answer else "length",
            "nll": value,
            "tokens": tokens,
            "source": "rows.jsonl",
            "line": i + 1,
        }
        for i, (gold, answer, value) in enumerate(zip(expected, answers, nlls))
    ]


def run(tmp_path, base, tuned, demands=(), answer="json", schema=None):
    artifacts = []
    for name, predictions in (("before", base), ("after", tuned)):
        (tmp_path / name).mkdir(exist_ok=True)
        store.write_jsonl(tmp_path / name / "predictions.jsonl", predictions)
        artifacts.append(Artifact(name, "0" * 16, tmp_path / name, "done"))
    return gates.run(list(demands), answer, schema, *artifacts, tmp_path)


def right_on(shares, n=200):
    """Expected answers, and for each share as many right ones (the first rows) among wrong ones."""
    expected = [json.dumps({"time": f"{i} o'clock", "people": i % 7}) for i in range(n)]
    wrong = json.dumps({"time": "never"})
    return expected, *[[gold if i < share * n else wrong for i, gold in enumerate(expected)] for share in shares]


@pytest.mark.parametrize(
    ("before", "after", "n", "margin", "outcome"),
    [
        (0.0, 0.9, 200, 0.05, "PASS"),
        (0.0, 1.0, 3, 0.0, "NOT ENOUGH DATA"),
        (0.0, 1.0, 1, 0.0, "NOT ENOUGH DATA"),
        (0.9, 0.2, 200, 0.0, "FAIL"),
        (0.2, 0.5, 200, 0.5, "FAIL"),
        (0.5, 0.51, 200, 0.0, "NOT ENOUGH DATA"),
        (0.5, 0.5, 200, 0.0, "NOT ENOUGH DATA"),
        (0.8, 0.79, 400, -0.05, "PASS"),
        (0.8, 0.79, 20, -0.05, "NOT ENOUGH DATA"),
        (0.8, 0.6, 400, -0.05, "FAIL"),
    ],
)
@pytest.mark.parametrize("metric", ["exact_match", "field_f1"])
def test_truth_table(tmp_path, metric, before, after, n, margin, outcome):
    expected, base, tuned = right_on([before, after], n)
    summary = run(tmp_path, rows(expected, base), rows(expected, tuned), [Gate(metric=metric, margin=margin)])
    (gate,) = summary["gates"]
    assert gate["outcome"] == summary["outcome"] == outcome, gate
    assert summary["exit_status"] == {"PASS": 0, "FAIL": 3, "NOT ENOUGH DATA": 4}[outcome]
    assert gate["rows"] == summary["rows"] == n
    assert gate["gain"]["low"] <= gate["gain"]["value"] <= gate["gain"]["high"]
    assert (gate["rows_needed"] or math.inf) > n
    if metric == "exact_match":
        assert gate["gain"]["value"] == pytest.approx(after - before, abs=1 / n)


@pytest.mark.parametrize(
    ("fall", "n", "margin", "outcome"),
    [
        (0.5, 40, 0.2, "PASS"),
        (0.5, 4, 0.0, "NOT ENOUGH DATA"),
        (0.0, 40, 0.0, "NOT ENOUGH DATA"),
        (-0.5, 40, 0.0, "FAIL"),
        (-0.01, 40, -0.1, "PASS"),
        (0.1, 40, 0.3, "FAIL"),
    ],
)
def test_perplexity_must_fall(tmp_path, fall, n, margin, outcome):
    draw = random.Random(0)
    text = ["an answer"] * n
    base = [draw.uniform(6, 10) for _ in text]
    tuned = [nll + 4 * math.log(1 - fall) + draw.uniform(-0.02, 0.02) for nll in base]
    summary = run(
        tmp_path, rows(text, text, base), rows(text, text, tuned), [Gate(metric="perplexity", margin=margin)], "text"
    )
    (gate,) = summary["gates"]
    assert gate["outcome"] == outcome, gate
    assert gate["gain"]["value"] == pytest.approx(fall, abs=0.01)
    assert summary["metrics"]["base"]["perplexity"]["value"] == pytest.approx(math.exp(sum(base) / (4 * n)))


def test_the_worst_gate_decides(tmp_path):
    expected, base, tuned = right_on([0.1, 0.9], 60)
    good, bad = Gate(metric="exact_match"), Gate(metric="exact_match", margin=0.95)
    unsure = Gate(metric="exact_match", margin=0.8)
    outcomes = [
        run(tmp_path, rows(expected, base), rows(expected, tuned), demands)["outcome"]
        for demands in ([good], [good, unsure], [unsure, bad, good])
    ]
    assert outcomes == ["PASS", "NOT ENOUGH DATA", "FAIL"]


def test_a_stricter_alpha_asks_for_more(tmp_path):
    expected, base, tuned = right_on([0.5, 0.58], 100)
    loose, strict = run(
        tmp_path,
        rows(expected, base),
        rows(expected, tuned),
        [Gate(metric="exact_match", alpha=0.1), Gate(metric="exact_match", alpha=0.0005)],
    )["gates"]
    assert (loose["outcome"], strict["outcome"]) == ("PASS", "NOT ENOUGH DATA")
    assert strict["gain"]["low"] < loose["gain"]["low"]


def test_sentences(tmp_path):
    expected, none, most, half, more = right_on([0.0, 0.9, 0.5, 0.53], 80)

    def sentence(base, tuned, margin=0.0):
        gate = Gate(metric="exact_match", margin=margin)
        return run(tmp_path, rows(expected, base), rows(expected, tuned), [gate])["gates"][0]["sentence"]

    assert sentence(none, most, 0.05) == "exact_match rose by 0.90 (0.80 to 0.94), above the margin of 0.05."
    assert sentence(most, half) == "exact_match fell by 0.40 (0.29 to 0.49), short of the margin of 0."
    assert sentence(half, more) == (
        "exact_match rose by 0.04 (-0.01 to +0.09), too unsure to set against the margin of 0; "
        "about 260 test rows would be enough, there are 80."
    )
    assert sentence(most, most, -0.1).endswith("within the allowed loss of 0.1.")
    assert sentence(most, half, -0.1).endswith("beyond the allowed loss of 0.1.")
    assert sentence(half, half) == (
        "exact_match did not change (-0.02 to +0.02), too unsure to set against the margin of 0; "
        "at this gain no number of rows would be enough, there are 80."
    )


def test_the_sentence_of_perplexity_speaks_of_per_cent(tmp_path):
    text = ["an answer"] * 40
    base, tuned = [6 + i % 5 for i in range(40)], [4 + i % 5 + (i % 3) / 10 for i in range(40)]
    gate = [Gate(metric="perplexity", margin=0.2)]
    won = run(tmp_path, rows(text, text, base), rows(text, text, tuned), gate, "text")["gates"][0]["sentence"]
    assert won == "perplexity fell by 37.9 % (37.5 % to 38.2 %), above the margin of 20 %."
    few = run(tmp_path, rows(text, text, base)[:3], rows(text, text, tuned)[:3], gate, "text")["gates"][0]
    assert few["sentence"].startswith("perplexity fell by 37.")
    assert few["sentence"].endswith("about 5 test rows would be enough, there are 3.")
    assert few["gain"]["low"] is few["gain"]["high"] is None


@pytest.mark.parametrize("answer", ["json", "text"])
def test_no_test_rows_pass_nothing(tmp_path, answer):
    demands = [Gate(metric="exact_match", margin=-1), Gate(metric="perplexity", margin=-1)]
    summary = run(tmp_path, [], [], demands, answer)
    assert {gate["outcome"] for gate in summary["gates"]} == {"NOT ENOUGH DATA"}
    assert summary["gates"][0]["sentence"] == "exact_match was not measured: there are no test rows."
    assert summary["rows"] == 0
    assert summary["gains"]["perplexity"]["value"] is None


@pytest.mark.parametrize("nll", [None, 1e6])
def test_a_likelihood_that_is_no_number_passes_nothing(tmp_path, nll):
    expected, base, tuned = right_on([0.1, 0.9], 60)
    broken = rows(expected, tuned, [nll, *[1.0] * 59])
    summary = run(
        tmp_path, rows(expected, base), broken, [Gate(metric="perplexity", margin=-0.5), Gate(metric="exact_match")]
    )
    assert [gate["outcome"] for gate in summary["gates"]] == ["NOT ENOUGH DATA", "PASS"]
    assert "not a finite number in 1 of 60 rows" in summary["gates"][0]["sentence"]
    assert summary["metrics"]["tuned"]["perplexity"] == {"value": None, "low": None, "high": None}


def test_answers_without_fields_pass_no_field_gate(tmp_path):
    summary = run(
        tmp_path,
        rows(["{}"] * 50, ["none"] * 50),
        rows(["{}"] * 50, ["{}"] * 50),
        [Gate(metric="field_f1", margin=-0.5), Gate(metric="exact_match")],
    )
    assert [gate["outcome"] for gate in summary["gates"]] == ["NOT ENOUGH DATA", "PASS"]
    assert "nothing to measure" in summary["gates"][0]["sentence"]


def test_a_base_that_speaks_no_json_has_no_precision_but_the_tuned_model_has(tmp_path):
    expected, tuned = right_on([0.8], 60)
    summary = run(
        tmp_path,
        rows(expected, ["Sure! At noon."] * 60),
        rows(expected, tuned),
        [Gate(metric="field_precision"), Gate(metric="field_f1"), Gate(metric="valid_json")],
    )
    assert [gate["outcome"] for gate in summary["gates"]] == ["NOT ENOUGH DATA", "PASS", "PASS"]
    assert summary["gates"][0]["sentence"] == "field_precision was not measured: the base model names no field at all."
    assert summary["gates"][0]["rows"] == 60
    assert summary["metrics"]["base"]["field_precision"]["value"] is None
    precision = summary["metrics"]["tuned"]["field_precision"]
    beside_itself = run(tmp_path, rows(expected, tuned), rows(expected, tuned))["metrics"]["tuned"]["field_precision"]
    assert precision["value"] == beside_itself["value"] > 0.5
    assert precision["low"] < precision["value"] < precision["high"]


def test_default_gates(tmp_path):
    expected, base, tuned = right_on([0.1, 0.9], 60)
    assert [g["metric"] for g in run(tmp_path, rows(expected, base), rows(expected, tuned))["gates"]] == ["field_f1"]
    assert [
        g["metric"] for g in run(tmp_path, rows(expected, base), rows(expected, tuned), answer="text")["gates"]
    ] == ["perplexity"]


def test_different_rows_are_a_fault_of_ours(tmp_path):
    expected, base, tuned = right_on([0.1, 0.9], 10)
    with pytest.raises(AssertionError, match="did not answer the same test rows"):
        run(tmp_path, rows(expected, base), rows(expected, tuned)[:-1])


@pytest.mark.parametrize(
    ("metric", "answer", "why", "next_"),
    [
        ("rouge_l", "json", "data.clean.answer is json", "data.clean.answer to text"),
        ("field_f1", "text", "scored by exact_match, rouge_l, perplexity", "data.clean.answer to json"),
        ("schema_valid", "json", "answer_schema names no JSON Schema", "valid_json"),
        ("schema_valid", "text", "data.clean.answer is text", "data.clean.answer to json"),
    ],
)
def test_a_metric_that_does_not_apply_is_refused(metric, answer, why, next_):
    with pytest.raises(ConfigError, match=rf"evaluate\.gates\.1: {metric} does not apply") as error:
        gates.check([Gate(metric="exact_match"), Gate(metric=metric)], answer, None)
    assert why in error.value.why
    assert next_ in error.value.next


def test_check_reads_the_schema(tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    gates.check([Gate(metric="schema_valid")], "json", schema)
    schema.write_text('{"type": "thing"}')
    with pytest.raises(ConfigError, match=r"schema\.json (cannot be read as JSON|is no valid JSON Schema)"):
        gates.check([], "json", schema)


def mixed(seed, n=120):
    """Expected answers with a few fields and two models' answers, the second the better one."""
    draw = random.Random(seed)

    def fields():
        return {name: draw.choice(WORDS) for name in ("time", "date", "name") if draw.random() < 0.6}

    expected = [fields() for _ in range(n)]
    systems = [
        [
            json.dumps(gold if draw.random() < right else fields()) if draw.random() < 0.95 else "what?"
            for gold in expected
        ]
        for right in (0.3, 0.8)
    ]
    nlls = [[draw.uniform(1, high) for _ in expected] for high in (9, 5)]
    expected = [json.dumps(gold) for gold in expected]
    return [rows(expected, answers, nll) for answers, nll in zip(systems, nlls)]


def test_the_order_of_rows_changes_nothing(tmp_path):
    base, tuned = mixed(0)
    demands = [Gate(metric="field_f1", margin=0.2), Gate(metric="perplexity"), Gate(metric="exact_match", margin=0.4)]
    first = run(tmp_path, base, tuned, demands)
    written = (tmp_path / "scores.jsonl").read_bytes(), (tmp_path / "verdict.json").read_bytes()
    random.Random(1).shuffle(base)
    random.Random(2).shuffle(tuned)
    assert run(tmp_path, base, tuned, demands) == first
    assert ((tmp_path / "scores.jsonl").read_bytes(), (tmp_path / "verdict.json").read_bytes()) == written


def test_the_gain_is_that_of_the_figures(tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"required": ["time"]}')
    summary = run(tmp_path, *mixed(0), schema=schema)
    base, tuned = summary["metrics"]["base"], summary["metrics"]["tuned"]
    assert list(base) == [
        "exact_match",
        "valid_json",
        "schema_valid",
        "field_precision",
        "field_recall",
        "field_f1",
        "perplexity",
    ]
    for metric, gain in summary["gains"].items():
        rise = tuned[metric]["value"] - base[metric]["value"]
        expected = -rise / base[metric]["value"] if metric == "perplexity" else rise
        assert gain["value"] == pytest.approx(expected)
        assert gain["low"] < gain["value"] < gain["high"]
        assert 0 < gain["p_value"] <= 1
        binary = metric in ("exact_match", "valid_json", "schema_valid")
        assert gain["test"] == ("exact McNemar" if binary else "paired permutation")
    assert summary["gains"]["field_f1"]["p_value"] < 0.001
    changes = [
        (row["base"]["exact_match"], row["tuned"]["exact_match"]) for row in store.read_jsonl(tmp_path / "scores.jsonl")
    ]
    assert summary["gains"]["exact_match"]["p_value"] == mcnemar(changes.count((0, 1)), changes.count((1, 0)))
    assert summary["finish"]["base"] == {"stop": 120, "length": 0}
    assert sum(row["support"] for row in summary["fields"]["base"].values()) == sum(
        len(json.loads(row["expected"])) for row in mixed(0)[0]
    )


def test_files(tmp_path):
    gold = '{"a": 1, "b": 2, "c": 3}'
    answers = [
        (gold, gold),
        ("no", gold),
        (gold, "{}"),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ('{"a": 1}', '{"b": 9}'),
        ("no", ""),
    ]
    base, tuned = (rows([gold] * 6, [pair[side] for pair in answers]) for side in (0, 1))
    summary = run(tmp_path, base, tuned)
    scores = list(store.read_jsonl(tmp_path / "scores.jsonl"))
    assert [row["outcome"] for row in scores] == ["same", "fixed", "broken", "fixed", "broken", "same"]
    assert [row["id"] for row in scores] == [row["id"] for row in base]
    assert scores[3]["tuned"]["field_recall"] == pytest.approx(2 / 3)
    assert scores[5]["tuned"]["field_precision"] is None
    assert scores[0]["base"]["perplexity"] == pytest.approx(math.exp(1 / 4))
    verdict = store.read_json(tmp_path / "verdict.json")
    assert verdict == {key: summary[key] for key in ("outcome", "exit_status", "gates")}
    assert summary["finish"]["tuned"] == {"stop": 5, "length": 1}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_five_thousand_rows_take_seconds(tmp_path):
    base, tuned = mixed(0, 5000)
    schema = tmp_path / "schema.json"
    schema.write_text('{"properties": {"time": {"enum": ["noon", "seven"]}}}')
    started = time.process_time()
    run(tmp_path, base, tuned, schema=schema)
    assert time.process_time() - started < 8  # about 2 s on an idle core
