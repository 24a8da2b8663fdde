"""Not a test: a proxy before an OpenAI-compatible server that does, by plan, what networks and servers do wrong."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal

import httpx
from served import running

Fault = Literal[
    "none", "timeout", "429", "429 retry-after", "500", "dropped", "broken body", "html", "html 502", "no choices",
    "null", "truncated", "broken answer", "fenced answer", "no counts",
]  # fmt: skip
PASSING: tuple[Fault, ...] = ("timeout", "429", "429 retry-after", "500", "dropped", "broken body", "html", "html 502")
HTML = "<html><body><h1>502 Bad Gateway</h1></body></html>"

Plan = Callable[[dict[str, Any], int], Fault]
"""What happens to a request that comes for the n-th time, counted from 0."""


@dataclass
class Proxy:
    """What came, and what was done to it."""

    url: str = ""
    came: list[float] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)


def first_time(faults: tuple[Fault, ...], times: int = 1) -> Plan:
    """A fault, which depends on the request, the first few times that it comes; then its answer."""

    def plan(body: dict[str, Any], seen: int) -> Fault:
        return faults[(_digest(body)[0] + seen) % len(faults)] if seen < times else "none"

    return plan


@contextmanager
def between(server: str, plan: Plan, hold_seconds: float = 2.0, retry_after: str = "1") -> Iterator[Proxy]:
    """The proxy's address ends as the server's does. A timeout holds a request for so long."""
    proxy, seen, lock = Proxy(), Counter[bytes](), threading.Lock()
    client = httpx.Client(base_url=server.removesuffix("/v1"), timeout=60)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer = client.get(self.path)
            self.send(answer.status_code, answer.content)

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.loads(data)
            with lock:
                fault = plan(body, seen[_digest(body)])
                seen[_digest(body)] += 1
                proxy.came.append(time.monotonic())
                proxy.done[fault] += 1
            if fault == "timeout":
                time.sleep(hold_seconds)
                self.cut_off()
            elif fault.startswith("429"):
                after = {"Retry-After": retry_after} if fault == "429 retry-after" else {}
                self.send(429, b'{"error": {"message": "slow down"}}', **after)
            elif fault == "500":
                self.send(500, b'{"error": {"message": "out of luck"}}')
            elif fault.startswith("html"):
                self.send(502 if fault == "html 502" else 200, HTML.encode(), **{"Content-Type": "text/html"})
            else:
                answer = client.post(self.path, content=data, headers=self.passed_on())
                self.forward(answer.status_code, answer.content, fault)

        def forward(self, status: int, data: bytes, fault: Fault) -> None:
            if fault == "dropped":
                self.send(status, data[: len(data) // 2], **{"Content-Length": str(len(data))})
                self.cut_off()
            elif fault == "broken body":
                self.send(status, data[: len(data) // 2])
            elif status != 200 or fault == "none":
                self.send(status, data)
            else:
                self.send(200, json.dumps(_changed(json.loads(data), fault)).encode())

        def passed_on(self) -> dict[str, str]:
            return {name: self.headers[name] for name in ("Content-Type", "Authorization") if self.headers[name]}

        def send(self, status: int, data: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

        def cut_off(self) -> None:
            """With a reset, so that the other side knows at once."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

    with running(Handler) as address:
        proxy.url = f"{address}/v1"
        yield proxy
    client.close()


def dead_url() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def _changed(body: dict[str, Any], fault: Fault) -> dict[str, Any]:
    if fault == "no choices":
        return {**body, "choices": []}
    if fault == "no counts":
        return {name: value for name, value in body.items() if name != "usage"}
    [choice] = body["choices"]
    text = choice["message"]["content"]
    changes: dict[str, tuple[str | None, str]] = {
        "null": (None, "stop"),
        "truncated": (text[: len(text) // 2], "length"),
        "broken answer": (text.replace('"', "'").rstrip("}") + ",", "stop"),
        "fenced answer": (f"Sure, here it is:\n```json\n{text}\n```", "stop"),
    }
    content, finish = changes[fault]
    return {
        **body,
        "choices": [{**choice, "message": {"role": "assistant", "content": content}, "finish_reason": finish}],
    }


def _digest(body: dict[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
