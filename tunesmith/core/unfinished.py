"""What an unfinished step keeps: a folder that survives a kill, so that the next run goes on where this one stood.

    output/unfinished/STEP/step.json           whose it is: the step's hashed JSON, and which executions it read
    output/unfinished/STEP/NAME/state.json     NAME is a checkpoint: a visible folder, with {"step", "of"} in this file

Whatever else lies there can be lost without loss of work.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tunesmith.core import store
from tunesmith.core.errors import ResourceError


def folder(output: Path, step: str) -> Path:
    return output / "unfinished" / step


def owner(kept: Path) -> dict[str, Any] | None:
    """The execution that these checkpoints belong to, as `claim` noted it. Raises ResourceError for a damaged note."""
    note = kept / "step.json"
    try:
        owner: dict[str, Any] | None = store.read_json(note) if note.is_file() else None
    except ValueError as error:
        raise ResourceError(
            f"whose checkpoints lie in {kept} cannot be told",
            f"{note.name} is damaged ({error})",
            "start the step over: tunesmith run --fresh",
        ) from None
    return owner


def claim(kept: Path, owned_by: dict[str, Any]) -> None:
    """Gives the folder to this execution; what another left there is removed first."""
    if owner(kept) != owned_by:
        discard(kept)
        store.write_json(kept / "step.json", owned_by)


def discard(kept: Path) -> None:
    """Removes the folder. The note of its owner goes last: checkpoints without one could be taken for another's."""
    for path in checkpoints(kept):
        shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(kept, ignore_errors=True)


def checkpoints(kept: Path) -> list[Path]:
    """The checkpoints in the folder, the newest last."""
    return sorted(path for path in kept.glob("[!.]*") if path.is_dir())


def position(kept: Path) -> str | None:
    """Where the newest checkpoint stands, in words; None where there is none."""
    found = checkpoints(kept)
    if not found:
        return None
    try:
        state = store.read_json(found[-1] / "state.json")
        return f"at step {state['step']:,} of {state['of']:,}"
    except (OSError, ValueError, KeyError, TypeError):  # whoever goes on from it will look for the one before
        return "at a checkpoint that is damaged"
