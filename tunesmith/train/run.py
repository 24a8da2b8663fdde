"""The training step: from a plan and tokenised rows to an adapter on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from tunesmith.core import certificate, hardware, interrupt, store, unfinished
from tunesmith.core.console import Bar, progress, say
from tunesmith.core.errors import settings_names
from tunesmith.core.records import Decision
from tunesmith.core.step import Artifact
from tunesmith.models import base as bases
from tunesmith.train import launch, resume, trackers, watch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from tunesmith.models.base import Base
    from tunesmith.models.packed import Scorer
    from tunesmith.models.tokens import Tokens
    from tunesmith.train.loop import Settings
    from tunesmith.train.outcome import Outcome
    from tunesmith.train.processes import Processes

VERSION = 7


def run(plan: Artifact, base: Base | Artifact, dataset: Artifact, out: Path, kept: Path) -> dict[str, Any]:
    """Writes `adapter/` or, for full and freeze, `model/`, with the tokeniser, and `metrics.jsonl`, a line per step and
    evaluation. Until it is done, log and checkpoints stand in `kept`, and a later call goes on from there."""
    certificate.require(dataset.folder)
    base = bases.of(base)
    chosen = _chosen(plan)
    if chosen["processes"] == 1:
        return work(plan, base, dataset, out, kept)
    artifacts = {name: {**asdict(a), "folder": str(a.folder)} for name, a in (("plan", plan), ("dataset", dataset))}
    given = {"base": {**base.model_dump(), "folder": str(base.folder)}, "out": str(out), "kept": str(kept)}
    job = {**artifacts, **given, "names": settings_names()}
    summary: dict[str, Any] = launch.run(job, chosen["processes"])
    return summary


def work(plan: Artifact, base: Base, dataset: Artifact, out: Path, kept: Path) -> dict[str, Any]:
    """What `run` does, alone or beside other processes; the first one writes the result and returns the summary."""
    load_before = hardware.load()
    import torch

    from tunesmith.models import load, methods
    from tunesmith.models.tokens import Tokens
    from tunesmith.train import checkpoint, loop, memory
    from tunesmith.train.objectives import sft
    from tunesmith.train.processes import join

    assert base.folder is not None
    chosen = _chosen(plan)
    processes = join(chosen["sharding"])
    with processes.first_before_others():  # it removes damaged checkpoints
        saved = checkpoint.newest(kept)
    threads = processes.agree(lambda: resume.threads(saved, processes.count, chosen["threads"], load_before))
    torch.set_num_threads(threads.value)
    measured = memory.reset_peak()
    settings = _settings(chosen, dataset)
    rows, validation = Tokens(dataset.folder, "train"), Tokens(dataset.folder, "validation")
    warnings = _warnings(rows, settings)
    scorer = _scorer(base.folder, chosen, rows, fuse_layers=not processes.sharded)
    whole_model = partial(_whole_model, scorer, base.folder, chosen, processes)
    store.require_space(out, 2 * methods.bytes_on_disk(scorer.model), "the tuned model")
    placed = {"threads": threads, "binding": hardware.binding()}
    _tell([*processes.notes, *scorer.notes], placed)
    resume.announce(saved, made_with := resume.made_with(threads.value, scorer.notes))
    try:
        with (
            interrupt.deferred("finishing this step, then saving; once more stops at once") as asked,
            resume.log_file(kept / processes.own("metrics.jsonl"), saved if processes.first else None) as file,
            trackers.start(chosen["trackers"] if processes.first else [], kept.name, chosen, out / "trackers") as track,
            progress("train", settings.epochs * sum(rows.lengths), "tokens", resume.tokens(saved)) as bar,
        ):
            keeper = checkpoint.Keeper(
                kept, chosen["checkpoint_minutes"], lambda: {"made_with": made_with, **resume.log_length(file)}, asked
            )
            outcome = loop.train(scorer, sft.loss, rows, validation, settings, _logger(file, bar, track), keeper, saved)
    except watch.Fault as fault:
        with processes.first_before_others():  # who ends first would end them all
            if processes.first:
                left = _leave_what_is_good(fault, kept, whole_model, base.hub, out)
                fault.next += f"; {left} in output/failed/{kept.name}"
        raise
    if not processes.first:
        return {}
    shutil.copyfile(kept / "metrics.jsonl", out / "metrics.jsonl")
    folder = methods.save(whole_model(), outcome.best, base.hub, out)
    load.tokenizer(base.folder).save_pretrained(folder)
    return {
        "base": base.model_dump(),
        **_facts(outcome),
        "peak_memory_bytes": memory.peak_bytes(),
        "peak_memory_of": "training" if measured else "the whole process",
        "processes": processes.count,
        **{name: asdict(decision) for name, decision in placed.items()},
        "kernels": list(scorer.notes),
        "warnings": [*warnings.values(), *outcome.warnings.values()],
    }


def _tell(notes: list[str], placed: dict[str, Decision]) -> None:
    """Notes, and decisions as the planner shows its own."""
    for note in notes:
        say(f"  {note}")
    for name, decision in placed.items():
        say(f"  {name:<19} {decision.value!s:>9}  {decision.reason}")


def _chosen(plan: Artifact) -> dict[str, Any]:
    """The values of the plan's decisions."""
    return {name: decision["value"] for name, decision in plan.summary["decisions"].items()}


