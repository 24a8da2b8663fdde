"""A finished run without a model: the steps over the data and the verdict are real, those between them are played."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.core import store
from tunesmith.core.clean_section import Clean
from tunesmith.core.data_section import Source, Split
from tunesmith.core.project import Gate
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact, Steps
from tunesmith.data import load, pipeline, split
from tunesmith.evaluate import gates
from tunesmith.result import Show, last_run

VERSION = 1  # of the played steps

END = "<|end|>"
Said = Callable[[Row], str]
Finish = Callable[..., Show]


def ticket(message: str, product: str = "hub", urgency: str = "low") -> str:
    """A line of a file of examples."""
    return json.dumps({"prompt": message, "answer": json.dumps({"product": product, "urgency": urgency})})


def tickets(topic: str, count: int) -> list[str]:
    products = ("hub", "lock", "camera")
    return [ticket(f"{topic} number {i} is broken", products[i % 3], ("low", "high")[i % 2]) for i in range(count)]


def expected(row: Row) -> str:
    return row.answer


def prose(row: Row) -> str:
    return f"I am sorry to hear about {row.messages[-2]['content']}"


@pytest.fixture
def finish(tmp_path: Path) -> Finish:
    """Runs a project in `tmp_path`/output and returns what `show` makes of it."""

    def run(
        train: Sequence[str] = tickets("lamp", 12),
        validation: Sequence[str] = tickets("door", 3),
        test: Sequence[str] = tickets("bell", 8),
        base: Said = prose,
        tuned: Said = expected,
        clean: Clean = Clean(answer="json", near_duplicates=None),  # noqa: B008
        demands: Sequence[Gate] = (),
    ) -> Show:
        sources = []
        for side, lines in {"train": train, "validation": validation, "test": test}.items():
            if lines:
                path = tmp_path / f"{side}.jsonl"
                path.write_text("\n".join(lines) + "\n", encoding="utf-8")
                sources.append(Source.model_validate({"path": path, "split": side}))
        output = tmp_path / "output"
        step = Steps(output)
        raw = step("load", load.run, sources, "Answer in JSON.", 0.9)
        cleaned = step("clean", pipeline.run, clean, raw)
        splits = step("split", split.run, Split(validation=0, test=0), [], cleaned)
        dataset = step("format", played_format, splits)
        plan = step("plan", played_plan)
        trained = step("train", played_train, plan, dataset)
        before = step("base", played_predict, [base(row) for row in rows_of(dataset)], dataset, None)
        after = step("tuned", played_predict, [tuned(row) for row in rows_of(dataset)], dataset, trained)
        step("verdict", gates.run, list(demands), clean.answer, None, before, after)
        step("export", played_export, trained)
        identities = {name: artifact.identity for name, artifact in step.artifacts.items()}
        store.write_json(
            output / "latest.json",
            {"project": "lamps", "model": "tiny", "finished": "2026-01-02T03:04:05+0000", "steps": identities},
        )
        return last_run(output)

    return run


def rows_of(dataset: Artifact) -> list[Row]:
    return store.read_rows(dataset / "test.jsonl")


def played_format(splits: Artifact, out: Path) -> dict[str, Any]:
    sides, samples = {}, []
    for side in ("train", "validation", "test"):
        rows = store.read_rows(splits / f"{side}.jsonl")
        store.write_rows(out / f"{side}.jsonl", rows)
        prompts = [" ".join(m["content"] for m in row.prompt).split(" ") for row in rows]
        answers = [[*row.answer.split(" "), END] for row in rows]
        lengths = [len(p) + len(a) for p, a in zip(prompts, answers)] or [0]
        if side == "train":
            samples = [
                {"source": row.source, "line": row.line, "tokens": [*p, *a], "learnt": [i >= len(p) for i in range(n)]}
                for row, p, a, n in list(zip(rows, prompts, answers, lengths))[:3]
            ]
        sides[side] = {
            "rows_in": len(rows), "rows": len(rows), "truncated": 0,
            "tokens": sum(lengths), "learnt_tokens": sum(map(len, answers)), "longest": max(lengths),
            "median": int(np.median(lengths)), "p95": int(np.percentile(lengths, 95)),
            "histogram": [part.tolist() for part in np.histogram(lengths, bins=20)],
        }  # fmt: skip
    store.write_json(out / "samples.json", samples)
    store.write_jsonl(out / "dropped.jsonl", [])
    proof = {"rows_checked": sum(part["rows"] for part in sides.values()), "end_tokens": [END]}
    return {**sides, "limit": 2048, "renderer": "abc", "dropped": 0, "reasons": {}, "proof": proof}


def played_plan(out: Path) -> dict[str, Any]:
    return {
        "decisions": {
            "rank": {"value": 16, "reason": "enough for a task of this size"},
            "learning_rate": {"value": 0.0002, "reason": "pinned in the project file"},
            "patience": {"value": None, "reason": "there are no validation rows"},
        }
    }


def played_train(plan: Artifact, dataset: Artifact, out: Path) -> dict[str, Any]:
    """Forty steps; with validation rows, four evaluations of which that at step 30 is the best."""
    entries: list[dict[str, Any]] = []
    checks = {0: 2.5, 10: 0.9, 30: 0.4567891, 40: 0.5} if dataset.summary["validation"]["rows"] else {}
    for number in range(41):
        if number:
            entries.append({
                "step": number, "of": 40, "loss": 2 * math.exp(-number / 10), "token_accuracy": number / 40,
                "learning_rate": 0.0002, "gradient_norm": None if number == 7 else 1 / number,
                "tokens": 80, "tokens_per_second": 400.0, "step_seconds": 0.2,
            })  # fmt: skip
        if number in checks:
            entries.append({"step": number, "validation_loss": checks[number], "validation_token_accuracy": 0.5})
    store.write_jsonl(out / "metrics.jsonl", entries)
    return {
        "base": {"name": "tiny", "identity": "tiny@main", "licence": "MIT"}, "steps": 40, "planned_steps": 40,
        "stopped_early": False, "best_step": 30 if checks else 40, "validation_loss": checks.get(30), "tokens": 3200,
        "tokens_per_second": 412.3, "train_seconds": 7.76, "peak_memory_bytes": 3_346_882_560,
        "forecast_memory_bytes": 3_401_000_000, "micro_batch_tokens": 2048,
        "peak_memory_of": "training", "trainable_parameters": 4_884_480, "kernels": [],
        "warnings": ["step 3 ran out of memory"],
        "threads": {"value": 2, "reason": "one for each core"},
        "binding": {"value": "none", "reason": "a thread may leave its core"},
    }  # fmt: skip


def played_predict(said: list[str], dataset: Artifact, tuned: Artifact | None, out: Path) -> dict[str, Any]:
    store.write_jsonl(out / "predictions.jsonl", (
        {"id": row.id, "prompt": row.prompt, "expected": row.answer, "answer": answer, "finish": "stop",
         "nll": 2.0 + i % 3, "tokens": 10, "source": row.source, "line": row.line}
        for i, (row, answer) in enumerate(zip(rows_of(dataset), said))
    ))  # fmt: skip
    return {"rows": len(said)}


def played_export(tuned: Artifact, out: Path) -> dict[str, Any]:
    (out / "adapter").mkdir()
    return {"paths": ["adapter"], "bytes": {"adapter": 23_120_318}}
