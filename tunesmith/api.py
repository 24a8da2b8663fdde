"""The verbs of tunesmith as typed functions: what the command line prints, notebooks and scripts get from here.

A project is named by its YAML file or the folder that holds `tunesmith.yaml`. Mistakes raise UserError.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import lifecycle as story
from tunesmith import result
from tunesmith.core import config, finished, hardware, inputs, store
from tunesmith.core.console import say
from tunesmith.core.data_section import Source
from tunesmith.core.errors import ConfigError, ResourceError
from tunesmith.core.finished import Finished
from tunesmith.core.project import Project
from tunesmith.core.step import State, Steps, Stopped, only_run
from tunesmith.data import load, parts, starter, texts
from tunesmith.data.telling import difference, history, ledger
from tunesmith.data.telling.difference import Difference
from tunesmith.data.telling.history import History
from tunesmith.data.telling.ledger import Ledger
from tunesmith.evaluate import gates
from tunesmith.models import base as bases
from tunesmith.models import catalogue
from tunesmith.plan import combine
from tunesmith.result import Show
from tunesmith.web import report

Where = str | Path


@dataclass(frozen=True)
class StepStatus:
    """One step of the project as it stands: done, or to run and why."""

    step: str
    state: State
    why: list[str]
    seconds: float | None


@dataclass(frozen=True)
class Halted:
    """A run that `until` stopped before its end; once the verdict is reached, the exit status is the verdict's."""

    step: str
    headline: str
    exit_status: int


@dataclass(frozen=True)
class Check:
    """What a run would start from, found without running: the base model, and how each source and text begins."""

    project: Project
    base: bases.Base
    sources: list[dict[str, Any]]
    texts: list[dict[str, Any]]
    to_fetch: list[str]


def run(
    project: Where = ".",
    *,
    set: Sequence[str] = (),
    until: str | None = None,
    force: str | None = None,
    fresh: bool = False,
    ray: str | None = None,
) -> Show | Halted:
    """Runs what has to be run, and returns the finished run, or where `until` stopped it.

    `set` holds `a.b.c=value` overrides; `until` and `force` name a step; `fresh` starts an unfinished training over;
    `ray` has a cluster read and clean the parts of the data (`local`, `auto` or an address).
    The first Ctrl-C or SIGTERM during training saves it and raises `core.interrupt.Interrupted`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "several processes were started to run one project",
            "tunesmith starts the processes that train itself, and runs all other steps in one",
            "run `tunesmith run` without a launcher, with `train.processes` in the project file",
        )
    file = project_file(project)
    settings = config.load_project(file, _overrides(set))
    _require_step(settings, until, force)
    output = story.output_of(file)
    hardware.calm_threads()
    with only_run(output), parts.on_ray(ray) if ray else nullcontext():
        base = bases.fetch(settings.model, file.resolve().parent)
        for path in _named(settings):
            if not inputs.is_here(path):
                inputs.files(path)  # fetched from the hub as the base is, for the steps to find
        last = until if until != story.STEPS[-1] else None
        steps = Steps(output, until=last, force=force, fresh=fresh, say=say, keys=story.KEYS)
        try:
            story.lifecycle(settings, base, steps)
        except Stopped:
            summary = steps.artifacts[until or ""].summary
            return Halted(until or "", summary.get("headline", ""), summary.get("exit_status", 0))
        changed = _remember(output, settings, steps)
        found = result.last_run(output)
        if changed or not (output / "report.html").is_file():
            report.write(output, found)
        return found


def status(project: Where = ".", *, set: Sequence[str] = ()) -> list[StepStatus]:
    """Which steps are done and which would run, and why; nothing is run."""
    steps = _look(project, set)
    done = [
        StepStatus(a.step, a.state, steps.why(a.step) if a.state == "to run" else [], _seconds(a.folder))
        for a in steps.artifacts.values()
    ]
    return done


def why(step: str, project: Where = ".", *, set: Sequence[str] = ()) -> list[str]:
    """Why a step would run now; when it is done, why it last ran."""
    steps = _look(project, set, step)
    artifact = steps.artifacts[step]
    if artifact.state == "to run":
        return steps.why(step)
    because = store.read_json(artifact / "record.json")["because"]
    return because if isinstance(because, list) else [because]


def check(project: Where = ".", *, set: Sequence[str] = ()) -> Check:
    """Reads the project file, finds the base model and looks at the first records of each source."""
    file = project_file(project)
    settings = config.load_project(file, _overrides(set))
    base = bases.locate(settings.model, file.resolve().parent)
    gates.check(settings.evaluate.gates, settings.data.clean.answer, settings.data.clean.answer_schema)
    combine.check(settings, base)
    documents = settings.pretrain.texts if settings.pretrain else []
    return Check(
        settings,
        base,
        [{"path": inputs.shown(s.path), **load.preview(s)} for s in _sources(settings) if inputs.is_here(s.path)],
        [{"path": inputs.shown(path), **texts.preview(path)} for path in documents if inputs.is_here(path)],
        [inputs.shown(path) for path in _named(settings) if not inputs.is_here(path)],
    )


def show(project: Where = ".") -> Show:
    """The last finished run."""
    return result.last_run(story.output_of(project_file(project)))


def data(project: Where = ".") -> Ledger:
    """What became of every record: the ledger of the data's steps that the last run finished."""
    return ledger.read(_data_steps(output_of(project)))


