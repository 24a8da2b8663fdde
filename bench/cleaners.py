"""Measures what the cleaners of single rows find: personal data in gold spans, and faults planted into real rows.

    bench/cleaners.py FOLDER    the folder of real data, with pii/, banking77/ and instructions/

Prints tables, of recall and precision for each kind, and keeps them in bench/results/cleaners.json. Planted values are
drawn by a fixed seed; beside them stand values that look alike and are none.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
from cleaning import planted
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results/cleaners.json"
SEED = 7


def main(
    data: Annotated[Path, typer.Argument(envvar="TUNESMITH_REAL_DATA", exists=True, file_okay=False)],
    results: Annotated[Path, typer.Option(help="where figures are kept")] = RESULTS,
) -> None:
    """Measures the cleaners of single rows; see the head of this file."""
    clean = planted.rows(data)
    tables = {
        "personal data: gold spans of presidio-research": planted.gold(data),
        "personal data: planted": planted.personal(clean, Random(SEED)),
        "text repair: planted": planted.repairs(clean, Random(SEED)),
        "filters: planted": planted.dropped(clean, Random(SEED)),
    }
    for title, scores in tables.items():
        _print(title, scores)
    taken, looked = planted.alike(clean, Random(SEED)), planted.ROWS * len(planted.values.ALIKE)
    print(f"of {looked:,} values that only look like personal data, {len(taken)} are taken for some: {taken}")
    found: dict[str, Any] = {
        title: {kind: score.to_json() for kind, score in scores.items()} for title, scores in tables.items()
    }
    found["values that only look like personal data"] = {"planted": looked, "false": len(taken)}
    results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _print(title: str, scores: dict[str, planted.Score]) -> None:
    table = Table("kind", "planted", "found", "false", "exact", "recall", "precision", title=title)
    for kind, score in scores.items():
        told = score.to_json()
        shares = [f"{told[name]:.3f}" for name in ("recall", "precision")]
        table.add_row(kind, *(str(told[name]) for name in ("planted", "found", "false", "exact")), *shares)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
