"""Two stages on a small model: texts are read, merged into a whole model, and the rows are learnt on that model."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from finished import folder_of, summary_of
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import tunesmith
from tunesmith.cli import app
from tunesmith.core import store
from tunesmith.core.errors import ConfigError, ResourceError
from tunesmith.models import base as bases
from tunesmith.models import load
from tunesmith.models.tokens import Tokens
from tunesmith.plan import planner

RECIPE = Path(__file__).parents[2] / "recipes/domain"
STAGE = ["texts", "pretrain-plan", "pretrain"]
PRETRAIN = {"method": "lora", "epochs": 4, "learning_rate": 0.02, "evaluations": 2, "batch_tokens": 1500}


@pytest.fixture(scope="module")
def project(lively: bases.Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The domain recipe on few rows and a two-layer model."""
    settings = yaml.safe_load((RECIPE / "tunesmith.yaml").read_text(encoding="utf-8"))
    tickets = (RECIPE / settings["data"]["sources"][0]["path"]).read_text(encoding="utf-8").splitlines()[:40]
    folder = tmp_path_factory.mktemp("stages")
    (folder / "tickets.jsonl").write_text("\n".join(tickets) + "\n", encoding="utf-8")
    (folder / "handbook.txt").write_bytes((RECIPE / "data/handbook.txt").read_bytes())
    settings["model"] = str(lively.folder)
    settings["data"]["sources"][0]["path"] = "tickets.jsonl"
    settings["data"]["clean"]["answer_schema"] = str((RECIPE / "../support/ticket.schema.json").resolve())
    settings["pretrain"] |= {"texts": ["handbook.txt"], "train": PRETRAIN}
    settings["train"] = {"epochs": 1, "evaluations": 1}
    settings["evaluate"]["generation"] = {"max_new_tokens": 2}
    (folder / "tunesmith.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def shown(project: Path) -> tunesmith.Show:
    found = tunesmith.run(project)
    assert isinstance(found, tunesmith.Show)
    return found


@torch.no_grad()
def plain_loss(model: torch.nn.Module, tokens: Tokens) -> float:
    """Mean loss over the learnt tokens, one row after the other, by transformers' own forward pass."""
    total, count = 0.0, 0
    for i in range(len(tokens)):
        ids, learnt = (torch.from_numpy(part.copy()) for part in tokens.row(i))
        logp_TV = model(input_ids=ids[None].long()).logits[0].float().log_softmax(-1)
        at = learnt[1:].nonzero()[:, 0]
        total -= float(logp_TV[at, ids[1:][at].long()].sum())
        count += len(at)
    return total / count


def test_the_stage_learns_and_its_model_is_base_and_adapter(shown: tunesmith.Show, lively: bases.Base) -> None:
    stage = folder_of(shown, "pretrain")
    base = AutoModelForCausalLM.from_pretrained(lively.folder, dtype=torch.float32)
    wanted = PeftModel.from_pretrained(base, stage / "adapter").merge_and_unload().to(torch.bfloat16).state_dict()
    left = AutoModelForCausalLM.from_pretrained(stage / "model", dtype=torch.bfloat16).state_dict()
    assert wanted.keys() == left.keys()
    assert all(torch.equal(wanted[name], left[name]) for name in wanted)
    losses = [e["validation_loss"] for e in store.read_jsonl(stage / "metrics.jsonl") if "validation_loss" in e]
    assert losses[-1] < losses[0] - 0.3


def test_the_loss_after_the_merge_is_measured_and_told(shown: tunesmith.Show) -> None:
    assert shown.pretraining is not None
    model = AutoModelForCausalLM.from_pretrained(folder_of(shown, "pretrain") / "model", dtype=torch.float32)
    measured = plain_loss(model, Tokens(folder_of(shown, "texts"), "validation"))
    assert shown.pretraining.merged_validation_loss == pytest.approx(measured, rel=0.01)
    assert shown.pretraining.training.validation_loss == pytest.approx(measured, rel=0.01)
    headline = summary_of(shown, "pretrain")["headline"]
    assert f"best validation loss {shown.pretraining.training.validation_loss:.4f}" in headline
    assert f"{shown.pretraining.merged_validation_loss:.4f} merged in" in headline


def test_the_rows_are_learnt_on_what_the_stage_left(shown: tunesmith.Show, lively: bases.Base) -> None:
    """The validation loss before the first step is that of the stage's model on the rows, and not that of the base."""
    log = store.read_jsonl(folder_of(shown, "train") / "metrics.jsonl")
    first = next(entry for entry in log if "validation_loss" in entry)
    rows = Tokens(folder_of(shown, "format"), "validation")
    losses = [
        plain_loss(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), rows)
        for folder in (folder_of(shown, "pretrain") / "model", lively.folder)
    ]
    assert first["step"] == 0
    assert first["validation_loss"] == pytest.approx(losses[0], abs=0.1)
    assert abs(losses[1] - losses[0]) > 0.3


