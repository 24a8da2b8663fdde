"""The project file's sections: every key, its type, its default and its meaning.

The docstring under a field is its documentation: the editor schema (tunesmith.schema.json) and docs/config.md are
generated from it. Paths are relative to the project file. Values that are left out are either a default written here or
a decision of the planner, which says why.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from tunesmith.core.records import Split as Side


def _absolute(path: Path, info: ValidationInfo) -> Path:
    """Paths in the file are relative to it; ~ is the home folder, ${NAME} an environment variable."""
    missing = [name for name in re.findall(r"\$\{(\w+)\}", str(path)) if name not in os.environ]
    if missing:
        raise ValueError(f"the environment variable {missing[0]} is not set; this path begins there")
    root: Path = (info.context or {}).get("root", Path.cwd())
    return root / os.path.expandvars(os.path.expanduser(path))


def _existing(path: Path) -> Path:
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name one file")
        if not path.exists():
            near = difflib.get_close_matches(path.name, os.listdir(path.parent) if path.parent.is_dir() else [], 1, 0.5)
            raise ValueError(f"no such file: {path}" + (f" (did you mean {near[0]}?)" if near else ""))
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise ValueError(f"{path} cannot be looked up: {error.strerror}") from None
    return path


InputFile = Annotated[Path, AfterValidator(_absolute), AfterValidator(_existing)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Metric = Literal[
    "exact_match", "valid_json", "schema_valid", "field_precision", "field_recall", "field_f1", "rouge_l", "perplexity"
]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_means_left_out(cls, given: Any) -> Any:
        """`train:` with nothing under it is null in YAML; it means the section with its defaults."""
        sections = {name for name, field in cls.model_fields.items() if isinstance(field.default, Section)}
        left_out = {name for name in sections if isinstance(given, dict) and given.get(name, 0) is None}
        return {name: value for name, value in given.items() if name not in left_out} if left_out else given


class Fields(Section):
    """Which column of a record plays which part, where its names are not the usual ones."""

    prompt: str | None = None
    """The column that holds the question or input text."""
    answer: str | None = None
    """The column that holds the wanted answer; an object or list becomes compact JSON text."""
    system: str | None = None
    """The column that holds a system message of the row's own."""
    messages: str | None = None
    """The column that holds a list of chat messages."""


class Source(Section):
    """One file of examples."""

    path: InputFile
    """JSONL, JSON, CSV, TSV or Parquet; `${NAME}` stands for an environment variable."""
    fields: Fields = Fields()
    """Column names, where tunesmith does not find them by itself."""
    convert: InputFile | None = None
    """A Python file with `convert(record) -> record`, called on each record first. What it imports is not watched."""
    split: Side = "auto"
    """The side that all rows of this file belong to; `auto` lets the splitter choose per row."""


class Clean(Section):
    """What is repaired or dropped before the split; every drop is kept on disk with its reason."""

    answer: Literal["text", "json"] = "text"
    """`json`: an answer that does not parse as JSON is dropped."""
    answer_schema: InputFile | None = None
    """A JSON Schema file; an answer that does not follow it is dropped. Needs `answer: json`."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows whose normalised prompt and answer are those of an earlier row."""
    near_duplicates: Annotated[float, Field(gt=0.5, le=1)] | None = 0.9
    """Drop a row when the answer is an earlier row's and the prompts' character 4-grams have this Jaccard similarity or
    more; `null` keeps them. Prompts that differ in a number or a negation are never near-duplicates."""
    contradictions: Literal["drop", "majority", "report"] = "report"
    """Rows with the same prompt and different answers: drop them all, keep those with the commonest answer, or only
    count them (right where several answers are right)."""
    personal_data: Literal["replace", "drop", "report"] = "report"
    """E-mail addresses, phone, card and bank account numbers: put a placeholder of the same kind, drop the row, or only
    count them."""


