"""The one reader of a project's answer schema: what cleaning accepts and what scoring accepts must be the same."""

from __future__ import annotations

from pathlib import Path

import orjson
from jsonschema import exceptions, validators
from jsonschema.protocols import Validator
from referencing import Registry

from tunesmith.core.errors import ConfigError

_SHOWN_CHARACTERS = 200  # a validator's message may quote the whole answer


def validator(path: Path) -> Validator:
    """The validator of a JSON Schema file (2020-12 where it names no draft), which never fetches anything.

    Raises ConfigError for a file that cannot be read or is no schema.
    """
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
            described(error),
            f"mend {path} and run the same command again",
        ) from None
    return kind(schema, registry=Registry())


def described(fault: exceptions.ValidationError | exceptions.SchemaError) -> str:
    """Where a value breaks a schema and how, cut to a readable length."""
    message = fault.message
    if len(message) > _SHOWN_CHARACTERS:
        message = f"...{message[-_SHOWN_CHARACTERS:]}"  # the quoted value comes first, what is wrong with it last
    return f"{fault.json_path}: {message}"