def test_the_verdict_compares_with_the_untouched_base(shown: tunesmith.Show, lively: bases.Base) -> None:
    rows = Tokens(folder_of(shown, "format"), "test")
    perplexity = {side: figure["perplexity"].value for side, figure in shown.metrics if side != "gain"}
    base = AutoModelForCausalLM.from_pretrained(lively.folder, dtype=torch.float32)
    assert perplexity["base"] == pytest.approx(math.exp(plain_loss(base, rows)), rel=0.01)
    start = AutoModelForCausalLM.from_pretrained(folder_of(shown, "pretrain") / "model", dtype=torch.float32)
    tuned = PeftModel.from_pretrained(start, folder_of(shown, "train") / "adapter")
    assert perplexity["tuned"] == pytest.approx(math.exp(plain_loss(tuned, rows)), rel=0.01)
    merged = AutoModelForCausalLM.from_pretrained(shown.artifacts["merged"], dtype=torch.float32)
    assert perplexity["tuned"] == pytest.approx(math.exp(plain_loss(merged, rows)), rel=0.03)


def test_steps_follow_one_another_and_are_shown(shown: tunesmith.Show, project: Path) -> None:
    names = [step.step for step in shown.steps]
    assert [name for name in names if name in STAGE] == STAGE
    assert names.index("format") < names.index("texts") < names.index("pretrain") < names.index("train")
    assert [status.step for status in tunesmith.status(project)] == names
    assert {status.state for status in tunesmith.status(project)} == {"done"}
    assert Path(shown.artifacts["pretrained"], "config.json").is_file()


def test_the_page_the_card_and_the_terminal_tell_of_the_stage(shown: tunesmith.Show, project: Path) -> None:
    assert shown.pretraining is not None
    texts, merged = summary_of(shown, "texts"), shown.pretraining.merged_validation_loss
    assert shown.pretraining.documents == texts["documents"] == 37
    page = Path(shown.artifacts["report"]).read_text(encoding="utf-8")
    assert 'href="#pretraining"' in page
    assert f"{merged:.3f}" in page
    for folder in ("adapter", "merged"):
        card = (Path(shown.artifacts[folder]) / "README.md").read_text(encoding="utf-8")
        assert "pretrained further" in card
        assert f"37 documents ({texts['train']['tokens']:,} tokens" in card
        assert f"{merged:.4f} after the merge" in card
    assert str(folder_of(shown, "pretrain")) in (Path(shown.artifacts["adapter"]) / "README.md").read_text()
    told = CliRunner().invoke(app, ["show", str(project)]).stdout
    assert f"37 documents, {texts['train']['tokens']:,} tokens learnt" in told


def test_a_changed_stage_reruns_what_stands_on_it_and_why_traces_it(shown: tunesmith.Show, project: Path) -> None:
    changed = ["pretrain.train.epochs=1"]
    rerun = [status.step for status in tunesmith.status(project, set=changed) if status.state == "to run"]
    assert rerun == ["pretrain-plan", "pretrain", "train", "tuned", "verdict", "export"]
    assert tunesmith.why("train", project, set=changed) == ["pretrain.train.epochs: 4.0 -> 1.0 (via pretrain-plan)"]
    assert tunesmith.why("texts", project, set=["pretrain.block_tokens=64"]) == ["pretrain.block_tokens: 512 -> 64"]


