"""Rows become tokens: chat template, loss mask, token ledger, and the proof that the model will learn to stop."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core import store
from tunesmith.core.console import progress
from tunesmith.core.errors import DataError, ModelError
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.core.config import Format
    from tunesmith.models.base import Base
    from tunesmith.models.chat import Rendered

VERSION = 1
SIDES = ("train", "validation", "test")
_SAMPLES = 3  # rows whose tokens and mask the report shows


def run(format: Format, base: Base, splits: Artifact, out: Path) -> dict[str, Any]:
    """Writes, for each side, `SIDE.jsonl` and the arrays `SIDE.ids` (int32), `SIDE.learnt` (bool) and `SIDE.ends`
    (int64, cumulative lengths); `dropped.jsonl` has every row that could not be used, with its reason."""
    from tunesmith.models import base as bases
    from tunesmith.models import chat, load  # transformers is imported only when the step runs

    assert base.folder is not None
    tokenizer = load.tokenizer(base.folder)
    chat.require_template(tokenizer, base.name)
    stops = chat.stop_ids(tokenizer, base.folder)
    limit = format.max_tokens or bases.facts(base.folder)["context"] or 2048
    dropped: list[dict[str, Any]] = []
    summary: dict[str, Any] = {"limit": limit, "renderer": chat.fingerprint(tokenizer), "stops": stops}
    samples: list[dict[str, Any]] = []
    with progress("format", sum(splits.summary[side] for side in SIDES), "rows") as bar:
        for side in SIDES:
            rows = store.read_rows(splits / f"{side}.jsonl")
            kept, rendered = [], []
            truncated = 0
            for row in rows:
                result, reason = _tokens(tokenizer, row, stops, limit, format.too_long if side != "test" else "drop")
                bar.advance(1)
                if result is None:
                    dropped.append({**row.to_json(), "side": side, "reason": reason})
                    continue
                truncated += reason == "truncated"
                kept.append(row)
                rendered.append(result)
            _write_side(out, side, kept, rendered)
            summary[side] = {"rows_in": len(rows), "rows": len(kept), "truncated": truncated, **_ledger(rendered)}
            samples += [
                _sample(tokenizer, row, r) for row, r in list(zip(kept, rendered))[: _SAMPLES if side == "train" else 0]
            ]
    store.write_jsonl(out / "dropped.jsonl", dropped)
    store.write_json(out / "samples.json", samples)
    reasons = Counter(item["reason"] for item in dropped)
    _refuse(format, limit, dropped, reasons, summary, base.name)
    assert all(summary[s]["rows_in"] == summary[s]["rows"] + sum(d["side"] == s for d in dropped) for s in SIDES)
    proof = {
        "rows_checked": sum(summary[s]["rows"] for s in SIDES),
        "end_tokens": tokenizer.convert_ids_to_tokens(stops),
    }
    ends = " or ".join(proof["end_tokens"])
    headline = (
        f"{summary['train']['tokens']:,} training tokens, {summary['train']['learnt_tokens']:,} learnt; "
        f"all {proof['rows_checked']:,} rows end with {ends} and learn it; {len(dropped):,} dropped"
    )
    return {
        "headline": headline,
        **summary,
        "dropped": len(dropped),
        "reasons": dict(reasons),
        "proof": proof,
        "longest_answer": max(summary[s]["longest_answer"] for s in SIDES),
    }


def _tokens(
    tokenizer: PreTrainedTokenizerBase, row: Row, stops: list[int], limit: int, too_long: str
) -> tuple[Rendered | None, str]:
    """The rendered row, or None and the reason why it cannot be used."""
    from tunesmith.models import chat

    try:
        rendered = chat.render(tokenizer, row.messages, row.tools)
    except chat.CannotRender as error:
        return None, str(error)
    faults = chat.faults(rendered, stops, tokenizer.bos_token_id)
    if faults:
        return None, faults[0]
    if len(rendered.ids) <= limit:
        return rendered, ""
    cut = chat.Rendered(rendered.ids[:limit], rendered.learnt[:limit], rendered.prompt_tokens)
    if too_long == "truncate" and any(cut.learnt):
        return cut, "truncated"
    return None, "too long"


def _refuse(
    format: Format,
    limit: int,
    dropped: list[dict[str, Any]],
    reasons: Counter[str],
    summary: dict[str, Any],
    model: str,
) -> None:
    """The faults that end the run: rows too long unless that was allowed, an end token never learnt, nothing left."""
    long = [item for item in dropped if item["reason"] == "too long" and item["side"] != "test"]
    if long and format.too_long == "error":
        first = ", ".join(f"{item['source']}:{item['line']}" for item in long[:3])
        raise DataError(
            f"{len(long)} rows are longer than {limit:,} tokens",
            f"the first are {first}; cutting or dropping them silently would change what is learnt",
            "set data.format.too_long to `drop` or `truncate` (both are counted), or raise data.format.max_tokens",
        )
    if summary["train"]["rows"]:
        return
    reason = reasons.most_common(1)[0][0] if reasons else "no rows"
    if reason == "the answer's end token would not be learnt":
        raise ModelError(
            f"the chat template of {model} never ends the assistant's turn with an end token",
            "a model trained with it would not learn to stop",
            "choose another base, or mend its chat_template.jinja",
        )
    raise DataError(
        "no training row is left after tokenising",
        f"most common reason: {reason}",
        "read output/failed/format/dropped.jsonl",
    )


def _write_side(out: Path, side: str, rows: list[Row], rendered: list[Rendered]) -> None:
    store.write_rows(out / f"{side}.jsonl", rows)
    np.save(out / f"{side}.ids.npy", np.array([i for r in rendered for i in r.ids], dtype=np.int32))
    np.save(out / f"{side}.learnt.npy", np.array([m for r in rendered for m in r.learnt], dtype=np.bool_))
    np.save(out / f"{side}.ends.npy", np.cumsum([len(r.ids) for r in rendered], dtype=np.int64))


def _ledger(rendered: list[Rendered]) -> dict[str, Any]:
    lengths = [len(r.ids) for r in rendered] or [0]
    learnt = [sum(r.learnt) for r in rendered] or [0]
    return {
        "tokens": sum(lengths),
        "learnt_tokens": sum(learnt),
        "longest": max(lengths),
        "median": int(np.median(lengths)),
        "p95": int(np.percentile(lengths, 95)),
        "longest_answer": max((len(r.ids) - r.prompt_tokens for r in rendered), default=0),
        "histogram": [c.tolist() for c in np.histogram(lengths, bins=20)],
    }


def _sample(tokenizer: PreTrainedTokenizerBase, row: Row, rendered: Rendered) -> dict[str, Any]:
    pieces = [tokenizer.decode([i]) for i in rendered.ids]
    return {"source": row.source, "line": row.line, "tokens": pieces, "learnt": rendered.learnt}
