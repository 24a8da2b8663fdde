"""The base model in this process, in place of a server: loaded at the first question, asked in batches."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from tunesmith.core import hardware
from tunesmith.core.console import say
from tunesmith.core.endpoint_section import Endpoint
from tunesmith.core.records import Message
from tunesmith.models import base as bases
from tunesmith.models.base import Base
from tunesmith.models.wire import Answer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FP32_PARAMETERS = 1_000_000_000  # below it, answers that do not change with what else is in the batch


class InProcess:
    def __init__(self, base: Base, settings: Endpoint) -> None:
        assert base.folder is not None
        self._folder, self._name, self._settings = base.folder, base.name, settings
        facts = bases.facts(self._folder)
        self._context: int | None = facts["context"]
        self.precision = "fp32" if facts["parameters"] <= _FP32_PARAMETERS else "bf16"

    def answers(self, asked: list[tuple[list[Message], int]]) -> list[Answer]:
        """One batch: an answer to each conversation, drawn by its seed."""
        from tunesmith.models import chat, generate

        stops, limit = chat.stop_ids(self._tokenizer, self._folder), self._settings.max_tokens
        prompts: dict[int, list[int]] = {}
        answers: dict[int, Answer] = {}
        for i, (messages, _) in enumerate(asked):
            try:
                ids = chat.prompt_ids(self._tokenizer, messages, [])
            except chat.CannotRender as error:
                answers[i] = Answer(None, error.reason, 0, 0)
                continue
            if self._context and len(ids) + limit > self._context:
                answers[i] = Answer(None, "longer than the model reads", 0, 0)
            else:
                prompts[i] = ids
        seeds = [asked[i][1] for i in prompts] if self._settings.temperature else None
        drawn = generate.Drawn(self._settings.temperature, seeds) if seeds else None
        made = generate.answers(self._model, list(prompts.values()), stops, limit, len(asked), drawn=drawn)
        for (i, ids), new in zip(prompts.items(), made):
            text = self._tokenizer.decode(new, skip_special_tokens=True).strip()
            fault = "an empty answer" if not text else ""
            if not new or new[-1] not in stops:
                fault = f"cut off at {limit} tokens"
            answers[i] = Answer(None if fault else text, fault, len(ids), len(new))
        return [answers[i] for i in range(len(asked))]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from tunesmith.models import load

        return load.tokenizer(self._folder)

    @cached_property
    def _model(self) -> PreTrainedModel:
        import torch

        from tunesmith.models import load

        say(f"  {self._name} answers, in this process")
        torch.set_num_threads(hardware.threads().value)
        return load.model(self._folder, self.precision)