class Split(Section):
    """Which rows train, which choose the best checkpoint, which are the frozen exam. Rows whose prompts are alike stay
    on one side, which follows from a hash, so that rows which are added later move no others; a certificate says that
    no row of the exam is like one that trains."""

    validation: Fraction = 0.1
    """Share of the rows used to choose the checkpoint."""
    test: Fraction = 0.2
    """Share of the rows that neither training nor the choice of checkpoint ever sees."""
    max_train_rows: Annotated[int, Field(gt=0)] | None = None
    """Keep at most so many training rows (those with the lowest hash); the rest are counted as dropped."""
    max_validation_rows: Annotated[int, Field(gt=0)] | None = None
    """Keep at most so many validation rows."""
    max_test_rows: Annotated[int, Field(gt=0)] | None = None
    """Keep at most so many test rows."""


class Format(Section):
    """How rows become tokens."""

    max_tokens: Annotated[int, Field(gt=8)] | None = None
    """Longest row in tokens. Left out: the model's context."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What happens to a longer row. `truncate` cuts the end of the answer, and the report counts what was cut."""


def _schema_has_json(clean: Clean) -> Clean:
    if clean.answer_schema and clean.answer != "json":
        raise ValueError("answer_schema needs JSON answers: write `answer: json` beside it")
    return clean


def _rows_are_left(split: Split) -> Split:
    if split.validation + split.test >= 1:
        raise ValueError(
            f"validation {split.validation:g} + test {split.test:g} must be less than 1, to leave training rows"
        )
    return split


class Data(Section):
    """From files to clean, split, tokenised rows."""

    sources: Annotated[list[Source], Field(min_length=1)]
    """The files of examples."""
    system: str | None = None
    """A system message for every row that has none: say here what the model should do."""
    max_quarantined: Fraction = 0.05
    """The run stops when a larger share of the records cannot be read as rows."""
    clean: Annotated[Clean, AfterValidator(_schema_has_json)] = Clean()
    """What is repaired or dropped before the split."""
    split: Annotated[Split, AfterValidator(_rows_are_left)] = Split()
    """Which rows train and which test."""
    format: Format = Format()
    """How rows become tokens."""


