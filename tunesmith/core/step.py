"""Resumable steps: a plain function, an identity, a folder that appears only when it is complete.

A step is `fn(*arguments, out_dir) -> summary`. Each argument is a part of the project file or the artifact of an
earlier step, and nothing else reaches the function, so that the hash of its name, its version (`VERSION` in its
module) and its arguments says all that its result can depend on. The work happens in a hidden folder; `record.json`
is written last, and one rename publishes both. A step that was killed leaves a hidden folder, which the next run
throws away; a function with a parameter `kept` also gets a folder that the next run finds again (core/unfinished.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import math
import os
import platform
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from tunesmith.core import compared, inputs, interrupt, store, unfinished
from tunesmith.core.errors import ResourceError, UserError

State = Literal["done", "ran", "to run"]


@dataclass(frozen=True)
class Artifact:
    """What a step made: its folder and its summary, which is empty while the step has still to run.

    `made` names this one execution. A result stands on the very executions that it read: when an input was made again,
    under the same identity too, what follows is made again.
    """

    step: str
    identity: str
    folder: Path
    state: State
    summary: dict[str, Any] = field(default_factory=dict)
    made: str = ""

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


Summary = dict[str, Any]  # JSON; its `headline`, if there is one, is shown when the step is done
StepFunction = Callable[..., Summary]


class Stopped(Exception):
    """Raised by `--until`: the last wanted step is done."""


class Steps:
    """Runs steps in one project's output folder, or, with `look=True`, only tells what would run."""

    def __init__(
        self,
        output: Path,
        *,
        look: bool = False,
        until: str | None = None,
        force: str | None = None,
        fresh: bool = False,
        say: Callable[[str], None] = lambda line: None,
        keys: Mapping[str, str] | None = None,
    ) -> None:
        """`keys` tells for a `STEP.ARGUMENT` what the project file calls it."""
        self.output, self.look, self.until, self.force, self.fresh = output, look, until, force, fresh
        self.say, self.keys = say, keys or {}
        self.artifacts: dict[str, Artifact] = {}
        self.hashed: dict[str, dict[str, Any]] = {}

    def __call__(self, name: str, fn: StepFunction, *arguments: Any) -> Artifact:
        """The artifact of a step: from disk when a finished one has this identity, else by running it."""
        hashed = {
            "step": name,
            "version": sys.modules[fn.__module__].__dict__["VERSION"],
            "arguments": dict(zip(inspect.signature(fn).parameters, map(_stable, arguments))),
        }
        identity = _identity(hashed)
        folder = self.output / "steps" / name / identity
        self.hashed[name] = hashed
        inputs = {key: a for key, a in zip(hashed["arguments"], arguments) if isinstance(a, Artifact)}
        record = _standing_record(folder, inputs)
        if record and (self.look or self.force != name):
            artifact = Artifact(name, identity, folder, "done", record["summary"], record["made"])
            if not self.look:
                os.utime(folder / "record.json")  # the newest record is the one that the project last used
            self.say(f"{name:<13} unchanged")
        elif self.look:
            artifact = Artifact(name, identity, folder, "to run")
        else:
            with interrupt.late():
                artifact = self._run(name, fn, arguments, folder)
        self.artifacts[name] = artifact
        if name == self.until:
            raise Stopped
        return artifact

    def _run(self, name: str, fn: StepFunction, arguments: tuple[Any, ...], folder: Path) -> Artifact:
        hashed, made = self.hashed[name], secrets.token_hex(8)
        kept = self._kept(name, fn)
        because = "forced" if self.force == name else self.why(name)
        self.say(f"{name:<13} {'; '.join(because) if isinstance(because, list) else because}")
        work = folder.with_name(f".{folder.name}.unfinished")
        for left in folder.parent.glob(".*"):  # by a killed run; ours holds the project's lock
            shutil.rmtree(left, ignore_errors=True)
        started = time.time()
        try:
            work.mkdir(parents=True)
            summary = fn(*arguments, work, **kept)
            if hashed["arguments"] != dict(zip(hashed["arguments"], map(_stable, arguments))):
                raise ResourceError(
                    f"an input of step {name} changed while it was read",
                    "its file was written by somebody else in the meantime",
                    "let the file come to rest, then run the same command again",
                )
            times = {
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
                "seconds": round(time.time() - started, 3),
            }
            who = {"step": name, "identity": folder.name, "made": made, "because": because}
            read = _read(hashed["arguments"], arguments)
            record = {**who, "hashed": hashed, "summary": summary, **read, **times, "versions": versions()}
            store.write_json(work / "record.json", record)
            _publish(work, folder)
            unfinished.discard(unfinished.folder(self.output, name))
            shutil.rmtree(self.output / "failed" / name, ignore_errors=True)
        except ResourceError:
            shutil.rmtree(work, ignore_errors=True)  # half a model would only fill the disk further
            raise
        except UserError as error:
            failed = self._keep_failed(name, work)
            error.next = error.next.replace(f"output/failed/{name}", str(failed))
            raise
        except Exception as error:
            if not store.disk_is_full(error):
                raise
            shutil.rmtree(work, ignore_errors=True)
            free_bytes = shutil.disk_usage(self.output).free
            raise ResourceError(
                f"the disk is full: step {name} could not write its result",
                f"{free_bytes / 1e6:,.0f} MB are free in {self.output}; what the step had written was removed",
                "free some space, then run the same command again: finished steps are kept",
            ) from None
        if "headline" in summary:
            self.say(f"{'':<13} {summary['headline']}")
        return Artifact(name, folder.name, folder, "ran", summary, made)

    def _keep_failed(self, name: str, work: Path) -> Path:
        """What a refused step wrote (the quarantine, say) is there to be read, and is never taken for a result."""
        failed = self.output / "failed" / name
        shutil.rmtree(failed, ignore_errors=True)
        failed.parent.mkdir(exist_ok=True)
        os.replace(work, failed)
        return failed

    def _kept(self, name: str, fn: StepFunction) -> dict[str, Path]:
        """The folder that survives a kill, for a function that has a parameter `kept`. It is given to this execution,
        unless it holds checkpoints of another one that has no result yet."""
        if "kept" not in inspect.signature(fn).parameters:
            return {}
        kept = unfinished.folder(self.output, name)
        if self.fresh:
            unfinished.discard(kept)
        owner, at = unfinished.owner(kept), unfinished.position(kept)
        if owner and at and owner != self._execution(name) and not self._has_result(owner["hashed"]):
            raise UserError(
                f"step {name} stands unfinished {at}, with other settings",
                f"{'; '.join(self._changes(owner)) or 'its inputs changed'}: starting over would throw that work away",
                "set it back to go on from there, or start the step over: tunesmith run --fresh",
            )
        unfinished.claim(kept, self._execution(name))
        return {"kept": kept}

    def _execution(self, name: str) -> dict[str, Any]:
        """What names an execution before it has run: the step's hashed JSON, and the executions that it reads."""
        return {
            "hashed": self.hashed[name],
            "inputs": {key: {"made": artifact.made} for key, artifact in self._inputs(name).items()},
        }

    def _has_result(self, hashed: dict[str, Any]) -> bool:
        return (self.output / "steps" / str(hashed["step"]) / _identity(hashed) / "record.json").is_file()

    def why(self, name: str) -> list[str]:
        """Why a step has to run: where it was left unfinished, and the fields in which it differs from the last
        finished one, traced to their origin."""
        before = last_record(self.output, name)
        changes = self._changes(before) if before else []
        kept = unfinished.folder(self.output, name)
        if at := unfinished.position(kept):
            mine = unfinished.owner(kept) == self._execution(name)
            return [f"unfinished, {at}" if mine else f"unfinished {at}, with other settings", *changes]
        if before:
            return changes or ["its result was removed"]
        left = list((self.output / "steps" / name).glob(".*.unfinished"))
        return ["the last attempt did not finish"] if left else ["no earlier result"]

    def _changes(self, before: dict[str, Any]) -> list[str]:
        """What differs from an earlier execution of a step: fields, else inputs that were made again."""
        remade = [
            f"{key} was made again"
            for key, now in self._inputs(before["hashed"]["step"]).items()
            if before["inputs"].get(key, {}).get("made") != now.made
        ]
        return list(dict.fromkeys(self.differences(before["hashed"]))) or remade

    def _inputs(self, name: str) -> dict[str, Artifact]:
        arguments = self.hashed[name]["arguments"]
        named = {k: a["artifact"] for k, a in arguments.items() if isinstance(a, dict) and "artifact" in a}
        return {key: self.artifacts[step] for key, step in named.items() if step in self.artifacts}

    def differences(self, before: dict[str, Any]) -> list[str]:
        now = self.hashed[before["step"]]
        found = []
        for key, old, new in compared.fields(before, now, self.keys):
            deeper = compared.is_artifact(new)
            found += self._differences_of_input(key, old, new) if deeper else [compared.told(key, old, new)]
        return found + compared.of_version(before, now)

    def _differences_of_input(self, key: str, old: Any, new: dict[str, Any]) -> list[str]:
        record = self.output / "steps" / new["artifact"] / str((old or {}).get("identity")) / "record.json"
        deeper = self.differences(store.read_json(record)["hashed"]) if record.is_file() else []
        return [d if "(via " in d else f"{d} (via {new['artifact']})" for d in deeper] or [f"{key} changed"]


