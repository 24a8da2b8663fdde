"""The loop: it learns, every setting changes what happens, small updates survive bf16, a run that is stopped goes on to
the same weights, and what goes wrong is explained."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.core import certificate, store
from tunesmith.core.data_section import Format
from tunesmith.core.errors import ModelError
from tunesmith.core.interrupt import Asked, Interrupted
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact, Steps
from tunesmith.data import format
from tunesmith.models import load, methods
from tunesmith.models.base import Base
from tunesmith.models.methods import Method
from tunesmith.models.packed import Scorer, fast
from tunesmith.models.tokens import Tokens
from tunesmith.train import checkpoint, loop, memory, watch
from tunesmith.train.master import Master
from tunesmith.train.objectives import sft
from tunesmith.train.outcome import Outcome

SETTINGS = loop.Settings(
    learning_rate=1e-2, epochs=1.0, batch_tokens=1200, micro_batch_tokens=1200, evaluations=1, patience=None,
    warmup=0.1, weight_decay=0.0, max_grad_norm=1.0, seed=0)  # fmt: skip
LORA = methods.Method("lora", 4, 8.0)
Log = list[dict[str, Any]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """So small a model only waits for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scorer_of(tiny: Base, method: methods.Method, precision: str = "fp32") -> Scorer:
    assert tiny.folder is not None
    model = methods.attach(load.model(tiny.folder, precision, packed=True), method, 0)
    return fast(model)


def trained(
    tiny: Base,
    dataset: Artifact,
    settings: loop.Settings,
    precision: str = "fp32",
    method: methods.Method = LORA,
    keeper: checkpoint.Keeper | None = None,
    saved: checkpoint.State | None = None,
    log: Log | None = None,
) -> tuple[Outcome, Log]:
    log = [] if log is None else log
    rows, validation = Tokens(dataset.folder, "train"), Tokens(dataset.folder, "validation")
    scorer = scorer_of(tiny, method, precision)
    outcome = loop.train(scorer, sft.loss, rows, validation, settings, log.append, keeper, saved)
    return outcome, log


@pytest.fixture(scope="module")
def plain(tiny: Base, dataset: Artifact) -> tuple[Outcome, Log]:
    return trained(tiny, dataset, SETTINGS)


def conversation(prompt: str, answer: str) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Row(messages, "rows.jsonl", 1, "messages")


def tokenised(folder: Path, base: Base, **sides: list[Row]) -> Artifact:
    """A dataset of these rows."""
    for side, rows in sides.items():
        store.write_rows(folder / f"{side}.jsonl", rows)
    certificate.seal(folder, {"leaks": 0}, [f"{side}.jsonl" for side in sides])
    splits = Artifact("split", "of the test", folder, "done", {side: len(rows) for side, rows in sides.items()})
    return Steps(folder)("format", format.run, Format(), base, splits)


def losses(log: Log) -> list[float]:
    return [entry["loss"] for entry in log if "loss" in entry]


def test_it_learns(plain: tuple[Outcome, Log]) -> None:
    outcome, log = plain
    assert losses(log)[-1] < losses(log)[0] - 0.02
    assert outcome.best_validation_loss is not None
    assert outcome.best_validation_loss < log[1]["validation_loss"]
    assert outcome.tokens == sum(entry["tokens"] for entry in log if "tokens" in entry)
    assert outcome.tokens_per_second > 0


def test_the_same_settings_give_the_same_weights(tiny: Base, dataset: Artifact, plain: tuple[Outcome, Log]) -> None:
    again, log = trained(tiny, dataset, SETTINGS)
    assert losses(log) == losses(plain[1])
    assert all(torch.equal(again.best[name], tensor) for name, tensor in plain[0].best.items())


@pytest.mark.parametrize("change", [
    {"learning_rate": 1e-3}, {"epochs": 2.0}, {"epochs": 0.5}, {"batch_tokens": 600}, {"warmup": 0.9},
    {"weight_decay": 0.5}, {"max_grad_norm": 1e-3}, {"seed": 1}], ids=str)  # fmt: skip
