"""The project file's `data` section: where examples come from, what is cleaned, which train and which test.

The docstring under a field is its documentation, as in core/project.py.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tunesmith.core.clean_section import Clean
from tunesmith.core.endpoint_section import Endpoint
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
    time: str | None = None
    """The column that says when the answer was given: a date (2026-01-31 or 20260131, with a time or without), seconds
    since 1970, milliseconds, microseconds or nanoseconds where that is a time between 2000 and 2100, or any other
    number. What `contradictions: newest` goes by."""


def _one_part_each(fields: Fields) -> Fields:
    for part in ("prompt", "answer"):
        if fields.messages and fields.model_dump()[part]:
            raise ValueError(f"`{part}` is not read beside `messages`, which hold the whole conversation: take one out")
    said = [name for name in (fields.prompt, fields.answer, fields.system, fields.messages) if name]
    twice = next((name for name in said if said.count(name) > 1), None)
    if twice:
        raise ValueError(f"`{twice}` is named twice, and a column plays one part: name another one")
    return fields


class Source(Section):
    """Files of examples."""

    path: InputFiles
    """A file, a folder with all that is below it, or a glob such as `logs/**/*.jsonl`: JSONL, JSON, CSV, TSV or
    Parquet, also compressed. `hf://ORG/NAME`, which `@REVISION`, `/FILE` and `:SPLIT` can follow, is a data set of the
    hub. `${NAME}` stands for an environment variable."""
    fields: Annotated[Fields, AfterValidator(_one_part_each)] = Fields()
    """Column names, where tunesmith does not find them by itself."""
    convert: InputFile | None = None
    """A Python file with `convert(record) -> record`, called on each record first. What it imports is not watched."""
    split: Side = "auto"
    """The side that all rows of these files belong to; `auto` lets the splitter choose per row."""


class Judge(Section):
    """A model scores each cleaned row from 1 to 5 by a rubric; rows below a score are dropped before the split. A
    sample is judged first, from which cost and time of all rows are projected."""

    endpoint: Endpoint = Endpoint()
    """The model that judges, which should be stronger than the base."""
    rubric: Annotated[str, Field(min_length=1)] = (
        "The answer does what the conversation asks for, in the form asked for; what it says is right as far as can be "
        "told; nothing that matters is missing, and nothing is made up. A longer answer is no better for its length."
    )
    """What makes an answer good, in words."""
    keep_from: Annotated[int, Field(ge=1, le=5)] = 3
    """Rows with a lower score are dropped: 1 useless or wrong, 2 poor, 3 acceptable, 4 good, 5 nothing to improve."""
    sample: Annotated[int, Field(gt=0)] = 20
    """How many rows are judged first, twice each. The step stops there, before it spends more, where all rows are
    projected to cost more than `endpoint.max_cost`, or where none of them gets a score."""
    on_abstention: Literal["keep", "drop"] = "keep"
    """What happens to a row for which the judge gives no score."""


class Split(Section):
    """Which rows train, which choose the best checkpoint, which are the frozen exam. Rows whose prompts are alike stay
    on one side, and so do a conversation and whoever asks what it asked on its way. The side follows from a hash, so
    that rows which are added later move no others unless they join two groups; a certificate says that no row of the
    exam is like one that trains."""

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


def _resolvers_are_read(clean: Clean) -> Clean:
    if clean.reviewed and clean.contradictions != "review":
        raise ValueError("reviewed is not read: write `contradictions: review` beside it")
    if clean.judge and clean.contradictions != "judge":
        raise ValueError("judge is not read: write `contradictions: judge` beside it")
    if clean.contradictions == "judge" and (clean.judge is None or clean.judge.url is None):
        raise ValueError("contradictions: judge needs `judge: {url: ..., model: ...}` beside it")
    return clean


def _rows_are_left(split: Split) -> Split:
    if split.validation + split.test >= 1:
        raise ValueError(
            f"validation {split.validation:g} + test {split.test:g} must be less than 1, to leave training rows"
        )
    return split


def _trains(source: Source) -> Source:
    if source.split not in ("auto", "train"):
        raise ValueError(f"general rows train, and this file is pinned to {source.split}: take `split` out")
    return source


def _values_are_texts(weights: Any) -> Any:
    """What YAML reads as a number, or as true, false or null, is a value as JSON has it: `1`, `true`."""
    if not isinstance(weights, dict):
        return weights
    return {value if isinstance(value, str) else json.dumps(value, default=str): its for value, its in weights.items()}


def _balances(balance: Balance) -> Balance:
    if balance.cap is None and not balance.weights:
        raise ValueError("it says what to balance by and not how: write `cap` or `weights` beside it")
    if balance.field and balance.by != "label":
        raise ValueError(f"`field` names a label, and rows are balanced by {balance.by}: write `by: label`")
    return balance


class Balance(Section):
    """Less of what there is too much of, more of what there is too little of, among the training rows alone."""

    by: Literal["label", "length", "topic"] = "label"
    """What rows are told apart by. `label`: the answer, or a field of it. `length`: the number of words of prompt and
    answer, in `groups` bins that hold equally many rows; `1` is the shortest. `topic`: the letters of the prompt, in
    `groups` clusters; `1` is the largest, and the summary tells the words of each."""
    field: Annotated[str, Field(min_length=1)] | None = None
    """With `by: label`: the field of a JSON answer whose value is the label. Left out: the whole answer."""
    groups: Annotated[int, Field(ge=2, le=100)] = 8
    """With `by: length` or `by: topic`: how many bins or clusters."""
    cap: Annotated[int, Field(gt=0)] | None = None
    """Keep at most so many rows of one value: those with the lowest hash."""
    weights: Annotated[dict[str, Annotated[float, Field(ge=0, le=100)]], BeforeValidator(_values_are_texts)] = {}
    """A factor for each value that needs one. Below 1: that share of its rows is kept; above 1: rows are repeated, and
    the repeats are counted. The cap holds after the weights."""


class Mix(Section):
    """General rows among those of the task, against forgetting: what the base could do before, it goes on seeing."""

    sources: Annotated[list[Annotated[Source, AfterValidator(_trains)]], Field(min_length=1)]
    """The files of general examples, read and cleaned as `data.sources` are; but their answers need not be JSON, and
    contradictions are only counted. `data.system` is not put before them. A row that is like one of the exam is
    dropped."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training rows, after mixing, that are general: as many as that takes, those with the lowest hash."""
    answers: Literal["as_written", "base"] = "as_written"
    """`as_written`: the answers of the files. `base`: the project's own base model answers the files' prompts, and is
    tuned on what it says already."""
    max_tokens: Annotated[int, Field(gt=0)] = 512
    """With `answers: base`: the longest answer. One that is cut off there is dropped, and another prompt is asked."""


