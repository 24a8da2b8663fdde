"""The user's own `convert(record)`, called on each record before its shape is looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.data import plugin
from tunesmith.data.reading.values import Unusable, kind


def converter(path: Path) -> Callable[[Any], Any]:
    """The `convert` function of that Python file: it returns a dict or raises Unusable, whatever the user's code does.

    Raises ConfigError for a file that cannot be imported or has no such function.
    """
    function = plugin.function(path, "convert", "record", "the record to use instead")

    def convert(record: Any) -> Any:
        try:
            value = function(record)
        except plugin.Fault as fault:
            raise Unusable("convert raised an error", f"mend `convert`: {fault}") from None
        if value is None:
            raise Unusable("convert returned None", "return a record from `convert`, or leave this one out of the file")
        if not isinstance(value, dict):
            raise Unusable("convert did not return an object", f"return a dict from `convert`, not {kind(value)}")
        return value

    return convert
