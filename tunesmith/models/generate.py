"""Answers in batches, for scoring and as a judge or writer of examples, and in pieces, for chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Thread
from typing import Any

import torch
from peft import PeftModel, PeftType
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextIteratorStreamer,
)

from tunesmith.models.load import quiet


def settings(stops: list[int], max_new_tokens: int) -> GenerationConfig:
    return GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=stops[0])


@dataclass(frozen=True)
class Drawn:
    """Answers are drawn, not the likeliest: a seed for each prompt, whose answer then depends on nothing else."""

    temperature: float
    seeds: list[int]


class _Noise(LogitsProcessor):
    """Gumbel noise on the logits of a batch: the greedy choice is then a draw from their softmax at this temperature.
    A row's noise comes from its own seed, whatever else is in the batch."""

    def __init__(self, temperature: float, seeds: list[int]) -> None:
        self.temperature = temperature
        self.sources = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
        uniform_BV = torch.stack([torch.rand(logits_BV.shape[1], generator=source) for source in self.sources])
        noise_BV = -torch.log(-torch.log(uniform_BV.clamp(1e-20, 1 - 1e-7)))
        return logits_BV.float() / self.temperature + noise_BV.to(logits_BV.device)


@torch.inference_mode()
def answers(
    model: PreTrainedModel | PeftModel,
    prompts: list[list[int]],
    stops: list[int],
    max_new_tokens: int,
    batch_size: int,
    done: Callable[[int], None] = lambda rows: None,
    drawn: Drawn | None = None,
) -> list[list[int]]:
    """New tokens for each prompt, its end token included when it was reached: the likeliest, unless they are `drawn`.
    Prompts of like length share a batch, padded on the left; `done` is told the number of rows after each batch."""
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
        noise = [_Noise(drawn.temperature, [drawn.seeds[i] for i in rows])] if drawn else []
        for i, new in zip(rows, _new_tokens(model, ids, mask, config, noise).tolist()):
            end = next((n + 1 for n, token in enumerate(new) if token in stops), len(new))
            found[i] = new[:end]
        done(len(rows))
    return found


def _new_tokens(
    model: PreTrainedModel | PeftModel, ids_BT: Tensor, mask_BT: Tensor, config: GenerationConfig, noise: list[_Noise]
) -> Any:
    """What transformers' generate adds to a batch that is padded on the left.

    PEFT would put the vectors of prompt tuning before the padding: their distance from the text, and with it the
    answer, would change with the lengths of the row's neighbours. Here they go between padding and text.
    """
    if not (isinstance(model, PeftModel) and model.active_peft_config.peft_type == PeftType.PROMPT_TUNING):
        with quiet():
            made_BT = model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                generation_config=config,
                logits_processor=LogitsProcessorList(noise),
            )
        return made_BT[:, ids_BT.shape[1] :]
    base, prompt_VD = model.get_base_model(), model.get_prompt(batch_size=1)[0]
    text_BTD, padding = base.get_input_embeddings()(ids_BT), (mask_BT == 0).sum(1).tolist()
    rows = [torch.cat((text_TD[:p], prompt_VD.to(text_TD), text_TD[p:])) for text_TD, p in zip(text_BTD, padding)]
    mask_BS = torch.cat((mask_BT, mask_BT.new_ones(len(rows), len(prompt_VD))), 1)  # padding still comes first
    return base.generate(
        inputs_embeds=torch.stack(rows),
        attention_mask=mask_BS,
        generation_config=config,
        logits_processor=LogitsProcessorList(noise),
    )


def stream(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    stops: list[int],
    max_new_tokens: int,
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
            with quiet():
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