def data_why(row: str, project: Where = ".") -> list[History]:
    """The whole history of the rows that `row` names: a content id or its beginning, or `file:line`."""
    output = output_of(project)
    steps = _data_steps(output)
    evaluated = {}
    if base := finished.made_from(output, "base", steps[-1:]):
        evaluated["base"] = base
    if tuned := finished.made_from(output, "tuned", steps[-1:]):
        evaluated["tuned"] = tuned
    if len(evaluated) == 2 and (verdict := finished.made_from(output, "verdict", list(evaluated.values()))):
        evaluated["verdict"] = verdict
    return history.of(steps, row, evaluated)


def data_diff(before: str = "previous", after: str = "last", project: Where = ".") -> Difference:
    """What changed between two versions of the data. Each is the identity of a finished step of the data or its
    beginning, another project or output folder, `last`, or `previous`: the result before the last."""
    output = output_of(project)
    return difference.of(_version(output, before), _version(output, after), story.KEYS)


def init(data: Where, to: Where = "tunesmith.yaml") -> Path:
    """Writes a commented project file for a file of examples, by looking at it. An existing file is left alone."""
    path = Path(to)
    if path.exists():
        raise ConfigError(
            f"{path} exists already", "init overwrites nothing", f"tunesmith check {path}, or name another file"
        )
    store.write_text(path, starter.project_file(Path(data), path.resolve().parent))
    return path


def models() -> list[tuple[catalogue.Entry, bool]]:
    """The base models known by name, and whether each is on this machine."""
    return [(entry, bases.locate(entry.name, Path()).folder is not None) for entry in catalogue.entries()]


def export(to: Where, project: Where = ".", *, what: str = "merged") -> Path:
    """Copies what the last run made (`adapter` or `merged`) to a folder of its own."""
    found = show(project).artifacts
    if what not in ("adapter", "merged") or what not in found:
        raise ConfigError(
            f"the last run exported no `{what}`",
            "it can be `adapter` or `merged` (export.merged in the project)",
            "tunesmith export TO --adapter",
        )
    target = Path(to)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            f"{target} is not empty" if target.is_dir() else f"{target} is a file",
            "export overwrites nothing",
            "name a new folder",
        )
    size_bytes = sum(f.stat().st_size for f in Path(found[what]).iterdir())
    target.mkdir(parents=True, exist_ok=True)
    store.require_space(target, size_bytes, f"the {what} model")
    shutil.copytree(found[what], target, dirs_exist_ok=True)
    return target


