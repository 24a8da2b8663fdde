"""Writes the reference pages and schemas from the code; a test compares them with what is committed.

docs/config.md        every key of the project file, from the docstrings in core/config.py
docs/cli.md           every command, from the live command line
docs/show.schema.json what `tunesmith show --json` prints
README.md             the table of results, from recipes/*/result.json
docs/data.md          what cleaning finds and how fast it is, from bench/results
recipes/documents/README.md  what became of its new rows, from recipes/documents/result.json
recipes/README.md     what each method came to, from recipes/*/results/METHOD.json
tunesmith.schema.json what an editor needs to complete and check a project file
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def pages() -> dict[Path, str]:
    """The text of every generated file."""
    from tunesmith.core import config
    from tunesmith.result import Show

    return {
        ROOT / "docs/config.md": _config(config.schema()),
        ROOT / "docs/cli.md": _cli(),
        ROOT / "docs/show.schema.json": _json(Show.model_json_schema()),
        ROOT / "tunesmith.schema.json": _json(config.schema()),
        ROOT / "docs/data.md": _data(),
        ROOT / "README.md": _filled("README.md", "results", _results()),
        ROOT / "recipes/documents/README.md": _filled("recipes/documents/README.md", "yield", _yield()),
        ROOT / "recipes/README.md": _filled("recipes/README.md", "methods", _methods()),
    }


def _filled(page: str, name: str, lines: Iterator[str]) -> str:
    """A page whose part between two comments of this name is written anew."""
    return _with((ROOT / page).read_text(encoding="utf-8"), name, lines)


def _with(text: str, name: str, lines: Iterator[str]) -> str:
    head, _, rest = text.partition(f"<!-- {name} -->\n")
    tail = rest.partition(f"<!-- /{name} -->")[2]
    return f"{head}<!-- {name} -->\n" + "\n".join(lines) + f"\n<!-- /{name} -->{tail}"


def _data() -> str:
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    for name, lines in (("cleaners", _cleaners()), ("duplicates", _duplicates()), ("speed", _speed())):
        text = _with(text, name, lines)
    return text


def _cleaners() -> Iterator[str]:
    found = json.loads((ROOT / "bench/results/cleaners.json").read_text())
    alike = found.pop("values that only look like personal data")
    for title, kinds in found.items():
        yield f"| {title} | planted | recall | precision |"
        yield "|---|---:|---:|---:|"
        for kind, score in kinds.items():
            yield f"| {kind} | {score['planted']} | {score['recall']:.3f} | {score['precision']:.3f} |"
        yield ""
    only = f"Of {alike['planted']:,} values that only look like personal data, {alike['false']} were taken for some"
    yield f"{only} (`python bench/cleaners.py`)."


def _duplicates() -> Iterator[str]:
    found = json.loads((ROOT / "bench/results/duplicates.json").read_text())
    yield "| texts | rows | from | alike | recall, precision | datasketch's LSH, verified |"
    yield "|---|---:|---:|---:|---:|---:|"
    for one in found["near"]:
        ours, theirs = (
            f"{one[f'{side}_recall']:.3f}, {one[f'{side}_precision']:.3f}" for side in ("tunesmith", "datasketch")
        )
        yield (f"| {one['texts']} | {one['rows']:,} | {one['threshold']} | {one['alike']:,} | {ours} | {theirs} |")
    yield "\nThe truth is every pair compared (`python bench/duplicates.py`)."


def _speed() -> Iterator[str]:
    for path in sorted(ROOT.glob("bench/results/*/data.json")):
        found = json.loads(path.read_text())
        machine = found["machine"]
        yield "| rows | what | rows/s | peak memory, MB | recall, precision |"
        yield "|---:|---|---:|---:|---:|"
        for rows, of_size in found["sizes"].items():
            steps = of_size["pipeline"]["seconds"]
            for step, seconds in steps.items():
                yield f"| {int(rows):,} | {step} | {int(rows) / seconds:,.0f} | | |"
            whole, peak = int(rows) / sum(steps.values()), of_size["pipeline"]["peak_bytes"] / 1e6
            yield f"| {int(rows):,} | **load, clean and split** | **{whole:,.0f}** | {peak:,.0f} | |"
            for side, runs in of_size["near"].items():
                figures = ("rows_per_second", "recall", "precision")
                rate, recall, right = (median(run[figure] for run in runs) for figure in figures)
                memory, found_right = f"{runs[0]['peak_bytes'] / 1e6:,.0f}", f"{recall:.3f}, {right:.3f}"
                yield f"| {int(rows):,} | near-duplicates: {side} | {rate:,.0f} | {memory} | {found_right} |"
        yield f"\n{machine['name']}, {machine['cores']} cores, {found['measured'][:10]}, engine {found['engine']}.\n"


def _results() -> Iterator[str]:
    yield "| recipe | test rows | metric | base | tuned | training |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for path in sorted(ROOT.glob("recipes/*/result.json")):
        recipe, found = path.parent.name, json.loads(path.read_text())
        json_answers = "field_f1" in found["metrics"]["tuned"]
        for metric in ("field_f1", "exact_match", "valid_json") if json_answers else ("rouge_l", "perplexity"):
            base, tuned = (_figure(found["metrics"][side][metric]) for side in ("base", "tuned"))
            rows, minutes = found["rows"], found["training"]["seconds"] / 60
            rate = found["training"]["tokens_per_second"]
            training = f"{rows['train']:,} rows, {minutes:.1f} min at {rate:,.0f} tokens/s"
            yield f"| [{recipe}](recipes/{recipe}) | {rows['test']} | {metric} | {base} | {tuned} | {training} |"
    yield "\n95 % intervals in brackets. SmolLM2-135M on two CPU cores; `recipes/*/result.json` hold the runs."


def _yield() -> Iterator[str]:
    found = json.loads((ROOT / "recipes/documents/result.json").read_text())
    yield "| kind | asked | rows | grounded | clean | unique | unlike the exam | kept |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for kind, its in found["yields"].items():
        counts = (its[step] for step in ("asked", "parsed", "grounded", "clean", "unique", "decontaminated", "kept"))
        yield f"| {kind} | " + " | ".join(f"{count:,}" for count in counts) + " |"
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in found["rows"]["reasons"].items())
    yield f"\nWhy rows were dropped: {reasons}. One run, of {found['finished'][:10]}."


def _methods() -> Iterator[str]:
    yield "| recipe | field_f1 | valid_json | verdict | training | tokens/s | peak memory | run on |"
    yield "|---|---:|---:|---|---:|---:|---:|---|"
    kept = [(path.stem, json.loads(path.read_text())) for path in ROOT.glob("recipes/support/results/*.json")]
    kept.append(("tunesmith", json.loads((ROOT / "recipes/support/result.json").read_text())))
    for name, found in sorted(kept, key=lambda each: -each[1]["metrics"]["tuned"]["field_f1"]["value"]):
        training, tuned = found["training"], found["metrics"]["tuned"]
        yield (
            f"| [{name}.yaml](support/{name}.yaml) "
            f"| {tuned['field_f1']['value']:.3f} | {tuned['valid_json']['value']:.3f} | {found['verdict']} "
            f"| {training['steps']} steps, {training['seconds'] / 60:.1f} min "
            f"| {training['tokens_per_second']:,.0f} | {training['peak_memory_bytes'] / 1e9:.2f} GB "
            f"| {found['finished'][:10]} |"
        )
    yield "\nOne run each, on two CPU cores; methods that are missing were not run. `support/results` holds the runs."


def _figure(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _config(schema: dict[str, Any]) -> str:
    head = (
        "# The project file\n\n<!-- generated by docs/generate.py from tunesmith/core/config.py -->\n\n"
        "One YAML file describes a project. An unknown key is an error that names the nearest valid one. For "
        "completion in an editor, put this on the first line:\n"
        "`# yaml-language-server: $schema=path/to/tunesmith.schema.json`\n\n"
        "Values left out under `train` are decided by the planner, which prints each with its reason.\n"
    )
    return head + "".join(_section(schema, schema, ""))


def _section(schema: dict[str, Any], section: dict[str, Any], at: str) -> Iterator[str]:
    yield f"\n## {at or 'Top level'}\n\n{_line(section.get('description', ''))}\n\n"
    yield "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
    deeper = []
    for key, field in section["properties"].items():
        inner, many = _inner(schema, field)
        default = "required" if key in section.get("required", []) else _default(field)
        kind = "list of sections" if inner and many else "section" if inner else _type(schema, field)
        yield f"| `{key}` | {kind} | {default} | {_line(field.get('description', ''))} |\n"
        if inner:
            deeper.append((inner, f"{at}.{key}".strip(".") + ("[]" if many else "")))
    for inner, name in deeper:
        yield from _section(schema, inner, name)


def _inner(schema: dict[str, Any], field: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """The section that a field holds, if it holds one, also where it may be left out, and whether it is a list."""
    many = field.get("type") == "array"
    options = [field["items"]] if many else field.get("anyOf", [field])
    reference = next((option["$ref"] for option in options if "$ref" in option), None)
    return (schema["$defs"][reference.rsplit("/", 1)[1]] if reference else None), many


def _type(schema: dict[str, Any], field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(schema, option) for option in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {_type(schema, field['items'])}"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    if "additionalProperties" in field:
        return f"{_type(schema, field['additionalProperties'])} by name"
    limits = " ".join(f"{sign} {field[name]}" for name, sign in bounds.items() if name in field)
    name = "path" if field.get("format") == "path" else field.get("type", "any")
    return f"{name} {limits}".strip()


def _default(field: dict[str, Any]) -> str:
    return f"`{json.dumps(field['default'])}`" if "default" in field and not isinstance(field["default"], dict) else ""


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _cli() -> str:
    import typer.main
    from typer.testing import CliRunner

    from tunesmith.cli import app

    os.environ |= {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    runner = CliRunner()
    commands: list[list[str]] = [[]]
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        commands += [[name], *([name, inner] for inner in getattr(command, "commands", {}))]
    parts = ["# The command line\n\n<!-- generated by docs/generate.py from the live command line -->\n"]
    for command in commands:
        text = runner.invoke(app, [*command, "--help"], prog_name="tunesmith").output
        shown = "\n".join(line.rstrip() for line in text.strip().splitlines())
        parts.append(f"\n## tunesmith {' '.join(command)}".rstrip() + f"\n\n```text\n{shown}\n```\n")
    return "".join(parts)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
