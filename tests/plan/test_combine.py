"""Settings that do not go together are refused before any work, with both keys and the change to make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith import api
from tunesmith.core import config
from tunesmith.core.errors import ConfigError
from tunesmith.models.base import Base
from tunesmith.plan import combine

Write = Callable[..., Path]
TEXTS = "texts: [data.jsonl]"


def checked(path: Path, base: Base) -> None:
    combine.check(config.load_project(path), base)


@pytest.mark.parametrize(
    ("settings", "keys", "change"),
    [
        ("train: {method: full, rank: 8}", ["`train.rank: 8`", "`train.method: full`"], "`train.method: lora`"),
        ("train: {method: ia3, alpha: 8}", ["`train.alpha: 8.0`", "`train.method: ia3`"], "remove `train.alpha`"),
        ("train: {method: full, variant: dora}", ["`train.variant: dora`", "`train.method: full`"], "remove"),
        ("train: {method: full, quantise: nf4}", ["`train.quantise: nf4`", "`train.method: full`"], "lora"),
        ("train: {method: ia3, layers: [norm]}", ["`train.layers: ['norm']`", "`train.method: ia3`"], "freeze"),
        ("train: {virtual_tokens: 5}", ["`train.virtual_tokens: 5`", "`train.method: lora`"], "prompt"),
        ("train: {method: prompt, width: 5}", ["`train.width: 5`", "`train.method: prompt`"], "bottleneck"),
        ("train: {method: freeze}", ["`train.method: freeze`", "`train.layers`"], "layers: ["),
        ("train: {sharding: fsdp2}", ["`train.sharding: fsdp2`", "`train.processes: 1`"], "raise `train.processes`"),
        ("train: {layers: [norm], quantise: nf4}", ["`train.layers`", "`train.quantise: nf4`"], "remove one"),
        ("train: {method: prompt}\nexport: {merged: true}", ["`export.merged: true`", "method: prompt`"], "remove"),
        ("train: {method: prefix}\nexport: {merged: true}", ["`export.merged: true`", "prefix"], "remove"),
        ("train: {method: bottleneck}\nexport: {merged: true}", ["`export.merged: true`", "bottleneck"], "remove"),
        ("train: {method: full}\nexport: {merged: false}", ["`export.merged: false`", "method: full`"], "remove"),
        (f"pretrain: {{{TEXTS}, train: {{method: prompt}}}}", ["`pretrain.train.method: prompt`"], "lora"),
        (f"pretrain: {{{TEXTS}, train: {{method: bottleneck}}}}", ["`pretrain.train.method: bottleneck`"], "full"),
        (f"pretrain: {{{TEXTS}, train: {{width: 3}}}}", ["`pretrain.train.width: 3`"], "method: bottleneck`"),
        ("train: {method: freeze, layers: [layers.5]}", ["`train.layers`", "`layers.5`"], "layers.0"),
        ("train: {layers: ['layers.*']}", ["`train.layers`", "`train.method: lora`"], "`train.method: freeze`"),
        ("train: {layers: [layers.0, layers.1.self_attn, layers.1.mlp, lm_head]}", ["nothing"], "name fewer"),
        (f"pretrain: {{{TEXTS}, train: {{layers: [lmhead]}}}}", ["`pretrain.train.layers`", "`lmhead`"], "layers.0"),
    ],
)  # fmt: skip
def test_it_names_both_keys_and_the_change(
    project: Write, tiny: Base, settings: str, keys: list[str], change: str
) -> None:
    with pytest.raises(ConfigError) as error:
        checked(project(settings + "\n"), tiny)
    assert all(key in error.value.what for key in keys), error.value.what
    assert change in error.value.next
    assert error.value.why


@pytest.mark.parametrize(
    "settings",
    [
        "",
        "train: {rank: 8, alpha: 8, variant: rslora}",
        "train: {method: full}",
        "train: {method: freeze, layers: [layers.1, lm_head]}",
        "train: {layers: [layers.1]}",
        "train: {method: prompt, virtual_tokens: 5}\nexport: {merged: false}",
        "train: {method: bottleneck, width: 5}",
        "train: {method: ia3}\nexport: {merged: true}",
        "train: {sharding: fsdp2, processes: 2}",
        f"pretrain: {{{TEXTS}, train: {{method: full}}}}",
    ],
)
def test_what_goes_together_passes(project: Write, tiny: Base, settings: str) -> None:
    checked(project(settings + "\n"), tiny)


@pytest.mark.parametrize("variant", ["plain", "rslora", "dora"])
def test_quantisation_goes_with_every_kind_of_lora(
    project: Write, tiny: Base, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project(f"train: {{quantise: nf4, variant: {variant}}}\n")
    monkeypatch.setattr(combine, "find_spec", lambda name: object())
    checked(path, tiny)
    monkeypatch.setattr(combine, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs bitsandbytes") as error:
        checked(path, tiny)
    assert error.value.next == "pip install bitsandbytes"


@pytest.mark.parametrize(
    ("method", "wanted"), [("bottleneck", "called `mlp`"), ("ia3", "k_proj, v_proj and down_proj")]
)
def test_a_method_that_finds_no_place_in_the_base_is_refused(
    project: Write, tiny: Base, tmp_path: Path, method: str, wanted: str
) -> None:
    from transformers import PhimoeConfig, PhimoeForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    PhimoeForCausalLM(PhimoeConfig(vocab_size=9, num_key_value_heads=2, num_local_experts=2, **sizes)).save_pretrained(
        tmp_path / "moe"
    )
    base = tiny.model_copy(update={"folder": tmp_path / "moe"})
    with pytest.raises(ConfigError, match="does not go with this base") as error:
        checked(project(f"train: {{method: {method}}}\n"), base)
    assert wanted in error.value.why
    checked(project("train: {method: lora}\n"), base)


def test_patterns_wait_for_a_base_that_is_not_fetched(project: Write, tiny: Base) -> None:
    checked(project("train: {method: freeze, layers: [layers.5]}\n"), tiny.model_copy(update={"folder": None}))


@pytest.mark.parametrize("command", [api.check, api.run, api.status])
def test_commands_refuse_before_any_step(
    project: Write, tiny: Base, command: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    path = project("train: {method: full, rank: 8}\n")
    with pytest.raises(ConfigError, match=r"`train.rank: 8` does not go with `train.method: full`"):
        command(path, set=[f"model={tiny.folder}"])
    assert not (path.parent / "output/steps").exists()
