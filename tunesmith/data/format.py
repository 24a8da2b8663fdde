"""Rows become tokens: chat template, loss mask, token ledger, and the proof that the model will learn to stop."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from tunesmith.core import certificate, store
from tunesmith.core.errors import ConfigError, DataError, ModelError
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact
from tunesmith.data import parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.core.data_section import Format
    from tunesmith.models.base import Base
    from tunesmith.models.chat import Rendered

VERSION = 5
SIDES = ("train", "validation", "test")

_SAMPLES = 3  # rows whose tokens and mask the report shows
_ARRAYS = {"ids": np.int32, "learnt": np.bool_, "lengths": np.int64}


@dataclass(frozen=True)
class _Renderer:
    """What a part needs to render its rows."""

    base: tuple[Path, str]  # its folder, and its identity
    stops: list[int]
    limit: int
    cut: bool  # rows that are longer are cut, except for the exam's: a question that is cut is another question


def run(format: Format, base: Base, splits: Artifact, out: Path, kept: Path | None = None) -> dict[str, Any]:
    """Writes, for each side, `SIDE.jsonl` and the arrays `SIDE.ids` (int32), `SIDE.learnt` (bool) and `SIDE.ends`
    (int64, cumulative lengths); `dropped.jsonl` has every row that could not be used, with its reason. Parts of the
    work that are done stand in `kept`, where a run that goes on finds them."""
    from tunesmith.models import base as bases
    from tunesmith.models import chat  # transformers is imported only when the step runs

    assert base.folder is not None
    certified = certificate.require(splits.folder)
    tokenizer = _tokenizer(base.folder, base.identity)
    chat.require_usable(tokenizer, base.name)
    stops = chat.stop_ids(tokenizer, base.folder)
    limit = _limit(format.max_tokens, bases.facts(base.folder)["context"])
    renderer = _Renderer((base.folder, base.identity), stops, limit, format.too_long == "truncate")
    summary: dict[str, Any] = {"limit": limit, "renderer": chat.fingerprint(tokenizer), "stops": stops}
    pieces = [replace(piece, source=i) for i, side in enumerate(SIDES) for piece in parts.cut(splits / f"{side}.jsonl")]
    with parts.workplace(kept, out) as work:
        done = parts.each("format", partial(_part, renderer), pieces, work)
        parts.concatenate([one.folder / "dropped.jsonl" for one in done], out / "dropped.jsonl")
        for i, side in enumerate(SIDES):
            summary[side] = _side(out, side, [one for piece, one in zip(pieces, done) if piece.source == i])
    samples = [sample for piece, one in zip(pieces, done) if piece.source == 0 for sample in one.found["samples"]]
    store.write_json(out / "samples.json", samples[:_SAMPLES])
    reasons = Counter[str]()
    for one in done:
        reasons.update(one.found["reasons"])
    assert sum(summary[side]["rows_in"] - summary[side]["rows"] for side in SIDES) == reasons.total()
    _refuse(format, summary, dict(reasons.most_common()), out / "dropped.jsonl", base.name)
    names = [f"{side}.{kind}" for side in SIDES for kind in ("jsonl", "ids.npy", "learnt.npy", "ends.npy")]
    certificate.seal(out, {fact: value for fact, value in certified.items() if fact != "files"}, names)
    whole = sum(summary[side]["rows"] - summary[side]["truncated"] for side in SIDES)
    proof = {"rows_checked": whole, "end_tokens": tokenizer.convert_ids_to_tokens(stops)}
    return {
        "headline": _headline(summary, proof, reasons.total()),
        **summary,
        "dropped": reasons.total(),
        "reasons": dict(reasons.most_common()),
        "proof": proof,
        "turns": max((one.found["turns"] for one in done), default=0),
        "longest_answer": max(summary[side]["longest_answer"] for side in SIDES),
    }


@lru_cache(1)
def _tokenizer(folder: Path, identity: str) -> PreTrainedTokenizerBase:
    """Loaded once for all parts that a process works on."""
    from tunesmith.models import load

    return load.tokenizer(folder)


def _part(renderer: _Renderer, part: parts.Part, folder: Path) -> dict[str, Any]:
    """The rows of a part as tokens: their arrays in files of its folder, beside the rows and those that are dropped."""
    tokenizer, side = _tokenizer(*renderer.base), SIDES[part.source]
    renderer = replace(renderer, cut=renderer.cut and side != "test")
    kept: list[tuple[Row, Rendered]] = []
    reasons, truncated = Counter[str](), 0
    with open(folder / "rows.jsonl", "wb") as rows, open(folder / "dropped.jsonl", "wb") as dropped:
        for line in part.read():
            row = Row.from_json(orjson.loads(line))
            rendered, reason, detail = _tokens(tokenizer, row, renderer)
            if rendered:
                kept.append((row, rendered))
                truncated += reason == "truncated"
                rows.write(line)
            else:
                reasons[reason] += 1
                told = {**row.to_json(), "side": side, "reason": reason, "detail": detail}
                dropped.write(orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE))
    arrays = {
        "ids": [i for _, r in kept for i in r.ids],
        "learnt": [m for _, r in kept for m in r.learnt],
        "lengths": [len(r.ids) for _, r in kept],
    }
    for name, values in arrays.items():
        np.array(values, _ARRAYS[name]).tofile(folder / name)
    return {
        "rows_in": part.lines,
        "truncated": truncated,
        "reasons": reasons,
        "turns": max((_turns(row) for row, _ in kept), default=0),
        "longest_answer": max((len(r.ids) - r.prompt_tokens for _, r in kept), default=0),
        "samples": [_sample(tokenizer, *pair) for pair in kept[:_SAMPLES]] if side == "train" else [],
    }


def _side(out: Path, side: str, done: list[parts.Done]) -> dict[str, Any]:
    """Puts a side's parts together, and counts what there is."""
    from tunesmith.models.tokens import Tokens

    parts.concatenate([one.folder / "rows.jsonl" for one in done], out / f"{side}.jsonl")
    lengths_N = np.concatenate(
        [np.zeros(0, np.int64), *(np.fromfile(one.folder / "lengths", np.int64) for one in done)]
    )
    np.save(out / f"{side}.ends.npy", np.cumsum(lengths_N))
    for name in ("ids", "learnt"):
        _save(out / f"{side}.{name}.npy", [one.folder / name for one in done], _ARRAYS[name], int(lengths_N.sum()))
    tokens, longest = Tokens(out, side), int(lengths_N.max(initial=0))
    some_N = lengths_N if len(lengths_N) else np.zeros(1, np.int64)
    return {
        "rows_in": sum(one.found["rows_in"] for one in done),
        "rows": len(lengths_N),
        "truncated": sum(one.found["truncated"] for one in done),
        "beginning": tokens.beginning,
        "tokens": int(lengths_N.sum()),
        "learnt_tokens": int(np.count_nonzero(tokens.learnt)),
        "longest": longest,
        "median": int(np.median(some_N)),
        "p95": int(np.percentile(some_N, 95)),
        "longest_answer": max((one.found["longest_answer"] for one in done), default=0),
        "histogram": [counts.tolist() for counts in np.histogram(some_N, bins=20)],
    }


