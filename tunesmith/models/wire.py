"""One request to a chat-completions server and what its answer means: an answer, come again, or give up.

Servers that call themselves OpenAI-compatible differ in what they refuse and how they say it. What is known of that
stands here and nowhere else.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import re
import sys
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any

import orjson

from tunesmith.core.console import say
from tunesmith.core.endpoint_section import Endpoint
from tunesmith.core.errors import ConfigError, ResourceError, UserError

if TYPE_CHECKING:
    import httpx

_PASSING = frozenset({408, 409, 425, 429})  # and whatever is the server's own fault: 500 and more
_CONNECT_SECONDS = 10.0
_TOLD = 300  # characters of what a server says that are worth repeating
_SHORTEST_KEY = 8  # what is shorter stands in ordinary text

_TOO_LONG = re.compile(r"context.?(length|window|size)|too long|too large|reduce the length", re.I)
_FILTERED = re.compile(r"content.?(filter|policy|management)|safety", re.I)
_SPENT = re.compile(r"insufficient.?(quota|balance|credit|funds)|exceeded your current quota", re.I)
_UNKNOWN_OPTION = re.compile(r"support|recogni[sz]ed|unknown|unexpected|extra|permitted|allowed|not implemented", re.I)


@dataclass(frozen=True)
class Answer:
    """What was made for a request: a text, or the reason why there is none. Token counts are None where untold."""

    text: str | None
    fault: str = ""
    prompt_tokens: int | None = None
    answer_tokens: int | None = None


class Passing(Exception):
    """Nothing came back, and the same request may be answered later: `reason` is a short phrase to count by."""

    def __init__(self, reason: str, detail: str = "", wait_seconds: float | None = None) -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail, self.wait_seconds = reason, detail, wait_seconds


class Server:
    """The address, the key and what was learnt of the server; one open set of connections."""

    def __init__(self, settings: Endpoint) -> None:
        """Raises ConfigError when the key's variable is not set."""
        self.settings, self._key = settings, _key(settings.key)
        self._left_out: set[str] = set()
        self.texts_at_once = sys.maxsize  # for which it gives vectors, as far as is known
        self._http: httpx.AsyncClient | None = None

    async def complete(self, payload: dict[str, Any]) -> Answer:
        """The answer to one request. Raises Passing, and UserError for what no repetition mends."""
        while True:
            sent = self._as_understood(payload)
            response = await self._send("POST", "chat/completions", sent)
            text = self._without_key(response)
            if response.status_code == 200:
                return _answer(text, self.settings.max_tokens)
            if response.status_code in (400, 422) and self._understands_less(text, sent):
                continue
            if fault := _fault(response.status_code, text):
                return Answer(None, fault)
            if (response.status_code in _PASSING or response.status_code >= 500) and not _SPENT.search(text):
                wait_seconds = _retry_after(response.headers.get("retry-after"))
                raise Passing(f"status {response.status_code}", _message(text), wait_seconds)
            raise await self._refusal(response, _message(text))

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """The vectors of these texts. A server that refuses so many is asked for half of them, from then on.

        Raises Passing, and UserError for what no repetition mends."""
        half = len(texts) // 2
        if len(texts) <= self.texts_at_once:
            response = await self._send("POST", "embeddings", {"model": self.settings.model, "input": texts})
            text = self._without_key(response)
            if response.status_code == 200:
                return _vectors(text, len(texts))
            if (response.status_code in _PASSING or response.status_code >= 500) and not _SPENT.search(text):
                wait_seconds = _retry_after(response.headers.get("retry-after"))
                raise Passing(f"status {response.status_code}", _message(text), wait_seconds)
            if response.status_code not in (400, 413, 422) or not half:
                raise await self._refusal(response, _message(text), "embeddings")
            self.texts_at_once = min(self.texts_at_once, half)
        return await self.embed(texts[:half]) + await self.embed(texts[half:])

    async def close(self) -> None:
        if self._http:
            await self._http.aclose()

    async def _send(self, method: str, path: str, payload: dict[str, Any] | None = None) -> httpx.Response:
        import httpx  # a sixth of a second, which a run without an endpoint need not wait

        seconds = self.settings.timeout_seconds
        if self._http is None:
            self._http = httpx.AsyncClient(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS)),
                limits=httpx.Limits(max_connections=self.settings.concurrency + 1),
            )
        try:
            async with asyncio.timeout(seconds):  # as a whole: a server may send a byte now and then for ever
                return await self._http.request(method, f"{self.settings.url}/{path}", json=payload)
        except (TimeoutError, httpx.TimeoutException) as error:
            connecting = isinstance(error, httpx.ConnectTimeout)
            raise Passing("no connection" if connecting else f"no answer within {seconds:g} seconds") from None
        except httpx.ConnectError as error:
            raise Passing("no connection", str(error)) from None
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ConfigError(
                f"{self.settings.url} is no address of a server", str(error), "mend endpoint.url"
            ) from None
        except httpx.RequestError as error:
            raise Passing("the connection broke off", str(error)) from None

    def _without_key(self, response: httpx.Response) -> str:
        """What the server says, less our key: some repeat what they were sent, and all of it may be kept or shown."""
        return response.text.replace(self._key, "[key]") if len(self._key) >= _SHORTEST_KEY else response.text

    def _as_understood(self, payload: dict[str, Any]) -> dict[str, Any]:
        sent = {name: value for name, value in payload.items() if name not in self._left_out}
        if "max_tokens" in self._left_out:
            sent["max_completion_tokens"] = payload["max_tokens"]
        return sent

    def _understands_less(self, text: str, sent: dict[str, Any]) -> bool:
        """Whether the refusal is of an option that can be left out; it then is, from now on."""
        if _TOO_LONG.search(text):
            return False
        if "max_tokens" in sent and "max_completion_tokens" in text:
            option = "max_tokens"
        else:
            named = [o for o in ("response_format", "seed", "temperature") if o in sent and o in text]
            if not named or not _UNKNOWN_OPTION.search(text):
                return False
            option = named[0]
        if option not in self._left_out:
            self._left_out.add(option)
            instead = "max_completion_tokens in its place" if option == "max_tokens" else "asked without it"
            say(f"  {self.settings.url} does not take `{option}`: {instead}")
        return True

    async def _refusal(self, response: httpx.Response, said: str, path: str = "chat/completions") -> UserError:
        """What to mend, where a request was refused for good."""
        url, model, status = self.settings.url, self.settings.model, response.status_code
        why = f"it answers with status {status}" + (f": {said}" if said else "")
        if status in (401, 403):
            held = f"the key is the one in {self.settings.key}" if self.settings.key else "no key was sent"
            return ConfigError(
                f"{url} refuses the key" if self._key else f"{url} wants a key",
                f"{why}; {held}",
                "put a valid key into an environment variable, and name the variable in endpoint.key",
            )
        if status in (402, 429):
            return ResourceError(
                f"the account at {url} has nothing left to spend",
                why,
                "top it up, then run the same command again: what was answered is kept, and is not paid again",
            )
        if 300 <= status < 400:
            leads = response.headers.get("location", "elsewhere")
            return ConfigError(f"{url} sends us to {leads}", why, "write the address that it leads to in endpoint.url")
        served = await self._served()
        if served and model not in served:
            near = difflib.get_close_matches(str(model), served, 1, 0.5)
            hint = f"did you mean `{near[0]}`? " if near else ""
            listed = ", ".join(served[:20]) + (", ..." if len(served) > 20 else "")
            return ConfigError(f"{url} has no model `{model}`", why, f"{hint}endpoint.model may be: {listed}")
        if status in (404, 405) and not served:
            return ConfigError(
                f"{url} serves no {path.replace('/', ' ')}",
                f"{url}/{path} {why.removeprefix('it ')}, and {url}/models lists no model",
                "mend endpoint.url: most often it ends in /v1",
            )
        return ConfigError(
            f"{url} refuses the request", why, "mend what it names: the settings of the endpoint, or its server's"
        )

    async def _served(self) -> list[str]:
        """The models that the server lists; none where it does not tell."""
        try:
            response = await self._send("GET", "models")
            return [str(model["id"]) for model in orjson.loads(self._without_key(response))["data"]]
        except (Passing, orjson.JSONDecodeError, LookupError, TypeError):
            return []


