"""The whole road on a small project with the real model: run, unchanged run, why, show, export, chat, and a recount."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from tunesmith.core import store
from tunesmith.models.base import Base

ROOT = Path(__file__).parents[2]
TUNESMITH = [sys.executable, "-m", "tunesmith"]
YAML = """\
name: small
data:
  sources:
    - path: data.jsonl
      fields: {prompt: message, answer: ticket}
  system: Turn the customer's message into a JSON ticket.
  clean: {answer: json, personal_data: replace}
train: {epochs: 1, evaluations: 2, learning_rate: 0.002}
"""


def tunesmith(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TUNESMITH, *arguments], cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, base: object) -> Path:
    """A project that ran once: 64 tickets, one epoch."""
    folder = tmp_path_factory.mktemp("small")
    lines = (ROOT / "recipes/support/data/tickets.jsonl").read_text(encoding="utf-8").splitlines()[:64]
    broken = ['{"message": "half a', json.dumps({"message": "x", "ticket": "not JSON"}), lines[0]]
    (folder / "data.jsonl").write_text("\n".join(lines + broken) + "\n", encoding="utf-8")
    (folder / "tunesmith.yaml").write_text(YAML, encoding="utf-8")
    done = tunesmith(folder, "run")
    assert done.returncode in (0, 3, 4), done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == json.loads(tunesmith(folder, "show", "--json").stdout)["exit_status"]
    return folder


@pytest.fixture(scope="module")
def shown(finished: Path) -> dict:  # type: ignore[type-arg]
    done = tunesmith(finished, "show", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_show_follows_its_documented_schema(shown: dict) -> None:  # type: ignore[type-arg]
    jsonschema.validate(shown, json.loads((ROOT / "docs/show.schema.json").read_text()))


def test_the_row_ledger_adds_up_to_the_file(shown: dict, finished: Path) -> None:  # type: ignore[type-arg]
    rows = shown["rows"]
    assert rows["records"] == len((finished / "data.jsonl").read_text().splitlines()) == 67
    assert rows["quarantined"] == 1
    assert rows["reasons"]["answer is not JSON"] == 1
    assert rows["reasons"]["duplicate"] == 1
    assert rows["records"] == sum(rows[k] for k in ("quarantined", "dropped", "train", "validation", "test"))


def test_training_learnt(shown: dict) -> None:  # type: ignore[type-arg]
    perplexity = shown["metrics"]
    assert perplexity["tuned"]["perplexity"]["value"] < 0.5 * perplexity["base"]["perplexity"]["value"]


def test_the_figures_agree_with_a_recount(shown: dict) -> None:  # type: ignore[type-arg]
    """Field F1, exact match and perplexity counted again from the predictions, by other code."""
    for side in ("base", "tuned"):
        rows = list(store.read_jsonl(Path(shown["artifacts"][f"predictions_{side}"])))
        assert len(rows) == shown["rows"]["test"]
        matched = named = wanted = exact = 0
        for row in rows:
            gold = set(json.loads(row["expected"]).items())
            try:
                value = json.loads(row["answer"])
            except ValueError:
                value = {}
            found = set(value.items()) if isinstance(value, dict) else set()
            matched, named, wanted = matched + len(gold & found), named + len(found), wanted + len(gold)
            exact += gold == found
        metrics = shown["metrics"][side]
        assert metrics["field_f1"]["value"] == pytest.approx(2 * matched / (named + wanted))
        assert metrics["exact_match"]["value"] == pytest.approx(exact / len(rows))
        perplexity = math.exp(sum(r["nll"] for r in rows) / sum(r["tokens"] for r in rows))
        assert metrics["perplexity"]["value"] == pytest.approx(perplexity)


def test_an_unchanged_run_is_quick_and_imports_no_torch(finished: Path) -> None:
    script = (
        "import sys, tunesmith; found = tunesmith.run('.'); assert found is not None;"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    best = math.inf
    for _ in range(3):
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", script], cwd=finished, capture_output=True, text=True)
        best = min(best, time.monotonic() - started)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("unchanged") == 10
    assert best < 2


def test_a_new_learning_rate_reruns_training_and_what_follows(finished: Path) -> None:
    done = tunesmith(finished, "status", "--json", "--set", "train.learning_rate=0.0005")
    states = {step["step"]: step["state"] for step in json.loads(done.stdout)}
    assert [name for name, state in states.items() if state == "to run"] == [
        "plan",
        "train",
        "tuned",
        "verdict",
        "export",
    ]
    told = tunesmith(finished, "why", "train", "--set", "train.learning_rate=0.0005").stdout
    assert told.strip() == "train.learning_rate: 0.002 -> 0.0005 (via plan)"


def test_changed_data_reruns_all_and_why_names_the_file(finished: Path) -> None:
    data = finished / "data.jsonl"
    before = data.read_bytes()
    try:
        data.write_bytes(before + before.splitlines(keepends=True)[5])
        states = json.loads(tunesmith(finished, "status", "--json").stdout)
        assert all(step["state"] == "to run" for step in states)
        assert "sources.0.path" in tunesmith(finished, "why", "export").stdout
    finally:
        data.write_bytes(before)
    assert all(step["state"] == "done" for step in json.loads(tunesmith(finished, "status", "--json").stdout))


def test_a_killed_training_is_run_again(finished: Path, tiny: Base, tmp_path: Path) -> None:
    """SIGKILL in the middle of training: the half-written step is never taken for a result."""
    folder = tmp_path / "killed"
    shutil.copytree(finished, folder)
    train = folder / "output/steps/train"
    done_before = set(train.glob("[!.]*"))
    changes = ["--set", f"model={tiny.folder}", "--set", "train.epochs=8"]
    process = subprocess.Popen([*TUNESMITH, "run", *changes], cwd=folder, stderr=subprocess.DEVNULL)
    log = folder / "output/unfinished/train/metrics.jsonl"
    for _ in range(600):
        written = log.is_file() and len(log.read_bytes().splitlines()) >= 2
        if written:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert written
    assert set(train.glob("[!.]*")) == done_before
    again = tunesmith(folder, "run", *changes, "--until", "train")
    assert again.returncode == 0, again.stderr
    assert "unfinished, at step" in again.stderr or "train.epochs" in again.stderr
    finished_steps = set(train.glob("[!.]*")) - done_before
    assert len(finished_steps) == 1
    assert not list(train.glob(".*.unfinished"))


def test_what_is_exported_loads_with_no_tunesmith(shown: dict) -> None:  # type: ignore[type-arg]
    """Plain transformers and peft, in a process that cannot import tunesmith, give the tuned answers."""
    rows = list(store.read_jsonl(Path(shown["artifacts"]["predictions_tuned"])))[:3]
    script = """
