"""What goes wrong in training, told from the figures of its log: no tensors here, and no torch.

`faults` looks at one log entry and names what is wrong, the likely cause and the change to make. Losses are noisy, and
no good run may end for that: what counts as a fault, and why noise alone does not, stands in each function's docstring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from tunesmith.core.console import say
from tunesmith.core.errors import UserError

Entry = dict[str, Any]

WINDOW = 20  # optimizer steps over which the loss is smoothed
LASTING = 40  # optimizer steps after which a loss that is too high is no passing spike
FIRST_STEPS = 100  # within which the loss must fall
USUAL_RATE, OF_FEW = 1e-3, 3e-2  # learning rates at which something is learnt, by most methods and by those of FEW
FEW = ("prompt", "prefix", "ia3")  # train so few numbers that each has to go far


class Fault(UserError):
    """Training goes wrong in a way that going on would repeat; if `mild`, nothing is lost by going on. `good` is the
    best state until then, and its step, if there was one."""

    good: tuple[int, dict[str, Any]] | None = None

    def __init__(self, kind: str, what: str, why: str, next: str, *, mild: bool = False) -> None:
        super().__init__(what, why, next)
        self.kind, self.mild = kind, mild


@dataclass(frozen=True)
class Course:
    """The settings that a fault is judged by and that its message tells to change."""

    learning_rate: float
    epochs: float
    steps: int
    warmup_steps: int
    patience: int | None
    usual_rate: float = USUAL_RATE

    @property
    def fallen_by(self) -> int:
        """The step at which the loss must have fallen: the hundredth, or the end of the warm-up where that is later."""
        return max(FIRST_STEPS, self.warmup_steps)

    @property
    def first_rows_again(self) -> tuple[int, int]:
        """The steps after which the first step's rows are to be measured again: what the same rows cost before and
        after differs by nothing but what was learnt, while the losses of different rows say little."""
        return min(LASTING, self.steps), self.fallen_by

    @property
    def lower(self) -> str:
        rate = min(self.learning_rate / 3, self.usual_rate)
        return f"set train.learning_rate to {rate:.1g}, or take it out so that the planner chooses"

    @property
    def higher(self) -> str:
        rate = max(10 * self.learning_rate, self.usual_rate / 10)
        return f"set train.learning_rate to {rate:.1g}, or take it out so that the planner chooses"


@dataclass
class Seen:
    """What the watch remembers from entry to entry: plain JSON values, which a checkpoint carries on."""

    first_loss: float | None = None  # of the untrained model on the first step's rows
    early: list[float] = field(default_factory=list)  # losses until the fall is judged
    recent: list[float] = field(default_factory=list)  # the last WINDOW losses
    best: list[float] | None = None  # the lowest mean of a window, and the step that it ended with
    far: list[bool] = field(default_factory=list)  # of the last LASTING losses, which stood far above that
    since_sum: float = 0.0  # losses since the last evaluation
    since_steps: int = 0
    evaluations: list[dict[str, Any]] = field(default_factory=list)  # step, validation_loss, mean training_loss before
    first_end_only: float | None = None  # share of the untrained model's answers that are only an end token


def heed(
    found: list[Fault], mode: str, warnings: dict[str, str], good: tuple[int, dict[str, Any]] | None = None
) -> None:
    """Raises the first fault that is to end the run, and hands it what was good until then; tells each other kind once,
    and notes it in `warnings`."""
    for fault in found:
        if mode == "stop" and not fault.mild:
            fault.good = good
            raise fault
        if fault.kind not in warnings:
            warnings[fault.kind] = f"{fault.what} ({fault.why}); {fault.next}"
            say(f"warning: {fault}")


def faults(seen: Seen, entry: Entry, course: Course) -> list[Fault]:
    """What this entry of the log shows to be wrong; `seen` is brought up to date by it."""
    found: list[Fault | None] = [_not_a_number(entry, course)]
    if "loss" in entry and math.isfinite(entry["loss"]):
        _remember(seen, entry["loss"], entry["step"], course)
        found.append(_diverged(seen, entry["step"], course))
    if "first_rows_loss" in entry and math.isfinite(entry["first_rows_loss"]):
        found.append(_diverged_from_the_first(seen, entry["first_rows_loss"], entry["step"], course))
        if entry["step"] == course.fallen_by:
            found.append(_does_not_fall(seen, entry["first_rows_loss"], course))
    if "validation_loss" in entry and math.isfinite(entry["validation_loss"]):
        _remember_evaluation(seen, entry["validation_loss"], entry["step"])
        found.append(_validation_diverged(seen, course))
        found += [_overfits(seen, course), _no_better(seen, course)]
    if "validation_end_only" in entry:
        found.append(_answers_with_nothing(seen, entry["validation_end_only"], entry["step"], course))
    return [fault for fault in found if fault]


def _remember(seen: Seen, loss: float, step: int, course: Course) -> None:
    if seen.first_loss is None:
        seen.first_loss = loss
    if step <= course.fallen_by <= course.steps:
        seen.early.append(loss)
    seen.recent = [*seen.recent, loss][-WINDOW:]
    seen.since_sum, seen.since_steps = seen.since_sum + loss, seen.since_steps + 1


def _remember_evaluation(seen: Seen, validation_loss: float, step: int) -> None:
    training_loss = seen.since_sum / seen.since_steps if seen.since_steps else None
    seen.evaluations.append({"step": step, "validation_loss": validation_loss, "training_loss": training_loss})
    seen.since_sum, seen.since_steps = 0.0, 0


def _not_a_number(entry: Entry, course: Course) -> Fault | None:
    """A loss or gradient that is infinite or not a number: nothing more is learnt from there on."""
    names = {"loss": "loss", "gradient_norm": "gradient", "validation_loss": "validation loss"}
    names["first_rows_loss"] = "loss on the first step's rows"
    broken = [name for key, name in names.items() if key in entry and not math.isfinite(entry[key])]
    if not broken:
        return None
    return Fault(
        "not a number",
        f"the {' and the '.join(broken)} at step {entry['step']} {'are' if broken[1:] else 'is'} not a number",
        f"training diverged at a learning rate of {course.learning_rate:g}, or a row holds broken text",
        f"{course.lower}; if it stays so, set train.precision to fp32",
    )


def _far_above(loss: float, level: float) -> bool:
    """Higher by half, which keeps it large where losses are, and by half a nat, which multiplies perplexity by 1.6."""
    return loss > level + max(0.5, level / 2)


def _diverged(seen: Seen, step: int, course: Course) -> Fault | None:
    """Nine in ten of the last 40 losses stood far above the best mean of 20. Noise does not lift 36 of 40, and a spike
    from which the run recovers is shorter."""
    if seen.best:
        seen.far = [*seen.far, _far_above(seen.recent[-1], seen.best[0])][-LASTING:]
    mean = fmean(seen.recent)
    if len(seen.recent) == WINDOW and (seen.best is None or mean < seen.best[0]):
        seen.best = [mean, step]
    if seen.best is None or sum(seen.far) < 0.9 * LASTING:
        return None
    best = f"{seen.best[0]:.3f} up to step {seen.best[1]}"
    return _divergence(f"the mean loss of {WINDOW} steps is {mean:.3f} at step {step}, after {best}", course)


def _diverged_from_the_first(seen: Seen, first_rows_loss: float, step: int, course: Course) -> Fault | None:
    """The rows of the first step cost far more now than the untrained model lost on them."""
    before = seen.first_loss
    if before is None or not _far_above(first_rows_loss, before):
        return None
    told = f"{before:.3f} before training and is {first_rows_loss:.3f} after step {step}"
    return _divergence(f"on the first step's rows the loss was {told}", course)


def _validation_diverged(seen: Seen, course: Course) -> Fault | None:
    """Validation loss is far above its best, and training loss has not fallen meanwhile. The rows are the same each
    time, so that no noise has to be allowed for. Where training loss fell, it is overfitting."""
    best, now = _best(seen), seen.evaluations[-1]
    if not _far_above(now["validation_loss"], best["validation_loss"]) or _training_fell(seen, best, now):
        return None
    told = f"{now['validation_loss']:.3f} at step {now['step']}, after {best['validation_loss']:.3f} at {best['step']}"
    return _divergence(f"the validation loss is {told}", course)


def _divergence(what: str, course: Course) -> Fault:
    why = f"training diverged at a learning rate of {course.learning_rate:g}"
    return Fault("divergence", what, why, course.lower)


def _does_not_fall(seen: Seen, first_rows_loss: float, course: Course) -> Fault | None:
    """There is no sign at all of learning: on the rows of the first step the loss is not a thousandth lower, and the
    losses show no falling trend (Kendall's tau, one side, 5 %).

    The trend alone would end good runs, for losses of different rows differ by more than a slow run learns in a hundred
    steps. A model that begins below 0.1 nats a token has little to learn, and is not blamed.
    """
    before, early, seen.early = seen.first_loss, seen.early, []
    if before is None or before < 0.1 or first_rows_loss < 0.999 * before:
        return None
    from scipy.stats import kendalltau  # slow to import, and seldom needed

    if kendalltau(range(len(early)), early, alternative="less").pvalue < 0.05:
        return None
    low = course.learning_rate < course.usual_rate
    return Fault(
        "no fall",
        f"the loss did not fall in the first {len(early)} steps: on the first step's rows it was {before:.4f} and is "
        f"{first_rows_loss:.4f}",
        f"a learning rate of {course.learning_rate:g} is too {'low' if low else 'high'}, or the rows teach nothing",
        course.higher if low else course.lower,
    )


def _answers_with_nothing(seen: Seen, share: float, step: int, course: Course) -> Fault | None:
    """The model has come to end its answer at once on more than half of the validation rows that want an answer, and
    on a quarter of them more than it did before training."""
    if seen.first_end_only is None:
        seen.first_end_only = share
    if share <= 0.5 or share - seen.first_end_only < 0.25:
        return None
    return Fault(
        "empty answers",
        f"at step {step} the model would answer {share:.0%} of the validation rows with nothing but its end token "
        f"({seen.first_end_only:.0%} before training)",
        "rows with empty or blank answers teach that; a learning rate that is too high can too",
        f"look for such rows among the training data; if there are none, {course.lower}",
    )


def _overfits(seen: Seen, course: Course) -> Fault | None:
    """Validation loss is a tenth and 0.05 nats above its best while training loss fell: rows are learnt by heart."""
    best, now = _best(seen), seen.evaluations[-1]
    rise = now["validation_loss"] - best["validation_loss"]
    if rise <= max(0.05, best["validation_loss"] / 10) or not _training_fell(seen, best, now):
        return None
    epochs = course.epochs * best["step"] / course.steps
    patience = "train.patience to 2, or " if course.patience is None else ""
    shorter = f"set {patience}train.epochs to {epochs:.2g}, to save the rest of the time"
    return Fault(
        "overfitting",
        f"the model learns its rows by heart: validation loss rose from {best['validation_loss']:.3f} at step "
        f"{best['step']} to {now['validation_loss']:.3f} at step {now['step']} while training loss fell",
        "the rows have been seen too often; the best state is the one that is kept",
        shorter if best["step"] else f"{course.lower}; more rows help too",
        mild=True,
    )


def _no_better(seen: Seen, course: Course) -> Fault | None:
    """At the end, no state was better on the validation rows than the untrained model."""
    best, now = _best(seen), seen.evaluations[-1]
    if best["step"] or now["step"] < course.steps:
        return None
    return Fault(
        "no gain",
        f"no state of the run is better on the validation rows than the untrained model, which is kept: its loss is "
        f"{best['validation_loss']:.4f}, the last one {now['validation_loss']:.4f}",
        f"a learning rate of {course.learning_rate:g} is too high, or the training rows teach something else",
        f"{course.lower}; compare training and validation rows in the report",
        mild=True,
    )


def early_stop(seen: Seen, step: int, course: Course) -> str:
    """Why a run with `patience` ended at this step, before its last one, in a sentence."""
    if not seen.evaluations:
        return f"stopped early after step {step:,} of {course.steps:,}: no validation loss was a number"
    best, now = _best(seen), seen.evaluations[-1]
    cause = "it learns its rows by heart by now" if _training_fell(seen, best, now) else "it learns no more"
    count = "1 evaluation" if course.patience == 1 else f"{course.patience} evaluations"
    kept = f"the state of step {best['step']:,}" if best["step"] else "the untrained model: see the learning rate"
    return (
        f"stopped early after step {step:,} of {course.steps:,}: in {count} no validation loss below "
        f"{best['validation_loss']:.4f}, and {cause}; kept is {kept}"
    )


def only_end_tokens(rows: int, of: int) -> list[Fault]:
    """A fault where more than a tenth of the training rows want an answer of nothing but the end token."""
    if rows <= 0.1 * of:
        return []
    return [
        Fault(
            "empty rows",
            f"{rows:,} of {of:,} training rows want an answer that is only the end token",
            "a model that is trained so comes to answer with nothing",
            "take rows with empty answers out of data.sources; if they are meant so, set train.watch to warn",
        )
    ]


def _best(seen: Seen) -> dict[str, Any]:
    return min(seen.evaluations, key=lambda evaluation: float(evaluation["validation_loss"]))


def _training_fell(seen: Seen, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether mean training loss fell between two evaluations; before the first step it is the untrained model's."""
    levels = [seen.first_loss if e["training_loss"] is None else e["training_loss"] for e in (before, now)]
    return levels[0] is not None and levels[1] is not None and levels[1] < levels[0]
