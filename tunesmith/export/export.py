"""What ships: the adapter, the merged model, and a model card written from the records."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core import store
from tunesmith.core.config import Export
from tunesmith.core.console import say
from tunesmith.core.step import Artifact
from tunesmith.export import card

if TYPE_CHECKING:
    from tunesmith.models.base import Base

VERSION = 1


def run(
    export: Export,
    name: str,
    base: Base,
    tuned: Artifact,
    plan: Artifact,
    dataset: Artifact,
    verdict: Artifact,
    out: Path,
) -> dict[str, Any]:
    """Writes `adapter/` (PEFT) and, unless the project says no, `merged/` (bf16 safetensors); plain peft and
    transformers load them with no tunesmith installed."""
    steps = {"tuned": tuned, "plan": plan, "dataset": dataset, "verdict": verdict}
    made = {step: artifact.summary for step, artifact in steps.items()}
    shutil.copytree(tuned / "adapter", out / "adapter")
    store.write_text(out / "adapter" / "README.md", card.write("peft", name, base, made))
    paths = ["adapter"]
    if export.merged:
        _merge(base, tuned / "adapter", out / "merged")
        store.write_text(out / "merged" / "README.md", card.write("transformers", name, base, made))
        paths.append("merged")
    return {"paths": paths, "bytes": {p: sum(f.stat().st_size for f in (out / p).iterdir()) for p in paths}}


def _merge(base: Base, adapter: Path, out: Path) -> None:
    assert base.folder is not None
    store.require_space(
        out.parent, 2 * sum(f.stat().st_size for f in base.folder.glob("*.safetensors")), "the merged model"
    )
    say("  merging the adapter into the base")
    from tunesmith.models import adapters, load

    model = adapters.merged(load.model(base.folder, "fp32"), adapter)
    with load.quiet():
        model.to(load.DTYPES["bf16"]).save_pretrained(out)
        load.tokenizer(adapter).save_pretrained(out)
