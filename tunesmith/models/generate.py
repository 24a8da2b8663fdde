"""Greedy answers in batches, for scoring and for chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Thread

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextIteratorStreamer


def settings(stops: list[int], max_new_tokens: int) -> GenerationConfig:
    return GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=stops[0])


@torch.inference_mode()
def answers(
    model: PreTrainedModel,
    prompts: list[list[int]],
    stops: list[int],
    max_new_tokens: int,
    batch_size: int,
    done: Callable[[int], None] = lambda rows: None,
) -> list[list[int]]:
    """New tokens for each prompt, its end token included when it was reached. Prompts of like length share a batch,
    padded on the left; `done` is told the number of rows after each batch."""
    found: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    config = settings(stops, max_new_tokens)
    for at in range(0, len(order), batch_size):
        rows = order[at : at + batch_size]
        width = max(len(prompts[i]) for i in rows)
        ids = torch.tensor([[stops[0]] * (width - len(prompts[i])) + prompts[i] for i in rows], device=model.device)
        mask = torch.tensor(
            [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows], device=model.device
        )
        made = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
        for i, new in zip(rows, made):
            end = next((n + 1 for n, token in enumerate(new) if token in stops), len(new))
            found[i] = new[:end]
        done(len(rows))
    return found


def stream(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: list[int], stops: list[int], max_new_tokens: int
) -> Iterator[str]:
    """One answer, in pieces of text as they are made."""
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = torch.tensor([prompt], device=model.device)
    options = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "streamer": pieces,
        "generation_config": settings(stops, max_new_tokens),
    }
    failed: list[Exception] = []

    def generate() -> None:
        try:
            model.generate(**options)
        except Exception as error:  # handed to the reader, who would otherwise wait for ever
            failed.append(error)
            pieces.end()

    worker = Thread(target=generate, daemon=True)
    worker.start()
    yield from pieces
    worker.join()
    if failed:
        raise failed[0]
