"""Keeps the last run of each named recipe as recipes/NAME/result.json, for the README's table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tunesmith
from tunesmith.core import hardware

KEPT = {"project", "model", "finished", "verdict", "gates", "metrics", "rows", "tokens", "training"}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        folder = Path(__file__).resolve().parents[1] / "recipes" / name
        found = tunesmith.show(folder).model_dump(mode="json", include=KEPT)
        found["machine"] = {"cpu": hardware.probe().name, "cores": hardware.cores()}
        (folder / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"wrote recipes/{name}/result.json")