def _save(path: Path, pieces: list[Path], dtype: Any, count: int) -> None:
    """One array of the pieces' bytes, which need not fit into memory."""
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            with open(piece, "rb") as part:
                shutil.copyfileobj(part, file)


def _limit(wanted: int | None, context: int | None) -> int:
    """The longest row in tokens: as wanted, else the model's context."""
    if wanted and context and wanted > context:
        raise ConfigError(
            f"data.format.max_tokens is {wanted:,}, the model's context is {context:,}",
            "the model cannot read further than its context",
            f"set data.format.max_tokens to {context} or less, or take it out, or choose a base with a longer context",
        )
    return wanted or context or 2048


def _headline(summary: dict[str, Any], proof: dict[str, Any], dropped: int) -> str:
    truncated = sum(summary[side]["truncated"] for side in SIDES)
    cut = f", {truncated:,} truncated" if truncated else ""
    return (
        f"{summary['train']['tokens']:,} training tokens, {summary['train']['learnt_tokens']:,} learnt; "
        f"{proof['rows_checked']:,} rows end with {' or '.join(proof['end_tokens'])}, learnt too{cut}; "
        f"{dropped:,} dropped"
    )


def _turns(row: Row) -> int:
    return sum(message["role"] == "user" for message in row.messages)


def _tokens(tokenizer: PreTrainedTokenizerBase, row: Row, renderer: _Renderer) -> tuple[Rendered | None, str, str]:
    """The rendered row, or None; the reason why it cannot be used or was cut; and what was seen."""
    from tunesmith.models import chat

    try:
        rendered = chat.render(tokenizer, row.messages, row.tools)
    except chat.CannotRender as error:
        return None, error.reason, error.detail
    faults = chat.faults(rendered, renderer.stops, tokenizer.bos_token_id)
    if faults:
        return None, faults[0], ""
    limit = renderer.limit
    if len(rendered.ids) <= limit:
        return rendered, "", ""
    start = chat.Rendered(rendered.ids[:limit], rendered.learnt[:limit], rendered.prompt_tokens)
    if renderer.cut and any(start.learnt):
        return start, "truncated", ""
    return None, "too long", f"{len(rendered.ids):,} tokens"


def _refuse(format: Format, summary: dict[str, Any], reasons: dict[str, int], dropped: Path, model: str) -> None:
    """The faults that end the run: rows too long unless that was allowed, an end token never learnt, nothing left."""
    if (long := reasons.get("too long", 0)) and format.too_long == "error":
        first = [f"{row['source']}:{row['line']}" for row in _first(dropped, "too long", 3)]
        raise DataError(
            f"{'1 row is' if long == 1 else f'{long:,} rows are'} longer than {summary['limit']:,} tokens",
            f"first seen: {', '.join(first)}; cutting or dropping them silently would change what is learnt",
            "set data.format.too_long to `drop` or `truncate` (both are counted), or raise data.format.max_tokens",
        )
    if summary["train"]["rows"]:
        return
    reason = next(iter(reasons), "no rows")
    if reason == "the answer's end token would not be learnt":
        raise ModelError(
            f"the chat template of {model} never ends the assistant's turn with an end token",
            "a model trained with it would not learn to stop",
            "choose another base, or mend its chat_template.jinja",
        )
    detail = next((row["detail"] for row in _first(dropped, reason, 1)), "")
    raise DataError(
        "no training row is left after tokenising",
        f"most common reason: {reason}{detail and f' ({detail})'}",
        "read output/failed/format/dropped.jsonl",
    )


def _first(dropped: Path, reason: str, count: int) -> list[dict[str, Any]]:
    """The first rows that were dropped for a reason."""
    return list(islice((row for row in store.read_jsonl(dropped) if row["reason"] == reason), count))


def _sample(tokenizer: PreTrainedTokenizerBase, row: Row, rendered: Rendered) -> dict[str, Any]:
    pieces = [tokenizer.decode([i]) for i in rendered.ids]
    return {"source": row.source, "line": row.line, "tokens": pieces, "learnt": rendered.learnt}
