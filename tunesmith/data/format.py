"""Rows become tokens: chat template, loss mask, token ledger, and the proof that the model will learn to stop."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core import certificate, store
from tunesmith.core.console import progress
from tunesmith.core.errors import ConfigError, DataError, ModelError
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.core.data_section import Format
    from tunesmith.models.base import Base
    from tunesmith.models.chat import Rendered

VERSION = 4
SIDES = ("train", "validation", "test")
_SAMPLES = 3  # rows whose tokens and mask the report shows


def run(format: Format, base: Base, splits: Artifact, out: Path) -> dict[str, Any]:
    """Writes, for each side, `SIDE.jsonl` and the arrays `SIDE.ids` (int32), `SIDE.learnt` (bool) and `SIDE.ends`
    (int64, cumulative lengths); `dropped.jsonl` has every row that could not be used, with its reason."""
    from tunesmith.models import base as bases
    from tunesmith.models import chat, load  # transformers is imported only when the step runs
    from tunesmith.models.tokens import Tokens

    assert base.folder is not None
    certified = certificate.require(splits.folder)
    tokenizer = load.tokenizer(base.folder)
    chat.require_usable(tokenizer, base.name)
    stops = chat.stop_ids(tokenizer, base.folder)
    limit = _limit(format.max_tokens, bases.facts(base.folder)["context"])
    summary: dict[str, Any] = {"limit": limit, "renderer": chat.fingerprint(tokenizer), "stops": stops}
    dropped: list[dict[str, Any]] = []
    turns = 0
    with progress("format", sum(splits.summary[side] for side in SIDES), "rows") as bar:
        for side in SIDES:
            rows = store.read_rows(splits / f"{side}.jsonl")
            cut = format.too_long == "truncate" and side != "test"  # an exam row that is cut is another question
            results = []
            for row in rows:
                results.append((row, *_tokens(tokenizer, row, stops, limit, cut)))
                bar.advance(1)
            kept = [(row, rendered) for row, rendered, _, _ in results if rendered]
            gone = [
                {**row.to_json(), "side": side, "reason": reason, "detail": detail}
                for row, rendered, reason, detail in results
                if not rendered
            ]
            assert len(rows) == len(kept) + len(gone)
            dropped += gone
            truncated = sum(reason == "truncated" for _, _, reason, _ in results)
            _write_side(out, side, kept)
            beginning = Tokens(out, side).beginning
            counts = {"rows_in": len(rows), "rows": len(kept), "truncated": truncated, "beginning": beginning}
            summary[side] = {**counts, **_ledger(kept)}
            turns = max([turns, *(_turns(row) for row, _ in kept)])
            if side == "train":
                store.write_json(out / "samples.json", [_sample(tokenizer, *pair) for pair in kept[:_SAMPLES]])
    store.write_jsonl(out / "dropped.jsonl", dropped)
    reasons = dict(Counter(item["reason"] for item in dropped).most_common())
    _refuse(format, limit, dropped, reasons, summary, base.name)
    names = [f"{side}.{kind}" for side in SIDES for kind in ("jsonl", "ids.npy", "learnt.npy", "ends.npy")]
    certificate.seal(out, {fact: value for fact, value in certified.items() if fact != "files"}, names)
    whole = sum(summary[side]["rows"] - summary[side]["truncated"] for side in SIDES)
    proof = {"rows_checked": whole, "end_tokens": tokenizer.convert_ids_to_tokens(stops)}
    return {
        "headline": _headline(summary, proof, len(dropped)),
        **summary,
        "dropped": len(dropped),
        "reasons": reasons,
        "proof": proof,
        "turns": turns,
        "longest_answer": max(summary[side]["longest_answer"] for side in SIDES),
    }


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


def _tokens(
    tokenizer: PreTrainedTokenizerBase, row: Row, stops: list[int], limit: int, cut: bool
) -> tuple[Rendered | None, str, str]:
    """The rendered row, or None; the reason why it cannot be used or was cut; and what was seen."""
    from tunesmith.models import chat

    try:
        rendered = chat.render(tokenizer, row.messages, row.tools)
    except chat.CannotRender as error:
        return None, error.reason, error.detail
    faults = chat.faults(rendered, stops, tokenizer.bos_token_id)
    if faults:
        return None, faults[0], ""
    if len(rendered.ids) <= limit:
        return rendered, "", ""
    start = chat.Rendered(rendered.ids[:limit], rendered.learnt[:limit], rendered.prompt_tokens)
    if cut and any(start.learnt):
        return start, "truncated", ""
    return None, "too long", f"{len(rendered.ids):,} tokens"


def _refuse(
    format: Format,
    limit: int,
    dropped: list[dict[str, Any]],
    reasons: dict[str, int],
    summary: dict[str, Any],
    model: str,
) -> None:
    """The faults that end the run: rows too long unless that was allowed, an end token never learnt, nothing left."""
    long = [item for item in dropped if item["reason"] == "too long"]
    if long and format.too_long == "error":
        first = ", ".join(f"{item['source']}:{item['line']}" for item in long[:3])
        raise DataError(
            f"{'1 row is' if len(long) == 1 else f'{len(long):,} rows are'} longer than {limit:,} tokens",
            f"first seen: {first}; cutting or dropping them silently would change what is learnt",
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
    detail = next((item["detail"] for item in dropped if item["reason"] == reason), "")
    raise DataError(
        "no training row is left after tokenising",
        f"most common reason: {reason}{detail and f' ({detail})'}",
        "read output/failed/format/dropped.jsonl",
    )


def _write_side(out: Path, side: str, kept: list[tuple[Row, Rendered]]) -> None:
    store.write_rows(out / f"{side}.jsonl", (row for row, _ in kept))
    np.save(out / f"{side}.ids.npy", np.array([i for _, r in kept for i in r.ids], dtype=np.int32))
    np.save(out / f"{side}.learnt.npy", np.array([m for _, r in kept for m in r.learnt], dtype=np.bool_))
    np.save(out / f"{side}.ends.npy", np.cumsum([len(r.ids) for _, r in kept], dtype=np.int64))


def _ledger(kept: list[tuple[Row, Rendered]]) -> dict[str, Any]:
    lengths = [len(r.ids) for _, r in kept] or [0]
    return {
        "tokens": sum(lengths),
        "learnt_tokens": sum(sum(r.learnt) for _, r in kept),
        "longest": max(lengths),
        "median": int(np.median(lengths)),
        "p95": int(np.percentile(lengths, 95)),
        "longest_answer": max((len(r.ids) - r.prompt_tokens for _, r in kept), default=0),
        "histogram": [counts.tolist() for counts in np.histogram(lengths, bins=20)],
    }


def _sample(tokenizer: PreTrainedTokenizerBase, row: Row, rendered: Rendered) -> dict[str, Any]:
    pieces = [tokenizer.decode([i]) for i in rendered.ids]
    return {"source": row.source, "line": row.line, "tokens": pieces, "learnt": rendered.learnt}
