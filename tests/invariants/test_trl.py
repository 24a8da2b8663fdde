"""Our loss is TRL's: the same rows in the same order from the same adapter, 8 optimizer steps of the real model.

All of it in fp32, where nothing hides behind rounding. TRL's distance from itself, with other rounding, is measured in
the same run: ours may be twice that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.core import store
from tunesmith.core.records import Message
from tunesmith.models import chat, load
from tunesmith.models.base import Base

ROOT = Path(__file__).parents[2]
STEPS = 8


@pytest.fixture(scope="module")
def found(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `bench/train.py --curve` says and keeps about short rows of unequal length."""
    assert base.folder is not None
    folder = tmp_path_factory.mktemp("trl")
    tokenizer = load.tokenizer(base.folder)
    tickets = store.read_jsonl(ROOT / "recipes/support/data/tickets.jsonl")
    write(folder, [chat.render(tokenizer, short(i, ticket), []) for i, ticket in enumerate(tickets)])
    options = ["--curve", "fp32", "--steps", str(STEPS), "--tokens", folder]
    command = [sys.executable, ROOT / "bench/train.py", *options, "--results", folder / "results"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    return said | {"runs": store.read_json(folder / "results/curve-lora-fp32.json")["runs"]}


def short(i: int, ticket: dict[str, Any]) -> list[Message]:
    """A conversation of one to five words and a category."""
    words = " ".join(ticket["message"].split()[: 1 + i % 5])
    texts = {"system": "Sort.", "user": words, "assistant": ticket["ticket"]["category"]}
    return [{"role": role, "content": text} for role, text in texts.items()]


def write(folder: Path, rows: list[chat.Rendered]) -> None:
    np.save(folder / "train.ids.npy", np.array([i for row in rows for i in row.ids], dtype=np.int32))
    np.save(folder / "train.learnt.npy", np.array([learn for row in rows for learn in row.learnt]))
    np.save(folder / "train.ends.npy", np.cumsum([len(row.ids) for row in rows]))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the rivals are installed first
def test_our_loss_is_trls(found: dict[str, Any]) -> None:
    assert found["loss_steps"] == STEPS
    rounding = 1e-5 * max(found["runs"]["TRL"]["losses"])  # the band is one sample, and may be all but nothing
    assert 0 < found["max_loss_difference"] <= max(2 * found["noise_band"], rounding)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the rivals are installed first
def test_both_learn_the_same_tokens_alike(found: dict[str, Any]) -> None:
    """The gradients agree too, and the loss falls: the curves are not alike for lack of learning."""
    ours, theirs = found["runs"]["ours"], found["runs"]["TRL"]
    assert ours["tokens"] == theirs["tokens"]
    assert ours["gradient_norms"] == pytest.approx(theirs["gradient_norms"], rel=1e-4)
    for run in (ours, theirs):
        assert np.mean(run["losses"][-3:]) < np.mean(run["losses"][:3]) - 1
