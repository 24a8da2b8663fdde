"""Base against tuned model on the frozen test rows: the figures, how sure they are, and the verdict.

A gate passes when the lower bound of the gain, at confidence 1 - alpha, is above its margin, and fails when the upper
bound is below it. Anything between is NOT ENOUGH DATA, and so is whatever could not be measured. All gates must pass:
each is one more chance to fail, so several need no correction of alpha.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.core import store
from tunesmith.core.errors import ConfigError
from tunesmith.core.project import Gate, Metric
from tunesmith.core.records import EXIT_STATUS, GateResult, Interval, Outcome, worst
from tunesmith.core.schemas import AnswerSchema
from tunesmith.core.step import Artifact
from tunesmith.evaluate import metrics, stats
from tunesmith.evaluate.metrics import Answer, Prediction, Scores
from tunesmith.evaluate.stats import Estimate

VERSION = 1

_UNKNOWN = Interval(math.nan, math.nan, math.nan)
_NONE = Estimate(math.nan, np.empty(0), 0, 0)


@dataclass(frozen=True)
class Comparison:
    """One metric of both models on the same rows; `unmeasured` says why there are no figures, where there are none."""

    base: Estimate
    tuned: Estimate
    gain: Estimate
    p_value: float | None = None
    test: str = "none"
    unmeasured: str = ""


def check(gates: Sequence[Gate], answer: Answer, schema: Path | None) -> None:
    """Raises ConfigError for a gate whose metric does not apply to such answers, and for a schema that is none."""
    if schema is not None and answer == "json":
        AnswerSchema.read(schema)
    known = metrics.applicable(answer, schema is not None)
    for i, gate in enumerate(gates):
        if gate.metric in known:
            continue
        what = f"evaluate.gates.{i}: {gate.metric} does not apply to this project"
        if gate.metric == "schema_valid" and answer == "json":
            raise ConfigError(
                what, "data.clean.answer_schema names no JSON Schema", "name one there, or ask for valid_json instead"
            )
        other = "json" if answer == "text" else "text"
        raise ConfigError(
            what,
            f"data.clean.answer is {answer}, and such answers are scored by {', '.join(known)}",
            f"choose one of these, or set data.clean.answer to {other}",
        )


def run(
    gates: list[Gate], answer: Answer, answer_schema: Path | None, before: Artifact, after: Artifact, out: Path
) -> dict[str, Any]:
    """Scores both models' predictions, decides every gate, and writes verdict.json and scores.jsonl.

    Without gates there is one: field_f1 must rise (JSON answers), or perplexity fall (text), at all.
    """
    gates = gates or [Gate(metric="field_f1" if answer == "json" else "perplexity")]
    check(gates, answer, answer_schema)
    base, tuned = _read(before), _read(after)
    assert [p["id"] for p in base] == [p["id"] for p in tuned], "base and tuned model did not answer the same test rows"
    schema = AnswerSchema.read(answer_schema) if answer_schema and answer == "json" else None
    base_scores, tuned_scores = metrics.score(base, answer, schema), metrics.score(tuned, answer, schema)
    compared = compare(base_scores, tuned_scores)
    results = [decide(gate, compared[gate.metric]) for gate in gates]
    outcome = worst([result.outcome for result in results])
    verdict = _finite({"outcome": outcome, "exit_status": EXIT_STATUS[outcome], "gates": [asdict(r) for r in results]})
    store.write_json(out / "verdict.json", verdict)
    store.write_jsonl(out / "scores.jsonl", _row_scores(base, base_scores, tuned_scores))
    return {
        "headline": outcome,
        **verdict,
        "rows": len(base),
        "metrics": _finite(
            {
                "base": {m: asdict(_interval(c.base)) for m, c in compared.items()},
                "tuned": {m: asdict(_interval(c.tuned)) for m, c in compared.items()},
            }
        ),
        "gains": _finite(
            {m: {**asdict(_interval(c.gain)), "p_value": c.p_value, "test": c.test} for m, c in compared.items()}
        ),
        "fields": {"base": metrics.field_table(base), "tuned": metrics.field_table(tuned)}
        if answer == "json"
        else {"base": {}, "tuned": {}},
        "finish": {"base": _finishes(base), "tuned": _finishes(tuned)},
    }


def compare(base: Scores, tuned: Scores) -> dict[Metric, Comparison]:
    """Every metric's figures and gain with their resamples, and the p-value of no difference at all."""
    unmeasured = {metric: _why_unmeasured(metric, base, tuned) for metric in base}
    measured = [metric for metric in base if not unmeasured[metric]]
    estimates = _estimates([m for m in measured if m not in metrics.UNBOUNDED], base, tuned, bounded=True) | _estimates(
        [m for m in measured if m in metrics.UNBOUNDED], base, tuned, bounded=False
    )
    compared = {}
    for metric, why in unmeasured.items():
        if why:
            gain = replace(_NONE, rows=len(base[metric]))
            compared[metric] = Comparison(_alone(metric, base), _alone(metric, tuned), gain, unmeasured=why)
        elif metric in metrics.BINARY:
            change = tuned[metric][:, 0] - base[metric][:, 0]
            p_value = stats.mcnemar(int((change > 0).sum()), int((change < 0).sum()))
            compared[metric] = Comparison(*estimates[metric], p_value, "exact McNemar")
        else:
            p_value = stats.permutation(base[metric], tuned[metric], partial(metrics.figure, metric))
            compared[metric] = Comparison(*estimates[metric], p_value, "paired permutation")
    return compared


