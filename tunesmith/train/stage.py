"""A stage of training before the rows: what it leaves is a whole model, the base of the stage that follows.

A low-rank update is smaller than the steps of bf16, so that rounding its sum with the weights changes the model a
little. The merge is therefore done in fp32, once, and the loss of what stands on disk is measured again.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core import store
from tunesmith.core.console import progress, say
from tunesmith.core.step import Artifact
from tunesmith.models import base as bases
from tunesmith.train import run as training

if TYPE_CHECKING:
    from tunesmith.models.base import Base

VERSION = 6


def run(plan: Artifact, base: Base, dataset: Artifact, out: Path, kept: Path) -> dict[str, Any]:
    """Trains as train/run.py does, and leaves `model/` beside what that writes.

    The summary's `merged_validation_loss` is that of `model/`, in nats a token; None where nothing had to be merged or
    nothing was held out.
    """
    from tunesmith.models import load

    chosen = {name: decision["value"] for name, decision in plan.summary["decisions"].items()}
    assert base.folder is not None
    whole_bytes = bases.facts(base.folder)["parameters"] * load.DTYPES[chosen["precision"]].itemsize
    store.require_space(out, whole_bytes, "the stage's model")
    trained = training.run(plan, base, dataset, out, kept)
    tokens = {side: dataset.summary[side]["tokens"] for side in ("train", "validation")}
    found = {"texts": {"documents": dataset.summary["documents"], **tokens}, "merged_validation_loss": None}
    if (out / "model").is_dir():
        return {**trained, **found}
    _merge(base, chosen["precision"], out)
    loss = _validation_loss(out / "model", chosen, dataset)
    told = "" if loss is None else f"; {loss:.4f} merged in {chosen['precision']}"
    return {**trained, **found, "merged_validation_loss": loss, "headline": trained["headline"] + told}


def _merge(base: Base, precision: str, out: Path) -> None:
    """Writes `model/`: weights in the precision of training, all other files as the base has them."""
    from tunesmith.models import load, methods

    assert base.folder is not None
    say("  merging the stage into one model")
    model = methods.merged(base.folder, out).to(load.DTYPES[precision])
    with load.quiet():
        model.save_pretrained(out / "model")
    for pattern in ("*.json", "*.jinja", "*.model", "*.txt"):
        for file in base.folder.glob(pattern):
            if file.name not in ("config.json", "source.json") and not file.name.endswith(".index.json"):
                shutil.copy(file, out / "model")


def _validation_loss(model: Path, chosen: dict[str, Any], dataset: Artifact) -> float | None:
    """Mean loss in nats over the targets of the validation blocks."""
    from tunesmith.models import load, packed
    from tunesmith.models.tokens import Tokens

    tokens = Tokens(dataset.folder, "validation")
    if not len(tokens):
        return None
    together = max(1, chosen["micro_batch_tokens"] // max(tokens.lengths))
    loaded = load.model(model, chosen["precision"], packed=True)
    total, count = 0.0, 0
    with progress("merged", len(tokens), "blocks") as bar:
        for nll, targets in packed.row_nlls(loaded, tokens, list(range(len(tokens))), together):
            total, count = total + nll, count + targets
            bar.advance(1)
    return total / count
