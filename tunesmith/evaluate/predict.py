"""Answers of one model to the frozen test rows, and how likely it finds the wanted ones."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tunesmith.core import hardware, store
from tunesmith.core.console import progress, say
from tunesmith.core.errors import ModelError
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact, versions

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from tunesmith.core.project import Generation
    from tunesmith.models.base import Base
    from tunesmith.models.tokens import Tokens

VERSION = 5
_FP32_PARAMETERS = 1_000_000_000


@dataclass(frozen=True)
class _Exam:
    """The frozen rows as prompts, the settings that an answer depends on, and a key for each row's content."""

    rows: list[Row]
    prompts: list[list[int]]
    keys: list[str]
    tokens: Tokens
    settings: dict[str, Any]


def run(
    generation: Generation, base: Base | Artifact, tuned: Artifact | None, dataset: Artifact, out: Path
) -> dict[str, Any]:
    """Writes `predictions.jsonl`: id, prompt, expected, answer, finish ("stop" or "length"), new_tokens (generated),
    nll (nats over the row's `tokens` learnt tokens, end tokens included; null where it overflows), source and line.

    Greedy decoding with the renderer of training. Answers of the base are kept for all runs and projects by the
    content of the prompt, so that they are generated once; those of a tuned model are as new as the model.
    """
    from tunesmith.models import base as bases

    base = bases.of(base)
    exam = _exam(generation, base, dataset)
    known = _Known(base, exam.settings) if tuned is None else None
    results = dict(known.found) if known else {}
    todo = [i for i, key in enumerate(exam.keys) if key not in results]
    if todo:
        made = _sit(exam, todo, base, tuned, generation.batch_size)
        results |= made
        if known:
            known.keep(made)
    store.write_jsonl(out / "predictions.jsonl", (_line(row, results[key]) for row, key in zip(exam.rows, exam.keys)))
    reused = len(exam.rows) - len(todo)
    told = f", {reused:,} of them known from earlier runs" if reused else ""
    return {
        "headline": f"{len(exam.rows):,} answers in {exam.settings['precision']}{told}",
        "rows": len(exam.rows),
        "reused": reused,
        **exam.settings,
    }


def _exam(generation: Generation, base: Base, dataset: Artifact) -> _Exam:
    from tunesmith.models import base as bases
    from tunesmith.models import chat, load
    from tunesmith.models.tokens import Tokens

    assert base.folder is not None
    rows, tokens = store.read_rows(dataset / "test.jsonl"), Tokens(dataset.folder, "test")
    tokenizer = load.tokenizer(base.folder)
    if chat.fingerprint(tokenizer) != dataset.summary["renderer"]:
        raise ModelError(
            f"the chat template of {base.name} changed since the rows were tokenised",
            "answers would be scored under another template than training used",
            "tunesmith run --force format",
        )
    prompts = [chat.prompt_ids(tokenizer, row.prompt, row.tools) for row in rows]
    small = bases.facts(base.folder)["parameters"] <= _FP32_PARAMETERS
    longest = math.ceil((1.25 * dataset.summary["longest_answer"] + 8) / 32) * 32
    settings = {
        "precision": generation.precision or ("fp32" if small else "bf16"),
        "max_new_tokens": generation.max_new_tokens or longest,
        "stops": chat.stop_ids(tokenizer, base.folder),
        "renderer": dataset.summary["renderer"],
        "batch_size": generation.batch_size,
    }
    return _Exam(rows, prompts, [_key(p, tokens.row(i)[0].tolist()) for i, p in enumerate(prompts)], tokens, settings)


def _sit(exam: _Exam, todo: list[int], base: Base, tuned: Artifact | None, batch_size: int) -> dict[str, Any]:
    """Answers and likelihoods of the rows `todo`, by key."""
    import torch

    from tunesmith.models import attention, generate, load, methods

    assert base.folder is not None
    torch.set_num_threads(hardware.threads().value)
    precision, stops = exam.settings["precision"], exam.settings["stops"]
    model = methods.load_tuned(base.folder, tuned.folder, precision) if tuned else load.model(base.folder, precision)
    tokenizer = load.tokenizer(base.folder)
    with progress("tuned" if tuned else "base", len(todo), "answers") as bar:
        made = generate.answers(
            model, [exam.prompts[i] for i in todo], stops, exam.settings["max_new_tokens"], batch_size, bar.advance
        )
    model.set_attn_implementation(attention.NAME)
    answers = [
        {
            "answer": tokenizer.decode(ids, skip_special_tokens=True).strip(),
            "finish": "stop" if ids and ids[-1] in stops else "length",
            "new_tokens": len(ids),
        }
        for ids in made
    ]
    return {exam.keys[i]: {**a, **nll} for i, a, nll in zip(todo, answers, _nlls(model, exam.tokens, todo))}


def _nlls(model: PreTrainedModel | PeftModel, tokens: Tokens, rows: list[int]) -> list[dict[str, Any]]:
    """Negative log-likelihood in nats of each row's learnt tokens, and their number."""
    from tunesmith.models import packed

    found = []
    with progress("likelihood", len(rows), "rows") as bar:
        for nll, count in packed.row_nlls(model, tokens, rows):
            found.append({"nll": nll if math.isfinite(nll) else None, "tokens": count})
            bar.advance(1)
    return found


def _line(row: Row, result: dict[str, Any]) -> dict[str, Any]:
    told = {"id": row.id, "prompt": row.prompt, "expected": row.answer}
    return {**told, **result, "source": row.source, "line": row.line}


def _key(prompt: list[int], row: list[int]) -> str:
    return hashlib.sha256(orjson.dumps([prompt, row])).hexdigest()[:24]


class _Known:
    """Answers that this base gave before, under the same settings and library versions."""

    def __init__(self, base: Base, settings: dict[str, Any]) -> None:
        if settings["precision"] == "fp32":  # rounded answers depend on what else is in the batch, exact ones do not
            settings = {**settings, "batch_size": None}
        libraries = {name: versions().get(name) for name in ("torch", "transformers")}
        name = hashlib.sha256(
            orjson.dumps([VERSION, base.identity, settings, libraries], option=orjson.OPT_SORT_KEYS)
        ).hexdigest()
        self.path = store.cache_dir() / "answers" / f"{name[:24]}.json"
        self.found: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            try:
                self.found = store.read_json(self.path)
            except ValueError:  # not what we wrote: the answers are made anew, and the file with them
                say(f"  {self.path} is broken and will be replaced")

    def keep(self, results: dict[str, dict[str, Any]]) -> None:
        self.found |= results
        try:
            store.write_json(self.path, self.found)
        except OSError as error:
            say(f"  the base's answers are not kept for other runs: {self.path} cannot be written ({error.strerror})")