def decide(gate: Gate, compared: Comparison) -> GateResult:
    """The gate's result; the bounds of its gain are the two one-sided ones at confidence 1 - alpha."""
    gain = _interval(compared.gain, 1 - 2 * gate.alpha)
    needed = None
    if gain.low > gate.margin:
        outcome: Outcome = "PASS"
    elif gain.high < gate.margin:
        outcome = "FAIL"
    else:
        outcome = "NOT ENOUGH DATA"
        needed = None if compared.unmeasured else stats.rows_needed(compared.gain, gate.margin, gate.alpha)
    rows = compared.gain.rows
    sentence = (
        f"{gate.metric} was not measured: {compared.unmeasured}."
        if compared.unmeasured
        else _sentence(gate, outcome, gain, rows, needed)
    )
    return GateResult(
        gate.metric, gate.margin, gate.alpha, outcome, gain, compared.test, compared.p_value, rows, needed, sentence
    )


def _read(artifact: Artifact) -> list[Prediction]:
    """The predictions in the order of their ids, so that no result depends on that of the file."""
    return sorted(store.read_jsonl(artifact / "predictions.jsonl"), key=lambda p: (p["id"], p["source"], p["line"]))


def _estimates(
    names: list[Metric], base: Scores, tuned: Scores, *, bounded: bool
) -> dict[Metric, tuple[Estimate, Estimate, Estimate]]:
    """Base, tuned and gain of each metric. All of one call share their resamples, and the pseudo-rows if `bounded`."""
    if not names:
        return {}
    best = np.concatenate([metrics.best_pair(m, base) for m in names])
    lowest = best * np.tile([0, 1], len(names))
    drawn = stats.paired(
        np.hstack([base[m] for m in names]), np.hstack([tuned[m] for m in names]), (best, lowest) if bounded else None
    )
    found = {}
    for i, m in enumerate(names):
        values = [metrics.figure(m, scores[m].sum(0)) for scores in (base, tuned)]
        draws = [metrics.figure(m, sums[:, 2 * i : 2 * i + 2]) for sums in drawn]
        values.append(metrics.gain(m, *values))
        draws.append(metrics.gain(m, *draws))
        of_base, of_tuned, of_gain = (
            Estimate(float(value), draws_R, len(base[m]), stats.PSEUDO_ROWS if bounded else 0)
            for value, draws_R in zip(values, draws)
        )
        found[m] = (of_base, of_tuned, of_gain)
    return found


def _alone(metric: Metric, scores: Scores) -> Estimate:
    """One model's own figure where the other has none: a tuned model's precision beside a base that names no field."""
    if metric != "field_precision" or not scores[metric][:, 1].any():
        return _NONE
    return _estimates([metric], scores, scores, bounded=True)[metric][0]


