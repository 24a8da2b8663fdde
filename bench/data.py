"""Times the data stages: the whole pipeline, and near-duplicates beside rensa and datasketch on the same texts.

    bench/data.py                      10,000, 100,000 and a million rows; about half an hour
    bench/data.py --rows 10000         one size
    bench/data.py --pairs 1            every side once

Prints a table and, as its last line, JSON; figures go to bench/results, into the folder of this kind of machine.
Nothing else should run on the machine meanwhile. Sides alternate in random order, each in a process of its own; a ratio
is that of a round, and the figure the median over rounds. Needs `pip install rensa datasketch` and TUNESMITH_REAL_DATA.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median, median_low
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from circumstances import found_in, kind_of_machine
from preparing import corpus, truth
from preparing.processes import measure
from preparing.sides import SIDES, THRESHOLD

from tunesmith.core import store
from tunesmith.core.errors import UserError
from tunesmith.core.records import normalised

RESULTS = Path(__file__).parent / "results"
SIZES = [10_000, 100_000, 1_000_000]
COMPARED = 2_000  # texts whose repeats are looked for by comparing them with all others
SAME_RECALL = 0.01  # a rival that finds so much less is still as good
_SLOW = {"datasketch, 128": 100_000, "rensa, deduplicator, 512 in 128": 100_000}  # rows beyond which a side takes hours
_TELLING = 100_000  # rows whose rates are the figures, where so many are measured; more of them run once


def main(
    rows: Annotated[list[int] | None, typer.Option(min=1_000, help="so many rows; may be repeated")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="rounds in which every side of a size runs once")] = 3,
    results: Annotated[Path | None, typer.Option(help="where figures are kept")] = None,
) -> None:
    """Times the data stages; see the head of this file."""
    sizes = sorted(rows or SIZES)
    kept = results or RESULTS / kind_of_machine()
    work = kept / "output" / "data"
    if os.getloadavg()[0] > 0.5:
        print(f"other work runs here (load average {os.getloadavg()[0]:.1f}): figures suffer", file=sys.stderr)
    try:
        found = {size: measured(size, pairs if size <= _TELLING else 1, work / str(size)) for size in sizes}
    except UserError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    where = found_in(("numpy", "orjson", "rensa", "datasketch"), ("data", "core"))
    found = {**_earlier(kept / "data.json", where["engine"]), **found}
    found = dict(sorted(found.items()))
    figures = {**summary(found), "sizes": found, "threshold": THRESHOLD, "pairs": pairs, **where}
    kept.mkdir(parents=True, exist_ok=True)
    store.write_text(kept / "data.json", json.dumps(figures, indent=1) + "\n")
    print(table(found))
    print(json.dumps(figures))


def _earlier(file: Path, engine: str) -> dict[int, Any]:
    """Sizes that the same code was measured with before."""
    figures = store.read_json(file) if file.is_file() else {"engine": None}
    return {int(size): its for size, its in figures["sizes"].items()} if figures["engine"] == engine else {}


def measured(size: int, pairs: int, work: Path) -> dict[str, Any]:
    """One size: the pipeline and every side in every round; of the pipeline's runs, the one in the middle."""
    work.mkdir(parents=True, exist_ok=True)
    rows, texts = work / "rows.jsonl", work / "texts"
    corpus.write(rows, size)
    _write_texts(rows, texts)
    runs = [measure("steps", {"rows": str(rows)}, work / "pipeline") for _ in range(pairs)]
    rates = [size / sum(run["seconds"].values()) for run in runs]
    pipeline = {**runs[rates.index(median_low(rates))], "rows_per_second": rates}
    _say(f"{size:,} rows through load, clean and split: {', '.join(f'{rate:,.0f}' for rate in rates)} rows/s")
    places, likes = truth.likes(texts, min(size, COMPARED))
    near: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number in range(pairs):
        sides = [side for side in SIDES if size <= _SLOW.get(side, size) and (number == 0 or side not in _SLOW)]
        for side in random.Random(number).sample(sides, len(sides)):
            out = work / "near"
            took = measure("sides", {"side": side, "texts": str(texts)}, out)
            flagged = set(np.load(out / "found.npy").tolist())
            near[side].append(
                {
                    **took,
                    "rows_per_second": size / took["seconds"],
                    "recall": _recall(flagged, likes),
                    "precision": _share(flagged & set(places.tolist()), set(likes)),
                }
            )
            _say(f"{size:,} texts, {side}: {size / took['seconds']:,.0f} rows/s, recall {near[side][-1]['recall']:.3f}")
    return {"pipeline": pipeline, "near": {side: near[side] for side in SIDES if side in near}}


