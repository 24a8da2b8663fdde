"""Compares the memory that is forecast before a run with what the run takes, over methods, batch sizes and lengths.

    bench/memory.py            every case, about ten minutes
    bench/memory.py --case 3   one of them

Prints a table and, as its last line, JSON; figures go to bench/results, into the folder of this kind of machine. Speed
does not matter here, so that other work on the machine does not either.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from circumstances import kind_of_machine
from training import report
from training.runs import measure
from training.workload import Plan, circumstances, prepare

from tunesmith.core import store
from tunesmith.core.errors import UserError
from tunesmith.models.tokens import Tokens

CASES = [  # rows, method, tokens of a micro-batch and of an optimizer step, steps
    ("short", "lora", 256, 1000, 12),
    ("short", "lora", 2048, 2000, 8),
    ("mixed", "lora", 512, 1600, 12),
    ("mixed", "lora", 1024, 1600, 12),
    ("mixed", "lora", 2048, 1600, 12),
    ("mixed", "lora", 2048, 4000, 6),
    ("mixed", "lora", 4096, 8000, 4),
    ("long", "lora", 2048, 4000, 6),
    ("long", "lora", 4096, 4000, 6),
    ("mixed", "qlora", 2048, 1600, 8),
    ("mixed", "ia3", 2048, 1600, 8),
    ("mixed", "full", 1024, 1600, 8),
    ("mixed", "full", 2048, 1600, 8),
]


def main(
    case: Annotated[int | None, typer.Option(min=1, max=len(CASES), help="only this one")] = None,
    tokens: Annotated[Path | None, typer.Option(help="a folder of tokenised rows, instead of the Alpaca rows")] = None,
    results: Annotated[Path | None, typer.Option(help="where figures are kept")] = None,
) -> None:
    """Compares forecast and measured peak memory; see the head of this file."""
    results = results or report.RESULTS / kind_of_machine()
    out = results / "output" / "memory"
    shutil.rmtree(out, ignore_errors=True)
    try:
        workload = prepare(out, tokens, Plan(steps=1, warmup=0), full=True)
    except UserError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    folders = lengths(workload.tokens, out)
    found = []
    for number, (rows, method, micro, batch, steps) in enumerate(CASES, 1):
        if case in (None, number):
            asked = {"base": str(workload.base), "rows": str(folders[rows]), "method": method}
            asked |= {"micro_batch_tokens": micro, "batch_tokens": batch, "steps": steps}
            took = measure("peak", asked, out / f"{number:02}")
            found.append({**asked, "base": workload.base.name, "rows": rows, **took})
            print(report.memory_line(found[-1]), file=sys.stderr, flush=True)
    figures = {"cases": found, **circumstances()}
    if case is None:
        results.mkdir(parents=True, exist_ok=True)
        store.write_text(results / "memory.json", json.dumps(figures, indent=1) + "\n")
        if results.parent == report.RESULTS:
            report.refresh()
    print(report.memory(figures))
    print(json.dumps(figures))


def lengths(folder: Path, out: Path) -> dict[str, Path]:
    """The rows as they are, their first 100 tokens, and four of them joined into one."""
    tokens = Tokens(folder, "train")
    rows = [tokens.row(i) for i in range(len(tokens))]
    short = [(ids[:100], learnt[:100]) for ids, learnt in rows if learnt[1:100].any()]
    fours: list[Any] = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    long = [tuple(np.concatenate(part) for part in zip(*four)) for four in fours]
    return {"mixed": folder, "short": _write(short, out / "short"), "long": _write(long, out / "long")}


def _write(rows: list[Any], folder: Path) -> Path:
    folder.mkdir(parents=True)
    np.save(folder / "train.ids.npy", np.concatenate([ids for ids, _ in rows]))
    np.save(folder / "train.learnt.npy", np.concatenate([learnt for _, learnt in rows]))
    np.save(folder / "train.ends.npy", np.cumsum([len(ids) for ids, _ in rows], dtype=np.int64))
    return folder.resolve()


if __name__ == "__main__":
    typer.run(main)
