"""The planner: a reason for every value, every pin honoured, and sane values over sizes of model, data and machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import ConfigError, ResourceError
from tunesmith.core.hardware import Machine
from tunesmith.core.project import Train
from tunesmith.core.step import Artifact, Steps
from tunesmith.models.base import Base
from tunesmith.plan import estimate, planner
from tunesmith.plan.planner import decide

SMALL = {
    "parameters": 134_515_008,
    "linear_parameters": 106_168_320,
    "layers": 30,
    "hidden": 576,
    "intermediate": 1536,
    "heads": 9,
    "context": 8192,
}
LARGE = {
    "parameters": 8_030_261_248,
    "linear_parameters": 6_979_321_856,
    "layers": 32,
    "hidden": 4096,
    "intermediate": 14336,
    "heads": 32,
    "context": 131072,
}
LAPTOP = Machine(cores=2, memory_bytes=24 << 30, bf16=True, name="a CPU")


def data(rows: int = 1000, tokens: int = 73_000, longest: int = 160, validation: int = 100) -> dict[str, Any]:
    return {"train": {"rows": rows, "tokens": tokens, "longest": longest}, "validation": {"rows": validation}}


def test_a_pass_has_room_beside_what_all_rows_begin_with() -> None:
    plain, shared = data(tokens=900_000, longest=900), data(tokens=900_000, longest=900)
    shared["train"]["beginning"] = 800
    small, large = (
        decide(Train(batch_tokens=8000), SMALL, d, LAPTOP)["micro_batch_tokens"].value for d in (plain, shared)
    )
    assert (small, large) == (1024, 1824)


def test_every_decision_has_a_reason() -> None:
    decisions = decide(Train(), SMALL, data(), LAPTOP)
    assert all(len(decision.reason) > 10 for decision in decisions.values())


@pytest.mark.parametrize(("key", "value"), [
    ("epochs", 7.0), ("learning_rate", 3e-5), ("rank", 64), ("alpha", 5.0), ("batch_tokens", 999),
    ("micro_batch_tokens", 333), ("precision", "fp32"), ("evaluations", 9), ("patience", None), ("warmup", 0.5),
    ("weight_decay", 0.1), ("max_grad_norm", 9.0), ("seed", 5), ("method", "ia3"), ("variant", "dora"),
    ("processes", 2), ("sharding", "fsdp2"), ("trackers", ["wandb"]), ("watch", "warn"),
    ("checkpoint_minutes", 1.0)])  # fmt: skip
def test_every_value_can_be_pinned(key: str, value: Any) -> None:
    derived = decide(Train(), SMALL, data(), LAPTOP)[key]
    pinned = decide(Train(**{key: value}), SMALL, data(), LAPTOP)[key]
    assert pinned.value == value != derived.value


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ({"method": "prompt"}, "virtual_tokens", 7),
        ({"method": "prefix"}, "virtual_tokens", 7),
        ({"method": "bottleneck"}, "width", 7),
    ],
)
def test_the_sizes_of_a_method_can_be_pinned(given: dict[str, Any], key: str, value: int) -> None:
    derived, pinned = (
        decide(Train.model_validate(g), SMALL, data(), LAPTOP)[key] for g in (given, {**given, key: value})
    )
    assert pinned.value == value != derived.value


def test_a_method_has_decisions_of_its_own_only() -> None:
    own = {"rank", "alpha", "variant", "layers", "quantise", "virtual_tokens", "width"}
    wanted: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {"rank", "alpha", "variant"}),
        ({"method": "lora", "quantise": "nf4"}, {"rank", "alpha", "variant", "quantise"}),
        ({"method": "lora", "layers": ["norm"]}, {"rank", "alpha", "variant", "layers"}),
        ({"method": "full"}, set()),
        ({"method": "freeze", "layers": ["norm"]}, {"layers"}),
        ({"method": "prompt"}, {"virtual_tokens"}),
        ({"method": "prefix"}, {"virtual_tokens"}),
        ({"method": "ia3"}, set()),
        ({"method": "bottleneck"}, {"width"}),
    ]
    for given, keys in wanted:
        decisions = decide(Train.model_validate(given), SMALL, data(), LAPTOP)
        assert decisions.keys() & own == keys
        assert decisions["method"].value == given.get("method", "lora")


def test_learning_rates_follow_the_method() -> None:
    def rate(**given: Any) -> float:
        found: float = decide(Train.model_validate(given), SMALL, data(), LAPTOP)["learning_rate"].value
        return found

    assert rate(method="full") == rate(method="freeze", layers=["norm"]) == pytest.approx(rate() / 10)
    assert rate(method="full") < rate(layers=["norm"]) < rate() == rate(method="bottleneck")
    assert all(rate(method=method) > rate() for method in ("prompt", "prefix", "ia3"))


def test_rank_stabilised_lora_begins_at_the_scale_of_plain_lora() -> None:
    plain, stabilised = (decide(Train(variant=v), SMALL, data(), LAPTOP) for v in ("plain", "rslora"))
    assert plain["alpha"].value / plain["rank"].value == stabilised["alpha"].value / stabilised["rank"].value ** 0.5


def test_virtual_tokens_must_leave_room_for_the_longest_row() -> None:
    close = {**SMALL, "context": 170}
    assert decide(Train(method="prompt", virtual_tokens=10), close, data(longest=160), LAPTOP)
    with pytest.raises(ConfigError, match=r"`train.virtual_tokens: 11` leaves too little room") as error:
        decide(Train(method="prompt", virtual_tokens=11), close, data(longest=160), LAPTOP)
    assert error.value.next == "set `data.format.max_tokens: 159`, or lower `train.virtual_tokens` to 10 or less"
    with pytest.raises(ConfigError) as error:
        decide(Train(method="prompt", virtual_tokens=100_000), close, data(longest=160), LAPTOP)
    assert error.value.next == "lower `train.virtual_tokens` to 10 or less"
    with pytest.raises(ConfigError) as error:
        decide(Train(method="prompt", virtual_tokens=20), close, data(longest=170), LAPTOP)
    assert error.value.next == "set `data.format.max_tokens: 150`"
    with pytest.raises(ConfigError) as error:
        decide(Train(method="prompt", virtual_tokens=100), close, data(longest=170), LAPTOP)
    assert error.value.next == "lower it, and `data.format.max_tokens` too"


def test_weight_decay_must_shrink_weights() -> None:
    assert decide(Train(weight_decay=0.1, learning_rate=0.5), SMALL, data(), LAPTOP)
    with pytest.raises(
        ConfigError, match=r"`train.weight_decay: 1e\+09` does not go with a learning rate of 0.001"
    ) as error:
        decide(Train(weight_decay=1e9, learning_rate=1e-3), SMALL, data(), LAPTOP)
    assert "by -999999" in error.value.why


def test_the_plan_counts_the_modules_that_train_in_full(tiny: Base, dataset: Artifact, tmp_path: Path) -> None:
    train = Train(method="freeze", layers=["layers.1"])
    found = Steps(tmp_path)("plan", planner.run, train, tiny, dataset).summary["decisions"]
    assert found["layers"]["value"] == ["layers.1"]
    with pytest.raises(ConfigError, match=r"no module of this model is called `layers.2`"):
        Steps(tmp_path)("plan", planner.run, Train(method="freeze", layers=["layers.2"]), tiny, dataset)


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


def test_gpus_that_divide_a_model_need_not_train_it_each() -> None:
    gpu, full = Machine(16, 80 << 30, True, "a GPU", gpu=True), {"method": "full", "epochs": 1.0}
    with pytest.raises(ResourceError, match="training needs"):
        decide(Train(**full), LARGE, data(), gpu)
    with pytest.raises(ResourceError, match="training needs"):
        decide(Train(**full, processes=4), LARGE, data(), gpu)  # each would hold the whole
    divided = Train(**full, processes=4, sharding="fsdp2")
    assert decide(divided, LARGE, data(), gpu)["micro_batch_tokens"].value
    with pytest.raises(ResourceError, match="training needs"):
        decide(divided, LARGE, data(), Machine(16, 16 << 30, True, "a GPU", gpu=True))  # each loads it whole first


def test_processes_on_one_machine_share_its_memory() -> None:
    machine = Machine(8, 6 << 30, True, "a small one")
    full = {"method": "full", "batch_tokens": 100_000}
    assert decide(Train(**full), SMALL, data(), machine)
    with pytest.raises(ResourceError, match="of 2 GB"):
        decide(Train(**full, processes=4), SMALL, data(), machine)


def test_no_validation_rows_means_no_evaluations() -> None:
    decisions = decide(Train(), SMALL, data(validation=0), LAPTOP)
    assert decisions["evaluations"].value == 0
    assert decisions["patience"].value is None


def test_estimates_grow_with_what_they_count() -> None:
    lora, full = (estimate.trained(LARGE, {"method": method, "rank": 16}, 0) for method in ("lora", "full"))
    weights = estimate.base_bytes(LARGE, "bf16", False)
    assert weights == 16_060_522_496 < estimate.resident_bytes(LARGE, "bf16", lora, quantised=False) < 1.2 * weights
    assert estimate.resident_bytes(LARGE, "bf16", full, quantised=False) > weights + 8_030_261_248 * 22
    assert estimate.base_bytes(LARGE, "bf16", True) < 0.4 * weights
    assert estimate.bytes_per_token(SMALL, "fp32") == 2 * estimate.bytes_per_token(SMALL, "bf16")


@pytest.mark.parametrize(
    "chosen",
    [
        {"method": "full"},
        {"method": "freeze", "layers": ["layers.1"]},
        {"method": "lora", "rank": 8},
        {"method": "lora", "rank": 8, "layers": ["lm_head"]},
        {"method": "prompt", "virtual_tokens": 5},
        {"method": "prefix", "virtual_tokens": 5},
        {"method": "ia3"},
        {"method": "bottleneck", "width": 8},
    ],
    ids=str,
)
def test_what_a_method_trains_is_never_counted_short(tiny: Base, chosen: dict[str, Any]) -> None:
    from tunesmith.models import base, load, methods, names

    assert tiny.folder is not None
    defaults = {"alpha": 16, "variant": "plain"} if chosen["method"] == "lora" else {}
    tuned = methods.attach(load.model(tiny.folder, "fp32"), methods.of({**defaults, **chosen}), 0)
    trains = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    told = estimate.trained(base.facts(tiny.folder), chosen, names.parameters(tiny.folder, chosen.get("layers", [])))
    assert trains <= told.added + told.own <= 2 * trains