def _why_unmeasured(metric: Metric, base: Scores, tuned: Scores) -> str:
    rows = len(base[metric])
    if not rows:
        return "there are no test rows"
    # Where every row's figure is finite, that of every resample is.
    of_rows = metrics.figure(metric, np.stack([base[metric], tuned[metric]]))
    if broken := rows - int(np.isfinite(of_rows).all(axis=0).sum()):
        return f"the likelihood of the expected answer is not a finite number in {broken:,} of {rows:,} rows"
    for name, scores in (("base", base), ("tuned", tuned)):
        if not scores[metric][:, 1].any():
            return (
                f"the {name} model names no field at all"
                if metric == "field_precision"
                else "the expected answers hold nothing to measure it by"
            )
    return ""


def _interval(estimate: Estimate, level: float = 0.95) -> Interval:
    return stats.interval(estimate, level) if estimate.draws_R.size else _UNKNOWN


def _row_scores(rows: Sequence[Prediction], base: Scores, tuned: Scores) -> Iterator[dict[str, Any]]:
    """What became of each row: fixed or broken by exact match, or else by its field F1 where it has one."""
    change = np.zeros(len(rows))
    for m in ("field_f1", "exact_match"):
        if m in base:
            rise = metrics.figure(m, tuned[m]) - metrics.figure(m, base[m])
            change = np.where(rise == 0, change, rise)
    outcome = np.select([change > 0, change < 0], ["fixed", "broken"], "same").tolist()
    of_base, of_tuned = (
        {m: metrics.figure(m, scores[m], nothing=math.nan).tolist() for m in scores} for scores in (base, tuned)
    )
    for i, row in enumerate(rows):
        yield _finite(
            {
                "id": row["id"],
                "base": {m: of_base[m][i] for m in of_base},
                "tuned": {m: of_tuned[m][i] for m in of_tuned},
                "outcome": outcome[i],
            }
        )


def _finishes(rows: Sequence[Prediction]) -> dict[str, int]:
    counts = Counter(row["finish"] for row in rows)
    return {"stop": counts["stop"], "length": counts["length"]}


def _sentence(gate: Gate, outcome: Outcome, gain: Interval, rows: int, needed: int | None) -> str:
    """The result for people: the change of the figure, its bounds, the margin, and the rows that are missing."""
    sign, scale, unit, fewest_digits = (-1, 100, " %", 1) if gate.metric == "perplexity" else (1, 1, "", 2)
    change, *ends = (sign * scale * x for x in (gain.value, gain.low, gain.high))
    low, high = sorted(ends)
    width = high - low
    digits = max(fewest_digits, -math.floor(math.log10(width))) if 0 < width < math.inf else 3
    if width == math.inf:
        bounds = "too few rows for bounds"
    elif low < 0 < high:
        bounds = f"{low:+.{digits}f}{unit} to {high:+.{digits}f}{unit}"
    else:
        low, high = sorted((abs(low), abs(high)))
        bounds = f"{low:.{digits}f}{unit} to {high:.{digits}f}{unit}"
    moved = f"{'rose' if change > 0 else 'fell'} by {abs(change):.{digits}f}{unit}" if change else "did not change"
    place = {"PASS": "above", "FAIL": "short of", "NOT ENOUGH DATA": "too unsure to set against"}[outcome]
    limit = f"the margin of {scale * gate.margin:g}{unit}"
    if gate.margin < 0:
        place = {"PASS": "within", "FAIL": "beyond", "NOT ENOUGH DATA": "too unsure to set against"}[outcome]
        limit = f"the allowed loss of {-scale * gate.margin:g}{unit}"
    more = ""
    if outcome == "NOT ENOUGH DATA":
        enough = f"about {needed:,} test rows" if needed else "at this gain no number of rows"
        more = f"; {enough} would be enough, there are {rows:,}"
    return f"{gate.metric} {moved} ({bounds}), {place} {limit}{more}."


def _finite(value: Any) -> Any:
    """The value with None for every number that JSON cannot write."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
