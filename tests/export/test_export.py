"""What is exported, and what its card says, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.core.config import Evaluate, Export, Train
from tunesmith.core.step import Artifact, Steps
from tunesmith.evaluate import gates, predict
from tunesmith.export import export
from tunesmith.models.base import Base
from tunesmith.plan import planner
from tunesmith.train import run as training


@pytest.fixture(scope="module")
def made(tiny: Base, dataset: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Artifact]]:
    folder = tmp_path_factory.mktemp("export")
    step = Steps(folder)
    plan = step("plan", planner.run, Train(epochs=1, learning_rate=0.01), tiny, dataset)
    tuned = step("train", training.run, plan, tiny, dataset)
    generation = Evaluate.model_validate({"generation": {"max_new_tokens": 4}}).generation
    before = step("base", predict.run, generation, tiny, None, dataset)
    after = step("tuned", predict.run, generation, tiny, tuned, dataset)
    verdict = step("verdict", gates.run, [], "json", None, before, after)
    return folder, [tuned, plan, dataset, verdict]


@pytest.mark.parametrize(("merged", "paths"), [(True, ["adapter", "merged"]), (False, ["adapter"])])
def test_merged_is_written_when_asked(
    made: tuple[Path, list[Artifact]], tiny: Base, merged: bool, paths: list[str]
) -> None:
    folder, inputs = made
    done = Steps(folder)("export", export.run, Export(merged=merged), "my-model", tiny, *inputs)
    assert done.summary["paths"] == paths
    assert sorted(p.name for p in done.folder.iterdir() if p.is_dir()) == paths
    assert all((done / path / "README.md").read_text().count("# my-model") == 1 for path in paths)
    assert (done / "adapter/adapter_config.json").is_file()
    assert (done / "merged/model.safetensors").is_file() == merged


def test_training_left_a_plain_peft_adapter(made: tuple[Path, list[Artifact]]) -> None:
    tuned = made[1][0]
    assert {p.name for p in (tuned / "adapter").iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    assert tuned.summary["peak_memory_bytes"] > 0
    assert tuned.summary["kernels"] == []
