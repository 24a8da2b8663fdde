"""One run of TRL's SFTTrainer on rows, order and adapter that it is given. Started by `runs.run` in its own process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from training.runs import Job, Meter, request_and_answer
from tunesmith.core import hardware

if TYPE_CHECKING:
    from datasets import Dataset

    from tunesmith.models.tokens import Tokens

Example = dict[str, list[int]]


@dataclass(frozen=True)
class Rival:
    """A configuration of TRL. What is not named here is TRL's default; the defaults here are its documented ones.

    padded: every micro-batch is padded to its longest row. flattened: its rows stand end to end (`padding_free`).
    packed: `packing`, best-fit decreasing, into packs of `pack_tokens`, each of them a micro-batch. Otherwise a step is
    cut into `micro_batches`, whose gradients are accumulated."""

    weights: Literal["fp32", "bf16"] = "fp32"
    autocast: bool = True
    checkpointing: bool = True
    attention: Literal["sdpa", "eager"] = "sdpa"
    layout: Literal["padded", "flattened", "packed"] = "padded"
    grouped: bool = False
    micro_batches: int = 1
    pack_tokens: int = 512
    adapter: Literal["fp32", "bf16"] = "fp32"
    compiled: bool = False
    short_spins: bool = False

    @property
    def name(self) -> str:
        packed = self.layout == "packed"
        said = {
            f"{self.weights} weights": True,
            "autocast": self.autocast,
            "checkpointing": self.checkpointing,
            self.attention: True,
            f"packs of {self.pack_tokens}" if packed else self.layout: True,
            "by length": self.grouped,
            f"{self.micro_batches} micro-batches": self.micro_batches > 1 and not packed,
            "bf16 adapter": self.adapter == "bf16",
            "compiled": self.compiled,
            "short spins": self.short_spins,
        }
        return ", ".join(word for word, true in said.items() if true)


def main() -> None:
    request, answer = request_and_answer()
    job = Job(**request)
    rival = Rival(**job.settings)
    if rival.short_spins:
        hardware.calm_threads()
    import torch

    meter = Meter(job)
    trainer = _trainer(job, rival, meter)
    trainer.train()
    trained = {str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}
    meter.write(answer, {"threads": torch.get_num_threads(), "trained_in": sorted(trained)})


def _trainer(job: Job, rival: Rival, meter: Meter) -> Any:
    from transformers import TrainerCallback
    from trl import SFTTrainer

    from tunesmith.models import load
    from tunesmith.models.tokens import Tokens

    class Stopwatch(TrainerCallback):
        seen = 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:
                meter.begin()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                meter.step(logs["loss"], logs["grad_norm"], int(logs["num_tokens"]) - self.seen)
                self.seen = int(logs["num_tokens"])

    tokens = Tokens(Path(job.rows), "train")
    packs = _packs_per_step(job, rival, tokens)
    trainer = SFTTrainer(
        model=_model(job, rival),
        args=_arguments(job, rival, packs),
        train_dataset=_dataset(job, rival, tokens, packs),
        callbacks=[Stopwatch()],
        processing_class=load.tokenizer(Path(job.base)),
    )
    _require_same_rows(trainer.train_dataset, job, tokens)
    return trainer


def _model(job: Job, rival: Rival) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[rival.weights]
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=dtype, attn_implementation=rival.attention)
    if not job.adapter:
        return model
    wide = rival.adapter == "fp32"
    return PeftModel.from_pretrained(model, job.adapter, is_trainable=True, autocast_adapter_dtype=wide)


def _packs_per_step(job: Job, rival: Rival, tokens: Tokens) -> int | None:
    """As many packs as hold about the tokens of a mean step of rows."""
    if rival.layout != "packed":
        return None
    lengths, timed = tokens.lengths, job.order[job.warmup :]
    return max(1, round(sum(lengths[i] for rows in timed for i in rows) / len(timed) / rival.pack_tokens))


def _arguments(job: Job, rival: Rival, packs: int | None) -> Any:
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(Path(job.rows).parent / "trl"),
        per_device_train_batch_size=1 if packs else len(job.order[0]) // rival.micro_batches,
        gradient_accumulation_steps=packs or rival.micro_batches,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        padding_free=rival.layout != "padded",
        max_length=None,
        bf16=rival.autocast,
        gradient_checkpointing=rival.checkpointing,
        torch_compile=rival.compiled,
        learning_rate=job.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=job.seed,
    )


def _dataset(job: Job, rival: Rival, tokens: Tokens, packs: int | None) -> Dataset:
    """The rows in the job's order. TRL's own packer packs warm-up and timed rows by themselves, and the timed ones once
    for all passes; warm-up packs are repeated or left out until they make whole steps."""
    from datasets import Dataset, concatenate_datasets
    from trl import pack_dataset

    warm, timed = (_examples(part, tokens) for part in (job.order[: job.warmup], job.order[job.warmup :]))
    if not packs:
        return Dataset.from_list(warm + timed * job.passes)
    parts = [pack_dataset(Dataset.from_list(part), rival.pack_tokens) for part in (warm, timed) if part]
    if warm:
        parts[0] = parts[0].select([i % len(parts[0]) for i in range(job.warmup * packs)])
    return concatenate_datasets([*parts[:-1], *[parts[-1]] * job.passes])


def _examples(order: list[list[int]], tokens: Tokens) -> list[Example]:
    """Ids, and labels that are ids where a token is learnt and -100 elsewhere."""
    pairs = [tokens.row(i) for rows in order for i in rows]
    return [
        {"input_ids": ids.tolist(), "labels": [int(i) if learn else -100 for i, learn in zip(ids, learnt)]}
        for ids, learnt in pairs
    ]


def _require_same_rows(dataset: Dataset, job: Job, tokens: Tokens) -> None:
    """What TRL made of the rows still has our ids and labels: in our order, or, in packs, each timed row as often."""
    found = [row for example in dataset for row in _rows(example)]
    wanted = [(example["input_ids"], example["labels"]) for example in _examples(job.steps, tokens)]
    if "seq_lengths" in dataset.column_names:
        wanted = sorted(wanted[job.warmup * len(job.order[0]) :])
        found = sorted(found[-len(wanted) :])
    if found != wanted:
        raise ValueError("TRL would train on other tokens or labels than tunesmith")


def _rows(example: Any) -> list[tuple[list[int], list[int]]]:
    """A pack's rows, by the lengths that TRL keeps of them; a plain example is its own only row."""
    rows, at = [], 0
    for length in example.get("seq_lengths", [len(example["input_ids"])]):
        rows.append((example["input_ids"][at : at + length], example["labels"][at : at + length]))
        at += length
    return rows


if __name__ == "__main__":
    main()