def summary(found: dict[int, Any]) -> dict[str, Any]:
    """The figures that are asked for, of the size that tells most."""
    size = _TELLING if _TELLING in found else max(found)
    near, pipeline = found[size]["near"], found[size]["pipeline"]
    rival = best_rival(near, "rensa")
    largest = found.get(max(SIZES))
    return {
        "rows": size,
        "pipeline_rows_per_second": size / sum(pipeline["seconds"].values()),
        "near_duplicate_rows_per_second": _median(near["ours"], "rows_per_second"),
        "ratio_vs_rensa": _ratio(near, rival),
        "ratio_vs_datasketch": _ratio(near, next((side for side in near if side.startswith("datasketch")), None)),
        "recall": _median(near["ours"], "recall"),
        "peak_bytes_1m": largest["pipeline"]["peak_bytes"] if largest else None,
        "rensa": rival,
    }


def best_rival(near: dict[str, list[dict[str, Any]]], name: str) -> str | None:
    """The fastest of a rival's settings that find as much as we do; if none does, the one that finds most."""
    sides = [side for side in near if side.startswith(name)]
    enough = _median(near["ours"], "recall") - SAME_RECALL
    equal = [side for side in sides if _median(near[side], "recall") >= enough]
    if equal:
        return max(equal, key=lambda side: _median(near[side], "rows_per_second"))
    return max(sides, key=lambda side: _median(near[side], "recall"), default=None)


def table(found: dict[int, Any]) -> str:
    lines = [
        "",
        "| rows | what | rows/s | peak memory, MB | recall | precision |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for size, of_size in found.items():
        pipeline = of_size["pipeline"]
        for step, seconds in pipeline["seconds"].items():
            lines.append(f"| {size:,} | {step} | {size / seconds:,.0f} | | | |")
        whole = size / sum(pipeline["seconds"].values())
        lines.append(f"| {size:,} | **load, clean and split** | **{whole:,.0f}** | {_mb(pipeline)} | | |")
        for side, runs in of_size["near"].items():
            rate, recall, right = (_median(runs, name) for name in ("rows_per_second", "recall", "precision"))
            lines.append(
                f"| {size:,} | near-duplicates: {side} | {rate:,.0f} | {_mb(runs[0])} | {recall:.3f} | {right:.3f} |"
            )
    return "\n".join(lines)


def _write_texts(rows: Path, texts: Path) -> None:
    with open(rows, "rb") as file, open(texts, "w", encoding="utf-8") as written:
        for line in file:
            row = orjson.loads(line)
            written.write(normalised(f"{row['instruction']}\n{row['input']}") + "\n")


def _ratio(near: dict[str, list[dict[str, Any]]], rival: str | None) -> float | None:
    """Our rate over the rival's, round by round."""
    if rival is None:
        return None
    return median(ours["rows_per_second"] / its["rows_per_second"] for ours, its in zip(near["ours"], near[rival]))


def _median(runs: list[dict[str, Any]], name: str) -> float:
    return float(median(run[name] for run in runs))


def _recall(found: set[int], likes: dict[int, set[int]]) -> float:
    """Of the texts that are like an earlier one, those that are found, or that are like none but such as are found
    themselves: what goes need not take along what is like it alone."""
    return sum(place in found or earlier <= found for place, earlier in likes.items()) / len(likes)


def _share(found: set[int], repeated: set[int]) -> float:
    return len(found & repeated) / len(found) if found else 1.0


def _mb(run: dict[str, Any]) -> str:
    return f"{run['peak_bytes'] / 1e6:,.0f}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