class Questions(Section):
    """Questions and answers from documents, passage by passage."""

    documents: Annotated[list[InputFiles], Field(min_length=1)]
    """What to ask about: files, folders and globs of Markdown, text, HTML, PDF, DOCX, subtitles, or records with the
    text of each document under `text`."""
    form: Literal["pairs", "sentences"] = "pairs"
    """`pairs`: the model writes questions and answers about a passage, as JSON. `sentences`: each sentence of a passage
    is the answer, and the model writes the question to it alone, after six examples: small models can do that."""
    per_passage: Annotated[int, Field(gt=0, le=100)] = 5
    """With `form: pairs`: so many pairs are asked for in one go."""
    tries: Annotated[int, Field(gt=0, le=20)] = 1
    """How often each passage or sentence is asked about; beyond the first time, `temperature` above 0 makes the
    difference."""
    longest_words: Annotated[int, Field(ge=30)] = 200
    """Longest passage."""
    overlap_words: Annotated[int, Field(ge=0)] = 0
    """Words of a passage that the next one repeats."""
    grounded_from: Fraction = 0.8
    """Share of the content words of question and answer that must stand in the passage, or in the titles above it. Its
    numbers and names must all stand there; and the question must leave something of the answer open."""
    rows: Annotated[int, Field(gt=0)] | None = None
    """Keep at most so many; left out: as many as there are."""


class Seeds(Section):
    """New instructions with their answers, each written after a few training rows as examples."""

    rows: Annotated[int, Field(gt=0)]
    """Keep at most so many."""
    examples: Annotated[int, Field(gt=0, le=20)] = 3
    """Training rows that a model is shown each time. The first of them is the new row's parent."""


class Paraphrase(Section):
    """Training rows with their last question in other words, and the same answer."""

    per_row: Annotated[int, Field(gt=0, le=20)] = 1
    """How many of each training row; beyond the first, `temperature` above 0 makes the difference."""
    rows: Annotated[int, Field(gt=0)] | None = None
    """Keep at most so many; left out: as many as there are."""