def test_without_the_stage_no_other_step_changes(shown: tunesmith.Show, project: Path) -> None:
    """The section adds steps; those that do not stand on its result keep their identity."""
    plain = project / "plain.yaml"
    settings = yaml.safe_load((project / "tunesmith.yaml").read_text(encoding="utf-8"))
    del settings["pretrain"]
    plain.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert [status.step for status in tunesmith.status(plain)] == [s.step for s in shown.steps if s.step not in STAGE]
    (project / "output-plain").symlink_to(project / "output")
    done = [status.step for status in tunesmith.status(plain) if status.state == "done"]
    assert done == ["load", "clean", "split", "format", "plan", "base"]
    with pytest.raises(ConfigError, match="there is no step `pretrain` without a `pretrain` section"):
        tunesmith.run(plain, until="pretrain")


def test_chat_is_with_the_tuned_stage_or_with_the_base(
    shown: tunesmith.Show, project: Path, lively: bases.Base
) -> None:
    assert lively.folder is not None
    name = "model.embed_tokens.weight"  # no adapter stands on it, so that it is the model's own
    untouched = load.model(lively.folder, "fp32").state_dict()
    assert torch.equal(tunesmith.Chat(project, base=True).model.state_dict()[name], untouched[name])
    tuned = tunesmith.Chat(project).model.state_dict()
    merged = AutoModelForCausalLM.from_pretrained(shown.artifacts["merged"], dtype=torch.float32).state_dict()
    weight = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(tuned[weight].bfloat16().float(), merged[weight])
    assert not torch.equal(tuned[weight], untouched[weight])


def test_full_tuning_needs_no_merge_and_a_forced_stage_takes_the_rest_along(
    shown: tunesmith.Show, project: Path
) -> None:
    overrides = ["pretrain.train={method: full, epochs: 1, evaluations: 1}"]
    halted = tunesmith.run(project, set=overrides, until="train")
    assert isinstance(halted, tunesmith.Halted)
    [stage] = [s for s in (project / "output/steps/pretrain").glob("[!.]*") if not (s / "adapter").exists()]
    assert (stage / "model/tokenizer.json").is_file()
    assert store.read_json(stage / "record.json")["summary"]["merged_validation_loss"] is None
    assert isinstance(tunesmith.run(project, set=overrides, until="pretrain", force="pretrain"), tunesmith.Halted)
    states = {status.step: status.state for status in tunesmith.status(project, set=overrides)}
    assert (states["pretrain"], states["train"]) == ("done", "to run")
    assert tunesmith.why("train", project, set=overrides) == ["base was made again"]


def test_check_tells_the_texts(project: Path) -> None:
    told = CliRunner().invoke(app, ["check", str(project)])
    assert told.exit_code == 0
    assert "handbook.txt: 37 documents" in told.stdout
    assert "1: About Fernhill" in told.stdout
    [text] = json.loads(CliRunner().invoke(app, ["check", str(project), "--json"]).stdout)["texts"]
    assert (text["form"], text["documents"]) == ("file", 37)


def test_a_missing_text_names_the_key(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.texts") as error:
        tunesmith.check(project, set=["pretrain.texts=[handbok.txt]"])
    assert "did you mean handbook.txt?" in error.value.why


def test_an_error_of_the_stage_names_the_settings_of_the_stage(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*arguments: Any) -> None:
        raise ResourceError("`train.rank: 8` is in train", "it is", "lower data.format.max_tokens or train.rank")

    monkeypatch.setattr(planner, "decide", too_large)
    with pytest.raises(ResourceError) as error:
        tunesmith.run(project, set=["pretrain.train.rank=8"], until="pretrain-plan")
    assert error.value.what == "`pretrain.train.rank: 8` is in train"
    assert error.value.next == "lower pretrain.block_tokens or pretrain.train.rank"


def test_the_handbook_is_what_its_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("handbook", RECIPE / "handbook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.handbook() == (RECIPE / "data/handbook.txt").read_text(encoding="utf-8")


def test_the_recipe_can_be_checked_as_it_stands(base: bases.Base) -> None:
    found = tunesmith.check(RECIPE)
    assert found.base == base
    assert [(text["documents"], text["whole_file"]) for text in found.texts] == [(37, True)]
