"""Keeps the last runs of recipes for the tables of results: `python docs/results.py booking support support/full`.

NAME is recipes/NAME/tunesmith.yaml, kept as recipes/NAME/result.json; NAME/METHOD is recipes/NAME/METHOD.yaml, kept as
recipes/NAME/results/METHOD.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tunesmith
from tunesmith.core import hardware

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
KEPT = {"project", "model", "finished", "verdict", "gates", "metrics", "rows", "yields", "tokens", "training"}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        recipe, _, method = name.partition("/")
        found = tunesmith.show(RECIPES / recipe / f"{method or 'tunesmith'}.yaml").model_dump(mode="json", include=KEPT)
        found["machine"] = {"cpu": hardware.probe().name, "cores": hardware.cores()}
        kept = RECIPES / recipe / (f"results/{method}.json" if method else "result.json")
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {kept.relative_to(RECIPES.parent)}")
