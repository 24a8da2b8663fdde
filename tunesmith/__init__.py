"""tunesmith: from raw examples to a fine-tuned language model that is proven better than its base.

The verbs of the command line are functions here: `tunesmith.run("tunesmith.yaml")`.
"""

from tunesmith.api import (
    Chat,
    Check,
    Halted,
    StepStatus,
    check,
    data,
    data_diff,
    data_why,
    export,
    init,
    models,
    run,
    show,
    status,
    why,
)
from tunesmith.core.errors import UserError
from tunesmith.result import Show

__all__ = [
    "Chat",
    "Check",
    "Halted",
    "Show",
    "StepStatus",
    "UserError",
    "check",
    "data",
    "data_diff",
    "data_why",
    "export",
    "init",
    "models",
    "run",
    "show",
    "status",
    "why",
]
