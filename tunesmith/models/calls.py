"""The requests to one server: how fast, how often again, how many at once, and at what cost.

All of it lives in one event loop, whose single thread is why nothing here is locked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from tunesmith.core.console import say
from tunesmith.core.endpoint_section import Endpoint
from tunesmith.core.errors import ResourceError, UserError
from tunesmith.models.replies import Asked, Kept, Reply, Usage
from tunesmith.models.wire import Answer, Passing, Server

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 60.0
_LONGEST_TOLD_WAIT_SECONDS = 600.0  # a server that says to wait longer is not waited for
_SILENT_AT_FIRST, _SILENT_IN_A_ROW = 3, 12  # questions without a reply: before any had one, and later
_BYTES_OF_A_TOKEN = 4  # where the server does not count
_TEMPLATE_TOKENS = 16  # that a chat template may put around a message, at most


class Calls:
    def __init__(self, settings: Endpoint, server: Server, kept: Kept, usage: Usage) -> None:
        self._settings, self._server, self._kept, self._usage = settings, server, kept, usage
        self._budget = _Budget(settings, usage)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._same: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._over: UserError | None = None  # why no further request is sent
        self._next_seconds = 0.0  # when the next request may be sent, by the loop's clock
        self._silent = 0  # questions in a row that stayed without a reply

    async def reply(self, one: Asked, name: str) -> Reply:
        """What is kept under this name, or the server's answer. A question that is under way already is waited for,
        not asked twice."""
        lock = self._same.setdefault(name, asyncio.Lock())
        async with lock:
            reply = self._kept.find(name)
            if reply is None:
                async with self._slots:
                    reply = await self._asked(one, name)
        self._usage.count(reply)
        return reply

    async def _asked(self, one: Asked, name: str) -> Reply:
        try:
            for attempt in range(self._settings.retries + 1):
                try:
                    answer = await self._attempt(one)
                except Passing as passing:
                    if attempt == self._settings.retries:
                        return self._unanswered(passing)
                    await self._wait(attempt, passing)
                else:
                    self._silent = 0
                    reply = self._budget.paid(one, answer)
                    self._kept.keep(name, reply)
                    return reply
            raise AssertionError("the last attempt answers or is told of")
        except UserError as error:
            self._over = self._over or error
            raise

    async def _attempt(self, one: Asked) -> Answer:
        await self._turn()
        sampling = {"max_tokens": self._settings.max_tokens, "temperature": self._settings.temperature}
        payload: dict[str, Any] = {
            "model": self._settings.model,
            "messages": one.messages,
            "seed": one.seed,
            **sampling,
        }
        if one.json:
            payload["response_format"] = {"type": "json_object"}
        async with self._budget.room(one):
            self._go_on()
            return await self._server.complete(payload)

    async def _turn(self) -> None:
        """Waits until a request may be sent: each has its moment, at even distances."""
        self._go_on()
        now = asyncio.get_running_loop().time()
        mine = max(now, self._next_seconds)
        if self._settings.requests_per_minute:
            self._next_seconds = mine + 60 / self._settings.requests_per_minute
        await asyncio.sleep(mine - now)

    def _go_on(self) -> None:
        if self._over:
            raise self._over

    async def _wait(self, attempt: int, passing: Passing) -> None:
        """Twice as long as before the last attempt, and at least as long as the server says, which holds for all."""
        if not self._usage.retried:
            say(f"  {self._settings.url}: {passing}; asking again, up to {self._settings.retries} times each")
        self._usage.retried += 1
        if passing.wait_seconds:
            if passing.wait_seconds > _LONGEST_TOLD_WAIT_SECONDS:
                raise self._dead(f"it says to come again in {passing.wait_seconds / 60:,.0f} minutes", passing)
            until = asyncio.get_running_loop().time() + passing.wait_seconds
            self._next_seconds = max(self._next_seconds, until)
        longest = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**attempt)
        await asyncio.sleep(longest * random.uniform(0.5, 1))  # not all of them at the same moment

    def _unanswered(self, passing: Passing) -> Reply:
        self._silent += 1
        if self._silent >= (_SILENT_IN_A_ROW if self._usage.answered else _SILENT_AT_FIRST):
            raise self._dead(f"{self._silent} questions in a row had no answer", passing)
        self._last = passing
        return Reply(None, passing.reason, passing=True)

    def require_any(self) -> None:
        """Raises ResourceError when questions were asked and none had an answer, now or before."""
        if self._silent and not self._usage.answered:
            raise self._dead(f"{self._silent} questions were asked, and none had an answer", self._last)

    def _dead(self, what: str, last: Passing) -> ResourceError:
        return ResourceError(
            f"{self._settings.url} does not answer",
            f"{what} ({1 + self._settings.retries} attempts each); the last attempt: {last}",
            f"see that the server runs and can be reached, then run the same command again: the "
            f"{self._usage.answered:,} answers that came are kept",
        )


class _Budget:
    """What was spent, and what the requests under way may come to."""

    def __init__(self, settings: Endpoint, usage: Usage) -> None:
        self._settings, self._usage = settings, usage
        self._bought = 0
        self._under_way: list[float] = []
        self._landed = asyncio.Event()
        self._counts: bool | None = None  # whether the server counts tokens, once it is known
        self._tokens_of_a_byte = 1.0  # no tokeniser makes more; then the most that was counted

    @asynccontextmanager
    async def room(self, one: Asked) -> AsyncIterator[None]:
        """Room for the most that this request may cost, waited for while those under way may still turn out cheaper.
        Raises ResourceError when there is none."""
        most = self._cost(self._most_prompt_tokens(one), self._settings.max_tokens)
        cap = self._settings.max_cost
        while cap is not None and self._usage.cost + sum(self._under_way) + most > cap:
            if not self._under_way:
                raise self._spent(cap, most)
            self._landed.clear()
            await self._landed.wait()
        self._under_way.append(most)
        try:
            yield
        finally:
            self._under_way.remove(most)
            asyncio.get_running_loop().call_soon(self._landed.set)  # when what was paid is counted

    def paid(self, one: Asked, answer: Answer) -> Reply:
        prompt, made = answer.prompt_tokens, answer.answer_tokens
        if prompt is None or made is None:
            if self._counts is None and self._settings.input_price is not None:
                say(f"  {self._settings.url} counts no tokens: cost is estimated, at four bytes a token")
            self._counts = self._counts or False
            prompt = one.size_bytes // _BYTES_OF_A_TOKEN + 1
            made = len((answer.text or "").encode()) // _BYTES_OF_A_TOKEN + 1
        else:
            share = prompt / max(one.size_bytes, 1)
            self._tokens_of_a_byte = max(share, self._tokens_of_a_byte if self._counts else 0.0)
            self._counts = True
        self._bought += 1
        self._usage.prompt_tokens += prompt
        self._usage.answer_tokens += made
        self._usage.cost += self._cost(prompt, made)
        return Reply(answer.text, answer.fault, prompt, made)

    def _most_prompt_tokens(self, one: Asked) -> float:
        return one.size_bytes * self._tokens_of_a_byte + _TEMPLATE_TOKENS * len(one.messages)

    def _cost(self, prompt_tokens: float, answer_tokens: float) -> float:
        prices = (self._settings.input_price or 0.0, self._settings.output_price or 0.0)
        return (prompt_tokens * prices[0] + answer_tokens * prices[1]) / 1e6

    def _spent(self, cap: float, most: float) -> ResourceError:
        return ResourceError(
            f"endpoint.max_cost is {cap:,.6g}, and the next request may exceed it",
            f"{self._usage.cost:,.4g} were spent on {self._bought:,} answers, and one more may cost {most:,.4g}",
            "raise endpoint.max_cost, then run the same command again: what was answered is kept and not paid again",
        )
