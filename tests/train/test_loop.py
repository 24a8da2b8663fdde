"""The loop: it learns, every setting changes what happens, small updates survive bf16, divergence is explained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tunesmith.core.errors import UserError
from tunesmith.core.step import Artifact
from tunesmith.kernels.apply import choose
from tunesmith.models import adapters, load
from tunesmith.models.base import Base
from tunesmith.models.packed import Scorer, Tokens
from tunesmith.train import loop
from tunesmith.train.objectives import sft

SETTINGS = loop.Settings(
    learning_rate=1e-2, epochs=1.0, batch_tokens=1200, micro_batch_tokens=1200, evaluations=1, patience=None,
    warmup=0.1, weight_decay=0.0, max_grad_norm=1.0, seed=0)  # fmt: skip
Log = list[dict[str, Any]]


def trained(
    tiny: Base, dataset: Artifact, settings: loop.Settings, precision: str = "fp32", rank: int = 4, alpha: float = 8
) -> tuple[loop.Outcome, Log]:
    assert tiny.folder is not None
    model = adapters.add_lora(load.model(tiny.folder, precision, packed=True), rank, alpha, settings.seed)
    log: Log = []
    kernels = choose(model.dtype, torch.device("cpu"))
    rows, validation = Tokens(dataset.folder, "train"), Tokens(dataset.folder, "validation")
    outcome = loop.train(Scorer(model, kernels), sft.loss, rows, validation, settings, log.append)
    return outcome, log


@pytest.fixture(scope="module")
def plain(tiny: Base, dataset: Artifact) -> tuple[loop.Outcome, Log]:
    return trained(tiny, dataset, SETTINGS)


def losses(log: Log) -> list[float]:
    return [entry["loss"] for entry in log if "loss" in entry]


def test_it_learns(plain: tuple[loop.Outcome, Log]) -> None:
    outcome, log = plain
    assert losses(log)[-1] < losses(log)[0] - 0.02
    assert outcome.best_validation_loss is not None
    assert outcome.best_validation_loss < log[0]["validation_loss"]
    assert outcome.tokens == sum(entry["tokens"] for entry in log if "tokens" in entry)
    assert outcome.tokens_per_second > 0


def test_the_same_settings_give_the_same_weights(
    tiny: Base, dataset: Artifact, plain: tuple[loop.Outcome, Log]
) -> None:
    again, log = trained(tiny, dataset, SETTINGS)
    assert losses(log) == losses(plain[1])
    assert all(torch.equal(again.best[name], tensor) for name, tensor in plain[0].best.items())


@pytest.mark.parametrize("change", [
    {"learning_rate": 1e-3}, {"epochs": 2.0}, {"epochs": 0.5}, {"batch_tokens": 600}, {"warmup": 0.9},
    {"weight_decay": 0.5}, {"max_grad_norm": 1e-3}, {"seed": 1}], ids=str)  # fmt: skip
def test_every_setting_changes_the_course(
    tiny: Base, dataset: Artifact, plain: tuple[loop.Outcome, Log], change: dict[str, Any]
) -> None:
    _, log = trained(tiny, dataset, replace(SETTINGS, **change))
    assert losses(log) != losses(plain[1])


@pytest.mark.parametrize(("rank", "alpha"), [(2, 8), (4, 16)])
def test_rank_and_alpha_change_the_course(
    tiny: Base, dataset: Artifact, plain: tuple[loop.Outcome, Log], rank: int, alpha: float
) -> None:
    _, log = trained(tiny, dataset, SETTINGS, rank=rank, alpha=alpha)
    assert losses(log) != losses(plain[1])


def test_precision_changes_the_arithmetic_but_not_the_outcome(
    tiny: Base, dataset: Artifact, plain: tuple[loop.Outcome, Log]
) -> None:
    outcome, log = trained(tiny, dataset, SETTINGS, precision="bf16")
    assert losses(log) != losses(plain[1])
    assert losses(log) == pytest.approx(losses(plain[1]), rel=0.02)
    assert all(tensor.dtype == torch.float32 for tensor in outcome.best.values())


def test_smaller_micro_batches_give_the_same_course(
    tiny: Base, dataset: Artifact, plain: tuple[loop.Outcome, Log]
) -> None:
    _, log = trained(tiny, dataset, replace(SETTINGS, micro_batch_tokens=200))
    assert losses(log) == pytest.approx(losses(plain[1]), rel=1e-4)


def test_evaluations_are_as_many_as_asked(tiny: Base, dataset: Artifact) -> None:
    for count in (0, 3):
        _, log = trained(tiny, dataset, replace(SETTINGS, evaluations=count))
        assert sum("validation_loss" in entry for entry in log) == (count + 1 if count else 0)


def test_patience_stops_and_the_best_state_is_kept(tiny: Base, dataset: Artifact) -> None:
    wild = replace(SETTINGS, learning_rate=100.0, evaluations=6, patience=2, epochs=2.0, warmup=0.0)
    outcome, log = trained(tiny, dataset, wild)
    assert outcome.stopped_early
    assert outcome.steps < outcome.planned_steps
    measured = [entry["validation_loss"] for entry in log if "validation_loss" in entry]
    assert outcome.best_validation_loss == min(measured)
    patient, _ = trained(tiny, dataset, replace(wild, patience=None))
    assert not patient.stopped_early
    assert patient.steps == patient.planned_steps


def test_small_updates_survive_bf16(tiny: Base, dataset: Artifact) -> None:
    """At 1e-6, bf16 parameters alone would not move at all; the fp32 master does."""
    outcome, _ = trained(tiny, dataset, replace(SETTINGS, learning_rate=1e-6, evaluations=0), precision="bf16")
    start, _ = trained(tiny, dataset, replace(SETTINGS, learning_rate=1e-30, evaluations=0), precision="bf16")
    moved = [(outcome.best[name], start.best[name]) for name in outcome.best if "lora_A" in name]
    assert any(not torch.equal(after, before) for after, before in moved)
    assert all((after - before).abs().max() < 1e-5 for after, before in moved)


def test_a_loss_that_is_not_a_number_is_explained(tiny: Base, dataset: Artifact) -> None:
    with pytest.raises(UserError) as error:
        trained(tiny, dataset, replace(SETTINGS, learning_rate=1e30))
    assert "at step" in error.value.what
    assert "learning_rate" in error.value.next


def test_schedule() -> None:
    rates = [loop.schedule(n, 100, 0.1) for n in range(1, 101)]
    assert rates[9] == 1.0
    assert rates[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
