"""A stage leaves one whole model; when it is stopped in the merge, it goes on from the last checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.core import store
from tunesmith.core.project import Train
from tunesmith.core.step import Artifact, Steps
from tunesmith.data import texts
from tunesmith.models import base as bases
from tunesmith.plan import planner
from tunesmith.train import stage


def prepared(folder: Path, tiny: bases.Base, documents: int, train: Train) -> tuple[Steps, Artifact, Artifact]:
    pages = folder / "pages.txt"
    pages.write_text("\n".join(f"Page {i}: device {i} stands in room {i * 7 % 12}." for i in range(documents)))
    step = Steps(folder / "output")
    blocks = step("texts", texts.run, [pages], None, 0.0, tiny)
    return step, step("pretrain-plan", planner.run, train, tiny, blocks), blocks


def out_of_memory(base: bases.Base, precision: str, out: Path) -> None:
    raise MemoryError


def test_a_stage_stopped_in_the_merge_goes_on_from_its_last_checkpoint(
    tmp_path: Path, tiny: bases.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Train(epochs=1, evaluations=1, checkpoint_minutes=1e-6)
    step, plan, blocks = prepared(tmp_path, tiny, 40, train)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_merge", out_of_memory)
        with pytest.raises(MemoryError):
            step("pretrain", stage.run, plan, tiny, blocks)
    [log] = (tmp_path / "output/unfinished/pretrain").glob("metrics.jsonl")
    before = log.read_bytes().splitlines()
    done = step("pretrain", stage.run, plan, tiny, blocks)
    after = (done / "metrics.jsonl").read_bytes().splitlines()
    assert len(after) == len(before) == 9  # five steps, two evaluations, memory, the first step's rows at the end
    assert after[:3] == before[:3]  # the first step with the very time of the first attempt
    assert (done / "model/model.safetensors").is_file()


def test_the_next_stage_gets_the_model_and_its_own_identity(tmp_path: Path, tiny: bases.Base) -> None:
    step, plan, blocks = prepared(tmp_path, tiny, 40, Train(epochs=1, evaluations=1))
    done = step("pretrain", stage.run, plan, tiny, blocks)
    start = bases.of(done)
    assert (start.name, start.licence) == (tiny.name, tiny.licence)
    assert start.identity == f"{tiny.identity}+{done.identity}"
    assert start.folder == done / "model"
    assert start.hub is None
    assert bases.of(tiny) is tiny
    tokenizer_files = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert tiny.folder is not None
    for name in tokenizer_files:
        assert (done / "model" / name).read_bytes() == (tiny.folder / name).read_bytes()


def test_without_anything_held_out_no_loss_is_told(tmp_path: Path, tiny: bases.Base) -> None:
    step, plan, blocks = prepared(tmp_path, tiny, 1, Train(epochs=1))
    assert blocks.summary["validation"]["rows"] == 0
    done = step("pretrain", stage.run, plan, tiny, blocks)
    assert done.summary["merged_validation_loss"] is None
    assert "merged" not in done.summary["headline"]
    assert store.read_json(done / "record.json")["summary"]["texts"]["documents"] == 1
