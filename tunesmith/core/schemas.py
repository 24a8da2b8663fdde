"""The one reader of a project's answer schema: what cleaning accepts and what scoring accepts must be the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tunesmith.core.errors import ConfigError

if TYPE_CHECKING:
    from jsonschema import exceptions
    from jsonschema.protocols import Validator
    from referencing import Resource
    from referencing.exceptions import Unresolvable

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_SHOWN_CHARACTERS = 200  # a validator's message may quote the whole answer


@dataclass(frozen=True)
class AnswerSchema:
    """A JSON Schema file (2020-12 where it names no draft), for which nothing is ever fetched."""

    path: Path
    validator: Validator

    @classmethod
    def read(cls, path: Path) -> AnswerSchema:
        """Raises ConfigError for a file that cannot be read, is no schema, or refers to elsewhere."""
        from jsonschema import exceptions, validators  # a quarter of a second, for those alone that have a schema
        from referencing import Registry
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import specification_with

        try:
            schema = orjson.loads(path.read_text(encoding="utf-8-sig"))
            if type(schema) not in (dict, bool):
                raise exceptions.SchemaError("a schema is a JSON object, or true or false")
            kind = validators.validator_for(schema, default=validators.Draft202012Validator)
            kind.check_schema(schema)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"data.clean.answer_schema: {path} cannot be read as JSON",
                str(error),
                "name a JSON Schema file, written in UTF-8",
            ) from None
        except exceptions.SchemaError as error:
            raise ConfigError(
                f"data.clean.answer_schema: {path} is no valid JSON Schema",
                _described(error),
                f"mend {path} and run the same command again",
            ) from None
        root = specification_with(kind.META_SCHEMA["$schema"]).create_resource(schema)
        try:
            _follow(root, Registry().with_resource("", root).resolver_with_root(root))
        except Unresolvable as error:
            raise _elsewhere(path, error) from None
        return cls(path, kind(schema, registry=Registry()))

    def fault(self, value: Any) -> str | None:
        """Where a JSON value breaks the schema, and how; None where it does not.

        Raises ConfigError where it meets a reference to elsewhere that stands behind another reference, in a part of
        the file that is no schema by itself.
        """
        from jsonschema import exceptions
        from referencing.exceptions import Unresolvable

        try:
            found = exceptions.best_match(self.validator.iter_errors(value))
        except RecursionError:  # a recursive schema on a value of hundreds of levels
            return "$: it is nested too deeply to be held against the schema"
        except Unresolvable as error:
            raise _elsewhere(self.path, error) from None
        return _described(found) if found else None


def _follow(schema: Resource[Any], resolver: Any) -> None:
    """Raises Unresolvable for a reference in a schema, or in those inside it, that leads out of the file."""
    if isinstance(schema.contents, dict):
        for reference in (schema.contents[name] for name in _REFERENCES if name in schema.contents):
            resolver.lookup(reference)
    for inner in schema.subresources():
        _follow(inner, resolver.in_subresource(inner))


def _elsewhere(path: Path, error: Unresolvable) -> ConfigError:
    return ConfigError(
        f"data.clean.answer_schema: {path} refers to something that is not in it",
        f"{error.ref} is not in the file, and nothing is fetched",
        "copy that definition into the file, under `$defs`",
    )


def _described(fault: exceptions.ValidationError | exceptions.SchemaError) -> str:
    """Where the fault is and what it is, cut to a readable length."""
    message = fault.message
    if len(message) > _SHOWN_CHARACTERS:
        message = f"...{message[-_SHOWN_CHARACTERS:]}"  # the quoted value comes first, what is wrong with it last
    return f"{fault.json_path}: {message}"
