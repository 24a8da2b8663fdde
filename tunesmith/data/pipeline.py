"""Clean rows from raw ones: a chain of stages, each of which keeps or drops every row that it sees and says why."""

from __future__ import annotations

import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from tunesmith.core import store
from tunesmith.core.errors import ConfigError, DataError
from tunesmith.core.project import Clean
from tunesmith.core.records import Dropped, Kept, Row
from tunesmith.core.step import Artifact
from tunesmith.data import answers, contradictions, dedup, pii

VERSION = 1

Stage = Callable[[Iterable[Row]], Iterator[Kept | Dropped]]

_MAX_LABELS = 30  # a field with more distinct values is no label


def stages(clean: Clean) -> Iterator[tuple[str, Stage]]:
    """The chain, in its order; a new stage is one more line.

    Contradictions come before duplicates: a majority is counted over rows that are still there to vote. A placeholder
    may break the schema that the text before it followed, so what was replaced is held against the schema again.
    """
    yield "empty answers", answers.empty
    if clean.answer == "json":
        yield "JSON answers", answers.json_answers
    if clean.answer_schema:
        yield "answer schema", partial(answers.follows_schema, schema=clean.answer_schema)
    yield "personal data", partial(pii.personal_data, mode=clean.personal_data)
    if clean.answer_schema and clean.personal_data == "replace":
        yield "answer schema after replacement", partial(answers.follows_schema, schema=clean.answer_schema)
    yield "contradictions", partial(contradictions.resolve, mode=clean.contradictions)
    if clean.duplicates == "drop":
        yield "exact duplicates", dedup.exact
    if clean.near_duplicates is not None:
        keep_equal = clean.duplicates == "keep"
        yield "near-duplicates", partial(dedup.near, threshold=clean.near_duplicates, keep_equal=keep_equal)


def run(clean: Clean, raw: Artifact, out: Path) -> dict[str, Any]:
    """Writes `rows.jsonl` and `dropped.jsonl` (each row with its reason, detail and stage).

    Raises ConfigError for an answer schema that cannot be used, DataError when no row is left.
    """
    if clean.answer_schema and clean.answer != "json":
        raise ConfigError(
            "data.clean.answer_schema needs JSON answers",
            f"data.clean.answer is `{clean.answer}`",
            "write `answer: json` beside it, or take `answer_schema` out",
        )
    rows = store.read_rows(raw / "rows.jsonl")
    rows_in, ledger, dropped = len(rows), [], []
    for name, stage in stages(clean):
        started = time.perf_counter()
        results = list(stage(rows))
        assert len(results) == len(rows), f"{name} lost or made rows: {len(rows)} in, {len(results)} out"
        gone = [result for result in results if isinstance(result, Dropped)]
        dropped += [{**d.row.to_json(), "reason": d.reason, "detail": d.detail, "stage": name} for d in gone]
        ledger.append(
            {
                "stage": name,
                "rows_in": len(rows),
                "kept": len(rows) - len(gone),
                "dropped": len(gone),
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
        rows = [result.row for result in results if isinstance(result, Kept)]
    store.write_rows(out / "rows.jsonl", rows)
    store.write_jsonl(out / "dropped.jsonl", dropped)
    reasons = Counter(d["reason"] for d in dropped)
    if not rows:
        raise DataError(
            "no row is left after cleaning",
            _why_none(rows_in, reasons),
            "read output/failed/clean/dropped.jsonl, then mend the data or loosen `data.clean`",
        )
    told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    return {
        "headline": f"{len(rows):,} of {rows_in:,} rows kept" + (f"; dropped: {told}" if told else ""),
        "rows_in": rows_in,
        "kept": len(rows),
        "dropped": len(dropped),
        "reasons": dict(reasons.most_common()),
        "changes": dict(Counter(_kind(note) for row in rows for note in row.changes).most_common()),
        "stages": ledger,
        "labels": labels(rows) if clean.answer == "json" else {},
        "prompt_words": _lengths(" ".join(m["content"] for m in row.prompt if m["role"] != "system") for row in rows),
        "answer_words": _lengths(row.answer for row in rows),
    }


def labels(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """How often each value stands in the fields of JSON answers, commonest first, for fields of a few plain values."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        answer = answers.parse_json(row.answer)
        for field, value in answer.items() if isinstance(answer, dict) else ():
            if not isinstance(value, dict | list):
                found[field][value if isinstance(value, str) else orjson.dumps(value).decode()] += 1
    return {field: dict(values.most_common()) for field, values in found.items() if len(values) <= _MAX_LABELS}


def _why_none(rows_in: int, reasons: Counter[str]) -> str:
    top = ", ".join(f"{reason} ({n:,})" for reason, n in reasons.most_common(3))
    return f"all {rows_in:,} rows were dropped: {top}" if rows_in else "there was none to begin with"


def _kind(note: str) -> str:
    """The note without the place that it may end with."""
    return re.sub(r" \S.*:\d+$", "", note)


def _lengths(texts: Iterable[str]) -> dict[str, int]:
    """Median, 95th percentile and maximum of the number of words."""
    ordered = sorted(len(text.split()) for text in texts)
    median, high = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95))
    return {"p50": median, "p95": high, "max": ordered[-1]}