import json, sys
sys.modules["tunesmith"] = None
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
adapter, merged, rows = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for model, folder in ((AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32), adapter),
                      (AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32), merged)):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    nll = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        p = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        a = tokenizer(row["expected"] + "<|im_end|>", add_special_tokens=False, return_tensors="pt").input_ids
        ids = torch.cat([p, a], 1)
        logp = model(input_ids=ids).logits[0].float().log_softmax(-1)
        nll.append(-sum(logp[p.shape[1] - 1 + i, a[0, i]].item() for i in range(a.shape[1])))
    print(json.dumps(nll))
"""
    paths = [shown["artifacts"][name] for name in ("adapter", "merged")]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths, json.dumps(rows)], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    adapter, merged = (json.loads(line) for line in done.stdout.strip().splitlines())
    wanted = [row["nll"] for row in rows]
    assert adapter == pytest.approx(wanted, rel=1e-3)  # the same weights in fp32
    assert merged == pytest.approx(wanted, rel=0.05)  # rounded to bf16


def test_the_model_card_tells_the_verdict(shown: dict) -> None:  # type: ignore[type-arg]
    card = (Path(shown["artifacts"]["merged"]) / "README.md").read_text()
    assert shown["verdict"] in card
    assert f"{shown['rows']['train']:,} training rows" in card
    assert f"{shown['metrics']['tuned']['field_f1']['value']:.3f}" in card


def test_the_report_tells_the_same_figures(shown: dict) -> None:  # type: ignore[type-arg]
    page = Path(shown["artifacts"]["report"]).read_text()
    assert shown["verdict"] in page
    for figure in shown["metrics"]["tuned"].values():
        assert f"{figure['value']:.3f}" in page
    assert "<script" not in page
    assert "default-src 'none'" in page  # the page itself forbids every request


def test_chat_answers_through_a_pipe(finished: Path) -> None:
    done = subprocess.run(
        [*TUNESMITH, "chat"], cwd=finished, input="My doorbell is dead, replace it\n", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith("{")


def test_export_copies_and_overwrites_nothing(finished: Path, tmp_path: Path) -> None:
    assert tunesmith(finished, "export", str(tmp_path / "model"), "--adapter").returncode == 0
    assert (tmp_path / "model/adapter_model.safetensors").is_file()
    again = tunesmith(finished, "export", str(tmp_path / "model"))
    assert again.returncode == 1
    assert "not empty" in again.stderr


def test_the_base_is_asked_once(finished: Path, shown: dict) -> None:  # type: ignore[type-arg]
    """Answers of the base are kept by content: a forced step generates nothing."""
    done = tunesmith(finished, "run", "--force", "base", "--until", "base")
    assert done.returncode == 0, done.stderr
    [record] = (finished / "output/steps/base").glob("[!.]*/record.json")
    assert store.read_json(record)["summary"]["reused"] == shown["rows"]["test"]
