"""What ships: the adapter, the whole model, and a model card written from the records."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core import store
from tunesmith.core.console import say
from tunesmith.core.project import Export
from tunesmith.core.step import Artifact
from tunesmith.export import card

if TYPE_CHECKING:
    from tunesmith.models.base import Base

VERSION = 2


def run(
    export: Export,
    name: str,
    base: Base | Artifact,
    tuned: Artifact,
    plan: Artifact,
    dataset: Artifact,
    verdict: Artifact,
    out: Path,
) -> dict[str, Any]:
    """Writes `adapter/`, where the method made one, and, where it can be merged and the project does not say no,
    `merged/` (safetensors); plain peft and transformers load them with no tunesmith installed."""
    from tunesmith.models import base as bases
    from tunesmith.models import methods

    steps = {"tuned": tuned, "plan": plan, "dataset": dataset, "verdict": verdict}
    made = {step: artifact.summary for step, artifact in steps.items()}
    if isinstance(base, Artifact):
        made["stage"] = base.summary
    base = bases.of(base)
    paths = []
    if (tuned / "adapter").is_dir():
        shutil.copytree(tuned / "adapter", out / "adapter")
        paths.append("adapter")
    wanted = methods.mergeable(tuned.folder) if export.merged is None else export.merged
    if wanted:
        _write_whole(base, tuned, out / "merged")
        paths.append("merged")
    for path in paths:
        store.write_text(out / path / "README.md", card.write(path, name, base, made))
    return {"paths": paths, "bytes": {p: sum(f.stat().st_size for f in (out / p).iterdir()) for p in paths}}


def _write_whole(base: Base, tuned: Artifact, out: Path) -> None:
    """A whole model is kept as it was trained; an adapter is merged into its base and rounded to bf16."""
    assert base.folder is not None
    trained = tuned / "model"
    source = trained if trained.is_dir() else base.folder
    store.require_space(out.parent, 2 * sum(f.stat().st_size for f in source.glob("*.safetensors")), "the whole model")
    if trained.is_dir():
        shutil.copytree(trained, out)
        return
    say("  merging the adapter into the base")
    from tunesmith.models import load, methods

    model = methods.merged(base.folder, tuned.folder)
    with load.quiet():
        model.to(load.DTYPES["bf16"]).save_pretrained(out)
        load.tokenizer(tuned / "adapter").save_pretrained(out)
