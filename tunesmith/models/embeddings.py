"""Texts as vectors, from any OpenAI-compatible address: in order, several requests under way, each text asked once.

A vector is kept on disk under the content of its text as soon as it is there, as replies are (models/endpoint.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.console import say
from tunesmith.core.endpoint_section import Endpoint
from tunesmith.core.errors import ResourceError
from tunesmith.models.wire import Passing, Server

Vectors = NDArray[np.float32]

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 60.0
_LONGEST_TOLD_WAIT_SECONDS = 600.0  # a server that says to wait longer is not waited for


class Embeddings:
    """Asks the model that the settings name. Use it as a context manager: connections end with it."""

    def __init__(self, settings: Endpoint, cache: Path) -> None:
        """Raises ConfigError when the key's variable is not set."""
        self._settings, self._server, self._cache = settings, Server(settings), cache
        self._loop = asyncio.Runner()
        self._dimensions = 0  # of the vectors, once one is seen
        self._retried = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._server.close())
        self._loop.close()

    def of(self, batches: Iterable[list[str]]) -> Iterator[Vectors]:
        """The vectors of each batch of texts, one below the other.

        Raises ConfigError where the server refuses, and ResourceError where it does not answer; what came is kept.
        """
        left = iter(batches)
        while some := list(islice(left, self._settings.concurrency)):
            yield from self._loop.run(self._all(some))

    async def _all(self, batches: list[list[str]]) -> list[Vectors]:
        return list(await asyncio.gather(*map(self._batch, batches)))

    async def _batch(self, texts: list[str]) -> Vectors:
        paths = [self._path(text) for text in texts]
        found = {path: vector for path in paths if (vector := _read(path)) is not None}
        missing = [*{path: text for path, text in zip(paths, texts) if path not in found}.items()]
        while missing:
            some = missing[: self._server.texts_at_once]
            for (path, _), vector in zip(some, await self._asked([text for _, text in some])):
                _keep(path, vector)
                found[path] = vector
            missing = missing[len(some) :]
        for vector in found.values():
            self._require_dimensions(len(vector))
        return np.stack([found[path] for path in paths])

    async def _asked(self, texts: list[str]) -> list[Vectors]:
        """Asked again where a request passes without an answer, with waits that double."""
        for attempt in range(self._settings.retries + 1):
            try:
                return [np.array(vector, np.float32) for vector in await self._server.embed(texts)]
            except Passing as passing:
                last = passing
            told_seconds = last.wait_seconds or 0.0
            if told_seconds > _LONGEST_TOLD_WAIT_SECONDS:
                raise self._dead(f"it says to come again in {told_seconds / 60:,.0f} minutes: {last}")
            longest = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**attempt)
            if attempt < self._settings.retries:
                self._tell(last)
                await asyncio.sleep(max(told_seconds, longest * random.uniform(0.5, 1)))
        raise self._dead(f"asked {1 + self._settings.retries} times for {len(texts):,} vectors; the last time: {last}")

    def _tell(self, passing: Passing) -> None:
        if not self._retried:
            say(f"  {self._settings.url}: {passing}; asking again, up to {self._settings.retries} times each")
        self._retried = True

    def _dead(self, why: str) -> ResourceError:
        return ResourceError(
            f"{self._settings.url} does not answer",
            why,
            "see that the server runs and can be reached, then run the same command again: what came is kept",
        )

    def _require_dimensions(self, found: int) -> None:
        self._dimensions = self._dimensions or found
        if found != self._dimensions:
            raise ResourceError(
                f"{self._settings.url} gave vectors of {self._dimensions:,} and of {found:,} numbers",
                "some are kept from earlier runs: another model was served under that name then",
                f"remove {self._cache}, then run the same command again",
            )

    def _path(self, text: str) -> Path:
        asked = f"{self._settings.url}\0{self._settings.model}\0{text}"
        name = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()
        return self._cache / name[:2] / name


def _read(path: Path) -> Vectors | None:
    """None too for a file that is empty: a kill may leave one."""
    try:
        return np.fromfile(path, np.float32) if path.stat().st_size else None
    except FileNotFoundError:
        return None


def _keep(path: Path, vector: Vectors) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    vector.tofile(unfinished)
    os.replace(unfinished, path)