def _key(name: str | None) -> str:
    if name is None:
        return ""
    key, mend = os.environ.get(name, "").strip(), f"export {name}=..., or name another variable in endpoint.key"
    if not key:
        raise ConfigError(
            f"the environment variable {name} is not set", "endpoint.key says that it holds the API key", mend
        )
    if not re.fullmatch("[!-~]+", key):  # no header can hold it, and who says so repeats it
        raise ConfigError(
            f"the environment variable {name} holds no API key",
            "there are characters in it that no key has, such as blanks, ends of lines or curled quotes",
            mend,
        )
    return key


def _answer(text: str, max_tokens: int) -> Answer:
    """What stands in a body that came with status 200. Raises Passing for one that is no completion: gateways send
    such pages while they start."""
    if text.lstrip()[:1] == "<":
        raise Passing("HTML in place of an answer", _line(re.sub(r"<[^>]*>", " ", text)))
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Passing("an answer that is no JSON", str(error)) from None
    if not isinstance(body, dict):
        raise Passing("an answer that is no JSON object")
    if body.get("error") and not body.get("choices"):
        raise Passing("an error with status 200", _message(text))
    try:
        choice = body["choices"][0]
        content, finish = choice["message"].get("content"), choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        raise Passing("an answer without choices") from None
    told = body.get("usage")
    usage: dict[str, Any] = told if isinstance(told, dict) else {}
    counts = [n if isinstance(n := usage.get(name), int) else None for name in ("prompt_tokens", "completion_tokens")]
    if finish == "length":
        return Answer(None, f"cut off at {max_tokens} tokens", *counts)
    if finish == "content_filter":
        return Answer(None, "withheld by the server's filter", *counts)
    if not isinstance(content, str) or not content.strip():
        return Answer(None, "an empty answer", *counts)
    return Answer(content, "", *counts)


