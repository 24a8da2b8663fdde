"""What is exported for each method, that the card's own code loads it, and what the card says, on a tiny model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.core.project import Evaluate, Export, Train
from tunesmith.core.step import Artifact, Steps
from tunesmith.evaluate import gates, predict
from tunesmith.export import export
from tunesmith.models import load, methods
from tunesmith.models.base import Base
from tunesmith.plan import planner
from tunesmith.train import run as training

METHODS: dict[str, tuple[dict[str, Any], str, list[str]]] = {  # settings, words of the card, folders that are exported
    "lora": ({}, "tuned by LoRA with", ["adapter", "merged"]),
    "hybrid": ({"layers": ["layers.1"]}, "LoRA, with `layers.1` trained in full", ["adapter", "merged"]),
    "dora": ({"variant": "dora"}, "tuned by DoRA", ["adapter", "merged"]),
    "qlora": ({"quantise": "nf4"}, "LoRA on weights in 4 bits (QLoRA, NF4)", ["adapter", "merged"]),
    "full": ({"method": "full"}, "full fine-tuning", ["merged"]),
    "freeze": ({"method": "freeze", "layers": ["norm"]}, "fine-tuning of `norm` alone", ["merged"]),
    "prompt": ({"method": "prompt"}, "prompt tuning with 20 virtual tokens", ["adapter"]),
    "prefix": ({"method": "prefix"}, "prefix tuning with 20 virtual tokens", ["adapter"]),
    "ia3": ({"method": "ia3"}, "(IA)³", ["adapter", "merged"]),
    "bottleneck": ({"method": "bottleneck"}, "bottleneck adapters of width 64", ["adapter"]),
}
KINDS = [
    pytest.param(
        name, marks=pytest.mark.skipif(name == "qlora" and not importlib.util.find_spec("bitsandbytes"), reason="extra")
    )
    for name in METHODS
]
Made = tuple[Path, list[Artifact]]


@pytest.fixture(scope="module")
def made(tiny: Base, dataset: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A project's folder and the inputs of its export step, after training by a method."""
    known: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            step = Steps(folder)
            train = Train.model_validate({"epochs": 1, "learning_rate": 0.01, "precision": "fp32", **METHODS[name][0]})
            plan = step("plan", planner.run, train, tiny, dataset)
            tuned = step("train", training.run, plan, tiny, dataset)
            generation = Evaluate.model_validate({"generation": {"max_new_tokens": 4}}).generation
            before = step("base", predict.run, generation, tiny, None, dataset)
            after = step("tuned", predict.run, generation, tiny, tuned, dataset)
            verdict = step("verdict", gates.run, [], "json", None, before, after)
            known[name] = folder, [tuned, plan, dataset, verdict]
        return known[name]

    return make


def exported(made: Made, base: Base, **options: Any) -> Artifact:
    folder, inputs = made
    return Steps(folder)("export", export.run, Export(**options), "my-model", base, *inputs)


def loaded_by_its_card(folder: Path, base: Base, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model that the code in a folder's README.md makes, run inside that folder."""
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code.replace("path/to/the/base", str(base.folder)), names)
    model = names["model"]
    return model.train() if "nf4" in names else model  # in eval mode, bitsandbytes computes in bf16 on some CPUs


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_code_on_the_card_loads_what_is_exported(
    made: Callable[[str], Made], tiny: Base, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny.folder is not None
    done, ids = exported(made(name), tiny), torch.arange(300, 320)[None]
    assert done.summary["paths"] == METHODS[name][2]
    assert sorted(p.name for p in done.folder.iterdir() if p.is_dir()) == METHODS[name][2]
    tuned = methods.load_tuned(tiny.folder, made(name)[1][0].folder, "fp32")
    with torch.no_grad():
        wanted = tuned(ids).logits[0, -1]
        for path in done.summary["paths"]:
            model = loaded_by_its_card(done / path, tiny, monkeypatch)
            assert model.dtype == torch.bfloat16 if path == "merged" and name not in ("full", "freeze") else True
            found = model.float()(ids).logits[0, -1] if path == "merged" else model(ids).logits[0, -1]
            torch.testing.assert_close(found, wanted, atol=1e-5 if path == "adapter" else 5e-3, rtol=1e-5)
            load.tokenizer(done / path)


@pytest.mark.parametrize("name", KINDS)
def test_the_card_tells_the_method(made: Callable[[str], Made], tiny: Base, name: str) -> None:
    done = exported(made(name), tiny)
    for path in done.summary["paths"]:
        card = (done / path / "README.md").read_text()
        assert card.count("# my-model") == 1
        assert METHODS[name][1] in card
        assert ("library_name: peft" in card) == (path == "adapter" and name != "bottleneck")
        assert ("The adapter needs its base" in card) == (path == "adapter")
        assert ("4-bit weights" in card) == (name == "qlora")


@pytest.mark.parametrize(("merged", "paths"), [(True, ["adapter", "merged"]), (False, ["adapter"])])
def test_merged_is_written_when_asked(made: Callable[[str], Made], tiny: Base, merged: bool, paths: list[str]) -> None:
    done = exported(made("lora"), tiny, merged=merged)
    assert done.summary["paths"] == paths
    assert (done / "merged/model.safetensors").is_file() == merged


def test_a_whole_model_ships_as_it_was_trained(made: Callable[[str], Made], tiny: Base) -> None:
    tuned = made("full")[1][0]
    done = exported(made("full"), tiny)
    assert (done / "merged/model.safetensors").read_bytes() == (tuned / "model/model.safetensors").read_bytes()


def test_training_left_a_plain_peft_adapter(made: Callable[[str], Made]) -> None:
    tuned = made("lora")[1][0]
    assert {p.name for p in (tuned / "adapter").iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    assert tuned.summary["peak_memory_bytes"] > 0