def test_every_setting_changes_the_course(
    tiny: Base, dataset: Artifact, plain: tuple[Outcome, Log], change: dict[str, Any]
) -> None:
    _, log = trained(tiny, dataset, replace(SETTINGS, **change))
    assert losses(log) != losses(plain[1])


@pytest.mark.parametrize(("rank", "alpha"), [(2, 8), (4, 16)])
def test_rank_and_alpha_change_the_course(
    tiny: Base, dataset: Artifact, plain: tuple[Outcome, Log], rank: int, alpha: float
) -> None:
    _, log = trained(tiny, dataset, SETTINGS, method=methods.Method("lora", rank, alpha))
    assert losses(log) != losses(plain[1])


def test_precision_changes_the_arithmetic_but_not_the_outcome(
    tiny: Base, dataset: Artifact, plain: tuple[Outcome, Log]
) -> None:
    outcome, log = trained(tiny, dataset, SETTINGS, precision="bf16")
    assert losses(log) != losses(plain[1])
    assert losses(log) == pytest.approx(losses(plain[1]), rel=0.02)
    assert all(tensor.dtype == torch.float32 for tensor in outcome.best.values())


def test_smaller_micro_batches_give_the_same_course(tiny: Base, dataset: Artifact, plain: tuple[Outcome, Log]) -> None:
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


