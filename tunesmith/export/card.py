"""The model card, written from the records of the run: what it was made of, how, how to load it, what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.models.base import Base

_LOAD = {  # BASE stands for the arguments that name the base
    "merged": """\
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(".")
""",
    "peft": """\
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(BASE)
model = PeftModel.from_pretrained(base, ".")
""",
    "nf4": """\
import json
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

nf4 = BitsAndBytesConfig.from_dict(json.load(open("quantisation.json")))
base = AutoModelForCausalLM.from_pretrained(BASE, quantization_config=nf4)
model = PeftModel.from_pretrained(base, ".")
""",
    "bottleneck": """\
import json
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(BASE)
weights = load_file("adapter_model.safetensors")

def behind(down, down_bias, up, up_bias):
    def bottleneck(module, inputs, y):
        return y + torch.relu(y @ down.T + down_bias) @ up.T + up_bias
    return bottleneck

for module in json.load(open("adapter_config.json"))["modules"]:
    parts = [weights[f"{module}.{part}"] for part in ("down.weight", "down.bias", "up.weight", "up.bias")]
    base.get_submodule(module).register_forward_hook(behind(*[part.to(base.dtype) for part in parts]))
model = base
""",
}


def write(shipped: str, name: str, base: Base, made: dict[str, dict[str, Any]]) -> str:
    """Markdown with the front matter that model hubs read. `shipped` is the folder that it describes, `adapter` or
    `merged`; `made` holds the summaries of the steps tuned, plan, dataset and verdict, and of a stage before."""
    tuned, plan, dataset, verdict = (made[step] for step in ("tuned", "plan", "dataset", "verdict"))
    decisions = plan["decisions"]
    method = decisions["method"]["value"]
    hub = base.hub.partition("@")[0] if base.hub else None
    front = [
        "---",
        f"library_name: {'peft' if shipped == 'adapter' and method != 'bottleneck' else 'transformers'}",
        *([f"base_model: {hub}"] if hub else []),
        f"tags: [tunesmith, {method}]",
        "---",
    ]
    train, test = dataset["train"], dataset["test"]
    return "\n".join(
        [
            *front,
            "",
            f"# {name}",
            "",
            f"**{base.name}** (licence of the base: {base.licence}), "
            f"{'pretrained further and ' if 'stage' in made else ''}tuned by {_method(decisions)} with tunesmith.",
            "",
            f"**Verdict: {verdict['outcome']}** on {verdict['rows']} frozen test rows.",
            "",
            *[f"- {gate['sentence']}" for gate in verdict["gates"]],
            "",
            "| metric | base | tuned | gain |",
            "| --- | --- | --- | --- |",
            *_metric_rows(verdict),
            "",
            "## How to load it",
            "",
            *_loading(shipped, base, decisions),
            "",
            "## Data",
            "",
            f"{train['rows']:,} training rows with {train['tokens']:,} tokens, of which "
            f"{train['learnt_tokens']:,} were learnt (assistant turns and their end token); "
            f"{dataset['validation']['rows']:,} rows chose the checkpoint; "
            f"{test['rows']:,} rows were the exam and were seen by neither.",
            *(_texts(made["stage"]) if "stage" in made else []),
            "",
            "## Training",
            "",
            _trained(tuned),
            "",
            "| setting | value | reason |",
            "| --- | --- | --- |",
            *[f"| {key} | {d['value']} | {d['reason']} |" for key, d in decisions.items() if d["value"] != []],
            "",
            "## Limits",
            "",
            _measured(decisions),
            "The figures hold for rows like the test rows. Other tasks, languages and safety were not measured.",
            "",
        ]
    )


def _method(decisions: dict[str, Any]) -> str:
    """The method in words."""
    value = {key: decision["value"] for key, decision in decisions.items()}
    layers = ", ".join(f"`{name}`" for name in value.get("layers") or [])
    lora = {"plain": "LoRA", "rslora": "rank-stabilised LoRA", "dora": "DoRA"}.get(value.get("variant", ""), "LoRA")
    return {
        "full": "full fine-tuning",
        "freeze": f"fine-tuning of {layers} alone",
        "lora": lora
        + (f", with {layers} trained in full" if layers else "")
        + (" on weights in 4 bits (QLoRA, NF4)" if value.get("quantise") else ""),
        "prompt": f"prompt tuning with {value.get('virtual_tokens')} virtual tokens",
        "prefix": f"prefix tuning with {value.get('virtual_tokens')} virtual tokens",
        "ia3": "(IA)³",
        "bottleneck": f"bottleneck adapters of width {value.get('width')}",
    }[value["method"]]


def _loading(shipped: str, base: Base, decisions: dict[str, Any]) -> list[str]:
    """Code that loads this folder from inside it, with no tunesmith installed."""
    kind = "bottleneck" if decisions["method"]["value"] == "bottleneck" else "nf4" if _quantised(decisions) else "peft"
    code = _LOAD["merged" if shipped == "merged" else kind]
    hub, _, revision = (base.hub or "").partition("@")
    where = f'"{hub}", revision="{revision}"' if hub else '"path/to/the/base"'
    source = f"`{hub}` on the Hugging Face hub" if hub else f"`{base.name}`, as `tunesmith models` names or finds it"
    if "+" in base.identity:
        source = f"what the stage before left of {base.name}, in `{base.folder}`"
    told = [f"The adapter needs its base: {source}.", ""] if shipped == "adapter" else []
    return [*told, "```python", *code.strip().replace("BASE", where).splitlines(), "```"]


def _texts(stage: dict[str, Any]) -> list[str]:
    """What the model read before the rows."""
    texts, merged = stage["texts"], stage["merged_validation_loss"]
    held_out = f"; {texts['validation']:,} more were held out" if texts["validation"] else ""
    losses = [] if stage["validation_loss"] is None else [f"{stage['validation_loss']:.4f} nats a token"]
    losses += [] if merged is None else [f"{merged:.4f} after the merge"]
    told = f", with a validation loss of {', '.join(losses)}" if losses else ""
    read = f"{texts['documents']:,} documents ({texts['train']:,} tokens{held_out})"
    return ["", f"Before the rows it read {read}{told}."]


def _quantised(decisions: dict[str, Any]) -> bool:
    return "quantise" in decisions and bool(decisions["quantise"]["value"])


def _trained(tuned: dict[str, Any]) -> str:
    """How far training went, and what it warned of."""
    loss = "" if tuned["validation_loss"] is None else f", with a validation loss of {tuned['validation_loss']:.4f}"
    weights = f"{tuned['steps']} optimizer steps; these are the weights of step {tuned['best_step']}{loss}."
    return " ".join([weights, *(f"Warning: {warning}." for warning in tuned["warnings"])])


def _measured(decisions: dict[str, Any]) -> str:
    """Of which weights the figures are."""
    method = decisions["method"]["value"]
    if method in ("full", "freeze"):
        return "The figures are those of these weights."
    if method in ("prompt", "prefix", "bottleneck"):
        return "The figures are those of the adapter on its base."
    if _quantised(decisions):
        return (
            "The figures are those of the adapter on its base's 4-bit weights, merged in fp32; `merged/` holds the sum "
            "rounded to bf16. On the base's own weights, before quantisation, the adapter was not measured."
        )
    return "The figures are those of base and adapter merged in fp32; `merged/` holds them rounded to bf16."


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
