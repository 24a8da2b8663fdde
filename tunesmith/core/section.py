"""What every section of the project file is made of: strict keys, documented fields, paths that exist.

Paths in the file are relative to it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from tunesmith.core import hub, inputs


def _absolute(path: Path, info: ValidationInfo) -> Path:
    """Paths in the file are relative to it; ~ is the home folder, ${NAME} an environment variable. One that exists as
    it is written needs neither."""
    root: Path = (info.context or {}).get("root", Path.cwd())
    if os.path.exists(root / path):
        return root / path
    missing = [name for name in re.findall(r"\$\{(\w+)\}", str(path)) if name not in os.environ]
    if missing:
        raise ValueError(f"the environment variable {missing[0]} is not set; this path begins there")
    if hub.is_address(path):
        return path
    return root / os.path.expandvars(os.path.expanduser(path))


def _existing(path: Path) -> Path:
    _some(path)
    if not inputs.is_one_file(path):
        raise ValueError(f"{inputs.shown(path)} is not one file but many; name one file")
    return path


def _some(path: Path) -> Path:
    try:
        fault = inputs.fault(path)
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise ValueError(f"{path} cannot be looked up: {error.strerror}") from None
    if fault:
        raise ValueError(fault)
    return path


InputFile = Annotated[Path, AfterValidator(_absolute), AfterValidator(_existing)]
InputFiles = Annotated[Path, AfterValidator(_absolute), AfterValidator(_some)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_means_left_out(cls, given: Any) -> Any:
        """`train:` with nothing under it is null in YAML; it means the section with its defaults."""
        sections = {name for name, field in cls.model_fields.items() if isinstance(field.default, Section)}
        left_out = {name for name in sections if isinstance(given, dict) and given.get(name, 0) is None}
        return {name: value for name, value in given.items() if name not in left_out} if left_out else given