class AfterLooks:
    """Asks for an end, as Ctrl-C would, when it is looked for the so-manieth time: between steps, and within an
    evaluation."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def __call__(self) -> int | None:
        self.looks -= 1
        return signal.SIGINT if self.looks <= 0 else None


def asked_after(log: Log, steps: int) -> Asked:
    return lambda: signal.SIGINT if len(losses(log)) >= steps else None


@pytest.mark.parametrize(("precision", "evaluations"), [("fp32", 1), ("bf16", 3), ("bf16", 0)])
def test_a_run_that_goes_on_has_the_same_course(
    tiny: Base, dataset: Artifact, tmp_path: Path, precision: str, evaluations: int
) -> None:
    settings = replace(SETTINGS, evaluations=evaluations)
    whole, log = trained(tiny, dataset, settings, precision)
    lives: list[checkpoint.State] = []
    while True:
        saved = checkpoint.newest(tmp_path)
        keeper = checkpoint.Keeper(tmp_path, 5, asked=AfterLooks(len(lives) + 1))
        try:
            outcome, rest = trained(tiny, dataset, settings, precision, keeper=keeper, saved=saved)
        except Interrupted:
            stopped = checkpoint.newest(tmp_path)
            assert stopped is not None
            lives.append(stopped)
        else:
            break
    assert saved is not None
    assert saved.step == lives[-1].step > lives[0].step
    assert len(lives) >= 2
    first = lives[0].values["outcome"]
    assert (first["steps"], first["evaluated"]) == ((0, -1) if evaluations else (1, -1))  # left amid an evaluation
    assert losses(rest) == losses(log)[saved.step :]
    assert all(torch.equal(outcome.best[name], tensor) for name, tensor in whole.best.items())
    same = ("best_step", "best_validation_loss", "steps", "tokens", "learnt_tokens", "evaluations_without_gain")
    assert [vars(outcome)[name] for name in same] == [vars(whole)[name] for name in same]
    assert outcome.seconds >= sum(entry["step_seconds"] for entry in rest if "loss" in entry)


def test_a_checkpoint_carries_the_micro_batch_that_is_in_use(tiny: Base, dataset: Artifact) -> None:
    run = loop.Run(scorer_of(tiny, LORA), sft.loss, SETTINGS, 9)
    run.outcome.micro_batch_tokens = 77
    again = loop.Run(scorer_of(tiny, LORA), sft.loss, SETTINGS, 9)
    again.restore(run.state())
    assert again.outcome.micro_batch_tokens == 77


def test_a_run_that_goes_on_keeps_to_the_memory_that_is_left(
    tiny: Base, dataset: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = trained(tiny, dataset, SETTINGS)
    log: Log = []
    with pytest.raises(Interrupted):
        trained(tiny, dataset, SETTINGS, keeper=checkpoint.Keeper(tmp_path, 5, asked=asked_after(log, 2)), log=log)
    saved = checkpoint.newest(tmp_path)
    assert saved is not None
    asked: dict[str, Any] = {}

    def forecast(
        rehearsal: Any, tokens: Any, steps: Any, wanted: int, room: memory.Room, **given: Any
    ) -> memory.Forecast:
        asked.update(steps=len(steps), wanted=wanted, pending=room.pending)
        return memory.Forecast(600, 1 << 30, 1.0)

    monkeypatch.setattr(memory, "forecast", forecast)
    monkeypatch.setattr(memory, "limit_bytes", lambda _: saved.values["outcome"]["forecast_bytes"] - 1)
    outcome, log = trained(tiny, dataset, SETTINGS, saved=saved)
    assert asked["steps"] == whole.steps - 2
    assert asked["wanted"] == SETTINGS.micro_batch_tokens
    assert asked["pending"] == 0  # the optimizer's moments are there
    assert log[0] == {"step": 2, "micro_batch_tokens": 600, "forecast_bytes": 1 << 30}
    assert [entry["micro_batch_tokens"] for entry in log if "loss" in entry] == [600] * (whole.steps - 2)
    assert outcome.best_validation_loss == pytest.approx(whole.best_validation_loss, rel=1e-5)
    monkeypatch.setattr(memory, "limit_bytes", lambda _: 1 << 40)
    asked.clear()
    saved = checkpoint.newest(tmp_path)
    trained(tiny, dataset, SETTINGS, saved=saved)
    assert not asked  # it fits as it was forecast


def test_a_checkpoint_of_other_parameters_is_refused(tiny: Base, dataset: Artifact) -> None:
    saved = loop.Run(scorer_of(tiny, LORA), sft.loss, SETTINGS, 9).state()
    with pytest.raises(ModelError, match="other parameters"):
        loop.Run(scorer_of(tiny, methods.Method("ia3")), sft.loss, SETTINGS, 9).restore(saved)


def test_a_checkpoint_of_a_run_that_draws_random_numbers_is_a_fault_of_ours(tiny: Base) -> None:
    run = loop.Run(scorer_of(tiny, LORA), sft.loss, SETTINGS, 9)
    torch.rand(1)
    with pytest.raises(AssertionError, match="random numbers"):
        run.state()


def test_a_gradient_that_is_not_finite_changes_nothing(tiny: Base) -> None:
    run = loop.Run(scorer_of(tiny, LORA), sft.loss, SETTINGS, 9)
    before = run.master.state()
    for exact in run.master.exact:
        exact.grad = torch.full_like(exact, torch.inf)
    assert not run.master.update(run.optimizer, 0.1, 1.0, 1) < torch.inf
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.master.state().items())


def test_a_loss_that_is_not_a_number_is_explained(tiny: Base, dataset: Artifact) -> None:
    with pytest.raises(watch.Fault) as error:
        trained(tiny, dataset, replace(SETTINGS, learning_rate=1e30))
    assert error.value.kind == "not a number"
    assert "at step" in error.value.what
    assert "learning_rate" in error.value.next


def test_warned_a_run_goes_on_and_says_it_once(
    tiny: Base, dataset: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome, _ = trained(tiny, dataset, replace(SETTINGS, learning_rate=1e30, watch="warn"))
    assert outcome.steps == outcome.planned_steps
    assert set(outcome.warnings) == {"not a number"}
    assert capsys.readouterr().err.count("not a number") == 1
    assert outcome.best_step == 0


def test_a_run_that_diverges_is_ended(tiny: Base, dataset: Artifact) -> None:
    wild = replace(SETTINGS, learning_rate=100.0, epochs=4.0, batch_tokens=200, evaluations=0)
    with pytest.raises(watch.Fault) as error:
        trained(tiny, dataset, wild, method=methods.Method("full"))
    assert error.value.kind == "divergence"
    assert "after step 40" in error.value.what
    assert "learning rate of 100" in error.value.why


def test_a_loss_that_does_not_fall_ends_the_run(tiny: Base, dataset: Artifact) -> None:
    slow = replace(SETTINGS, learning_rate=1e-12, epochs=5.0, batch_tokens=130, evaluations=0)
    with pytest.raises(watch.Fault) as error:
        trained(tiny, dataset, slow)
    assert error.value.kind == "no fall"
    assert "1e-12 is too low" in error.value.why
    assert "set train.learning_rate to 0.0001" in error.value.next


def test_a_model_that_comes_to_answer_with_nothing_is_noticed(tiny: Base, rows: list[Row], tmp_path: Path) -> None:
    silent = [conversation(row.messages[1]["content"], "") for row in rows[:24]]
    dataset = tokenised(tmp_path, tiny, train=silent, validation=rows[48:56], test=[])
    ends = tuple(dataset.summary["stops"])
    settings = replace(SETTINGS, epochs=3.0, batch_tokens=400, evaluations=3, end_tokens=ends)
    with pytest.raises(watch.Fault) as error:
        trained(tiny, dataset, settings, method=methods.Method("full"))
    assert error.value.kind == "empty answers"
    assert "100% of the validation rows" in error.value.what
    assert "(0% before training)" in error.value.what


@pytest.fixture(scope="module")
def alien(tiny: Base, rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Six rows to train on, and validation rows of quite another kind: what is learnt by heart is of no use there."""
    words = ("amber", "birch", "cedar", "delta", "ember", "flint")
    other = [conversation(f"Say {word}", f"{word} {word[::-1]} {word}") for word in words]
    return tokenised(tmp_path_factory.mktemp("alien"), tiny, train=rows[:6], validation=other, test=[])


