"""The one error that people see.

UserError            what happened and where, why, and the next command; never shown with a traceback
  ConfigError        the project file: a key, a value, a file that it names
  DataError          the rows: more unreadable ones than the budget allows, nothing left to train on
  ModelError         a base model that cannot be found, read or used for this
  ResourceError      disk, memory or a lock that stands in the way

Everything else that is raised is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_NAMES: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("names of settings", default=())


class UserError(Exception):
    """A mistake or an obstacle that its reader can remove: `what` and where, `why`, and what to do `next`."""

    def __init__(self, what: str, why: str, next: str) -> None:
        super().__init__(what)
        self.what, self.why, self.next = map(_renamed, (what, why, next))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        """As it was told, when it comes from another process."""
        return type(self), (self.what, self.why, self.next)

    def __str__(self) -> str:
        return f"{self.what}\n  why:  {self.why}\n  next: {self.next}"


class ConfigError(UserError):
    """The project file cannot be used as it stands."""


class DataError(UserError):
    """The rows cannot be used as they stand."""


class ModelError(UserError):
    """The model cannot be found, read or used."""


class ResourceError(UserError):
    """Disk, memory or another process stands in the way."""


@contextmanager
def settings_named(names: dict[str, str]) -> Iterator[None]:
    """Gives settings other names in the texts of errors, raised or only told: what serves two sections of a project
    file knows one of them."""
    token = _NAMES.set(tuple(names.items()))
    try:
        yield
    finally:
        _NAMES.reset(token)


def settings_names() -> dict[str, str]:
    """The names that hold here, for another process."""
    return dict(_NAMES.get())


def _renamed(text: str) -> str:
    for old, new in _NAMES.get():
        text = re.sub(rf"(?<![\w.]){re.escape(old)}", new, text)
    return text
