"""What differs between two executions of a step, by the hashed JSON of their records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def settings(before: dict[str, Any], now: dict[str, Any], keys: Mapping[str, str]) -> list[str]:
    """The settings in which two executions of a step differ, by their hashed JSON; what they read from other steps is
    left out."""
    found = [one for one in fields(before, now, keys) if not is_artifact(one[1]) and not is_artifact(one[2])]
    return [told(*one) for one in found] + of_version(before, now)


def fields(before: dict[str, Any], now: dict[str, Any], keys: Mapping[str, str]) -> Iterator[tuple[str, Any, Any]]:
    """What differs in the arguments of a step, as the project file calls it."""
    for at, old, new in _diff(before["arguments"], now["arguments"], ""):
        argument, dot, rest = at.partition(".")
        yield keys.get(f"{before['step']}.{argument}", argument) + dot + rest, old, new


def told(key: str, old: Any, new: Any) -> str:
    """One of them in words."""
    if _is_file(old) and _is_file(new) and old["file"] == new["file"]:
        return f"{key}: {new['file']} has other contents"
    if _is_file(new) and old is None:
        return f"{key}: {new['file']} is new"
    if _is_file(old) and new is None:
        return f"{key}: {old['file']} is gone"
    return f"{key}: {_short(old)} -> {_short(new)}"


def of_version(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """That the step's code changed, if it did."""
    if before["version"] == now["version"]:
        return []
    return [f"the step itself changed (version {before['version']} -> {now['version']})"]


def is_artifact(value: Any) -> bool:
    return isinstance(value, dict) and "artifact" in value


def _diff(old: Any, new: Any, at: str) -> Iterator[tuple[str, Any, Any]]:
    if (
        isinstance(old, dict)
        and isinstance(new, dict)
        and "artifact" not in new
        and not (_is_file(old) or _is_file(new))
    ):
        for key in sorted(old.keys() | new.keys()):
            yield from _diff(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new)):
            yield from _diff(a, b, f"{at}.{i}")
    elif old != new:
        yield at, old, new


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"file", "sha256"}


def _short(value: Any) -> str:
    value = value["file"] if _is_file(value) else value
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
