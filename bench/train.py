"""Trains SmolLM2-135M with tunesmith and with TRL on the same rows, in the same order, from the same adapter.

    bench/train.py                five pairs and the ladder: speed, memory, loss, share of the roofline
    bench/train.py --quick        the ratios alone, from two pairs, against TRL's best that need not compile
    bench/train.py --full         the same for training all weights
    bench/train.py --search       looks for TRL's best configuration, which the others then use
    bench/train.py --curve bf16   the losses of 100 steps beside TRL's own noise; or fp32

Each prints a table and, as its last line, JSON; figures and raw runs go to bench/results, into the folder of this kind
of machine: one without bf16 arithmetic trains in fp32, and is another race. Run it alone on the machine.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from circumstances import kind_of_machine
from training import compare, curve, ladder, report, search
from training.report import LADDER
from training.rival import Rival
from training.runs import Precision, RunFailed, precision
from training.workload import Plan, Workload, circumstances, prepare

from tunesmith.core import hardware, store
from tunesmith.core.errors import UserError

QUICK_SECONDS = 330  # of a quick comparison's pairs


def main(
    quick: Annotated[bool, typer.Option("--quick", help="two pairs of few steps, no ladder; keeps no figures")] = False,
    full: Annotated[bool, typer.Option("--full", help="train all weights instead of a LoRA")] = False,
    find: Annotated[bool, typer.Option("--search", help="look for TRL's best configuration")] = False,
    losses: Annotated[Precision | None, typer.Option("--curve", help="compare losses over many steps")] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="interleaved runs of each side, 5 or in a quick one 2")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="timed optimizer steps")] = None,
    tokens: Annotated[Path | None, typer.Option(help="a folder of tokenised rows, instead of the Alpaca rows")] = None,
    results: Annotated[Path | None, typer.Option(help="where figures are kept")] = None,
) -> None:
    """Compares tunesmith's training with TRL's; see the head of this file."""
    results = results or report.RESULTS / kind_of_machine()
    threads = hardware.threads()
    if threads.value < hardware.cores():
        say(f"warning: {threads.reason}; what is measured now is worth little")

    def workload(name: str, plan: Plan) -> Workload:
        out = results / "output" / f"{name}-{_method(full)}"
        shutil.rmtree(out, ignore_errors=True)
        return prepare(out, tokens, replace(plan, steps=steps or plan.steps), full)

    try:
        if find:
            found = _search(workload("search", Plan(4, warmup=1)), results)
        elif losses:
            found = _curve(workload("curve", Plan(100, warmup=0)), losses, results)
        elif quick:
            found = _compare(workload("quick", _quick()), pairs or 2, results, quick=True)
        else:
            found = _compare(workload("compare", Plan(5, warmup=2, passes=2)), pairs or 5, results, quick=False)
    except (UserError, RunFailed) as error:
        say(str(error))
        raise typer.Exit(1) from None
    print(json.dumps(found))


def _quick() -> Plan:
    """What six minutes have room for: without bf16 arithmetic, TRL as documented takes a minute a step."""
    return Plan(1 if precision() == "fp32" else 2, warmup=0, passes=2)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _compare(workload: Workload, number: int, results: Path, *, quick: bool) -> dict[str, Any]:
    tuned = _tuned(results, workload.full, quick)
    measured = compare.pairs(workload, number, tuned, say, QUICK_SECONDS if quick else math.inf)
    found = {**compare.figures(workload, measured, tuned), **circumstances(), "quick": quick, "ladder": []}
    found |= _losses(workload, results, found, quick)
    if not quick:
        found["profile"] = workload.profile()
    if not quick and not workload.full:
        found["ladder"] = ladder.ladder(lambda name, engine: _said(workload.ours(engine, name)), repeats=3)
        _keep(results, LADDER, {"ladder": found["ladder"], **circumstances()})
    if not quick:
        raw = {side: [asdict(run) for run in runs] for side, runs in measured.runs.items()}
        kept = results / f"{_method(workload.full)}.json"
        if kept.is_file():  # so that two runs of the same command can be compared
            os.replace(kept, kept.with_suffix(".before.json"))
        _keep(results, kept.name, {**found, "runs": raw})
    print(report.comparison(found))
    return found


def _search(workload: Workload, results: Path) -> dict[str, Any]:
    def attempt(trial: search.Trial) -> None:
        try:
            run = _said(workload.rival(trial.rival, trial.rival.name, limit_seconds=search.LIMIT_SECONDS))
        except RunFailed as failure:
            trial.failure = str(failure)
            say(f"{trial.rival.name}: {failure}")
        else:
            trial.tokens_per_second.append(run.tokens_per_second)
            trial.peak_bytes = max(trial.peak_bytes, run.peak_bytes)

    trials = [trial.to_json() for trial in search.search(attempt, workload.full)]
    budget = {"steps": len(workload.schedule.mixed), "seconds": search.LIMIT_SECONDS}
    found = {"winner": trials[0]["name"], "budget": budget, "rows": workload.facts(), **circumstances()}
    found["trials"] = trials
    _keep(results, _search_file(workload.full), found)
    print(report.trials(found))
    return found


def _curve(workload: Workload, of: Precision, results: Path) -> dict[str, Any]:
    found = {**curve.curve(workload, of), **circumstances()}
    name = f"curve-{found['method']}-{of}"
    _keep(results, f"{name}.json", found)
    if not curve.plot(found, results / f"{name}.svg"):
        say("no plot: matplotlib is not installed")
    print(report.curves([found]))
    return {key: value for key, value in found.items() if key != "runs"}


def _tuned(results: Path, full: bool, quick: bool) -> Rival:
    """The winner that `--search` recorded; for a quick comparison the best that need not compile first, which takes
    minutes."""
    path = results / _search_file(full)
    if not path.is_file():
        raise UserError(
            f"there is no {path}",
            "TRL's best configuration is searched for, not assumed",
            f"run `python bench/train.py --search{' --full' if full else ''}` first",
        )
    best_first = [Rival(**trial["rival"]) for trial in store.read_json(path)["trials"] if not trial["failure"]]
    return next(rival for rival in best_first if not (quick and rival.compiled))


def _losses(workload: Workload, results: Path, found: dict[str, Any], quick: bool) -> dict[str, Any]:
    """How far the losses lie apart where TRL computes as nearly as we do as it can: as `--curve` found it, where it did
    with this very engine, else over these few steps; a quick comparison makes none. (The runs that are compared in
    speed are in precisions of their own.)"""
    keys, command = ("max_loss_difference", "noise_band", "loss_steps"), f"`--curve {precision()}`"
    path = results / f"curve-{found['method']}-{precision()}.json"
    kept = store.read_json(path) if path.is_file() else {"engine": None}
    if kept["engine"] == found["engine"]:
        return {**{key: kept[key] for key in keys}, "losses_from": path.name}
    if quick:
        return {**dict.fromkeys(keys), "losses_from": f"{command} was not run with this engine"}
    say("losses, in runs that compute alike")
    try:
        short = curve.curve(replace(workload, passes=1), precision())
    except RunFailed as failure:
        return {**dict.fromkeys(keys), "losses_from": str(failure)}
    return {**{key: short[key] for key in keys}, "losses_from": f"runs of these steps; {command} takes more"}


def _said(run: Any) -> Any:
    say(f"{run.tokens_per_second:7.1f} tokens/s  {run.peak_bytes / 1e9:5.2f} GB  {run.name}")
    return run


def _method(full: bool) -> str:
    return "full" if full else "lora"


def _search_file(full: bool) -> str:
    return "rival_search_full.json" if full else "rival_search.json"


def _keep(results: Path, name: str, found: dict[str, Any]) -> None:
    """One line for each key, so that a file of many runs can be read; figures of ours go into the documentation too."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items())
    results.mkdir(parents=True, exist_ok=True)
    store.write_text(results / name, "{\n" + lines + "\n}\n")
    say(f"wrote {results / name}")
    if results.parent == report.RESULTS:
        report.refresh()


if __name__ == "__main__":
    typer.run(main)