def _settings(chosen: dict[str, Any], dataset: Artifact) -> Settings:
    from tunesmith.train.loop import Settings

    read = {key: chosen[key] for key in Settings.__dataclass_fields__ if key in chosen}
    return Settings(**read, end_tokens=tuple(dataset.summary.get("stops", ())))


def _warnings(rows: Tokens, settings: Settings) -> dict[str, str]:
    """What the rows themselves give cause to warn of, by its kind; raises watch.Fault where training is to stop."""
    from tunesmith.train import answers

    warnings: dict[str, str] = {}
    empty = int(answers.only_end(rows, list(settings.end_tokens)).sum())
    watch.heed(watch.only_end_tokens(empty, len(rows)), settings.watch, warnings)
    return warnings


def _scorer(base: Path, chosen: dict[str, Any], rows: Tokens, *, fuse_layers: bool) -> Scorer:
    """The base with the plan's method in it, proven to give transformers' own loss before the method was put in."""
    from tunesmith.models import load, methods, packed

    method = methods.of(chosen)
    model = load.model(base, chosen["precision"], packed=True, quantise=method.quantise)
    packed.require_same_loss(packed.fast(model, fuse_layers=fuse_layers), rows)
    return packed.fast(methods.attach(model, method, chosen["seed"]), fuse_layers=fuse_layers)


def _whole_model(
    scorer: Scorer, base: Path, chosen: dict[str, Any], processes: Processes
) -> PreTrainedModel | PeftModel:
    """The model that the trained tensors are put into to be saved: the one that trained, or, where that is divided
    among processes, a new one like it, outside the accelerator's memory."""
    from tunesmith.models import load, methods

    if not processes.sharded:
        return scorer.model
    method = methods.of(chosen)
    model = load.model(base, chosen["precision"], packed=True, quantise=method.quantise, on_cpu=True)
    return methods.attach(model, method, chosen["seed"])


def _leave_what_is_good(
    fault: watch.Fault,
    kept: Path,
    whole_model: Callable[[], PreTrainedModel | PeftModel],
    hub_id: str | None,
    out: Path,
) -> str:
    """Leaves the log of a run that went wrong, and its best state, and says so. No checkpoint stays: going on from it
    would repeat the fault, and it must not stand in the way of other settings."""
    from tunesmith.models import methods

    shutil.copyfile(kept / "metrics.jsonl", out / "metrics.jsonl")
    unfinished.discard(kept)
    if fault.good is None:
        return "its log is"
    step, state = fault.good
    folder = methods.save(whole_model(), state, hub_id, out)
    return f"its log and its best state, of step {step:,}, are (metrics.jsonl, {folder.name}/)"


def _logger(file: BinaryIO, bar: Bar, track: trackers.Track) -> Callable[[dict[str, Any]], None]:
    """Writes each entry to metrics.jsonl, tells the trackers and moves the bar. Trackers begin with what an earlier run
    has logged."""
    last: dict[str, Any] = {}
    for entry in store.read_jsonl(Path(file.name)):
        track(entry)
        last.update(entry)

    def log(entry: dict[str, Any]) -> None:
        file.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
        file.flush()
        track(entry)
        last.update(entry)
        if "loss" in entry:
            losses = f"loss {entry['loss']:.3f}"
            if last.get("validation_loss") is not None:  # where it was not a number, the log has none
                losses += f"  validation {last['validation_loss']:.3f}"
            bar.advance(entry["tokens"], f"step {entry['step']}/{entry['of']}  {losses}")

    return log


def _facts(outcome: Outcome) -> dict[str, Any]:
    loss = "none measured" if outcome.best_validation_loss is None else f"{outcome.best_validation_loss:.4f}"
    stopped = ", stopped early" if outcome.stopped_early else ""
    return {
        "headline": f"best validation loss {loss}, at step {outcome.best_step} of {outcome.steps}{stopped}; "
        f"{outcome.tokens_per_second:,.0f} tokens/s",
        "steps": outcome.steps,
        "planned_steps": outcome.planned_steps,
        "stopped_early": outcome.stopped_early,
        "best_step": outcome.best_step,
        "validation_loss": outcome.best_validation_loss,
        "tokens": outcome.tokens,
        "learnt_tokens": outcome.learnt_tokens,
        "tokens_per_second": round(outcome.tokens_per_second, 1),
        "train_seconds": round(outcome.seconds, 2),
        "micro_batch_tokens": outcome.micro_batch_tokens,
        "forecast_memory_bytes": outcome.forecast_bytes,
        "trainable_parameters": sum(tensor.numel() for tensor in outcome.best.values()),
    }