def _identity(hashed: dict[str, Any]) -> str:
    return hashlib.sha256(_dump(hashed).encode()).hexdigest()[:16]


def _read(names: Iterable[str], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """What a step read, for its record: the settings in full, and which executions its inputs were."""
    given = dict(zip(names, arguments))
    artifacts = {key: value for key, value in given.items() if isinstance(value, Artifact)}
    return {
        "config": {key: _resolved(value) for key, value in given.items() if key not in artifacts},
        "inputs": {key: {"step": a.step, "identity": a.identity, "made": a.made} for key, a in artifacts.items()},
    }


def _standing_record(folder: Path, inputs: dict[str, Artifact]) -> dict[str, Any] | None:
    """The record in a step's folder, unless it is missing or stands on executions that are gone."""
    if not (folder / "record.json").is_file():
        return None
    record: dict[str, Any] = store.read_json(folder / "record.json")
    same = all(record["inputs"][key]["made"] == artifact.made for key, artifact in inputs.items())
    return record if same else None


def _publish(work: Path, folder: Path) -> None:
    """Puts a finished folder in its place. The old one goes by rename too, so that half of it is never seen; and all
    files are on the disk before the name is, so that a power cut leaves no empty weights under a whole record."""
    for path in [*work.rglob("*"), work]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    if folder.exists():
        os.replace(folder, folder.with_name(f".{folder.name}.replaced"))
    os.replace(work, folder)
    shutil.rmtree(folder.with_name(f".{folder.name}.replaced"), ignore_errors=True)


def last_record(output: Path, name: str) -> dict[str, Any] | None:
    """The record of the finished step of this name that the project used last."""
    records = sorted((output / "steps" / name).glob("[!.]*/record.json"), key=lambda p: p.stat().st_mtime_ns)
    return store.read_json(records[-1]) if records else None


@contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Holds the project for this process. A killed holder's lock goes with it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = open(output / ".lock", "a+")  # noqa: SIM115 (closed below)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise ResourceError(
            f"{output} cannot be written", str(error), "copy the project to a folder of yours"
        ) from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ResourceError(
                f"another run works in {output}",
                f"process {file.read().strip() or '?'} holds its lock",
                "wait for it, or stop that process, then run the same command again",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def versions() -> dict[str, str]:
    names = ("tunesmith", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")
    found = {name: version for name in names if (version := _version(name))}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _stable(value: Any) -> Any:
    """The value as JSON that every process writes alike; raises TypeError for anything else."""
    if isinstance(value, Artifact):
        return {"artifact": value.step, "identity": value.identity}
    if isinstance(value, BaseModel):
        return {key: _stable(item) for key, item in value if not type(value).model_fields[key].exclude}
    if isinstance(value, Path):
        return inputs.identity(value)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _stable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_stable(item) for item in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise TypeError(f"a step's argument must not hold {value!r}: its text may differ from one process to the next")


def _resolved(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, list | tuple):
        return [_resolved(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
