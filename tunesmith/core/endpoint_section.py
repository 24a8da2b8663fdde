"""The settings of a model that is asked over the network, or of the base in its place; several sections hold them.

Settings that change no answer, only how it is come by, are left out of a step's identity: whoever changes a rate limit
pays for nothing again.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from tunesmith.core.section import Section


def _plain_url(url: str) -> str:
    """The address up to the version, as in https://host/v1. A secret in it would be written to logs."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("it is no address of a server, such as http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("it may hold no user, password or query: name the variable that holds the key under `key`")
    return url.rstrip("/").removesuffix("/chat/completions")


def _name_of_a_variable(name: str) -> str:
    """Names are told from keys by their capitals, or by being set. The value is not repeated: it may be the key."""
    if name.startswith("$"):
        raise ValueError("write the environment variable's name alone, without `$` and braces")
    if name not in os.environ and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
        raise ValueError(
            "this looks like the key itself, which does not belong in a file: put it into an environment variable, and "
            "write that variable's name here, such as OPENAI_API_KEY"
        )
    return name


class Endpoint(Section):
    """A model behind an OpenAI-compatible address, or, without `url`, the project's own base in this process."""

    url: Annotated[str, AfterValidator(_plain_url)] | None = None
    """Where chat completions are served, up to the version, such as `https://api.openai.com/v1` or
    `http://localhost:11434/v1`. Left out: the project's base answers, in this process."""
    model: str | None = None
    """The model's name at that address."""
    key: Annotated[str, AfterValidator(_name_of_a_variable)] | None = Field(None, exclude=True)
    """The name of the environment variable that holds the API key. The key itself never stands in a file."""
    max_tokens: Annotated[int, Field(gt=0)] = 512
    """Longest answer. One that is cut off there counts as none."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """How freely answers are drawn; 0 takes the likeliest."""
    concurrency: Annotated[int, Field(gt=0, le=256)] = Field(8, exclude=True)
    """Requests under way at once; of the base, prompts in a batch."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = Field(None, exclude=True)
    """No more requests than this are sent, those that are sent again included."""
    timeout_seconds: Annotated[float, Field(gt=0)] = Field(120.0, exclude=True)
    """How long one answer may take."""
    retries: Annotated[int, Field(ge=0)] = Field(6, exclude=True)
    """How often a request is sent again after a timeout, a broken connection or a passing refusal, with waits that
    double from half a second, or as long as the server says."""
    input_price: Annotated[float, Field(ge=0)] | None = Field(None, exclude=True)
    """Price of a million tokens of a request, in your currency."""
    output_price: Annotated[float, Field(ge=0)] | None = Field(None, exclude=True)
    """Price of a million tokens of an answer."""
    max_cost: Annotated[float, Field(gt=0)] | None = Field(None, exclude=True)
    """The most that one run of a step may spend here, by the server's own count of tokens. Needs both prices."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        of_a_server = ("model", "key", "requests_per_minute", "input_price", "output_price", "max_cost")
        if self.url is None and (left := [name for name in of_a_server if self.__dict__[name] is not None]):
            raise ValueError(f"`{left[0]}` needs `url`; without it the project's own base answers")
        if self.url is not None and not self.model:
            raise ValueError(f"`url` needs `model`: {self.url}/models lists what is served there")
        if self.max_cost is not None and (self.input_price is None or self.output_price is None):
            raise ValueError("`max_cost` needs `input_price` and `output_price`: without them no cost is known")
        return self
