"""Data sets of the Hugging Face hub as paths: hf://ORG/NAME[@REVISION][/FILE or folder or glob][:SPLIT]

A data set is fetched once, into the hub's own cache; a note in ours says which files of which commit it came to, and is
written when all are there. From then on it stays at that commit, which is its identity, and no network is needed. Which
files hold the data is told by their names: Parquet if there is any, else JSON Lines, JSON, or tables; what split a file
belongs to, too.
"""

from __future__ import annotations

import difflib
import fnmatch
import glob
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tunesmith.core import store
from tunesmith.core.console import say
from tunesmith.core.errors import DataError

_ADDRESS = re.compile(
    r"hf:/+(?:datasets/)?(?P<name>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/:]+))?(?:/(?P<file>[^:]+))?(?::(?P<split>[\w.-]+))?"
)
_KINDS = ((".parquet",), (".jsonl", ".ndjson"), (".json",), (".csv", ".tsv"), (".txt", ".md"), (".zip",))  # by worth
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "readme.md")
_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "dev": "validation", "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
_SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?$")


@dataclass(frozen=True)
class Address:
    """Which files of which data set."""

    name: str
    revision: str
    file: str | None
    split: str | None

    def __str__(self) -> str:
        file, split = f"/{self.file}" if self.file else "", f":{self.split}" if self.split else ""
        return f"hf://{self.name}@{self.revision}{file}{split}"


@dataclass(frozen=True)
class Snapshot:
    """What a data set came to: the commit, and the files by their names in it."""

    commit: str
    files: dict[str, Path]


def is_address(path: Path) -> bool:
    return path.parts[:1] == ("hf:",)


def address(path: Path) -> Address:
    """Raises ValueError for what cannot be one."""
    found = _ADDRESS.fullmatch(str(path))
    if not found:
        raise ValueError(
            f"{str(path).replace('hf:/', 'hf://', 1)} names no data set of the hub: write hf://ORG/NAME, "
            "hf://ORG/NAME@REVISION, hf://ORG/NAME:SPLIT or hf://ORG/NAME/FILE"
        )
    return Address(found["name"], found["revision"] or "main", found["file"], found["split"])


def cached(of: Address) -> Snapshot | None:
    """The data set as it was fetched; None where it was not, or where its files are gone."""
    note = _note(of)
    if not note.is_file():
        return None
    found = store.read_json(note)
    files = {name: Path(found["folder"]) / name for name in found["files"]}
    return Snapshot(found["commit"], files) if all(file.is_file() for file in files.values()) else None


def fetch(of: Address) -> Snapshot:
    """The data set, fetched where that was not done before. Raises DataError where it cannot be, or where it has no
    such files."""
    if found := cached(of):
        return found
    from huggingface_hub import HfApi, snapshot_download  # a fifth of a second, which nobody else need wait
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the name that all its versions keep

    say(f"fetching {of} from the hub, once")
    try:
        info = HfApi().dataset_info(of.name, revision=of.revision)
        names = chosen([sibling.rfilename for sibling in info.siblings or []], of)
        folder = snapshot_download(
            of.name, repo_type="dataset", revision=info.sha, allow_patterns=[glob.escape(name) for name in names]
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise DataError(
            f"cannot fetch the data set {of.name} from the hub",
            str(error).strip().splitlines()[0],
            "check the name, the network and, for gated data, HF_TOKEN; or fetch it elsewhere and name its folder",
        ) from None
    store.write_json(_note(of), {"address": str(of), "commit": info.sha, "folder": folder, "files": names})
    return Snapshot(str(info.sha), {name: Path(folder) / name for name in names})


def _note(of: Address) -> Path:
    return store.cache_dir() / "datasets" / f"{hashlib.sha256(str(of).encode()).hexdigest()[:24]}.json"


def chosen(names: list[str], of: Address) -> list[str]:
    """Those of a data set's files that hold what is asked for; raises DataError, saying what there is, for none."""
    seen = sorted(name for name in names if not any(part.startswith(".") for part in PurePosixPath(name).parts))
    if of.file:
        found = [name for name in seen if name == of.file or name.startswith(f"{of.file}/")]
        found = found or [name for name in seen if fnmatch.fnmatchcase(name, of.file)]
        if not found:
            near = difflib.get_close_matches(of.file, seen, 1, 0.3)
            raise _none(of, f"has no file {of.file}", f"name {near[0]}" if near else "look at its files on the hub")
    else:
        data = [name for name in seen if PurePosixPath(name).name.lower() not in _ABOUT]
        by_kind = ([name for name in data if _suffix(name) in kinds] for kinds in _KINDS)
        found = next((of_kind for of_kind in by_kind if of_kind), [])
        if not found:
            raise _none(
                of,
                "has no file of a kind that tunesmith reads",
                "choose a revision that has them, often @refs/convert/parquet",
            )
    if not of.split:
        return found
    splits = {name: split_of(name) for name in found}
    found = [name for name in found if splits[name] == of.split]
    if not found:
        there = ", ".join(sorted({split for split in splits.values() if split})) or "none that its file names tell"
        raise _none(of, f"has no split {of.split}", f"its splits: {there}; or name a file: hf://{of.name}/FILE")
    return found


def _none(of: Address, what: str, next: str) -> DataError:
    return DataError(f"the data set {of.name} {what}", f"looked for {of} on the hub", next)


def _suffix(name: str) -> str:
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in _PACKED else path.suffix


def split_of(name: str) -> str:
    """The split that a file belongs to: told by a word of its name, else of a folder's, else its name without the
    number of its part."""
    path = PurePosixPath(name)
    for part in (path.name.split(".")[0], *reversed(path.parts[:-1])):
        words = [word for word in re.split(r"[^a-z]+", part.lower()) if word in _SPLITS]
        if words:
            return _SPLITS[words[-1]]
    return _SHARD.sub("", path.name.split(".")[0])
