"""Reading the project file: one YAML, checked as a whole, changed by nothing; every mistake is named with its line."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from tunesmith.core.errors import ConfigError
from tunesmith.core.project import Project
from tunesmith.core.section import Section


def load_project(path: Path, overrides: list[str] | None = None) -> Project:
    """The checked project of a YAML file, with `a.b.c=value` overrides laid over it.

    Raises ConfigError for a missing or broken file, an unknown key (with the nearest valid one) or a bad value; the
    message names the file, the line and the key.
    """
    tree, lines = _read_yaml(path)
    for override in overrides or []:
        _apply(tree, override)
    try:
        return Project.model_validate(tree, context={"root": path.resolve().parent})
    except ValidationError as error:
        raise _explain(path, lines, overrides or [], error) from None


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    """The file's content, and the line of each key by its location."""
    if not os.path.isfile(path):
        places = ("*/tunesmith.yaml", "*/*/tunesmith.yaml") if path.parent == Path() else ()
        near = sorted(str(found) for place in places for found in Path().glob(place))[:3]
        raise ConfigError(
            f"no project file at {path}",
            "tunesmith reads its project from a YAML file" + (f"; there is {', '.join(near)}" if near else ""),
            f"tunesmith run {near[0]}" if near else "tunesmith init YOUR_DATA.jsonl",
        )
    lines: dict[tuple[Any, ...], int] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        tree = yaml.load(text, Loader=_Loader)
        _note_lines(yaml.compose(text, Loader=yaml.SafeLoader), (), lines, path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", str(error), f"save {path} as UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error).splitlines()[0]
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        next_step = f"mend it, then run `tunesmith check {path}`"
        raise ConfigError(f"{where} is not valid YAML", problem or "it cannot be read", next_step) from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path} holds no settings",
            "a project is a mapping with `name`, `model` and `data`",
            "tunesmith init YOUR_DATA.jsonl writes one to begin with",
        )
    return tree, lines


class _Loader(yaml.SafeLoader):
    """A value that cannot be made, such as a thirteenth month, is a YAML error with its line, like any other."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None


def _note_lines(node: yaml.Node | None, at: tuple[Any, ...], lines: dict[tuple[Any, ...], int], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*at, key.value)
            if place in lines:
                raise ConfigError(
                    f"{path}:{key.start_mark.line + 1}: `{key.value}` stands twice",
                    f"the first is on line {lines[place]}; only one can count",
                    "remove one of the two",
                )
            lines[place] = key.start_mark.line + 1
            _note_lines(value, place, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*at, i)] = item.start_mark.line + 1
            _note_lines(item, (*at, i), lines, path)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        why, example = "it is written as a.b.c=value", "for example --set train.learning_rate=0.0005"
        raise ConfigError(f"--set {override} has no value", why, example)
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        parsed = value
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, dict) and not isinstance(node.get(part), dict | list):
            node[part] = {}
        node = node[_place(node, part, key)]
    node[_place(node, last, key)] = parsed


def _place(node: Any, part: str, key: str) -> str | int:
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return int(part)
    if isinstance(node, dict):
        return part
    raise ConfigError(f"--set {key} leads nowhere", f"`{part}` is no item there", "docs/config.md lists every key")


def _explain(
    path: Path, lines: dict[tuple[Any, ...], int], overrides: list[str], error: ValidationError
) -> ConfigError:
    """The first fault in full, the others by their keys. A typo comes first, since it explains what is missing."""
    first, *rest = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    at = tuple(first["loc"])
    dotted = ".".join(str(part) for part in at)
    shown = next((lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in lines), 1)
    laid_over = (override.partition("=")[0] for override in overrides)
    blamed = next((key for key in laid_over if key == dotted or key.startswith(f"{dotted}.")), None)
    where = f"--set {blamed}" if blamed else f"{path}:{shown}: `{dotted}`"
    others = "; also wrong: " + ", ".join(".".join(map(str, e["loc"])) for e in rest) if rest else ""
    if first["type"] == "extra_forbidden":
        valid = sorted(_keys_at(at[:-1]))
        near = difflib.get_close_matches(str(at[-1]), valid, 1, 0.4)
        hint = f"did you mean `{near[0]}`?" if near else f"valid keys here: {', '.join(valid)}"
        return ConfigError(
            f"{where} is no key that tunesmith knows",
            hint + others,
            f"write `{near[0]}` instead" if near else "docs/config.md lists every key",
        )
    if first["type"] == "missing":
        return ConfigError(f"{where} is missing", "it has no default" + others, f"add `{at[-1]}:` (docs/config.md)")
    why = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" or isinstance(first["input"], dict) else f"; it is {first['input']!r}"
    return ConfigError(f"{where} cannot be used", why + given + others, "docs/config.md tells what it may be")


def _keys_at(at: tuple[Any, ...]) -> set[str]:
    """The valid keys of the section at a location."""
    section: Any = Project
    for part in at:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *_arguments(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, Section))
    return set(section.model_fields)


def _arguments(annotation: Any) -> list[Any]:
    return [found for argument in get_args(annotation) for found in (argument, *_arguments(argument))]


def schema() -> dict[str, Any]:
    """The JSON Schema of the project file, for editors and for docs/config.md."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Project.model_json_schema()}
