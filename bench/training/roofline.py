"""What the arithmetic of training would take if all of it were matrix products at this machine's best speed.

    LoRA            forward 2P + 2VHl + aK + 2P_l    backward 2P + 2VHl + 2.5aK + 4P_l    per token
    full                    2P + 2VHl + aK                    4P + 4VHl + 2.5aK

P weights in the layers' linears, VH in the head, P_l in the adapters; l the share of tokens that are labels; K the keys
that a token sees on average, a = 4 x layers x heads x features of a head. Nothing for padding, recomputation or
elementwise work. A prefix that is computed once for many rows counts for each of them: these are tokens of the data.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from training.rows import RANK
from training.runs import precision, request_and_answer
from tunesmith.core import hardware, store


@dataclass(frozen=True)
class Shape:
    """A Llama-like model: output and input features of each of a layer's linears, and the sizes around them."""

    linears: list[tuple[int, int]]
    layers: int
    head: tuple[int, int]
    attention: int  # heads x features of a head


def shape(base: Path) -> Shape:
    config = store.read_json(base / "config.json")
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    depth = config.get("head_dim") or hidden // heads
    q, kv = heads * depth, (config.get("num_key_value_heads") or heads) * depth
    linears = [(q, hidden), (kv, hidden), (kv, hidden), (hidden, q), (inner, hidden), (inner, hidden), (hidden, inner)]
    return Shape(linears, config["num_hidden_layers"], (config["vocab_size"], hidden), q)


def flops_per_token(model: Shape, facts: dict[str, Any], full: bool) -> float:
    """Of forward and backward, by the formulas above; `facts` are those of the rows (`rows.facts`)."""
    P = model.layers * sum(outputs * inputs for outputs, inputs in model.linears)
    P_l = model.layers * RANK * sum(outputs + inputs for outputs, inputs in model.linears)
    head = model.head[0] * model.head[1] * facts["label_share"]
    attention = 4 * model.layers * model.attention * facts["mean_keys"]
    return float(6 * P + 6 * head + 3.5 * attention if full else 4 * P + 4 * head + 3.5 * attention + 6 * P_l)


def request(base: Path, facts: dict[str, Any], full: bool) -> dict[str, Any]:
    """What to ask the process that measures: the model's shapes at the tokens of a mean step."""
    tokens = round(facts["tokens"] / facts["steps"])
    counts = {"tokens": tokens, "labels": round(tokens * facts["label_share"])}
    return {**asdict(shape(base)), **counts, "full": full, "precision": precision()}


def main() -> None:
    """Matrix products at the model's shapes and in its precision, in our engine's environment and with its threads: the
    median time of each, and floating-point operations a second over all of them as often as a step needs them."""
    hardware.calm_threads()
    import torch

    from tunesmith.models.load import DTYPES

    asked, answer = request_and_answer()
    threads, dtype = hardware.threads(), DTYPES[asked["precision"]]
    torch.set_num_threads(threads.value)
    work = [(asked["tokens"], *linear, asked["layers"]) for linear in asked["linears"]]
    flops = seconds = 0.0
    for tokens, outputs, inputs, times in [*work, (asked["labels"], *asked["head"], 1)]:
        x, w, dy = (torch.randn(*s).to(dtype) for s in ((tokens, inputs), (outputs, inputs), (tokens, outputs)))
        products = [partial(torch.mm, x, w.t()), partial(torch.mm, dy, w)]
        if asked["full"]:
            products.append(partial(torch.mm, dy.t(), x))
        flops += times * len(products) * 2 * tokens * outputs * inputs
        seconds += times * sum(_median_seconds(product) for product in products)
    store.write_json(answer, {"flops_per_second": flops / seconds, "threads": threads.value})


def _median_seconds(product: Callable[[], Any], repeats: int = 9) -> float:
    marks: list[float] = []
    for _ in range(repeats + 2):  # the first two choose and prepare the kernel
        started = time.perf_counter()
        product()
        marks.append(time.perf_counter() - started)
    return statistics.median(marks[2:])


if __name__ == "__main__":
    main()