BY_HEART = replace(SETTINGS, learning_rate=6e-2, epochs=10.0, batch_tokens=150, evaluations=5)


def test_overfitting_is_told_once_and_the_best_state_kept(
    tiny: Base, alien: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome, log = trained(tiny, alien, BY_HEART, method=methods.Method("full"))
    assert set(outcome.warnings) == {"overfitting", "no gain"}  # strange rows: nothing of them helps on the others
    assert outcome.best_step == 0
    assert capsys.readouterr().err.count("learns its rows by heart") == 1
    assert outcome.steps == outcome.planned_steps
    assert outcome.best_step < outcome.steps
    assert outcome.best_validation_loss == min(e["validation_loss"] for e in log if "validation_loss" in e)


def test_with_patience_overfitting_ends_the_run_early(
    tiny: Base, alien: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome, _ = trained(tiny, alien, replace(BY_HEART, patience=2), method=methods.Method("full"))
    assert outcome.stopped_early
    told = capsys.readouterr().err
    assert f"stopped early after step {outcome.steps} of {outcome.planned_steps}" in told
    assert "by heart" in told
    assert outcome.best_step == 0
    assert "kept is the untrained model" in told


def test_schedule() -> None:
    rates = [loop.schedule(n, 100, 0.1) for n in range(1, 101)]
    assert rates[9] == 1.0
    assert rates[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(("method", "spared"), [
    (Method("full"), {"norm"}), (Method("lora", 2, 4.0, "dora"), {"magnitude"}),
    (Method("ia3"), {"ia3_l"})], ids=str)  # fmt: skip
def test_weight_decay_is_for_matrices(tiny: Base, method: Method, spared: set[str]) -> None:
    """IA3's factors mean nothing at one, DoRA's magnitudes and norms nothing at zero: those must not be drawn there."""
    assert tiny.folder is not None
    model = methods.attach(load.model(tiny.folder, "fp32", packed=True), method, 0)
    master = Master(fast(model))
    before = master.state()
    optimizer = torch.optim.AdamW(master.groups(0.5), lr=0.1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(master.exact)
    for exact in master.exact:
        exact.grad = torch.zeros_like(exact)
    master.update(optimizer, 0.1, 1.0, 1)
    for name, tensor in master.state().items():
        if before[name].any():
            decays = bool(tensor.abs().sum() < before[name].abs().sum())
            assert decays != any(part in name for part in spared), name
