"""The project file's `data` section: where examples come from, what is cleaned, which train and which test.

The docstring under a field is its documentation, as in core/project.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tunesmith.core.records import Split as Side
from tunesmith.core.section import Fraction, InputFile, InputFiles, Section


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
    group: str | None = None
    """The column that names a conversation, thread or user: rows with one value never stand on two sides of the split,
    also where they are of different files."""


class Source(Section):
    """Files of examples."""

    path: InputFiles
    """A file, a folder with all that is below it, or a glob such as `logs/**/*.jsonl`: JSONL, JSON, CSV, TSV or
    Parquet, also compressed. `hf://ORG/NAME`, which `@REVISION`, `/FILE` and `:SPLIT` can follow, is a data set of the
    hub. `${NAME}` stands for an environment variable."""
    fields: Fields = Fields()
    """Column names, where tunesmith does not find them by itself."""
    convert: InputFile | None = None
    """A Python file with `convert(record) -> record`, called on each record first. What it imports is not watched."""
    split: Side = "auto"
    """The side that all rows of these files belong to; `auto` lets the splitter choose per row."""


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
