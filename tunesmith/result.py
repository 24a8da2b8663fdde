"""The last finished run, for machines (`tunesmith show --json`, schema in docs/show.schema.json) and for the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tunesmith.core import store
from tunesmith.core.errors import ResourceError
from tunesmith.core.records import Outcome
from tunesmith.lifecycle import OPTIONAL, STEPS


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Figure(_Part):
    """A measured figure with the bounds of its 95 % interval, in the metric's own unit; null where not measured."""

    value: float | None
    low: float | None
    high: float | None


class Gate(_Part):
    """One demand on the tuned model and what became of it."""

    metric: str
    margin: float
    alpha: float
    outcome: Outcome
    gain: Figure
    test: str
    p_value: float | None
    rows: int
    rows_needed: int | None
    """Test rows that would be enough to decide; null when the gate is decided or no number would do."""
    sentence: str


class Metrics(_Part):
    """Each metric for the base, for the tuned model, and the paired gain (perplexity: relative fall)."""

    base: dict[str, Figure]
    tuned: dict[str, Figure]
    gain: dict[str, Figure]


class RowLedger(_Part):
    """Where every record went: `records + made = quarantined + dropped + train + validation + test`."""

    records: int
    made: int
    """Rows that `data.grow` added to those that were read, whether they were kept or left out again."""
    quarantined: int
    dropped: int
    train: int
    validation: int
    test: int
    reasons: dict[str, int]
    """Rows by the reason for which they were quarantined or dropped."""


class Yield(_Part):
    """What came of one kind of new rows. `asked` and `answered` count attempts, the others rows that passed one test
    after the other."""

    asked: int
    answered: int
    parsed: int
    grounded: int
    """Rows that stand on their source."""
    clean: int
    unique: int
    decontaminated: int
    """Rows that are not like the exam, nor a benchmark's question."""
    kept: int
    stopped: str
    """Why no more were tried."""
    cost: float
    cost_per_kept: float | None
    """In the currency of the endpoint's prices; null where nothing was kept."""


class TokenLedger(_Part):
    """Tokens of the tokenised rows by side, and how many of them are learnt (assistant turns and their end tokens)."""

    train: int
    validation: int
    test: int
    learnt_train: int
    truncated_rows: int
    trained: int
    """Tokens that training processed, over all epochs."""


class Training(_Part):
    """How training went. Seconds are those of the optimizer steps alone, without validation."""

    tokens_per_second: float
    seconds: float
    peak_memory_bytes: int
    forecast_memory_bytes: int
    """The peak as it was forecast before the first step."""
    micro_batch_tokens: int
    """Tokens of a forward and backward pass at most: the plan's, or what memory allowed."""
    steps: int
    best_step: int
    validation_loss: float | None
    stopped_early: bool
    trainable_parameters: int
    threads: int
    warnings: list[str]
    """What was noticed and did not end the run."""


class Decision(_Part):
    """A value of the plan and its reason."""

    value: Any
    reason: str


class Pretraining(_Part):
    """The stage before the rows: raw text, how its training went, and the plan of that."""

    documents: int
    """Documents that were learnt or held out."""
    left_out: dict[str, int]
    """Documents that were dropped, and records that could not be read, by reason."""
    tokens: int
    """Tokens of the documents that were learnt."""
    held_out_tokens: int
    """Tokens of the documents, or blocks of them, that chose the checkpoint."""
    training: Training
    merged_validation_loss: float | None
    """Validation loss of the whole model that the stage left; null where nothing had to be merged into the weights."""
    plan: dict[str, Decision]


class StepRecord(_Part):
    """One step of the run. `because` says why it last ran."""

    step: str
    identity: str
    seconds: float
    because: list[str] | str
    folder: str


class Show(_Part):
    """The last finished run of a project."""

    project: str
    model: str
    finished: str
    """Local time with offset, ISO 8601."""
    verdict: Outcome
    exit_status: int
    """0 PASS, 3 FAIL, 4 NOT ENOUGH DATA."""
    gates: list[Gate]
    metrics: Metrics
    rows: RowLedger
    yields: dict[str, Yield]
    """New training rows by kind, where `data.grow.synthesise` makes some."""
    tokens: TokenLedger
    pretraining: Pretraining | None
    """Null where the project has no `pretrain` section."""
    training: Training
    plan: dict[str, Decision]
    artifacts: dict[str, str]
    """Paths of what the run wrote: report, adapter, merged, predictions, metrics, dropped and quarantined rows; with a
    judge, its scores and what it dropped; with growing, and with a stage of pretraining, what they left out."""
    steps: list[StepRecord]


def records(output: Path) -> dict[str, dict[str, Any]]:
    """The record of each step of the last finished run."""
    latest = output / "latest.json"
    if not latest.is_file():
        raise ResourceError(
            f"{output} holds no finished run", "`show`, `chat` and `export` work on a finished run", "tunesmith run"
        )
    identities = store.read_json(latest)["steps"]
    steps = [name for name in STEPS if name in identities or name not in OPTIONAL]
    missing = [
        name for name in steps if not (output / "steps" / name / str(identities.get(name)) / "record.json").is_file()
    ]
    if missing:
        raise ResourceError(
            f"the last run's result of step {missing[0]} is gone",
            f"it was removed from {output / 'steps'}",
            "tunesmith run makes it again",
        )
    return {name: store.read_json(output / "steps" / name / identities[name] / "record.json") for name in steps}


def folder(output: Path, record: dict[str, Any]) -> Path:
    return output / "steps" / str(record["step"]) / str(record["identity"])


