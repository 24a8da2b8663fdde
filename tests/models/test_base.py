"""Finding a base model: local folders, the hub's cache, and names that are neither."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core import store
from tunesmith.core.errors import ModelError, ResourceError
from tunesmith.models import base

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHAPE = {"hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 24, "num_attention_heads": 2}


def weights(path: Path, *shape: int) -> None:
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def model_folder(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights(folder / "model.safetensors", 3, 5)
    return folder


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache, cut off from the hub, with a snapshot of org/name that has no weights yet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--org--name"
    for ref in ("main", "pr/1"):
        note = repository / "refs" / ("refs/pr/1" if ref == "pr/1" else ref)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


def test_a_snapshot_with_all_its_files_is_found(snapshot: Path) -> None:
    weights(snapshot / "model.safetensors", 1)
    assert base.locate("org/name", Path()).folder == snapshot
    assert base.locate("org/name", Path()).identity == f"org/name@{COMMIT}"
    assert base.locate("org/name@refs/pr/1", Path()).folder == snapshot


@pytest.mark.parametrize("lacking", ["a-2.safetensors", "tokenizer.json", "model.safetensors"])
def test_a_download_that_was_broken_off_is_not_taken_for_whole(snapshot: Path, lacking: str) -> None:
    weights(snapshot / "consolidated.safetensors", 1)
    if lacking != "model.safetensors":
        shards = {"x": "a-1.safetensors", "y": "a-2.safetensors"}
        (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        for name in shards.values():
            weights(snapshot / name, 1)
        assert base.locate("org/name", Path()).folder == snapshot
        (snapshot / lacking).unlink()
    assert base.locate("org/name", Path()).folder is None
    with pytest.raises(ModelError, match=f"no {lacking}"):
        base.fetch("org/name", Path())


def test_a_missing_folder_that_looks_like_a_hub_id_is_said_to_be_missing(snapshot: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        base.fetch("models/my", tmp_path)
    assert f"no folder {tmp_path / 'models/my'}" in error.value.why


@pytest.mark.parametrize("name", ["a b/c", "a/b/c", "../x", "~/x", "org/na..me", "x" * 5000, "a\0/b", "org/", "@x/y"])
def test_a_name_that_can_be_no_model_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model"):
        base.locate(name, tmp_path)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = model_folder(tmp_path / "m", SHAPE)
    assert base.locate("~/m", tmp_path / "elsewhere").folder == folder


def test_the_shape_is_read_by_the_usual_names(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, {"text_config": {**SHAPE, "vocab_size": 9, "max_position_embeddings": 64}})
    weights(folder / "consolidated.safetensors", 3, 5)
    assert base.facts(folder) == {
        "parameters": 15,
        "linear_parameters": 15,
        "context": 64,
        "layers": 2,
        "hidden": 8,
        "vocabulary": 9,
        "intermediate": 24,
        "heads": 2,
        "architecture": None,
    }


def test_embedding_and_head_are_no_linear_layers(tmp_path: Path) -> None:
    found = base.facts(model_folder(tmp_path, {**SHAPE, "vocab_size": 3}))
    assert (found["parameters"], found["linear_parameters"]) == (15, 0)


def test_the_shape_is_read_by_the_names_of_gpt2(tmp_path: Path) -> None:
    config = {"n_layer": 3, "n_embd": 16, "n_head": 4, "n_inner": None, "n_positions": 32}
    found = base.facts(model_folder(tmp_path, config))
    assert [found[key] for key in ("layers", "hidden", "heads", "intermediate", "context")] == [3, 16, 4, 64, 32]


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "num_attention_heads"])
@pytest.mark.parametrize("value", [None, [4, 8], "8"])
def test_a_shape_that_is_not_told_is_named(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ModelError) as error:
        base.facts(model_folder(tmp_path, {**SHAPE, key: value}))
    assert f"`{key}`" in error.value.why


def test_two_projects_may_unpack_the_same_file_at_once(tmp_path: Path) -> None:
    kept = model_folder(tmp_path / "kept", SHAPE)
    base._publish(model_folder(tmp_path / "finished", {}), kept)
    assert store.read_json(kept / "config.json") == SHAPE
    with pytest.raises(FileNotFoundError):
        base._publish(tmp_path / "finished", tmp_path / "nowhere" / "kept")


def test_a_user_without_a_home_has_a_cache_of_his_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = store.cache_dir()
    assert folder == tmp_path / f"tunesmith-cache-{os.getuid()}"
    assert folder.stat().st_mode & 0o077 == 0
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(ResourceError, match="yours alone"):
        store.cache_dir()


def test_a_base_that_is_quantised_already_is_refused(tiny: base.Base, tmp_path: Path) -> None:
    assert tiny.folder is not None
    config = store.read_json(tiny.folder / "config.json")
    for name in ("bitsandbytes", "awq"):
        store.write_json(tmp_path / "config.json", {**config, "quantization_config": {"quant_method": name}})
        with pytest.raises(ModelError, match="quantised already") as error:
            base.facts(tmp_path)
        assert name in error.value.why
        assert "train.quantise: nf4" in error.value.next
