"""A language model that is asked many questions: behind any OpenAI-compatible address, or the base in this process.

Whoever asks gets the replies in the order of the questions, while several are under way; questions are taken from an
iterator as they are needed, so that memory does not grow with their number. A reply is kept on disk under the content
of its question as soon as it is there: a run that was killed asks only for what is missing, and pays for nothing twice.
What passes is waited out, what does not ends the run with a sentence, and a question that stays without an answer is a
Reply that says why, never a text.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from tunesmith.core.endpoint_section import Endpoint
from tunesmith.models.base import Base
from tunesmith.models.calls import Calls
from tunesmith.models.inprocess import InProcess
from tunesmith.models.replies import Asked, Kept, Reply, Usage, json_of
from tunesmith.models.wire import Server

__all__ = ["Asked", "Client", "Reply", "Usage", "json_of"]  # all that whoever asks needs

_KEPT_FORMAT = 1  # of a kept reply, and of what names it
_AHEAD = 4  # questions that are taken for each that may be under way: a slow one does not hold up the others


class Client:
    """Asks the model that the settings name. Replies are kept in the folder `cache`, which many clients may share.

    Use it as a context manager, or close it: questions under way end then.
    """

    def __init__(self, settings: Endpoint, cache: Path, base: Base | None = None) -> None:
        """Without a `url` the `base` answers. Raises ConfigError when the key's variable is not set."""
        self.usage = Usage()
        self._settings, self._kept = settings, Kept(cache)
        if settings.url is None:
            assert base is not None, "an endpoint without url needs the base model"
            self._local = InProcess(base, settings)
            self._who: dict[str, str | None] = {"base": base.identity, "precision": self._local.precision}
        else:
            self._server, self._background = Server(settings), _Background()
            self._who = {"url": settings.url, "model": settings.model}
            self._calls = Calls(settings, self._server, self._kept, self.usage)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._settings.url is not None:
            self._background.close(self._server.close)

    def known(self, one: Asked) -> bool:
        """Whether a reply is kept already, so that it costs nothing."""
        return self._kept.find(self._name(one)) is not None

    def ask(self, asked: Iterable[Asked]) -> Iterator[Reply]:
        """The replies, in the order asked.

        Raises UserError where no further question makes sense: a key, model or address that must be mended
        (ConfigError), a server that does not answer, or spending that would exceed `max_cost` (ResourceError). What was
        answered until then is kept.
        """
        return self._ask_base(asked) if self._settings.url is None else self._ask_server(asked)

    def _ask_server(self, asked: Iterable[Asked]) -> Iterator[Reply]:
        under_way: deque[Future[Reply]] = deque()
        try:
            for one in asked:
                under_way.append(self._background.start(self._calls.reply(one, self._name(one))))
                while under_way and (under_way[0].done() or len(under_way) >= _AHEAD * self._settings.concurrency):
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
            self._calls.require_any()
        finally:
            for left in reversed(under_way):  # those that wait first, or they would be sent in place of the others
                left.cancel()

    def _ask_base(self, asked: Iterable[Asked]) -> Iterator[Reply]:
        """In batches; of equal questions in one, the first is answered and the others are given its answer."""
        questions = iter(asked)
        while batch := list(islice(questions, self._settings.concurrency)):
            names = [self._name(one) for one in batch]
            found = {name: reply for name in names if (reply := self._kept.find(name))}
            missing = {name: one for name, one in zip(names, batch) if name not in found}
            answers = self._local.answers([(one.messages, one.seed) for one in missing.values()]) if missing else []
            for name, answer in zip(missing, answers):
                found[name] = Reply(answer.text, answer.fault, answer.prompt_tokens or 0, answer.answer_tokens or 0)
                self._kept.keep(name, found[name])
                self.usage.prompt_tokens += found[name].prompt_tokens
                self.usage.answer_tokens += found[name].answer_tokens
            for name in names:
                self.usage.count(found[name])
                yield found[name]
                found[name] = replace(found[name], cached=True)

    def _name(self, one: Asked) -> str:
        """The hash of all that the reply may depend on."""
        sampling = {name: self._settings.__dict__[name] for name in ("max_tokens", "temperature")}
        question = [_KEPT_FORMAT, self._who, sampling, one.messages, one.seed, one.json]
        return hashlib.sha256(orjson.dumps(question, option=orjson.OPT_SORT_KEYS)).hexdigest()


class _Background:
    """An event loop in a thread of its own: signals reach the main thread, which can end what is under way here. The
    thread ends with the program, whatever it waits for."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="endpoint", daemon=True)
        self.thread.start()

    def start(self, work: Coroutine[Any, Any, Reply]) -> Future[Reply]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self.loop.is_closed():
            return

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await last()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
