"""Raw text becomes tokens: documents, each ended by the end-of-text token, cut into blocks that training packs.

Every token but the first of a document is learnt, once: a block begins with the last token of the block before it,
which there is context only. Control tokens that are written out in a text are read as text. Only documents are dropped:
empty ones, and those that say exactly what an earlier one said. Memory holds a batch of documents, and for each that
was read its digest and the lengths of its blocks.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from tunesmith.core import certificate, inputs
from tunesmith.core.console import progress
from tunesmith.core.errors import ConfigError, DataError, ModelError
from tunesmith.core.records import Quarantined
from tunesmith.data.reading import collect, documents
from tunesmith.data.reading.documents import Document
from tunesmith.data.reading.values import short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.models.base import Base

VERSION = 4
VALIDATION_SHARE = 0.05  # of the tokens

_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")  # instruct models call another token their end: that of a turn
_BLOCK_TOKENS = 1024  # where the project names no length
_BATCH_CHARACTERS = 1 << 20  # tokenised in one call
_FEW_DOCUMENTS = round(1 / VALIDATION_SHARE)  # with fewer, a side of whole documents would be far from its share


@dataclass
class Ledger:
    """What became of all that was found in each file: documents kept, dropped or quarantined."""

    found: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    furniture: int = 0
    earlier: dict[bytes, tuple[str, int]] = field(default_factory=dict)

    def fault(self, document: Document) -> tuple[str, str]:
        """Why a document is dropped, and what was seen; empty for one that is kept."""
        if not document.text:
            return "empty", ""
        digest = _digest(document.text.encode())
        if digest in self.earlier:
            source, line = self.earlier[digest]
            return "duplicate", f"of {source}:{line}"
        self.earlier[digest] = (document.source, document.line)
        return "", ""

    @property
    def reasons(self) -> dict[str, int]:
        return dict((self.dropped + self.quarantined).most_common())


class Blocks:
    """The tokens of all blocks in one file, in their order; B lengths and documents, D digests stay in memory."""

    def __init__(self, path: Path, longest: int) -> None:
        self.path, self.longest = path, longest
        self.lengths, self.documents = array("q"), array("q")
        self.digests: list[bytes] = []
        self.cut = 0

    def add(self, file: BinaryIO, ids: list[int], text: str) -> None:
        parts = cut(ids, self.longest)
        for part in parts:
            file.write(np.array(part, dtype=np.int32).tobytes())
            self.lengths.append(len(part))
            self.documents.append(len(self.digests))
        self.digests.append(_digest(text.encode()))
        self.cut += len(parts) > 1


def run(
    texts: list[Path],
    block_tokens: int | None,
    max_quarantined: float,
    base: Base,
    out: Path,
    kept: Path | None = None,
) -> dict[str, Any]:
    """Writes the blocks of both sides as the arrays that data/format.py writes for rows, and `dropped.jsonl` and
    `quarantine.jsonl`.

    Raises DataError when a file cannot be read at all, when more than the share `max_quarantined` of what was found is
    unreadable, or when nothing is left.
    """
    from tunesmith.models import base as bases
    from tunesmith.models import load  # transformers is imported only when the step runs

    assert base.folder is not None
    tokenizer = load.tokenizer(base.folder)
    begin, end = _before_text(tokenizer), _end_of_text(tokenizer, base.name)
    ledger = Ledger()
    blocks = Blocks(out / "blocks.bin", _longest(block_tokens, bases.facts(base.folder)["context"]))
    with collect.workplace(kept, out) as unpacked, open(blocks.path, "wb") as file:
        items, skipped = _items(texts, unpacked)
        with progress("texts", sum(item.path.stat().st_size for item in items), "bytes") as bar:
            for batch in _batches(_kept(items, ledger, out)):
                for document, ids in zip(batch, _encoded(tokenizer, batch)):
                    blocks.add(file, [*begin, *ids, end], document.text)
                    bar.advance(len(document.text.encode()), document.source)
    _refuse(ledger, max_quarantined)
    held_out_B = held_out(np.array(blocks.lengths), np.array(blocks.documents), blocks.digests)
    sides = {
        "train": _write(out, "train", blocks, ~held_out_B),
        "validation": _write(out, "validation", blocks, held_out_B),
    }
    blocks.path.unlink()
    names = [f"{side}.{kind}.npy" for side in sides for kind in ("ids", "learnt", "ends")]
    certificate.seal(out, {"leaks": 0, "exam": 0}, names)  # there is no exam to know
    return {
        "headline": _headline(ledger, blocks, sides, skipped),
        "found": ledger.found.total(),
        "documents": ledger.kept.total(),
        "dropped": ledger.dropped.total(),
        "quarantined": ledger.quarantined.total(),
        "reasons": ledger.reasons,
        "furniture": ledger.furniture,
        "skipped": skipped,
        "cut": blocks.cut,
        "block_tokens": blocks.longest,
        "begin": tokenizer.convert_ids_to_tokens(begin),
        "end": tokenizer.convert_ids_to_tokens(end),
        "sources": [{"path": p, "found": n, "documents": ledger.kept[p]} for p, n in ledger.found.items()],
        **sides,
    }


def preview(path: Path, limit: int = 200) -> dict[str, Any]:
    """The first documents: what a document is there, how many, how the first three begin, what is broken."""
    forms: dict[str, None] = {}
    skipped: list[collect.Skipped] = []

    def first(unpacked: Path) -> Iterator[Document | Quarantined]:
        for one in collect.collected(path, documents.why_not, unpacked, head=True):
            if isinstance(one, collect.Skipped):
                skipped.append(one)
                continue
            forms[documents.form(one.path)] = None
            yield from documents.read(one.path, one.name)

    with tempfile.TemporaryDirectory() as unpacked:
        seen = list(itertools.islice(first(Path(unpacked)), limit))
    if not forms:
        raise collect.nothing_to_read(path, collect.told(skipped), documents.KINDS)
    found = [item for item in seen if isinstance(item, Document)]
    return {
        "files": len(inputs.files(path)),
        "form": next(iter(forms)) if len(forms) == 1 else "file",
        "documents": len(found),
        "whole_file": len(seen) < limit,
        "reasons": dict(Counter(item.reason for item in seen if isinstance(item, Quarantined)).most_common()),
        "skipped": collect.told(skipped),
        "first": [
            {"source": document.source, "line": document.line, "text": short(document.text, 80)}
            for document in found[:3]
        ],
    }


def cut(ids: list[int], longest: int) -> list[list[int]]:
    """Parts of nearly equal length with at most `longest` tokens; each begins with the last token of the one before."""
    targets = len(ids) - 1
    count = math.ceil(targets / (longest - 1))
    borders = [i * targets // count for i in range(count + 1)]
    return [ids[start : stop + 1] for start, stop in itertools.pairwise(borders)]


def held_out(lengths_B: NDArray[np.int64], document_B: NDArray[np.int64], digests: list[bytes]) -> NDArray[np.bool_]:
    """Which blocks validate: those of the documents with the lowest hashes, as many as the share of tokens holds.

    Where documents are few, single blocks are taken instead, so that a handbook in one file is validated too. Of two
    units or more, at least one is held out.
    """
    if len(digests) >= _FEW_DOCUMENTS:
        unit_B, names = document_B, digests
    else:
        unit_B, names = np.arange(len(lengths_B)), [digests[d] + b"%d" % i for i, d in enumerate(document_B)]
    tokens_U = np.bincount(unit_B, weights=lengths_B)
    chosen_U = np.zeros(len(tokens_U), dtype=np.bool_)
    free = VALIDATION_SHARE * lengths_B.sum()
    for unit in sorted(range(len(tokens_U)), key=lambda u: _digest(names[u])):
        if tokens_U[unit] <= free:
            chosen_U[unit] = True
            free -= tokens_U[unit]
    if len(tokens_U) > 1 and not chosen_U.any():
        chosen_U[tokens_U.argmin()] = True
    return chosen_U[unit_B]


def _items(texts: list[Path], unpacked: Path) -> tuple[list[collect.Item], dict[str, list[str]]]:
    """All files, and the names of those that are not read, by the reason."""
    items: list[collect.Item] = []
    skipped: list[collect.Skipped] = []
    for i, path in enumerate(texts):
        found = list(collect.collected(path, documents.why_not, unpacked / f"{i:03d}"))
        passed_over = [one for one in found if isinstance(one, collect.Skipped)]
        of_path = [one for one in found if isinstance(one, collect.Item)]
        if not of_path:
            raise collect.nothing_to_read(path, collect.told(passed_over), documents.KINDS)
        skipped += passed_over
        items += of_path
    return items, collect.told(skipped)


def _kept(items: Iterable[collect.Item], ledger: Ledger, out: Path) -> Iterator[Document]:
    """The documents to learn; the others are written to `out`, and all are entered into the ledger."""
    with open(out / "dropped.jsonl", "wb") as dropped, open(out / "quarantine.jsonl", "wb") as quarantine:
        for item in itertools.chain.from_iterable(documents.read(one.path, one.name) for one in items):
            ledger.found[item.source] += 1
            if isinstance(item, Quarantined):
                ledger.quarantined[item.reason] += 1
                quarantine.write(orjson.dumps(asdict(item), option=orjson.OPT_APPEND_NEWLINE))
                continue
            reason, detail = ledger.fault(item)
            if reason:
                ledger.dropped[reason] += 1
                shown = item.text[: documents.SHOWN_CHARACTERS]
                told = {"source": item.source, "line": item.line, "text": shown}
                line = {**told, "reason": reason, "detail": detail}
                dropped.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
                continue
            ledger.kept[item.source] += 1
            ledger.furniture += item.furniture
            yield item
    assert ledger.found.total() == ledger.kept.total() + ledger.dropped.total() + ledger.quarantined.total()


def _batches(kept: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in kept:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encoded(tokenizer: PreTrainedTokenizerBase, batch: list[Document]) -> list[list[int]]:
    texts = [document.text for document in batch]
    # verbose=False: a document that is longer than the context is no mistake, it will be cut
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return list(encoded["input_ids"])


def _before_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the base's own tokeniser puts before plain text: a beginning-of-text token, or nothing."""
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    return list(whole[: next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)])