def _vectors(text: str, count: int) -> list[list[float]]:
    """What stands in a body that came with status 200, in the order of the texts. Raises Passing for any other body."""
    try:
        found = {
            int(one["index"]): [float(number) for number in one["embedding"]] for one in orjson.loads(text)["data"]
        }
    except (orjson.JSONDecodeError, LookupError, TypeError, ValueError) as error:
        raise Passing("an answer that holds no vectors", _line(str(error))) from None
    if sorted(found) != list(range(count)) or len({len(vector) for vector in found.values()}) != 1 or not found[0]:
        raise Passing("an answer that holds other vectors than were asked for", f"{len(found)} for {count} texts")
    return [found[place] for place in range(count)]


def _fault(status: int, text: str) -> str:
    """The name of a refusal that is of this one request."""
    if status == 413 or (status in (400, 422) and _TOO_LONG.search(text)):
        return "longer than the model reads"
    return "withheld by the server's filter" if status == 400 and _FILTERED.search(text) else ""


def _message(text: str) -> str:
    """The sentence in a server's error, in whichever of the usual places it stands."""
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError:
        return _line(re.sub(r"<[^>]*>", " ", text))
    for key in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(key):
            body = body[key]
    return _line(body if isinstance(body, str) else orjson.dumps(body).decode())


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _TOLD else text[: _TOLD - 3] + "..."


def _retry_after(value: str | None) -> float | None:
    """Seconds, given as such or as a date."""
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(str(value)).timestamp() - time())
    except ValueError:
        return None
