"""The project file: one YAML, checked as a whole, changed by nothing.

The docstring under a field is its documentation: the editor schema (tunesmith.schema.json) and docs/config.md are
generated from it. Paths are relative to the project file. Values that are left out are either a default written here or
a decision of the planner, which says why.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from tunesmith.core.errors import ConfigError
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
    """Which rows train, which choose the best checkpoint, which are the frozen exam. A row's side follows from the hash
    of its normalised prompt, so rows that are added later move no other row."""

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

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training rows."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of AdamW."""
    rank: Annotated[int, Field(gt=0)] | None = None
    """LoRA rank."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """LoRA alpha; the update is scaled by alpha / rank."""
    batch_tokens: Annotated[int, Field(gt=0)] | None = None
    """Tokens in one optimizer step."""
    micro_batch_tokens: Annotated[int, Field(gt=0)] | None = None
    """Tokens in one forward and backward pass: lower it when memory is short; the result stays the same."""
    precision: Literal["bf16", "fp32"] | None = None
    """Number format of the frozen weights and of the computation."""
    warmup: Fraction = 0.05
    """Share of the steps over which the learning rate rises; then it falls along a cosine to a tenth."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    evaluations: Annotated[int, Field(gt=0)] | None = None
    """How many times validation loss is measured over the run."""
    patience: Annotated[int, Field(gt=0)] | None = 3
    """Stop after so many evaluations without a better validation loss; `null` never stops early."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the adapter's first weights and of the order of the rows."""


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
    """What is written at the end. The adapter in PEFT's format is always kept."""

    merged: bool = True
    """Also write the whole model, adapter merged in, as bf16 safetensors."""


class Project(Section):
    """A tunesmith project: data in, a measured model out."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the project and of the model that it makes."""
    model: str = "smollm2-135m-instruct"
    """The base: a name that `tunesmith models` lists, a local folder, or a hub id such as `org/name` or
    `org/name@revision`."""
    data: Data
    """From files to clean, split, tokenised rows."""
    train: Train = Train()
    """How the model is tuned."""
    evaluate: Evaluate = Evaluate()
    """How base and tuned model are compared, and what passes."""
    export: Export = Export()
    """What is written at the end."""


def load_project(path: Path, overrides: list[str] | None = None) -> Project:
    """The checked project of a YAML file, with `a.b.c=value` overrides laid over it.

    Raises ConfigError for a missing or broken file, an unknown key (with the nearest valid one) or a bad value; the
    message names the file, the line and the key.
    """
    tree, lines = _read_yaml(path)
    for override in overrides or []:
        _apply(tree, override)
    try:
        return Project.model_validate(tree, context={"root": path.resolve().parent})
    except ValidationError as error:
        raise _explain(path, lines, overrides or [], error) from None


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    """The file's content, and the line of each key by its location."""
    if not os.path.isfile(path):
        places = ("*/tunesmith.yaml", "*/*/tunesmith.yaml") if path.parent == Path() else ()
        near = sorted(str(found) for place in places for found in Path().glob(place))[:3]
        raise ConfigError(
            f"no project file at {path}",
            "tunesmith reads its project from a YAML file" + (f"; there is {', '.join(near)}" if near else ""),
            f"tunesmith run {near[0]}" if near else "tunesmith init YOUR_DATA.jsonl",
        )
    lines: dict[tuple[Any, ...], int] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        tree = yaml.load(text, Loader=_Loader)
        _note_lines(yaml.compose(text, Loader=yaml.SafeLoader), (), lines, path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", str(error), f"save {path} as UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error).splitlines()[0]
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        next_step = f"mend it, then run `tunesmith check {path}`"
        raise ConfigError(f"{where} is not valid YAML", problem or "it cannot be read", next_step) from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path} holds no settings",
            "a project is a mapping with `name`, `model` and `data`",
            "tunesmith init YOUR_DATA.jsonl writes one to begin with",
        )
    return tree, lines


class _Loader(yaml.SafeLoader):
    """A value that cannot be made, such as a thirteenth month, is a YAML error with its line, like any other."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None


def _note_lines(node: yaml.Node | None, at: tuple[Any, ...], lines: dict[tuple[Any, ...], int], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*at, key.value)
            if place in lines:
                raise ConfigError(
                    f"{path}:{key.start_mark.line + 1}: `{key.value}` stands twice",
                    f"the first is on line {lines[place]}; only one can count",
                    "remove one of the two",
                )
            lines[place] = key.start_mark.line + 1
            _note_lines(value, place, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*at, i)] = item.start_mark.line + 1
            _note_lines(item, (*at, i), lines, path)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        why, example = "it is written as a.b.c=value", "for example --set train.learning_rate=0.0005"
        raise ConfigError(f"--set {override} has no value", why, example)
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        parsed = value
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, dict) and not isinstance(node.get(part), dict | list):
            node[part] = {}
        node = node[_place(node, part, key)]
    node[_place(node, last, key)] = parsed


def _place(node: Any, part: str, key: str) -> str | int:
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return int(part)
    if isinstance(node, dict):
        return part
    raise ConfigError(f"--set {key} leads nowhere", f"`{part}` is no item there", "docs/config.md lists every key")


def _explain(
    path: Path, lines: dict[tuple[Any, ...], int], overrides: list[str], error: ValidationError
) -> ConfigError:
    """The first fault in full, the others by their keys."""
    first, *rest = error.errors()
    at = tuple(first["loc"])
    dotted = ".".join(str(part) for part in at)
    shown = next((lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in lines), 1)
    laid_over = (override.partition("=")[0] for override in overrides)
    blamed = next((key for key in laid_over if key == dotted or key.startswith(f"{dotted}.")), None)
    where = f"--set {blamed}" if blamed else f"{path}:{shown}: `{dotted}`"
    others = "; also wrong: " + ", ".join(".".join(map(str, e["loc"])) for e in rest) if rest else ""
    if first["type"] == "extra_forbidden":
        valid = sorted(_keys_at(at[:-1]))
        near = difflib.get_close_matches(str(at[-1]), valid, 1, 0.4)
        hint = f"did you mean `{near[0]}`?" if near else f"valid keys here: {', '.join(valid)}"
        return ConfigError(
            f"{where} is no key that tunesmith knows",
            hint + others,
            f"write `{near[0]}` instead" if near else "docs/config.md lists every key",
        )
    if first["type"] == "missing":
        return ConfigError(f"{where} is missing", "it has no default" + others, f"add `{at[-1]}:` (docs/config.md)")
    why = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" or isinstance(first["input"], dict) else f"; it is {first['input']!r}"
    return ConfigError(f"{where} cannot be used", why + given + others, "docs/config.md tells what it may be")


def _keys_at(at: tuple[Any, ...]) -> set[str]:
    """The valid keys of the section at a location."""
    section: Any = Project
    for part in at:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *_arguments(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, Section))
    return set(section.model_fields)


def _arguments(annotation: Any) -> list[Any]:
    return [found for argument in get_args(annotation) for found in (argument, *_arguments(argument))]


def schema() -> dict[str, Any]:
    """The JSON Schema of the project file, for editors and for docs/config.md."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Project.model_json_schema()}