def _end_of_text(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """The token that ends a document; that which ends an answer may be another."""
    known = tokenizer.get_added_vocab()
    end = next((known[token] for token in _END_OF_TEXT if token in known), tokenizer.eos_token_id)
    if end is None:
        raise ModelError(
            f"{name} has no end-of-text token",
            "trained on documents without one, it would run from each into the next",
            "add eos_token to tokenizer_config.json, or choose another base (`tunesmith models`)",
        )
    return int(end)


def _longest(wanted: int | None, context: int | None) -> int:
    """Tokens of the longest block: as wanted, else 1,024 or what the model can read."""
    if wanted and context and wanted > context:
        raise ConfigError(
            f"pretrain.block_tokens is {wanted:,}, the model's context is {context:,}",
            "the model reads no further than its context",
            f"set pretrain.block_tokens to {context} or less, or take it out",
        )
    return wanted or min(context or _BLOCK_TOKENS, _BLOCK_TOKENS)


def _write(out: Path, side: str, blocks: Blocks, mine_B: NDArray[np.bool_]) -> dict[str, Any]:
    """Copies one side's blocks into its arrays, and counts them as data/format.py counts rows."""
    lengths_B = np.array(blocks.lengths)
    stops_B = np.cumsum(lengths_B)
    lengths, stops = lengths_B[mine_B], stops_B[mine_B]
    ids = np.memmap(blocks.path, dtype=np.int32, mode="r")
    _save(out / f"{side}.ids.npy", np.int32, lengths, (ids[stop - n : stop] for n, stop in zip(lengths, stops)))
    _save(out / f"{side}.learnt.npy", np.bool_, lengths, (np.arange(n) > 0 for n in lengths))
    np.save(out / f"{side}.ends.npy", np.cumsum(lengths, dtype=np.int64))
    shown = lengths if len(lengths) else np.zeros(1, dtype=np.int64)
    return {
        "rows": len(lengths),
        "tokens": int(lengths.sum()),
        "learnt_tokens": int(lengths.sum()) - len(lengths),
        "longest": int(shown.max()),
        "median": int(np.median(shown)),
        "p95": int(np.percentile(shown, 95)),
        "histogram": [counts.tolist() for counts in np.histogram(shown, bins=20)],
    }


def _save(path: Path, dtype: type[np.generic], lengths: NDArray[np.int64], parts: Iterable[NDArray[Any]]) -> None:
    """A one-dimensional .npy file, written part by part. (Through a memory map, a full disk would kill the process.)"""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (int(lengths.sum()),)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.tobytes())


