"""The user's own `convert(record)`, called on each record before its shape is looked at."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.core.errors import ConfigError
from tunesmith.data.values import Unusable, kind


def converter(path: Path) -> Callable[[Any], Any]:
    """The `convert` function of that Python file: it returns a dict or raises Unusable, whatever the user's code does.

    Raises ConfigError for a file that cannot be imported or has no such function.
    """
    name = f"tunesmith_convert_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(
            f"{path.name} cannot be used for `convert`", "it is not a Python file", "name a file that ends in .py"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the file is the user's: it may raise anything
        raise ConfigError(f"{path.name} cannot be imported for `convert`", _told(error, path), f"mend {path}") from None
    function = vars(module).get("convert")
    if not callable(function):
        raise ConfigError(
            f"{path.name} has no function `convert`",
            "tunesmith calls `convert(record)` on each record",
            f"write `def convert(record): ...` in {path}; it returns the record to use instead",
        )

    def convert(record: Any) -> Any:
        try:
            value = function(record)
        except (Exception, SystemExit) as error:  # again the user's own code
            raise Unusable("convert raised an error", f"mend `convert`: {_told(error, path)}") from None
        if value is None:
            raise Unusable("convert returned None", "return a record from `convert`, or leave this one out of the file")
        if not isinstance(value, dict):
            raise Unusable("convert did not return an object", f"return a dict from `convert`, not {kind(value)}")
        return value

    return convert


def _told(error: BaseException, path: Path) -> str:
    """An error of the user's file in one line: its type, its message and how far that file's own code got."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f" ({path.name}:{lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"
