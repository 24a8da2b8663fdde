"""Predictions: the options change what they say they change, and one row's answer does not depend on its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.core import store
from tunesmith.core.project import Generation
from tunesmith.core.step import Artifact, Steps
from tunesmith.evaluate import predict
from tunesmith.models.base import Base


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers kept by other tests must not be found here; kernels need not be compiled again."""
    kernels = store.cache_dir() / "kernels"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/kernels").symlink_to(kernels)
    monkeypatch.setattr(store, "cache_dir", lambda: tmp_path / "cache")


def answers(
    tmp_path: Path, tiny: Base, dataset: Artifact, **options: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    made = Steps(tmp_path)("base", predict.run, Generation(**options), tiny, None, dataset)
    return made.summary, list(store.read_jsonl(made / "predictions.jsonl"))


def test_predictions_follow_the_test_rows(tmp_path: Path, tiny: Base, dataset: Artifact) -> None:
    summary, rows = answers(tmp_path, tiny, dataset, max_new_tokens=4)
    wanted = store.read_rows(dataset / "test.jsonl")
    assert [(row["id"], row["expected"], row["line"]) for row in rows] == [(r.id, r.answer, r.line) for r in wanted]
    assert summary["rows"] == len(wanted)
    assert all(row["nll"] > 0 and row["tokens"] > 10 for row in rows)


def test_the_batch_size_changes_no_answer(tmp_path: Path, tiny: Base, dataset: Artifact) -> None:
    _, together = answers(tmp_path, tiny, dataset, max_new_tokens=8, batch_size=6)
    (tmp_path / "cache" / "answers").rename(tmp_path / "cache" / "gone")
    summary, alone = answers(tmp_path, tiny, dataset, max_new_tokens=8, batch_size=1)
    assert summary["batch_size"] == 1
    assert summary["reused"] == 0
    assert [row["answer"] for row in together] == [row["answer"] for row in alone]


def test_max_new_tokens_bounds_the_answer(tmp_path: Path, tiny: Base, dataset: Artifact) -> None:
    _, short = answers(tmp_path, tiny, dataset, max_new_tokens=2)
    _, long = answers(tmp_path, tiny, dataset, max_new_tokens=12)
    assert all(row["new_tokens"] <= 2 for row in short)
    assert sum(row["new_tokens"] for row in long) > sum(row["new_tokens"] for row in short)
    assert all((row["finish"] == "length") == (row["new_tokens"] == 2) or row["finish"] == "stop" for row in short)


def test_left_out_the_bound_follows_the_longest_answer(tmp_path: Path, tiny: Base, dataset: Artifact) -> None:
    summary, _ = answers(tmp_path, tiny, dataset)
    assert dataset.summary["longest_answer"] < summary["max_new_tokens"] <= 2 * dataset.summary["longest_answer"] + 32


def test_precision_is_what_was_asked(tmp_path: Path, tiny: Base, dataset: Artifact) -> None:
    exact, in_fp32 = answers(tmp_path, tiny, dataset, max_new_tokens=2)
    rounded, in_bf16 = answers(tmp_path, tiny, dataset, max_new_tokens=2, precision="bf16")
    assert (exact["precision"], rounded["precision"]) == ("fp32", "bf16")
    assert [row["nll"] for row in in_fp32] != [row["nll"] for row in in_bf16]


def test_answers_of_the_base_are_kept_by_content(tmp_path: Path, tiny: Base, dataset: Artifact) -> None:
    first, rows = answers(tmp_path / "a", tiny, dataset, max_new_tokens=3)
    again, same = answers(tmp_path / "b", tiny, dataset, max_new_tokens=3)
    other, _ = answers(tmp_path / "c", tiny, dataset, max_new_tokens=5)
    assert (first["reused"], again["reused"], other["reused"]) == (0, len(rows), 0)
    assert rows == same


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "prompt", "prefix", "ia3", "bottleneck"])
def test_a_tuned_model_is_scored_by_every_method(tmp_path: Path, tiny: Base, dataset: Artifact, method: str) -> None:
    """In fp32 neither answers nor likelihoods depend on the batch, and both are those of the tuned model."""
    import torch

    from tunesmith.models import load, methods

    assert tiny.folder is not None
    sizes = {"rank": 4, "alpha": 8} if method == "lora" else {"virtual_tokens": 4, "width": 4}
    model = methods.attach(load.model(tiny.folder, "fp32"), methods.of({"method": method, **sizes}), 0)
    make = torch.Generator().manual_seed(0)
    state = {n: p + 20 * torch.randn(p.shape, generator=make) for n, p in model.named_parameters() if p.requires_grad}
    methods.save(model, state, None, tmp_path)
    tuned = Artifact("train", method, tmp_path, "done")
    found = [
        list(store.read_jsonl(made / "predictions.jsonl"))
        for size in (6, 1)
        for generation in [Generation(max_new_tokens=6, batch_size=size)]
        for made in [Steps(tmp_path / str(size))("tuned", predict.run, generation, tiny, tuned, dataset)]
    ]
    _, base = answers(tmp_path, tiny, dataset, max_new_tokens=6)
    assert [row["answer"] for row in found[0]] == [row["answer"] for row in found[1]]
    assert [row["nll"] for row in found[0]] == pytest.approx([row["nll"] for row in found[1]], rel=2e-6)
    assert [row["nll"] for row in found[0]] != pytest.approx([row["nll"] for row in base], rel=2e-5)
