"""The project file's sections: every key, its type, its default and its meaning.

The docstring under a field is its documentation: the editor schema (tunesmith.schema.json) and docs/config.md are
generated from it. Values that are left out are either a default written here or a decision of the planner, which says
why. The `data` section stands in core/data_section.py and core/clean_section.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.core.data_section import Data
from tunesmith.core.section import Fraction, InputFiles, Section

Metric = Literal[
    "exact_match", "valid_json", "schema_valid", "field_precision", "field_recall", "field_f1", "rouge_l", "perplexity"
]


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
    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = None
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
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
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
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
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

    texts: Annotated[list[InputFiles], Field(min_length=1)]
    """The files of raw text, also by folder or glob: text, Markdown, HTML, PDF, DOCX, subtitles, or records with a
    `text`."""
    block_tokens: Annotated[int, Field(gt=1)] | None = None
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
