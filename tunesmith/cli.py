"""The command line: parse, call the verb in api.py, print what it returns."""

from __future__ import annotations

import errno
import io
import json
import logging
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from tunesmith import api, terminal
from tunesmith.core import hardware, interrupt
from tunesmith.core.console import err, out
from tunesmith.core.errors import UserError
from tunesmith.core.interrupt import Interrupted

app = typer.Typer(
    name="tunesmith",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""From raw examples to a fine-tuned language model that is proven better than its base.

Begin with `tunesmith init YOUR_DATA.jsonl`, look at it with `tunesmith check`, then `tunesmith run`.

Exit status of `run`: 0 PASS, 3 FAIL, 4 NOT ENOUGH DATA, 1 a mistake that the message explains, 2 a wrong command
line, 130 stopped by Ctrl-C, 143 by SIGTERM.""",
)

ProjectFile = Annotated[Path, typer.Argument(help="The project file, or the folder that holds tunesmith.yaml.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a value, e.g. `train.epochs=1`.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
HERE = Path()


class _OrLedger(TyperGroup):
    """`tunesmith data [PROJECT]` is short for `tunesmith data ledger [PROJECT]`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = next((word for word in args if not word.startswith("-")), None)
        if named not in self.commands and not {"--help"} & set(args):
            args = ["ledger", *args]
        return super().parse_args(ctx, args)


of_data = typer.Typer(cls=_OrLedger, no_args_is_help=False)
app.add_typer(of_data, name="data")


@app.command()
def init(
    data: Annotated[
        Path,
        typer.Argument(
            help="Examples: a file (JSONL, JSON, CSV, TSV, Parquet, also compressed), a folder, or a glob in quotes."
        ),
    ],
    to: Annotated[Path, typer.Option(help="The project file to write.")] = Path("tunesmith.yaml"),
) -> None:
    """Write a commented project file by looking at a file of examples."""
    path = api.init(data, to)
    out.print(f"wrote {path}\nnext: tunesmith check {path}")


@app.command()
def check(project: ProjectFile = HERE, set: Set = None, as_json: Json = False) -> None:
    """Read the project, find the model, look at the first records; run nothing."""
    found = api.check(project, set=set or ())
    if as_json:
        _print_json(
            {
                "project": found.project.model_dump(mode="json"),
                "base": found.base.model_dump(mode="json"),
                "fetched": found.base.folder is not None,
                "sources": found.sources,
                "texts": found.texts,
                "to_fetch": found.to_fetch,
            }
        )
    else:
        terminal.check(found)


@app.command()
def run(
    project: ProjectFile = HERE,
    set: Set = None,
    until: Annotated[str | None, typer.Option(metavar="STEP", help="Stop after this step.")] = None,
    force: Annotated[
        str | None, typer.Option(metavar="STEP", help="Run this step again although nothing changed.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start an unfinished training over instead of continuing it.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Have a Ray cluster read and clean the data: its address, `auto` for the one that runs, or `local` to "
            "start one here. Its machines must see the project under the same path.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run what has to be run, from the data to the measured and exported model.

    A finished step is not run again unless its settings, its inputs or its code changed; `tunesmith why STEP` tells
    what did. A training that was stopped or killed goes on from its last checkpoint. Steps: load, clean, split, format,
    plan, train, base, tuned, verdict, export. Some sections add steps: `data.judge` adds judge after clean, `data.grow`
    grow after split, `pretrain` texts, pretrain-plan and pretrain before train.

    Examples: `tunesmith run --until split`, `tunesmith run --set train.epochs=1 --set train.rank=8`.
    """
    found = api.run(project, set=set or (), until=until, force=force, fresh=fresh, ray=ray)
    if isinstance(found, api.Halted):
        err.print(f"stopped after {found.step}, as asked")
        if as_json:
            _print_json(asdict(found))
    elif as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        terminal.show(found, api.project_file(project))
    raise typer.Exit(found.exit_status)


@app.command()
def why(
    step: Annotated[
        str,
        typer.Argument(
            help="load, clean, split, format, plan, train, base, tuned, verdict or export; judge with a `data.judge` "
            "section, grow with `data.grow`; texts, pretrain-plan or pretrain with `pretrain`."
        ),
    ],
    project: ProjectFile = HERE,
    set: Set = None,
) -> None:
    """Tell which field makes a step run, or made it run last time."""
    for line in api.why(step, project, set=set or ()):
        out.print(line, markup=False)


@app.command()
def status(project: ProjectFile = HERE, set: Set = None, as_json: Json = False) -> None:
    """Tell which steps are done and which would run, and why."""
    steps = api.status(project, set=set or ())
    if as_json:
        _print_json([asdict(step) for step in steps])
        return
    table = Table("step", "state", "seconds", "why", box=None, pad_edge=False)
    for step in steps:
        seconds = "" if step.seconds is None else f"{step.seconds:.1f}"
        table.add_row(step.step, step.state, seconds, escape("; ".join(step.why)))
    out.print(table)


@app.command()
def show(project: ProjectFile = HERE, as_json: Json = False) -> None:
    """Print the last finished run: verdict, figures with intervals, ledger, paths."""
    found = api.show(project)
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        terminal.show(found, api.project_file(project))


@of_data.callback()
def data() -> None:
    """Print the ledger of the data; tell a row's history; compare two versions.

    `tunesmith data [PROJECT]` is short for `tunesmith data ledger [PROJECT]`."""


@of_data.command()
def ledger(project: ProjectFile = HERE, as_json: Json = False) -> None:
    """Print what became of every record, stage by stage and file by file, of the steps that are done.

    What is printed is counted in the files of rows; where they and the steps' records disagree, that is an error.
    """
    found = api.data(project)
    if as_json:
        _print_json(found.to_json())
    else:
        terminal.ledger(found)


@of_data.command("why")
def data_why(
    row: Annotated[str, typer.Argument(help="FILE:LINE, or a content id or its beginning.")],
    project: ProjectFile = HERE,
    as_json: Json = False,
) -> None:
    """Tell a row's whole history: how it was read, what changed it, which row it repeats, on which side it is and why.

    Example: `tunesmith data why tickets.jsonl:17`.
    """
    found = api.data_why(row, project)
    if as_json:
        _print_json([asdict(history) for history in found])
    else:
        terminal.histories(found)


@of_data.command("diff")
def data_diff(
    before: Annotated[str, typer.Argument(help="An identity, a project folder, `last` or `previous`.")] = "previous",
    after: Annotated[str, typer.Argument(help="What it is compared with.")] = "last",
    project: ProjectFile = HERE,
    as_json: Json = False,
) -> None:
    """Tell what changed between two versions of the data: settings, rows, sides, answers, reasons of drops.

    A version is the identity of a finished step of the data or its beginning (`tunesmith data --json` has those of the
    last run), another project's folder, `last`, or `previous`: the result before the last.
    """
    found = api.data_diff(before, after, project)
    if as_json:
        _print_json(asdict(found))
    else:
        terminal.difference(found)


@app.command()
def chat(
    project: ProjectFile = HERE,
    base: Annotated[bool, typer.Option("--base", help="Talk to the untuned base instead.")] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this once and leave.")] = None,
) -> None:
    """Talk to the tuned model of the last run; an empty line or Ctrl-D leaves."""
    talk = api.Chat(project, base=base)
    if message is None and sys.stdin.isatty():
        err.print(
            "each message stands alone, as in training" if not talk.remembers else "the conversation is remembered"
        )
    try:
        for asked in [message] if message is not None else terminal.messages():
            for piece in talk.say(asked):
                out.file.write(piece)
                out.file.flush()
            out.print()
    except Interrupted:
        out.print()
        raise typer.Exit(130) from None


@app.command()
def models(as_json: Json = False) -> None:
    """List the base models known by name."""
    known = api.models()
    if as_json:
        _print_json([{**entry.model_dump(mode="json"), "on_this_machine": here} for entry, here in known])
        return
    table = Table("name", "parameters", "context", "kind", "licence", "here", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for entry, here in known:
        size, context = f"{entry.parameters / 1e6:,.0f} M", f"{entry.context:,}"
        table.add_row(entry.name, size, context, entry.kind, entry.licence, "yes" if here else "")
    out.print(table)
    out.print("\nA local folder or any hub id (`org/name`) works as `model:` too.", markup=False)


@app.command()
def export(
    to: Annotated[Path, typer.Argument(help="A new folder.")],
    project: ProjectFile = HERE,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Copy the PEFT adapter instead of the merged model.")
    ] = False,
) -> None:
    """Copy the last run's model, with its card, to a folder of its own."""
    out.print(f"wrote {api.export(to, project, what='adapter' if adapter else 'merged')}")


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    """Entry point: a UserError becomes three lines on stderr and status 1, and with --json an object on stdout too;
    Ctrl-C becomes 130, SIGTERM 143."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no dash gets a question mark, not a traceback
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it warns of a speed unasked for
    interrupt.install()
    hardware.keep_out_compiler()
    try:
        app()
    except UserError as error:
        _refuse(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = f" ({error.filename})" if error.filename else ""
        next = "free some space or mend the permissions, then run the same command again"
        _refuse(UserError(f"a file cannot be written or read{where}", error.strerror or str(error), next))
    except Interrupted as stop:
        err.print(f"\nstopped{escape(_how_to_go_on(stop.saved))}")
        sys.exit(stop.exit_status)


def _refuse(error: UserError) -> NoReturn:
    err.print(f"[bold red]error:[/] {escape(str(error))}")
    if "--json" in sys.argv:
        _print_json({"error": {"what": error.what, "why": error.why, "next": error.next}})
    sys.exit(1)


def _how_to_go_on(saved: str) -> str:
    if not saved:
        return "; finished steps are kept, the unfinished one will run again, from its last checkpoint if it has one"
    again = shlex.join(["tunesmith", *(argument for argument in sys.argv[1:] if argument != "--fresh")])
    return f"; {saved}\n  next: `{again}` goes on from there"