class Chat:
    """A conversation with the last run's tuned model, or with its base. Keeps the history if training rows had several
    turns; else each message stands alone, as in training."""

    def __init__(self, project: Where = ".", *, base: bool = False, max_new_tokens: int = 512) -> None:
        hardware.calm_threads()
        from tunesmith.models import chat as renderer
        from tunesmith.models import load as weights
        from tunesmith.models import methods

        file = project_file(project)
        records = result.records(story.output_of(file))
        first = "pretrain" if "pretrain" in records else "train"
        tuned_from = records[first]["summary"]["base"]
        found = bases.fetch(tuned_from["name"], file.resolve().parent)
        folder = found.folder
        assert folder is not None
        self.tokenizer = weights.tokenizer(folder)
        renderer_then = records["format"]["summary"]["renderer"]
        if found.identity != tuned_from["identity"] or renderer.fingerprint(self.tokenizer) != renderer_then:
            raise ResourceError(
                f"the base model {found.name} is not the one that was tuned",
                "its weights or its chat template changed since",
                "tunesmith run",
            )
        self.stops = renderer.stop_ids(self.tokenizer, folder)
        tuned = result.folder(story.output_of(file), records["train"])
        start = folder if first == "train" else result.folder(story.output_of(file), records[first]) / "model"
        self.model = weights.model(folder, "fp32") if base else methods.load_tuned(start, tuned, "fp32")
        self.remembers = records["format"]["summary"]["turns"] > 1
        self.max_new_tokens = max_new_tokens
        self.system: str | None = records["load"]["config"]["system"]
        self.history: list[dict[str, Any]] = []

    def say(self, message: str) -> Iterator[str]:
        """The answer, in pieces of text as they are made."""
        from tunesmith.models import chat as renderer
        from tunesmith.models import generate

        asked = [*(self.history if self.remembers else []), {"role": "user", "content": message}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            prompt = renderer.prompt_ids(self.tokenizer, system + asked, [])
        except renderer.CannotRender as error:
            raise ConfigError(
                "the model's chat template refuses this conversation", str(error), "ask something else"
            ) from None
        answer = ""
        for piece in generate.stream(self.model, self.tokenizer, prompt, self.stops, self.max_new_tokens):
            answer += piece
            yield piece
        self.history = [*asked, {"role": "assistant", "content": answer.strip()}]


def project_file(project: Where) -> Path:
    path = Path(project)
    return path / "tunesmith.yaml" if path.is_dir() else path


def _named(settings: Project) -> list[Path]:
    """The paths of sources, texts and documents."""
    asked = settings.data.grow and settings.data.grow.synthesise and settings.data.grow.synthesise.questions
    texts = settings.pretrain.texts if settings.pretrain else []
    return [*(source.path for source in _sources(settings)), *texts, *(asked.documents if asked else [])]


def _sources(settings: Project) -> list[Source]:
    """Those of the task, and of general rows."""
    mix = settings.data.grow and settings.data.grow.mix
    return [*settings.data.sources, *(mix.sources if mix else [])]


def output_of(project: Where) -> Path:
    """Where a project's runs write; it may also be named itself. Raises ConfigError where there is neither."""
    if (Path(project) / "steps").is_dir():
        return Path(project)
    file = project_file(project)
    output = story.output_of(file)
    if not file.is_file() and not output.is_dir():
        raise ConfigError(
            f"{project} is no project",
            f"there is neither a project file at {file} nor a folder that its runs wrote",
            "name a project file, or the folder that holds tunesmith.yaml; a row is told by `tunesmith data why ROW`",
        )
    return output


def _data_steps(output: Path) -> list[Finished]:
    """The steps of the data that the last run finished, in their order."""
    last = next(finished.of(output, story.OF_DATA), None)
    if last is None:
        raise ResourceError(
            f"{output} holds no finished step of the data",
            "there is nothing to tell yet",
            "tunesmith run --until format",
        )
    return finished.lineage(output, last, story.OF_DATA)


def _version(output: Path, name: str) -> list[Finished]:
    """The steps of a version of the data."""
    if name == "last":
        return _data_steps(output)
    if name == "previous":
        last = _data_steps(output)[-1]
        found = [one for one in finished.of(output, [last.step]) if one.identity != last.identity][:1]
    elif Path(name).exists():
        return _data_steps(output_of(name))
    else:
        found = [one for one in finished.of(output, story.OF_DATA) if len(name) > 3 and one.identity.startswith(name)]
    if len(found) == 1:
        return finished.lineage(output, found[0], story.OF_DATA)
    known = [f"{one.step} {one.identity} of {one.record['started'][:16]}" for one in finished.of(output, story.OF_DATA)]
    several = f"{len(found)} results have an identity that begins with {name}"
    more = f", and {len(known) - 6} more" if len(known) > 6 else ""
    raise ConfigError(
        several if found else f"there is no version `{name}`",
        f"{output} has {', '.join(known[:6])}{more}",
        "name an identity, a project folder, `last` or `previous` (the result before the last)",
    )


def _overrides(set: Sequence[str]) -> list[str]:
    return [set] if isinstance(set, str) else list(set)


def _look(project: Where, overrides: Sequence[str], *names: str) -> Steps:
    file = project_file(project)
    settings = config.load_project(file, _overrides(overrides))
    _require_step(settings, *names)
    steps = Steps(story.output_of(file), look=True, keys=story.KEYS)
    story.lifecycle(settings, bases.locate(settings.model, file.resolve().parent), steps)
    return steps


def _require_step(settings: Project, *names: str | None) -> None:
    known = story.steps_of(settings)
    for name in names:
        if name is not None and name not in known:
            section = story.OPTIONAL.get(name)
            none = f"there is no step `{name}`" + (f" without a `{section}` section" if section else "")
            raise ConfigError(none, f"the steps are {', '.join(known)}", "name one of them")


def _remember(output: Path, settings: Project, steps: Steps) -> bool:
    """Notes this run as the last one, after its old report is gone; False when it is the one already noted."""
    identities = {name: artifact.identity for name, artifact in steps.artifacts.items()}
    latest = output / "latest.json"
    same = latest.is_file() and store.read_json(latest)["steps"] == identities
    if same and all(artifact.state == "done" for artifact in steps.artifacts.values()):
        return False
    (output / "report.html").unlink(missing_ok=True)
    store.write_json(
        latest,
        {
            "project": settings.name,
            "model": settings.model,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "steps": identities,
        },
    )
    return True


def _seconds(folder: Path) -> float | None:
    record = folder / "record.json"
    return store.read_json(record)["seconds"] if record.is_file() else None
