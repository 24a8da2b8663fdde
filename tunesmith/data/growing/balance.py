"""Caps and weights for the training rows: by label, by length, or by topic.

Each row has a value, and each value a number of rows that it is to have: as many as there are, times its weight, at
most the cap. Rows stand in the order of their content's hash, so that the same ones are kept in every run and in any
order of the file. Where more are wanted than there are, all are repeated alike, and say so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tunesmith.core import store
from tunesmith.core.data_section import Balance
from tunesmith.core.errors import DataError
from tunesmith.core.records import Dropped, Row
from tunesmith.data import parts
from tunesmith.data.cleaning import answers
from tunesmith.data.growing import topics
from tunesmith.data.growing.drops import Drops
from tunesmith.data.traits import prompt_text

Counts = NDArray[np.int64]

STAGE = "balancing"
REPEATED = "repeated to balance"

_NO_LABEL = "(none)"
_SHOWN = 50  # values that the summary tells; the rest are counted


@dataclass(frozen=True)
class Values:
    """Each row's value, as a place in `names`; `told` describes values whose names do not."""

    value_N: Counts
    names: list[str]
    told: dict[str, str]


def run(balance: Balance, train: Path, balanced: Path, work: Path, drops: Drops) -> dict[str, Any]:
    """Writes the balanced rows. Raises DataError where a weight's value is no row's, or the field is in no answer."""
    pieces = list(parts.cut(train))
    done = parts.each("balance", partial(_part, balance), pieces, work / "balance")
    rank_N = np.concatenate([np.fromfile(one.folder / "ranks", np.uint64) for one in done])
    values = _values(balance, done, pieces)
    if unknown := sorted(balance.weights.keys() - set(values.names)):
        known = ", ".join(f"`{name}`" for name in sorted(values.names)[:20])
        raise DataError(
            f"data.grow.balance.weights: no training row has the value `{unknown[0]}`",
            f"the values are {known}{' and others' if len(values.names) > 20 else ''}",
            "write one of them, or take it out",
        )
    before = np.bincount(values.value_N, minlength=len(values.names))
    wanted = np.array([_wanted(balance, name, int(rows)) for name, rows in zip(values.names, before)], np.int64)
    times_N = _times(values.value_N, rank_N, wanted)
    repeats = _write(balance, pieces, values, before, times_N, balanced, drops)
    after = np.bincount(values.value_N, weights=times_N, minlength=len(values.names)).astype(np.int64)
    order = np.argsort(-before, kind="stable")[:_SHOWN]
    return {
        "by": balance.by,
        "rows_in": len(rank_N),
        "kept": int(times_N.sum()),
        "made": repeats,
        "repeats": repeats,
        "dropped": int((times_N == 0).sum()),
        "values": {
            values.names[i]: {"before": int(before[i]), "after": int(after[i]), **_described(values, values.names[i])}
            for i in order.tolist()
        },
        "more_values": len(values.names) - len(order),
    }


def _part(balance: Balance, part: parts.Part, folder: Path) -> dict[str, Any]:
    """Of each row of a part: the hash that it is ranked by, and its label or its number of words."""
    rows = [Row.from_json(orjson.loads(line)) for line in part.read()]
    np.array([_rank(row) for row in rows], np.uint64).tofile(folder / "ranks")
    if balance.by == "length":
        np.array([_words(row) for row in rows], np.int64).tofile(folder / "words")
    elif balance.by == "label":
        labels = [_label(row, balance.field) for row in rows]
        names = list(dict.fromkeys(labels))
        at = {name: i for i, name in enumerate(names)}
        np.array([at[label] for label in labels], np.int64).tofile(folder / "labels")
        store.write_json(folder / "names.json", names)
    return {}


def _rank(row: Row) -> int:
    """Rows of one content rank alike; the id itself is no rank, since ids also order other things."""
    return int.from_bytes(hashlib.sha256(f"balance {row.id}".encode()).digest()[:8])


def _words(row: Row) -> int:
    return sum(len(str(m["content"]).split()) for m in row.messages if m["role"] != "system")


