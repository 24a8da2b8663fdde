"""Answers of one model to the frozen test rows, and how likely it finds the wanted ones."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tunesmith.core import hardware, store
from tunesmith.core.console import progress, say
from tunesmith.core.step import Artifact, versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunesmith.core.config import Generation
    from tunesmith.models.base import Base
    from tunesmith.models.packed import Tokens

VERSION = 1
_FP32_PARAMETERS = 1_000_000_000


def run(generation: Generation, base: Base, tuned: Artifact | None, dataset: Artifact, out: Path) -> dict[str, Any]:
    """Writes `predictions.jsonl`: id, prompt, expected, answer, finish ("stop" or "length"), nll (nats over the
    expected answer's `tokens` tokens, end token included; null where it overflows), source and line.

    Greedy decoding with the renderer of training. Answers of the base are kept for all runs and projects by the
    content of the prompt, so that they are generated once; those of a tuned model are as new as the model.
    """
    from tunesmith.models import base as bases
    from tunesmith.models import chat, load
    from tunesmith.models.packed import Tokens

    assert base.folder is not None
    rows = store.read_rows(dataset / "test.jsonl")
    tokenizer = load.tokenizer(base.folder)
    stops = chat.stop_ids(tokenizer, base.folder)
    longest = generation.max_new_tokens or math.ceil((1.25 * dataset.summary["longest_answer"] + 8) / 32) * 32
    small = bases.facts(base.folder)["parameters"] <= _FP32_PARAMETERS
    precision = generation.precision or ("fp32" if small else "bf16")
    settings = {
        "precision": precision,
        "max_new_tokens": longest,
        "stops": stops,
        "renderer": dataset.summary["renderer"],
    }
    prompts = [chat.prompt_ids(tokenizer, row.prompt, row.tools) for row in rows]
    tokens = Tokens(dataset.folder, "test")
    known = _Known(base, settings) if tuned is None else None
    keys = [_key(prompt, tokens.row(i)[0].tolist()) for i, prompt in enumerate(prompts)]
    todo = [i for i, key in enumerate(keys) if known is None or key not in known.found]
    results: dict[str, dict[str, Any]] = dict(known.found) if known else {}
    if todo:
        model = _model(base, tuned, precision)
        made = _answer(
            model,
            tokenizer,
            [prompts[i] for i in todo],
            stops,
            longest,
            generation.batch_size,
            "base" if tuned is None else "tuned",
        )
        nlls = _nlls(model, tokens, todo)
        results |= {keys[i]: {**answer, **nll} for i, answer, nll in zip(todo, made, nlls)}
        if known:
            known.keep({keys[i]: results[keys[i]] for i in todo})
    store.write_jsonl(
        out / "predictions.jsonl",
        (
            {
                "id": row.id,
                "prompt": row.prompt,
                "expected": row.answer,
                **results[key],
                "source": row.source,
                "line": row.line,
            }
            for row, key in zip(rows, keys)
        ),
    )
    reused = len(rows) - len(todo)
    headline = f"{len(rows):,} answers in {precision}" + (f", {reused:,} known from earlier runs" if reused else "")
    return {
        "headline": headline,
        "rows": len(rows),
        "reused": len(rows) - len(todo),
        **settings,
        "batch_size": generation.batch_size,
    }


def _model(base: Base, tuned: Artifact | None, precision: str) -> PreTrainedModel:
    import torch

    from tunesmith.models import adapters, load

    assert base.folder is not None
    torch.set_num_threads(hardware.threads().value)
    model = load.model(base.folder, "fp32" if tuned else precision, packed=True)
    if tuned:
        model = adapters.merged(model, tuned / "adapter").to(load.DTYPES[precision])
    return model


def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    stops: list[int],
    longest: int,
    batch_size: int,
    label: str,
) -> list[dict[str, Any]]:
    from tunesmith.models import generate

    model.set_attn_implementation("sdpa")
    with progress(label, len(prompts), "answers") as bar:
        made = generate.answers(model, prompts, stops, longest, batch_size, bar.advance)
    model.set_attn_implementation("tunesmith_documents")
    return [
        {
            "answer": tokenizer.decode(ids, skip_special_tokens=True).strip(),
            "finish": "stop" if ids and ids[-1] in stops else "length",
        }
        for ids in made
    ]


def _nlls(model: PreTrainedModel, tokens: Tokens, rows: list[int]) -> list[dict[str, Any]]:
    """Negative log-likelihood in nats of each row's learnt tokens, and their number."""
    from tunesmith.models import packed

    found = []
    kernels = packed.kernels_for(model)
    for at in range(0, len(rows), 16):
        part = rows[at : at + 16]
        sums, counts = packed.row_nlls(model, packed.pack(tokens, part, model.device), kernels)
        found += [{"nll": nll if math.isfinite(nll) else None, "tokens": count} for nll, count in zip(sums, counts)]
    return found


def _key(prompt: list[int], row: list[int]) -> str:
    return hashlib.sha256(orjson.dumps([prompt, row])).hexdigest()[:24]


class _Known:
    """Answers that this base gave before, under the same settings and library versions."""

    def __init__(self, base: Base, settings: dict[str, Any]) -> None:
        libraries = {name: versions().get(name) for name in ("torch", "transformers")}
        name = hashlib.sha256(
            orjson.dumps([VERSION, base.identity, settings, libraries], option=orjson.OPT_SORT_KEYS)
        ).hexdigest()
        self.path = store.cache_dir() / "answers" / f"{name[:24]}.json"
        self.found: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            self.found = store.read_json(self.path)
            say(f"  {len(self.found)} answers of the base are known from earlier runs")

    def keep(self, results: dict[str, dict[str, Any]]) -> None:
        self.found |= results
        store.write_json(self.path, self.found)
