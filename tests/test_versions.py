"""A step whose code changed must not trust old results: its VERSION is raised, or the change is declared harmless.

versions.json holds, for each step, its VERSION and a hash of the code that its result depends on: its module and what
that imports of ours, without comments, docstrings and names of folders that only show or find things. When the hash
changes, either raise VERSION in the step's module, or, if no result can differ, leave it; then run this file:

    python tests/test_versions.py
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).with_name("versions.json")
STEPS = {
    "load": "data.load",
    "clean": "data.pipeline",
    "judge": "data.judge",
    "split": "data.split",
    "grow": "data.grow",
    "format": "data.format",
    "texts": "data.texts",
    "plan, pretrain-plan": "plan.planner",
    "pretrain": "train.stage",
    "train": "train.run",
    "base, tuned": "evaluate.predict",
    "verdict": "evaluate.gates",
    "export": "export.export",
}
NO_RESULT = {"tunesmith.core.console", "tunesmith.core.errors", "tunesmith.core.step", "tunesmith.core.store"}


def source(module: str) -> ast.Module | None:
    path = ROOT / (module.replace(".", "/") + ".py")
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def without_docstrings(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [
                item for item in node.body if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
            ]
    return ast.dump(tree)


def reached(module: str, seen: dict[str, str]) -> dict[str, str]:
    """The code of a module and of all that it imports of ours, by module name."""
    tree = source(module)
    if tree is None or module in seen or module in NO_RESULT:
        return seen
    seen[module] = without_docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tunesmith"):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                reached(name, seen)
    return seen


def found() -> dict[str, dict[str, int | str]]:
    steps: dict[str, dict[str, int | str]] = {}
    for step, module in STEPS.items():
        code = reached(f"tunesmith.{module}", {})
        version = importlib.import_module(f"tunesmith.{module}").VERSION
        steps[step] = {
            "version": version,
            "code": hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest(),
        }
    return steps


def test_changed_steps_have_a_new_version_or_a_declaration() -> None:
    changed = [step for step, now in found().items() if now != json.loads(RECORD.read_text())[step]]
    assert changed == [], (
        f"{changed}: raise VERSION unless no result can differ, then run `python tests/test_versions.py`"
    )


def test_a_changed_line_is_noticed() -> None:
    first, second = ast.parse("def f():\n    '''doc'''\n    return 1"), ast.parse("def f():\n    return 2  # why")
    same = ast.parse("def f():\n    # why\n    return 1")
    assert without_docstrings(first) == without_docstrings(same) != without_docstrings(second)


if __name__ == "__main__":
    RECORD.write_text(json.dumps(found(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RECORD.name}")
