"""Not a test: an OpenAI-compatible server on this machine, with a real model behind it that answers greedily."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tunesmith.models import base as bases
from tunesmith.models import chat, generate, load

Think = Callable[[list[dict[str, str]], int, int], tuple[str, int, int, bool]]
"""Messages, max_tokens and seed; text, prompt tokens, answer tokens, and whether the answer came to its end."""


@dataclass
class Served:
    """What the server was asked: each request for a completion, and when it came."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0


def model_of(base: bases.Base, say: Callable[[list[dict[str, str]], int], str] | None = None) -> Think:
    """Answers by the base. A small random model says nothing of use, so that `say` may put words into its mouth: the
    model runs all the same, and its tokens are counted."""
    assert base.folder is not None
    model, tokenizer = load.model(base.folder, "fp32"), load.tokenizer(base.folder)
    stops, one_at_a_time = chat.stop_ids(tokenizer, base.folder), threading.Lock()

    def think(messages: list[dict[str, str]], max_tokens: int, seed: int) -> tuple[str, int, int, bool]:
        ids = chat.prompt_ids(tokenizer, messages, [])
        limit = min(max_tokens, 2) if say else max_tokens
        with one_at_a_time:
            [new] = generate.answers(model, [ids], stops, limit, 1)
        if say is None:
            return tokenizer.decode(new, skip_special_tokens=True).strip(), len(ids), len(new), new[-1] in stops
        text = say(messages, seed)
        return text, len(ids), len(tokenizer(text)["input_ids"]), True

    return think


@contextmanager
def serving(think: Think, model: str = "small", key: str | None = None, slow_seconds: float = 0.0) -> Iterator[Served]:
    served, lock = Served(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self.answer(200, {"object": "list", "data": [{"id": model, "object": "model"}]})
            else:
                self.answer(404, {"error": {"message": "no such page"}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                self.answer(404, {"error": {"message": "no such page"}})
            elif key and self.headers["Authorization"] != f"Bearer {key}":
                self.answer(401, {"error": {"message": f"wrong key: {self.headers['Authorization']}"}})
            elif body["model"] != model:
                self.answer(404, {"error": {"message": f"no model {body['model']}", "code": "model_not_found"}})
            else:
                self.complete(body)

        def complete(self, body: dict[str, Any]) -> None:
            with lock:
                served.asked.append(body)
                served.keys.append(self.headers["Authorization"])
                served.times.append(time.monotonic())
                served.at_once += 1
                served.most_at_once = max(served.most_at_once, served.at_once)
            time.sleep(slow_seconds)
            text, prompt_tokens, answer_tokens, whole = think(body["messages"], body["max_tokens"], body["seed"])
            with lock:
                served.at_once -= 1
                served.tokens.append((prompt_tokens, answer_tokens))
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop" if whole else "length",
            }
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": answer_tokens}
            self.answer(200, {"object": "chat.completion", "model": model, "choices": [choice], "usage": usage})

        def answer(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with running(Handler) as address:
        served.url = f"{address}/v1"
        yield served


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are no news here."""


@contextmanager
def running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = Quiet(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
