"""What the project file's `data.clean` section holds: which rows are repaired, masked or dropped.

The docstring under a field is its documentation, as in core/project.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tunesmith.core.endpoint_section import Endpoint
from tunesmith.core.section import Fraction, InputFile, Section


class Length(Section):
    """Rows whose prompt or answer is too short or too long are dropped."""

    unit: Literal["words", "characters"] = "words"
    """What is counted. Words stand between spaces: count characters where a language has none."""
    min_prompt: Annotated[int, Field(ge=0)] | None = None
    """The least that the user says."""
    max_prompt: Annotated[int, Field(ge=0)] | None = None
    """The most that the user says."""
    min_answer: Annotated[int, Field(ge=0)] | None = None
    """The least that the last answer says; one that calls a tool may say nothing."""
    max_answer: Annotated[int, Field(ge=0)] | None = None
    """The most that the last answer says."""


class Repetition(Section):
    """Rows of which a message repeats itself are dropped, after rules by which the data of Gopher were filtered
    (arXiv:2112.11446, table A1)."""

    lines: Fraction | None = None
    """The largest share of a message's characters in lines that stand there again. Gopher: 0.2."""
    runs: Fraction | None = None
    """The largest share of a message in runs of five words that stand there again. Gopher: 0.15."""


class Toxicity(Section):
    """Rows with toxic texts are dropped."""

    above: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Drop a row when a text's score is higher than this: 0 is harmless, 1 is toxic. Left out: nothing is scored."""
    where: Literal["answers", "all"] = "answers"
    """`answers`: what the model learns to say; `all`: what users say to it, too."""
    score: InputFile | None = None
    """A Python file with `score(text)`, from 0 to 1. Left out: a classifier of offensive English words, for which you
    `pip install alt-profanity-check`. What the file imports is not watched."""


def _in_order(length: Length) -> Length:
    for part in ("prompt", "answer"):
        least, most = vars(length)[f"min_{part}"], vars(length)[f"max_{part}"]
        if least is not None and most is not None and least > most:
            raise ValueError(f"min_{part} {least} is more than max_{part} {most}: no row would be left")
    return length


class SemanticDuplicates(Section):
    """Rows whose answers mean the same and whose prompts ask the same in other words: the later one is dropped."""

    similarity: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Cosine similarity of the prompts' vectors from which on they are held to ask the same."""
    embedding: Literal["characters", "words", "endpoint"] = "characters"
    """Where vectors come from: rare character 4-grams, which need nothing but see no meaning; word vectors, for which
    `pip install 'tunesmith[semantic]'`; or a server."""
    endpoint: Endpoint | None = None
    """The server whose `/embeddings` are asked, with `url` and `model`. Needs `embedding: endpoint`."""


_OF_EMBEDDINGS = {"url", "model", "key", "concurrency", "timeout_seconds", "retries"}


def _vectors_come_from_somewhere(semantic: SemanticDuplicates) -> SemanticDuplicates:
    endpoint = semantic.endpoint
    if semantic.embedding == "endpoint" and (endpoint is None or endpoint.url is None):
        raise ValueError("embedding: endpoint needs `endpoint: {url: ..., model: ...}` beside it")
    if semantic.embedding != "endpoint" and endpoint is not None:
        raise ValueError("endpoint is not read: write `embedding: endpoint` beside it")
    if endpoint is not None and (unread := sorted(endpoint.model_fields_set - _OF_EMBEDDINGS)):
        raise ValueError(f"endpoint.{unread[0]} is not read where vectors are asked for: take it out")
    return semantic


class Clean(Section):
    """What is repaired or dropped before the split; every drop is kept on disk with its reason."""

    repair: Literal["mend", "keep"] = "mend"
    """`mend`: text that was read in the wrong encoding, characters that nobody sees, control characters and letters in
    two pieces become what was meant, which is noted in the row. Quotes, HTML entities, code in backticks and the keys
    of JSON stay. `keep`: every text as it was read."""
    answer: Literal["text", "json"] = "text"
    """`json`: an answer that does not parse as JSON is dropped."""
    answer_schema: InputFile | None = None
    """A JSON Schema file; an answer that does not follow it is dropped. Needs `answer: json`."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows whose normalised prompt and answer are those of an earlier row."""
    near_duplicates: Annotated[float, Field(gt=0.5, le=1)] | None = 0.9
    """Drop a row when the answer is an earlier row's and the prompts' character 4-grams have this Jaccard similarity or
    more; `null` keeps them. Prompts that differ in a number or a negation are never near-duplicates."""
    semantic_duplicates: Annotated[SemanticDuplicates, AfterValidator(_vectors_come_from_somewhere)] | None = None
    """Drop a row when an earlier one says the same and asks the same in other words. Left out: not looked for."""
    contradictions: Literal["drop", "majority", "newest", "judge", "review", "report"] = "report"
    """Rows with the same prompt and different answers: drop them all, keep those with the commonest answer or with the
    newest (by `fields.time`, else the row read last) or with the one that a model chooses, leave them to a person
    (`review.jsonl`), or only count them. None goes where several answers may be right."""
    single_answer: Literal["auto", "yes", "no"] = "auto"
    """Whether a prompt has one right answer, so that another one contradicts it. `auto`: as the rows show."""
    reviewed: InputFile | None = None
    """A `review.jsonl` in which a person has set `keep` to true or false. Needs `contradictions: review`."""
    judge: Endpoint | None = None
    """The model that chooses among answers that contradict one another, with `url` and `model`. Needs
    `contradictions: judge`."""
    benchmarks: list[InputFile] = []
    """Files of published benchmarks, in any format that sources have. Rows that may train are dropped where their
    prompt is like one of the questions, or shares a run of thirteen words with it."""
    personal_data: Literal["replace", "surrogate", "drop", "report"] = "report"
    """E-mail and IP addresses, phone, card, bank account and US social security numbers, keys, passwords and tokens:
    put a placeholder such as [EMAIL_1] or a value of the same kind that is nobody's, the same one throughout the row;
    drop the row; or only count them. IP addresses that are private, or of four single digits as 8.8.8.8, stay."""
    find_personal: InputFile | None = None
    """A Python file with `find(text) -> [(kind, start, end), ...]`, for names and addresses, which have no shape. What
    it imports is not watched."""
    length: Annotated[Length, AfterValidator(_in_order)] = Length()
    """How short and how long prompts and answers may be."""
    repetition: Repetition = Repetition()
    """How much a message may repeat itself."""
    languages: Annotated[list[str], Field(min_length=1)] | None = None
    """Codes such as `[en, de]`: drop a row when its prompt or answer is almost surely in another language. Texts of a
    few words, code and JSON are never told by their language. Norwegian is `"no"`, in quotes, as YAML has it."""
    toxicity: Toxicity = Toxicity()
    """How toxic a text may be."""
