"""The model card, written from the records of the run: what it was made of, how, and what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.models.base import Base


def write(library: str, name: str, base: Base, made: dict[str, dict[str, Any]]) -> str:
    """Markdown with the front matter that model hubs read. `library` loads the folder: peft or transformers; `made`
    holds the summaries of the steps tuned, plan, dataset and verdict."""
    tuned, plan, dataset, verdict = (made[step] for step in ("tuned", "plan", "dataset", "verdict"))
    hub = base.identity.partition("@")[0] if "@" in base.identity else None
    front = [
        "---",
        f"library_name: {library}",
        *([f"base_model: {hub}"] if hub else []),
        "tags: [tunesmith, lora]",
        "---",
    ]
    source = f"`{hub}` on the Hugging Face hub" if hub else f"`{base.name}`, as `tunesmith models` names or finds it"
    train, test = dataset["train"], dataset["test"]
    return "\n".join(
        [
            *front,
            "",
            f"# {name}",
            "",
            f"A LoRA tuning of **{base.name}** (licence of the base: {base.licence}), made with tunesmith.",
            "",
            f"**Verdict: {verdict['outcome']}** on {verdict['rows']} frozen test rows.",
            "",
            *[f"- {gate['sentence']}" for gate in verdict["gates"]],
            "",
            "| metric | base | tuned | gain |",
            "| --- | --- | --- | --- |",
            *_metric_rows(verdict),
            "",
            f"The adapter needs its base: {source}.",
            "",
            "## Data",
            "",
            f"{train['rows']:,} training rows with {train['tokens']:,} tokens, of which "
            f"{train['learnt_tokens']:,} were learnt (assistant turns and their end token); "
            f"{dataset['validation']['rows']:,} rows chose the checkpoint; "
            f"{test['rows']:,} rows were the exam and were seen by neither.",
            "",
            "## Training",
            "",
            f"{tuned['steps']} optimizer steps; the adapter is that of step {tuned['best_step']}"
            + (
                f", with a validation loss of {tuned['validation_loss']:.4f}."
                if tuned["validation_loss"] is not None
                else "."
            ),
            "",
            "| setting | value | reason |",
            "| --- | --- | --- |",
            *[f"| {key} | {d['value']} | {d['reason']} |" for key, d in plan["decisions"].items()],
            "",
            "## Limits",
            "",
            "The figures are those of base and adapter merged in fp32; `merged/` holds them rounded to bf16.",
            "The figures hold for rows like the test rows. Other tasks, languages and safety were not measured.",
            "",
        ]
    )


def _metric_rows(verdict: dict[str, Any]) -> list[str]:
    base, tuned = verdict["metrics"]["base"], verdict["metrics"]["tuned"]
    return [
        f"| {metric} | {_figure(base[metric])} | {_figure(tuned[metric])} | {_figure(verdict['gains'][metric])} |"
        for metric in tuned
    ]


def _figure(interval: dict[str, Any]) -> str:
    if interval["value"] is None:
        return "not measured"
    if interval["low"] is None or interval["high"] is None:
        return f"{interval['value']:.3f} (too few rows for bounds)"
    return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"
