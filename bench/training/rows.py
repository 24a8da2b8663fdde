"""The rows that every system trains on, the order in which they meet, and the adapter from which all of them start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.core.records import Message
from tunesmith.models import chat, load
from tunesmith.models.tokens import Tokens

MAX_LENGTH = 512
RANK, ALPHA = 16, 32


@dataclass(frozen=True)
class Schedule:
    """The same rows in two orders, `warmup` steps first: mixed as in a shuffled epoch, and grouped, where the rows of a
    step have like lengths."""

    warmup: int
    mixed: list[list[int]]
    grouped: list[list[int]]


def tokenise(source: Path, base: Path, out: Path) -> None:
    """Writes Alpaca rows as the arrays that `Tokens` reads, rendered and cut to MAX_LENGTH as by our own pipeline."""
    tokenizer = load.tokenizer(base)
    rendered = [chat.render(tokenizer, messages, []) for messages in _conversations(source)]
    kept = [(r.ids[:MAX_LENGTH], r.learnt[:MAX_LENGTH]) for r in rendered if any(r.learnt[:MAX_LENGTH])]
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "train.ids.npy", np.array([i for ids, _ in kept for i in ids], dtype=np.int32))
    np.save(out / "train.learnt.npy", np.array([m for _, learnt in kept for m in learnt], dtype=np.bool_))
    np.save(out / "train.ends.npy", np.cumsum([len(ids) for ids, _ in kept], dtype=np.int64))


def _conversations(source: Path) -> Iterator[list[Message]]:
    for row in json.loads(source.read_text(encoding="utf-8")):
        question = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
        yield [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]


def schedule(lengths: list[int], steps: int, warmup: int, together: int, seed: int) -> Schedule:
    """Chooses rows for `steps` timed steps, `together` in each.

    transformers' own sampler groups the whole data set by length, as it would for a rival that groups; of its steps,
    those at even places between the shortest and the longest are timed. So a short run meets the lengths of a whole
    epoch, a rival that groups wastes as little on padding as it would in one, and all others mix the same rows."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    order = get_length_grouped_indices(lengths, together, generator=torch.Generator().manual_seed(seed))
    groups = sorted(_cut(order, together), key=lambda rows: sum(lengths[i] for i in rows))
    if len(groups) < steps + warmup:
        raise ValueError(f"{len(lengths)} rows are too few for {warmup + steps} steps of {together} rows")
    timed = {int((i + 0.5) * len(groups) / steps) for i in range(steps)}
    make = np.random.default_rng(seed)
    others = [groups[i] for i in make.permutation(len(groups)) if i not in timed][:warmup]
    chosen = [groups[i] for i in make.permutation(sorted(timed))]
    mixed = [make.permutation([row for rows in part for row in rows]).tolist() for part in (others, chosen)]
    return Schedule(warmup, [step for part in mixed for step in _cut(part, together)], others + chosen)


def _cut(order: list[int], together: int) -> list[list[int]]:
    """Whole steps only: a last one with fewer rows would weigh its rows more."""
    return [order[at : at + together] for at in range(0, len(order) - together + 1, together)]


def initial_adapter(base: Path, out: Path, seed: int) -> None:
    """Writes a LoRA on all linear layers in PEFT's format. Its numbers are exact in bf16, so that whoever loads it, in
    whatever precision, starts from the same point."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    with load.quiet(), torch.no_grad():
        model = get_peft_model(load.model(base, "fp32"), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(parameter.bfloat16())
        model.save_pretrained(str(out))


def facts(tokens: Tokens, order: list[list[int]]) -> dict[str, Any]:
    """What these steps hold: rows, tokens, the share of them that is learnt, and how far a token looks back."""
    rows = [row for step in order for row in step]
    lengths = np.array(tokens.lengths)[rows]
    return {
        "steps": len(order),
        "rows": len(rows),
        "tokens": int(lengths.sum()),
        "label_share": float(tokens.learnt_tokens(rows) / lengths.sum()),
        "mean_keys": float((lengths * (lengths + 1) / 2).sum() / lengths.sum()),
        "shared_prefix_tokens": _shared_prefix([tokens.row(i)[0].tolist() for i in rows]),
    }


def _shared_prefix(rows: list[list[int]]) -> int:
    """Tokens with which all rows begin: the chat template's system prompt."""
    same = [len(set(column)) == 1 for column in zip(*rows)]
    return same.index(False) if False in same else len(same)
