"""The import law of the house: folders import downwards, siblings never, torch only when a step runs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tunesmith"
ROOMS = {"data", "plan", "train", "evaluate", "export"}
MAY_IMPORT = {
    "core": set(),
    "kernels": set(),
    "models": {"core", "kernels"},
    **{room: {"core", "models"} for room in ROOMS},
    "lifecycle": {"core", "models"} | ROOMS,
    "result": {"core", "lifecycle"},
    "web": {"core", "lifecycle", "result", "data"},
    "api": {"core", "models", "lifecycle", "result", "web", "data", "plan", "evaluate"},
    "terminal": {"core", "api", "result", "data"},
    "cli": {"core", "api", "terminal"},
    "__main__": {"cli"},
    "__init__": {"core", "api", "result"},
}
MAY_IMPORT["train"] = MAY_IMPORT["train"] | {"kernels"}


def imports() -> Iterator[tuple[Path, str, str]]:
    """Every import of one of our parts in another: the file, its part, the part that it imports."""
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        part = inside.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{inside}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                pieces = name.split(".")
                if pieces[0] == "tunesmith" and len(pieces) > 1 and pieces[1] != part:
                    yield inside, part, pieces[1]


def test_imports_point_one_way() -> None:
    found = [f"{path}: {part} imports {other}" for path, part, other in imports() if other not in MAY_IMPORT[part]]
    assert found == []


def test_the_law_names_every_part_and_has_no_circle() -> None:
    parts = {
        p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    assert parts == set(MAY_IMPORT)
    order: list[str] = []
    while len(order) < len(MAY_IMPORT):
        ready = [part for part in MAY_IMPORT if part not in order and MAY_IMPORT[part] <= set(order)]
        assert ready, f"a circle among {set(MAY_IMPORT) - set(order)}"
        order += ready


def test_the_folders_of_data_import_one_way() -> None:
    may_import = {
        "reading": set(),
        "cleaning": {"reading"},
        "growing": {"cleaning", "reading", "telling"},
        "telling": set(),
    }
    for folder, others in may_import.items():
        code = "".join(path.read_text(encoding="utf-8") for path in (PACKAGE / "data" / folder).glob("*.py"))
        found = {other for other in may_import if f"from tunesmith.data.{other}" in code}
        assert found - {folder} <= others, f"{folder} imports {found}"


def test_init_files_of_folders_are_empty() -> None:
    assert [p for p in PACKAGE.glob("*/**/__init__.py") if p.read_text()] == []


@pytest.mark.parametrize(
    "code",
    [
        "import tunesmith.core.config, tunesmith.core.step",
        "import tunesmith.lifecycle",
        "import tunesmith.models.base, tunesmith.models.catalogue",
        "import tunesmith.cli",
        "import tunesmith",
        "from typer.testing import CliRunner; from tunesmith.cli import app; CliRunner().invoke(app, ['--help'])",
    ],
)
def test_no_torch_at_import(code: str) -> None:
    check = (
        "; import sys; heavy = {'torch', 'transformers', 'peft', 'pyarrow'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