def _label(row: Row, field: str | None) -> str:
    if field is None:
        return row.answer
    try:
        answer = answers.parse_json(row.answer)
    except ValueError:
        return _NO_LABEL
    if not isinstance(answer, dict) or field not in answer:
        return _NO_LABEL
    value = answer[field]
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _values(balance: Balance, done: list[parts.Done], pieces: list[parts.Part]) -> Values:
    if balance.by == "label":
        return _labels(balance, done)
    if balance.by == "length":
        return _lengths(np.concatenate([np.fromfile(one.folder / "words", np.int64) for one in done]), balance.groups)
    texts = (prompt_text(Row.from_json(orjson.loads(line))) for piece in pieces for line in piece.read())
    found = topics.clusters(texts, balance.groups)
    names = [str(i + 1) for i in range(len(found.words))]
    return Values(found.topic_N, names, {name: ", ".join(words) for name, words in zip(names, found.words)})


def _labels(balance: Balance, done: list[parts.Done]) -> Values:
    at: dict[str, int] = {}
    labels = []
    for one in done:
        places = [at.setdefault(name, len(at)) for name in store.read_json(one.folder / "names.json")]
        labels.append(np.array(places, np.int64)[np.fromfile(one.folder / "labels", np.int64)])
    if list(at) == [_NO_LABEL]:
        raise DataError(
            f"data.grow.balance.field: no answer has the field `{balance.field}`",
            "a label is read from answers that are JSON objects",
            "name a field that the answers have, or take `field` out to take the whole answer for the label",
        )
    return Values(np.concatenate(labels), list(at), {})


def _lengths(words_N: Counts, groups: int) -> Values:
    """Bins of equally many rows, as far as rows of one length stay together."""
    inner = np.unique(np.quantile(words_N, np.arange(1, groups) / groups, method="lower"))
    bin_N = np.searchsorted(inner, words_N, side="left")
    _, bin_N = np.unique(bin_N, return_inverse=True)
    names = [str(i + 1) for i in range(int(bin_N.max()) + 1)]
    held = [words_N[bin_N == i] for i in range(len(names))]
    return Values(bin_N, names, {name: f"{its.min():,} to {its.max():,} words" for name, its in zip(names, held)})


def _wanted(balance: Balance, name: str, rows: int) -> int:
    wanted = round(rows * balance.weights.get(name, 1))
    return wanted if balance.cap is None else min(wanted, balance.cap)


def _times(value_N: Counts, rank_N: NDArray[np.uint64], wanted: Counts) -> Counts:
    """How often each row is to stand: all rows of a value equally often, those of the lowest rank once more."""
    order = np.lexsort((rank_N, value_N))
    begins = np.searchsorted(value_N[order], np.arange(len(wanted)))
    times_N = np.zeros(len(value_N), np.int64)
    for value, rows in enumerate(np.bincount(value_N, minlength=len(wanted)).tolist()):
        its = order[begins[value] : begins[value] + rows]
        times_N[its] = wanted[value] // rows
        times_N[its[: wanted[value] % rows]] += 1
    return times_N


def _write(
    balance: Balance,
    pieces: list[parts.Part],
    values: Values,
    before: Counts,
    times_N: Counts,
    balanced: Path,
    drops: Drops,
) -> int:
    """Writes rows as often as they are to stand, drops those that are not, and returns the number of repeats."""
    repeats, place = 0, 0
    with open(balanced, "wb") as file:
        for piece in pieces:
            for line in piece.read():
                value, times = int(values.value_N[place]), int(times_N[place])
                place += 1
                if times:
                    file.write(line)
                else:
                    row = Row.from_json(orjson.loads(line))
                    drops.add(_dropped(row, balance, values.names[value], int(before[value])), STAGE)
                if times > 1:
                    row = Row.from_json(orjson.loads(line))
                    note = f"{REPEATED} {balance.by}s"
                    again = replace(row, changes=[*row.changes, note]).to_json()
                    file.write(orjson.dumps(again, option=orjson.OPT_APPEND_NEWLINE) * (times - 1))
                    repeats += times - 1
    return repeats


def _dropped(row: Row, balance: Balance, name: str, rows: int) -> Dropped:
    weighted = round(rows * balance.weights.get(name, 1))
    capped = balance.cap is not None and weighted > balance.cap
    reason = f"over the cap of its {balance.by}" if capped else f"weighted down by {balance.by}"
    limit = f"at most {balance.cap:,}" if capped else f"a weight of {balance.weights.get(name, 1):g}"
    return Dropped(row, reason, f"{balance.by} {_short(name)}: {rows:,} rows, {limit}")


def _described(values: Values, name: str) -> dict[str, str]:
    return {"told": values.told[name]} if name in values.told else {}


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}..."
