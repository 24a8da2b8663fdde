"""Every method's recipe: it is checked as it stands, and runs from data to export on a small model in a few steps."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

import tunesmith
from tunesmith.core import config, hardware, project, store
from tunesmith.models import base as bases
from tunesmith.models import load, methods
from tunesmith.plan import planner

RECIPES = Path(__file__).parents[2] / "recipes"
METHODS = sorted(path.stem for path in (RECIPES / "support").glob("*.yaml"))
NAMED = {"freeze": "[layers.1, norm]", "hybrid": "[layers.1, norm]"}  # the small model has two layers
EXPORTS = {
    **{name: {"merged"} for name in ("full", "freeze")},
    **{name: {"adapter"} for name in ("prompt", "prefix", "bottleneck")},
}
DATA = {"train": {"rows": 100, "tokens": 10_000, "longest": 200}, "validation": {"rows": 10}}
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="quantisation is an extra: pip install bitsandbytes"
)


def quick(tiny: bases.Base, name: str) -> list[str]:
    """Overrides with which a recipe takes seconds."""
    rows = [f"data.split.max_{side}_rows={count}" for side, count in {"train": 16, "validation": 3, "test": 3}.items()]
    layers = [f"train.layers={NAMED[name]}"] if name in NAMED else []
    short = ["train.epochs=1", "train.evaluations=1", "evaluate.generation.max_new_tokens=2"]
    return [f"model={tiny.folder}", "data.clean.near_duplicates=null", *rows, *layers, *short]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[needs_bitsandbytes] if n == "qlora" else []) for n in METHODS])
def test_a_recipe_runs_and_exports_what_its_method_makes(name: str, tmp_path: Path, tiny: bases.Base) -> None:
    for needed in ("data", "ticket.schema.json", f"{name}.yaml"):
        (tmp_path / needed).symlink_to(RECIPES / "support" / needed)
    project_file = tmp_path / "quick.yaml"
    project_file.write_text((tmp_path / f"{name}.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    shown = tunesmith.run(project_file, set=quick(tiny, name))
    assert isinstance(shown, tunesmith.Show)
    assert shown.training.steps == shown.training.best_step >= 2
    log = store.read_jsonl(Path(shown.artifacts["training_metrics"]))
    losses = [entry["validation_loss"] for entry in log if "validation_loss" in entry]
    assert losses[-1] < losses[0]
    made = {what for what in ("adapter", "merged") if what in shown.artifacts}
    assert made == EXPORTS.get(name, {"adapter", "merged"})


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_can_be_checked_as_it_stands(name: str, base: bases.Base) -> None:
    """Also against the real base: the layers that it names are there."""
    if name == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("quantisation is an extra: pip install bitsandbytes")
    found = tunesmith.check(RECIPES / "support" / f"{name}.yaml")
    assert found.base == base
    assert found.sources[0]["kept"] == found.sources[0]["rows_in"] > 0


def test_recipes_of_methods_differ_in_their_training_alone() -> None:
    sections = [yaml.safe_load((RECIPES / "support" / f"{name}.yaml").read_text()) for name in METHODS]
    known = get_args(project.Train.model_fields["method"].annotation)
    assert {s["train"].get("method", "lora") for s in sections} == set(known)
    assert len({str({k: v for k, v in s.items() if k not in ("name", "train")}) for s in sections}) == 1


def test_the_table_counts_what_trains(base: bases.Base) -> None:
    """The table of recipes/README.md names every recipe, with the number of parameters that it trains."""
    assert base.folder is not None
    rows = re.findall(r"\(support/(\S+?)\.yaml\) \|[^|]*\| ([\d,]+) \|", (RECIPES / "README.md").read_text())
    assert sorted(name for name, _ in rows) == METHODS
    for name, told in rows:
        train = config.load_project(RECIPES / "support" / f"{name}.yaml").train
        plan = planner.decide(train, bases.facts(base.folder), DATA, hardware.probe())
        chosen = {key: decision.value for key, decision in plan.items()} | {"quantise": None}  # the same, in 4 bits
        tuned = methods.attach(load.model(base.folder, "bf16", packed=True), methods.of(chosen), 0)
        assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == int(told.replace(",", "")), name
