"""Modules chosen by patterns, and what their weights come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.core.errors import ConfigError
from tunesmith.models import base as bases
from tunesmith.models import names

NAMES = [
    "model.embed_tokens",
    "model.layers.2",
    "model.layers.2.mlp",
    "model.layers.2.mlp.up_proj",
    "model.layers.12",
    "model.layers.12.mlp",
    "model.norm",
    "lm_head",
]


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (["layers.2"], ["model.layers.2"]),
        (["model.layers.2"], ["model.layers.2"]),
        (["layers.?"], ["model.layers.2"]),
        (["layers.*.mlp"], ["model.layers.12.mlp", "model.layers.2.mlp"]),
        (["layers.*"], ["model.layers.12", "model.layers.2"]),
        (["mlp.up_proj", "layers.2.mlp"], ["model.layers.2.mlp"]),
        (["lm_head", "norm"], ["lm_head", "model.norm"]),
        (["layers.[0-9]"], ["model.layers.2"]),
    ],
)
def test_patterns_name_the_outermost_modules(patterns: list[str], chosen: list[str]) -> None:
    assert names.choose(patterns, NAMES) == chosen


@pytest.mark.parametrize(
    ("pattern", "near"), [("layers.22", "`layers.2`"), ("lmhead", "`lm_head`"), ("ayers.2", "`layers.2`")]
)
def test_a_pattern_that_names_nothing_is_told_what_is_near(pattern: str, near: str) -> None:
    with pytest.raises(ConfigError) as error:
        names.choose(["norm", pattern], NAMES, "pretrain.train.layers")
    assert "`pretrain.train.layers`" in error.value.what
    assert f"`{pattern}`" in error.value.what
    assert near in error.value.why


def test_the_modules_of_a_folder_are_those_of_the_model(tiny: bases.Base) -> None:
    from tunesmith.models import load

    assert tiny.folder is not None
    model = load.model(tiny.folder, "fp32")
    assert names.of_folder(tiny.folder) == {
        name for name, module in model.named_modules() if name and any(True for _ in module.parameters())
    }


@pytest.mark.parametrize("patterns", [[], ["layers.1"], ["lm_head"], ["norm", "layers.*.mlp"]])
def test_parameters_are_counted_without_loading(tiny: bases.Base, patterns: list[str]) -> None:
    from tunesmith.models import load

    assert tiny.folder is not None
    model = load.model(tiny.folder, "fp32")
    chosen = names.choose(patterns, names.of_folder(tiny.folder)) if patterns else []
    counted = sum(p.numel() for name in chosen for p in model.get_submodule(name).parameters())
    assert names.parameters(tiny.folder, patterns) == counted


def test_an_empty_folder_names_only_the_head(tmp_path: Path) -> None:
    assert names.of_folder(tmp_path) == {"lm_head"}