def _refuse(ledger: Ledger, max_quarantined: float) -> None:
    found, unreadable = ledger.found.total(), ledger.quarantined.total()
    why = ", ".join(f"{count:,} {reason}" for reason, count in list(ledger.reasons.items())[:3])
    if unreadable > max_quarantined * found:
        raise DataError(
            f"{unreadable:,} of {found:,} documents cannot be read",
            why,
            f"read output/failed/texts/quarantine.jsonl; or raise data.max_quarantined (now {max_quarantined:g})",
        )
    if not ledger.kept:
        raise DataError("no document is left of pretrain.texts", why, "read output/failed/texts/dropped.jsonl")


def _headline(ledger: Ledger, blocks: Blocks, sides: dict[str, dict[str, Any]], skipped: dict[str, list[str]]) -> str:
    gone = ", ".join(f"{count:,} {reason}" for reason, count in ledger.reasons.items())
    return (
        f"{ledger.kept.total():,} documents in {len(blocks.lengths):,} blocks of at most {blocks.longest:,} tokens: "
        f"{sides['train']['tokens']:,} to train, {sides['validation']['tokens']:,} to validate"
        + (f"; left out: {gone}" if gone else "")
        + (f"; {ledger.furniture:,} lines that repeat on pages taken out" if ledger.furniture else "")
        + (f"; {collect.sentence(skipped)}" if skipped else "")
    )


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]