class Train(Section):
    """Every value that is left out is the planner's decision; `tunesmith run` prints each with its reason."""

    method: Literal["full", "freeze", "lora", "prompt", "prefix", "ia3", "bottleneck"] = "lora"
    """What trains. `full`: every weight. `freeze`: the modules named under `layers`. `lora`: low-rank matrices beside
    every linear layer. `prompt`: vectors before the text. `prefix`: keys and values before the text in every layer.
    `ia3`: a factor for each key, value and inner feed-forward channel. `bottleneck`: a small feed-forward module after
    every block's own."""
    variant: Literal["plain", "rslora", "dora"] | None = None
    """Of LoRA. `rslora` scales the update by alpha / sqrt(rank), for high ranks; `dora` learns each output channel's
    magnitude on its own: better at low ranks, and slower."""
    layers: list[Annotated[str, Field(min_length=1)]] = []
    """Modules that train in full, as patterns such as `layers.28`, `layers.2?.mlp` or `lm_head`: alone with `method:
    freeze`, and with `method: lora` beside LoRA on all others."""
    quantise: Literal["nf4"] | None = None
    """QLoRA: the frozen linear layers are kept in 4 bits (NF4, with double quantisation) while LoRA trains. Needs
    `pip install bitsandbytes`."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training rows."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of AdamW."""
    rank: Annotated[int, Field(gt=0)] | None = None
    """LoRA rank."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """LoRA alpha; the update is scaled by alpha / rank."""
    virtual_tokens: Annotated[int, Field(gt=0)] | None = None
    """How many vectors `prompt` and `prefix` put before the text."""
    width: Annotated[int, Field(gt=0)] | None = None
    """Inner width of a `bottleneck` module."""
    batch_tokens: Annotated[int, Field(gt=0)] | None = None
    """Tokens in one optimizer step."""
    threads: Annotated[int, Field(gt=0)] | None = None
    """Threads of each process. Left out: as many as OMP_NUM_THREADS says, else one for each core that other programs
    leave free when training starts; a run that goes on keeps those that it had."""
    micro_batch_tokens: Annotated[int, Field(gt=0)] | None = None
    """Tokens in one forward and backward pass, at most: fewer where memory is short; the result stays the same."""
    precision: Literal["bf16", "fp32"] | None = None
    """Number format of the frozen weights and of the computation."""
    warmup: Fraction = 0.05
    """Share of the steps over which the learning rate rises; then it falls along a cosine to a tenth."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay, of matrices: norms, biases, magnitudes and factors are spared."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    evaluations: Annotated[int, Field(gt=0)] | None = None
    """How many times validation loss is measured over the run."""
    patience: Annotated[int, Field(gt=0)] | None = 3
    """Stop after so many evaluations without a better validation loss; `null` never stops early."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the adapter's first weights and of the order of the rows."""
    processes: Annotated[int, Field(gt=0)] = 1
    """How many processes share the work of each optimizer step: one a GPU. `tunesmith run` starts them itself."""
    sharding: Literal["none", "fsdp2"] = "none"
    """`fsdp2`: weights, gradients and optimizer state are divided among the processes instead of repeated in each."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = []
    """Where losses are logged too, beside the run's own record: into `trackers/` of the training step, or, where the
    tracker's own settings name a server, there."""
    watch: Literal["stop", "warn"] = "stop"
    """When training goes wrong: end with an explanation, or go on and warn."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    """How often a checkpoint is written from which a killed run goes on, into `unfinished/` of the output folder; the
    last two are kept. Evaluations write one too, if that takes little of the time."""


class Pretrain(Section):
    """Continued pretraining on raw text before the rows are learnt; the tuning starts from its result."""

    texts: Annotated[list[InputFile], Field(min_length=1)]
    """The files of raw text."""
    block_tokens: Annotated[int, Field(gt=0)] | None = None
    """Longest piece of a text that is learnt at once, in tokens: 1,024 unless the model reads less."""
    train: Train = Train()
    """How the model is trained on the texts."""


class Gate(Section):
    """A demand on the tuned model. PASS needs the gain over the base to exceed the margin with confidence 1 - alpha."""

    metric: Metric
    """The figure that must rise (perplexity: must fall)."""
    margin: float = 0.0
    """The smallest gain that counts, in the metric's unit (perplexity: as a fraction of the base's). Negative: at most
    so much may be lost."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Probability of passing a model that does not exceed the margin."""


class Generation(Section):
    """How answers are generated for scoring: greedy, with the chat template of training."""

    max_new_tokens: Annotated[int, Field(gt=0)] | None = None
    """Longest answer; left out, a quarter more than the longest answer in the data."""
    batch_size: Annotated[int, Field(gt=0)] = 32
    """Prompts answered at once."""
    precision: Literal["bf16", "fp32"] | None = None
    """Left out: fp32 up to a billion parameters, since greedy bf16 answers change with the batch size."""


class Evaluate(Section):
    """Base against tuned on the frozen test rows."""

    generation: Generation = Generation()
    """How answers are generated."""
    gates: list[Gate] = []
    """What the tuned model must reach. Left out: field_f1 (JSON answers) or perplexity must improve at all."""


class Export(Section):
    """What is written at the end: the adapter, where the method makes one, and the whole model."""

    merged: bool | None = None
    """Also write the whole model, adapter merged in, as bf16 safetensors. Left out: where the method can be merged,
    which are all but `prompt`, `prefix` and `bottleneck`."""


class Project(Section):
    """A tunesmith project: data in, a measured model out."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the project and of the model that it makes."""
    model: str = "smollm2-135m-instruct"
    """The base: a name that `tunesmith models` lists, a local folder, or a hub id such as `org/name` or
    `org/name@revision`."""
    data: Data
    """From files to clean, split, tokenised rows."""
    pretrain: Pretrain | None = None
    """Continued pretraining on raw text, first."""
    train: Train = Train()
    """How the model is tuned."""
    evaluate: Evaluate = Evaluate()
    """How base and tuned model are compared, and what passes."""
    export: Export = Export()
    """What is written at the end."""
