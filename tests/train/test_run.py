"""The training step: what it leaves when it is done, and when training goes wrong."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core import certificate, store
from tunesmith.core.data_section import Format
from tunesmith.core.interrupt import Interrupted
from tunesmith.core.project import Train
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact, Steps
from tunesmith.data import format
from tunesmith.models import base as bases
from tunesmith.models import load, methods
from tunesmith.models.base import Base
from tunesmith.plan import planner
from tunesmith.train import run as training
from tunesmith.train import trackers, watch

TRAIN = Train(
    rank=4, alpha=8, precision="fp32", learning_rate=1e-2, epochs=0.5, batch_tokens=130, micro_batch_tokens=130,
    evaluations=2, patience=None, warmup=0.1, checkpoint_minutes=1e-4)  # fmt: skip


def tokenised(folder: Path, base: Base, **sides: list[Row]) -> Artifact:
    """A dataset of these rows."""
    for side, rows in sides.items():
        store.write_rows(folder / f"{side}.jsonl", rows)
    certificate.seal(folder, {"leaks": 0}, [f"{side}.jsonl" for side in sides])
    splits = Artifact("split", "of the test", folder, "done", {side: len(rows) for side, rows in sides.items()})
    return Steps(folder)("format", format.run, Format(), base, splits)


def trained(output: Path, base: Base, dataset: Artifact, **change: Any) -> Artifact:
    steps = Steps(output)
    plan = steps("plan", planner.run, TRAIN.model_copy(update=change), base, dataset)
    return steps("train", training.run, plan, base, dataset)


def test_a_finished_run_leaves_weights_and_log_and_nothing_unfinished(
    tiny: Base, dataset: Artifact, tmp_path: Path
) -> None:
    done = trained(tmp_path, tiny, dataset)
    entries = list(store.read_jsonl(done / "metrics.jsonl"))
    assert [entry["step"] for entry in entries if "loss" in entry] == list(range(1, done.summary["steps"] + 1))
    shares = [entry["validation_end_only"] for entry in entries if "validation_loss" in entry]
    assert len(shares) == 3
    assert all(0 <= share <= 1 for share in shares)
    assert done.summary["warnings"] == []
    assert (done / "adapter/adapter_model.safetensors").is_file()
    assert not list((tmp_path / "unfinished").iterdir())


def test_rows_that_want_nothing_are_refused_before_training_unless_a_warning_is_enough(
    tiny: Base, rows: list[Row], tmp_path: Path
) -> None:
    asked = [{"role": "user", "content": row.messages[1]["content"]} for row in rows[:24]]
    silent = [Row([ask, {"role": "assistant", "content": ""}], "rows.jsonl", 1, "messages") for ask in asked[:6]]
    dataset = tokenised(tmp_path, tiny, train=[*silent, *rows[6:24]], validation=rows[48:56], test=[])
    with pytest.raises(watch.Fault) as error:
        trained(tmp_path, tiny, dataset)
    assert error.value.what == "6 of 24 training rows want an answer that is only the end token"
    assert "train.watch to warn" in error.value.next
    assert not list(tmp_path.rglob("metrics.jsonl"))
    done = trained(tmp_path, tiny, dataset, watch="warn")
    assert done.summary["warnings"] == [f"{error.value.what} ({error.value.why}); {error.value.next}"]


def test_when_training_goes_wrong_the_best_is_left_and_nothing_stands_in_the_way(
    tiny: Base, dataset: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(watch.Fault) as error:
        trained(tmp_path, tiny, dataset, learning_rate=1e-7, epochs=5.0, evaluations=5)
    assert error.value.kind == "no fall"
    failed = tmp_path / "failed/train"
    assert f"are (metrics.jsonl, adapter/) in {failed}" in error.value.next
    assert "its best state, of step" in error.value.next
    assert list(store.read_jsonl(failed / "metrics.jsonl"))[-1].keys() == {"step", "first_rows_loss"}
    assert (failed / "adapter/adapter_model.safetensors").is_file()
    assert not list((tmp_path / "unfinished").iterdir())
    assert trained(tmp_path, tiny, dataset).state == "ran"


def test_ctrl_c_while_trackers_finish_ends_the_program_too(
    tiny: Base, dataset: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def slow(*_: Any) -> Iterator[Callable[[Any], None]]:
        yield lambda entry: None
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(trackers, "start", slow)
        with pytest.raises(Interrupted):
            trained(tmp_path, tiny, dataset)
    assert trained(tmp_path, tiny, dataset).state == "done"  # what was trained is kept


def test_a_run_that_goes_wrong_before_its_first_checkpoint_leaves_its_log(
    tiny: Base, dataset: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(watch.Fault) as error:
        trained(tmp_path, tiny, dataset, learning_rate=1e30, checkpoint_minutes=5.0)
    assert error.value.next.endswith(f"; its log is in {tmp_path}/failed/train")
    assert [path.name for path in (tmp_path / "failed/train").iterdir()] == ["metrics.jsonl"]


def folder_of(family: str, folder: Path, like: Base) -> Base:
    """A two-layer model of the family with random weights, and the tokeniser of another."""
    import torch
    import transformers

    assert like.folder is not None
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    grouped = {**shape, "vocab_size": 49152, "num_key_value_heads": 2, "eos_token_id": 2, "pad_token_id": 0}
    configs = {
        "qwen3": lambda: transformers.Qwen3Config(**grouped, head_dim=8),
        "gemma3": lambda: transformers.Gemma3TextConfig(**grouped, head_dim=8, sliding_window=16),
        "mistral": lambda: transformers.MistralConfig(**grouped, sliding_window=16),
        "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=49152, eos_token_id=2),
    }
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(configs[family]()).save_pretrained(folder)
    load.tokenizer(like.folder).save_pretrained(folder)
    return bases.locate(str(folder), Path())


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", ["qwen3", "gemma3", "mistral", "gpt2"])
def test_other_families_train_through_the_same_step(
    tiny: Base, dataset: Artifact, tmp_path: Path, family: str, method: str
) -> None:
    """A plan is made, the validation loss falls, and what is left loads in transformers and PEFT."""
    base = folder_of(family, tmp_path / family, tiny)
    own = {} if method == "lora" else {"rank": None, "alpha": None}
    done = trained(tmp_path, base, dataset, method=method, **own)
    losses = [e["validation_loss"] for e in store.read_jsonl(done / "metrics.jsonl") if "validation_loss" in e]
    assert losses[-1] < losses[0] - 0.2
    assert base.folder is not None
    model = methods.load_tuned(base.folder, done.folder, "fp32")
    assert all(parameter.isfinite().all() for parameter in model.parameters())
