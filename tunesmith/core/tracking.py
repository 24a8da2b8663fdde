"""The trackers that a run can report to, and the packages that they need."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from tunesmith.core.errors import ConfigError

PACKAGES = {  # what each imports, and the package that brings it
    "tensorboard": {"tensorboard": "tensorboard"},
    "wandb": {"wandb": "wandb"},
    "mlflow": {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"},
    "trackio": {"trackio": "trackio"},
}


def require(names: Sequence[str], key: str = "train.trackers") -> None:
    """Raises ConfigError, with the command that installs it, when a package of these trackers is missing."""
    for name in names:
        missing = [package for module, package in PACKAGES[name].items() if find_spec(module) is None]
        if missing:
            raise ConfigError(
                f"`{key}` names {name}, which is not installed",
                f"it needs {' and '.join(missing)}",
                f"pip install {' '.join(missing)}, or take {name} off the list",
            )
