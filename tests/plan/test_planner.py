"""The planner: a reason for every value, every pin honoured, and sane values over sizes of model, data and machine."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.core.config import Train
from tunesmith.core.errors import ResourceError
from tunesmith.core.hardware import Machine
from tunesmith.plan import estimate
from tunesmith.plan.planner import decide

SMALL = {"parameters": 134_515_008, "layers": 30, "hidden": 576, "intermediate": 1536, "heads": 9, "context": 8192}
LARGE = {
    "parameters": 8_030_261_248,
    "layers": 32,
    "hidden": 4096,
    "intermediate": 14336,
    "heads": 32,
    "context": 131072,
}
LAPTOP = Machine(cores=2, memory_bytes=24 << 30, bf16=True, name="a CPU")


def data(rows: int = 1000, tokens: int = 73_000, longest: int = 160, validation: int = 100) -> dict[str, Any]:
    return {"train": {"rows": rows, "tokens": tokens, "longest": longest}, "validation": {"rows": validation}}


def test_every_decision_has_a_reason() -> None:
    decisions = decide(Train(), SMALL, data(), LAPTOP)
    assert all(len(decision.reason) > 10 for decision in decisions.values())


@pytest.mark.parametrize(("key", "value"), [
    ("epochs", 7.0), ("learning_rate", 3e-5), ("rank", 64), ("alpha", 5.0), ("batch_tokens", 999),
    ("micro_batch_tokens", 333), ("precision", "fp32"), ("evaluations", 9), ("patience", None), ("warmup", 0.5),
    ("weight_decay", 0.1), ("max_grad_norm", 9.0), ("seed", 5)])  # fmt: skip
def test_every_value_can_be_pinned(key: str, value: Any) -> None:
    derived = decide(Train(), SMALL, data(), LAPTOP)[key]
    pinned = decide(Train(**{key: value}), SMALL, data(), LAPTOP)[key]
    assert pinned.value == value != derived.value


def test_alpha_follows_a_pinned_rank() -> None:
    assert decide(Train(rank=64), SMALL, data(), LAPTOP)["alpha"].value == 128


def test_small_models_learn_faster_and_large_ones_at_the_usual_rate() -> None:
    assert decide(Train(), SMALL, data(), LAPTOP)["learning_rate"].value == 1e-3
    server = Machine(16, 128 << 30, True, "a server")
    assert decide(Train(), LARGE, data(), server)["learning_rate"].value == 2e-4


def test_more_rows_mean_fewer_epochs() -> None:
    epochs = [decide(Train(), SMALL, data(rows=n, tokens=70 * n), LAPTOP)["epochs"].value for n in (100, 5_000, 50_000)]
    assert epochs == sorted(epochs, reverse=True)


def test_a_cpu_without_bf16_uses_fp32() -> None:
    assert decide(Train(), SMALL, data(), Machine(2, 24 << 30, False, "an old CPU"))["precision"].value == "fp32"


def test_a_forward_pass_fits_memory_and_the_longest_row() -> None:
    machine = Machine(2, 4 << 30, True, "a small one")
    with pytest.raises(ResourceError, match="training needs about"):
        decide(Train(), LARGE, data(), machine)
    micro = decide(Train(), SMALL, data(longest=700), machine)["micro_batch_tokens"].value
    assert micro >= 700
    roomy = decide(Train(batch_tokens=100_000), SMALL, data(), LAPTOP)["micro_batch_tokens"].value
    tight = decide(Train(batch_tokens=100_000), SMALL, data(), machine)["micro_batch_tokens"].value
    assert tight < roomy <= 4096


def test_no_validation_rows_means_no_evaluations() -> None:
    decisions = decide(Train(), SMALL, data(validation=0), LAPTOP)
    assert decisions["evaluations"].value == 0
    assert decisions["patience"].value is None


def test_estimates_grow_with_what_they_count() -> None:
    assert (
        estimate.resident_bytes(LARGE, "bf16", 16)
        > estimate.weight_bytes(LARGE["parameters"], "bf16")
        == 16_060_522_496
    )
    assert estimate.bytes_per_token(SMALL, "fp32", 100) == 2 * estimate.bytes_per_token(SMALL, "bf16", 100)
