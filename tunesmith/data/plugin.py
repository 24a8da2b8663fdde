"""A function in a Python file of the user's own: found, imported and called, whatever that file does.

The file may raise anything, and what it raises is its owner's to mend: the reader is told type, message and line.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.core.errors import ConfigError


class Fault(Exception):
    """The user's function raised an error, told here in one line."""


def function(path: Path, name: str, parameter: str, returns: str) -> Callable[[Any], Any]:
    """The function of that name and of one parameter in a Python file; whatever it raises comes out as a Fault.

    `returns` says what it must return, for the texts of errors. Raises ConfigError for a file that cannot be imported
    or has no such function.
    """
    named = f"tunesmith_{name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(named, path)
    if spec is None or spec.loader is None:
        raise ConfigError(
            f"{path.name} cannot be used for `{name}`", "it is not a Python file", "name a file that ends in .py"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[named] = module  # dataclasses look their own module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the file is the user's: it may raise anything
        raise ConfigError(f"{path.name} cannot be imported for `{name}`", _told(error, path), f"mend {path}") from None
    own = vars(module).get(name)
    if not callable(own):
        raise ConfigError(
            f"{path.name} has no function `{name}`",
            f"tunesmith calls `{name}({parameter})` on each {parameter}",
            f"write `def {name}({parameter}): ...` in {path}; it returns {returns}",
        )

    def called(argument: Any) -> Any:
        try:
            return own(argument)
        except (Exception, SystemExit) as error:  # again the user's own code
            raise Fault(_told(error, path)) from None

    return called


def _told(error: BaseException, path: Path) -> str:
    """An error of the user's file in one line: its type, its message and how far that file's own code got."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f" ({path.name}:{lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"