def last_run(output: Path) -> Show:
    """The last finished run. Raises ResourceError when there is none."""
    found = records(output)
    latest = store.read_json(output / "latest.json")
    verdict, tuned, dataset = (found[name]["summary"] for name in ("verdict", "train", "format"))
    return Show(
        project=latest["project"],
        model=latest["model"],
        finished=latest["finished"],
        verdict=verdict["outcome"],
        exit_status=verdict["exit_status"],
        gates=verdict["gates"],
        rows=_rows(found),
        yields=_yields(found["grow"]["summary"]) if "grow" in found else {},
        tokens=_tokens(dataset, tuned),
        metrics=Metrics(
            base=verdict["metrics"]["base"],
            tuned=verdict["metrics"]["tuned"],
            gain={name: _figure(gain) for name, gain in verdict["gains"].items()},
        ),
        pretraining=_pretraining(found) if "pretrain" in found else None,
        training=_training(tuned),
        plan=found["plan"]["summary"]["decisions"],
        artifacts=_artifacts(output, found),
        steps=[
            StepRecord(
                step=name,
                identity=r["identity"],
                seconds=r["seconds"],
                because=r["because"],
                folder=str(folder(output, r)),
            )
            for name, r in found.items()
        ],
    )


def _pretraining(found: dict[str, dict[str, Any]]) -> Pretraining:
    stage, texts = found["pretrain"]["summary"], found["texts"]["summary"]
    return Pretraining(
        documents=texts["documents"],
        left_out=texts["reasons"],
        tokens=texts["train"]["tokens"],
        held_out_tokens=texts["validation"]["tokens"],
        training=_training(stage),
        merged_validation_loss=stage["merged_validation_loss"],
        plan=found["pretrain-plan"]["summary"]["decisions"],
    )


def _training(summary: dict[str, Any]) -> Training:
    same = Training.model_fields.keys() - {"seconds", "threads"}
    return Training(
        seconds=summary["train_seconds"],
        threads=summary["threads"]["value"],
        **{key: summary[key] for key in same},
    )


def _figure(gain: dict[str, Any]) -> Figure:
    return Figure(value=gain["value"], low=gain["low"], high=gain["high"])


def _rows(found: dict[str, dict[str, Any]]) -> RowLedger:
    load, dataset = found["load"]["summary"], found["format"]["summary"]
    grown = found["grow"]["summary"] if "grow" in found else None
    reasons: dict[str, int] = {}
    droppers = [name for name in ("clean", "judge", "split", "grow", "format") if name in found]
    for name in ("load", *droppers):
        for reason, count in found[name]["summary"]["reasons"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    ledger = RowLedger(
        records=load["rows_in"],
        quarantined=load["quarantined"] + (grown["quarantined"] if grown else 0),
        made=grown["made"] if grown else 0,
        dropped=sum(found[name]["summary"]["dropped"] for name in droppers),
        train=dataset["train"]["rows"],
        validation=dataset["validation"]["rows"],
        test=dataset["test"]["rows"],
        reasons=reasons,
    )
    sides = ledger.train + ledger.validation + ledger.test
    assert ledger.records + ledger.made == ledger.quarantined + ledger.dropped + sides
    return ledger


def _yields(grown: dict[str, Any]) -> dict[str, Yield]:
    kinds = grown["synthesise"]["kinds"] if grown["synthesise"] else {}
    return {
        kind: Yield(**{name: count for name, count in its.items() if name in Yield.model_fields})
        for kind, its in kinds.items()
    }


def _tokens(dataset: dict[str, Any], tuned: dict[str, Any]) -> TokenLedger:
    sides = ("train", "validation", "test")
    return TokenLedger(
        train=dataset["train"]["tokens"],
        validation=dataset["validation"]["tokens"],
        test=dataset["test"]["tokens"],
        learnt_train=dataset["train"]["learnt_tokens"],
        truncated_rows=sum(dataset[side]["truncated"] for side in sides),
        trained=tuned["tokens"],
    )


def _artifacts(output: Path, found: dict[str, dict[str, Any]]) -> dict[str, str]:
    paths = {
        "report": output / "report.html",
        **{name: folder(output, found["export"]) / name for name in found["export"]["summary"]["paths"]},
        "predictions_base": folder(output, found["base"]) / "predictions.jsonl",
        "predictions_tuned": folder(output, found["tuned"]) / "predictions.jsonl",
        "scores": folder(output, found["verdict"]) / "scores.jsonl",
        "training_metrics": folder(output, found["train"]) / "metrics.jsonl",
        "test_rows": folder(output, found["format"]) / "test.jsonl",
        "quarantine": folder(output, found["load"]) / "quarantine.jsonl",
        "dropped_in_cleaning": folder(output, found["clean"]) / "dropped.jsonl",
        "dropped_in_splitting": folder(output, found["split"]) / "dropped.jsonl",
        "dropped_in_formatting": folder(output, found["format"]) / "dropped.jsonl",
    }
    if "judge" in found:
        paths |= {
            "judge_scores": folder(output, found["judge"]) / "scores.jsonl",
            "dropped_in_judging": folder(output, found["judge"]) / "dropped.jsonl",
        }
    if "grow" in found:
        grown = folder(output, found["grow"])
        names = {
            "dropped_in_growing": "dropped.jsonl",
            "quarantined_in_growing": "quarantine.jsonl",
            "documents_quarantined_in_growing": "quarantined_documents.jsonl",
        }
        paths |= {name: grown / file for name, file in names.items() if (grown / file).is_file()}
    if "pretrain" in found:
        paths |= {
            "pretrained": folder(output, found["pretrain"]) / "model",
            "pretraining_metrics": folder(output, found["pretrain"]) / "metrics.jsonl",
            "dropped_documents": folder(output, found["texts"]) / "dropped.jsonl",
            "quarantined_documents": folder(output, found["texts"]) / "quarantine.jsonl",
        }
    return {name: str(path) for name, path in paths.items()}