class BackTranslation(Section):
    """Training rows with their last question translated into another language and back, and the same answer."""

    language: Annotated[str, Field(min_length=2)]
    """By its English name, such as `French`."""
    from_language: Annotated[str, Field(min_length=2)] = "English"
    """The language of the rows."""
    rows: Annotated[int, Field(gt=0)] | None = None
    """Keep at most so many; left out: as many as there are."""


class Noise(Section):
    """Training rows as people type them: the last message of the prompt gets faults, the answer stays."""

    per_row: Annotated[int, Field(gt=0, le=20)] = 1
    """How many noisy copies of each training row."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the words that get a fault; at least one does."""
    faults: Annotated[list[Literal["typos", "case", "punctuation", "whitespace"]], Field(min_length=1)] = [
        "typos",
        "case",
        "punctuation",
        "whitespace",
    ]
    """Which. `typos`: two letters swapped, or one lost, doubled or replaced by its neighbour on the keyboard; `case`:
    a word in capitals or small letters; `punctuation`: marks lost; `whitespace`: blanks lost or doubled."""
    rows: Annotated[int, Field(gt=0)] | None = None
    """Make at most so many; left out: as many as there are."""


class Synthesise(Section):
    """New training rows. Each has parents, from which it was made, and is held to the rules of cleaning. What repeats
    another row, or is like one of the exam, is dropped."""

    endpoint: Endpoint = Endpoint()
    """The model that writes them. Left out: the project's own base."""
    questions: Questions | None = None
    """Pairs of question and answer from documents."""
    seeds: Seeds | None = None
    """New instructions after the pattern of training rows."""
    paraphrase: Paraphrase | None = None
    """Training rows with their question in other words."""
    back_translation: BackTranslation | None = None
    """Training rows with their question translated, and translated back."""
    noise: Noise | None = None
    """Copies of training rows with typing faults. Needs no model."""
    max_per_parent: Annotated[int, Field(gt=0)] = 10
    """Keep at most so many new rows of one training row, or of one passage."""
    max_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Synthetic rows are at most this share of the training rows before general ones are mixed in. Left out: no limit,
    as is right where all rows come from documents."""
    stop_at_repeats: Annotated[float, Field(gt=0, le=1)] = 0.8
    """No more of a kind is tried when such a share of the rows of a round, of 64 attempts or more, repeats others."""

    @property
    def asks(self) -> bool:
        """Whether a model is asked for any of it."""
        return any((self.questions, self.seeds, self.paraphrase, self.back_translation))


class Grow(Section):
    """The training side alone, after the split: balanced, grown and mixed. Validation and test stay as they are, and a
    new certificate says that nothing that was added is like them."""

    balance: Annotated[Balance, AfterValidator(_balances)] | None = None
    """Caps and weights by label, length or topic."""
    synthesise: Synthesise | None = None
    """New rows from documents and from training rows."""
    mix: Mix | None = None
    """General rows against forgetting."""

    @property
    def asks_base(self) -> bool:
        """Whether the project's own base model is asked for any of it."""
        new, general = self.synthesise, self.mix
        return bool((new and new.asks and new.endpoint.url is None) or (general and general.answers == "base"))


class Data(Section):
    """From files to clean, split, tokenised rows."""

    sources: Annotated[list[Source], Field(min_length=1)]
    """The files of examples."""
    system: str | None = None
    """A system message for every row that has none: say here what the model should do."""
    max_quarantined: Fraction = 0.05
    """The run stops when a larger share of the records cannot be read as rows."""
    clean: Annotated[Clean, AfterValidator(_schema_has_json), AfterValidator(_resolvers_are_read)] = Clean()
    """What is repaired or dropped before the split."""
    judge: Judge | None = None
    """Scores by a model, and a limit below which rows are dropped. Left out: no row is judged."""
    split: Annotated[Split, AfterValidator(_rows_are_left)] = Split()
    """Which rows train and which test."""
    grow: Grow | None = None
    """What is done to the training rows after the split, if anything."""
    format: Format = Format()
    """How rows become tokens."""

    @property
    def pinned(self) -> list[str]:
        """The sides that files are pinned to."""
        return sorted({source.split for source in self.sources} - {"auto"})
