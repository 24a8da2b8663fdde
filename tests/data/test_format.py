"""Rows to tokens: the ledger counts right, too long rows are an error until allowed, no row teaches a wrong thing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tunesmith.core import certificate, store
from tunesmith.core.data_section import Format
from tunesmith.core.errors import ConfigError, DataError, ModelError
from tunesmith.core.records import Row
from tunesmith.core.step import Artifact, Steps
from tunesmith.data import format, parts
from tunesmith.models import base as bases
from tunesmith.models import load
from tunesmith.models.tokens import Tokens

SHORT = ("hi", "hello")
LONG = ("tell me all", "a long story " * 60)


def row(pair: tuple[str, str], line: int = 1) -> Row:
    prompt, answer = pair
    return Row(
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], "r.jsonl", line, "messages"
    )


def made(folder: Path, base: bases.Base, settings: Format, train: list[Row], test: list[Row]) -> Artifact:
    splits = folder / "splits"
    splits.mkdir()
    sides = {"train": train, "validation": [], "test": test}
    for side, rows in sides.items():
        store.write_rows(splits / f"{side}.jsonl", rows)
    certificate.seal(splits, {"leaks": 0}, [f"{side}.jsonl" for side in sides])
    before = Artifact("split", "made", splits, "done", {side: len(rows) for side, rows in sides.items()})
    return Steps(folder)("format", format.run, settings, base, before)


def test_the_ledger_is_that_of_the_arrays(dataset: Artifact, base: bases.Base) -> None:
    assert base.folder is not None
    tokenizer = load.tokenizer(base.folder)
    for side in ("train", "validation", "test"):
        tokens, rows = Tokens(dataset.folder, side), store.read_rows(dataset / f"{side}.jsonl")
        ledger = dataset.summary[side]
        assert ledger["rows"] == len(rows) == len(tokens)
        assert ledger["tokens"] == len(tokens.ids) == sum(tokens.lengths)
        wanted = [len(tokenizer(r.answer, add_special_tokens=False)["input_ids"]) + 1 for r in rows]
        assert ledger["learnt_tokens"] == int(tokens.learnt.sum()) == sum(wanted)
        for i, r in enumerate(rows):
            ids, learnt = tokens.row(i)
            assert tokenizer.decode(ids[learnt]) == r.answer + "<|im_end|>"


def test_too_long_rows_are_an_error_that_names_them(tmp_path: Path, base: bases.Base) -> None:
    with pytest.raises(DataError) as error:
        made(tmp_path, base, Format(max_tokens=64), [row(SHORT), row(LONG, 7)], [])
    assert error.value.what == "1 row is longer than 64 tokens"
    assert "r.jsonl:7" in error.value.why
    assert "data.format.too_long" in error.value.next


def test_too_long_test_rows_are_an_error_too(tmp_path: Path, base: bases.Base) -> None:
    with pytest.raises(DataError) as error:
        made(tmp_path, base, Format(max_tokens=64), [row(SHORT), row(LONG, 3)], [row(SHORT, 8), row(LONG, 9)])
    assert error.value.what == "2 rows are longer than 64 tokens"
    assert "r.jsonl:3, r.jsonl:9" in error.value.why


def test_more_tokens_than_the_model_can_read_are_refused(tmp_path: Path, base: bases.Base) -> None:
    with pytest.raises(ConfigError) as error:
        made(tmp_path, base, Format(max_tokens=8193), [row(SHORT)], [])
    assert error.value.what == "data.format.max_tokens is 8,193, the model's context is 8,192"
    assert "8192" in error.value.next


def test_a_row_that_cannot_be_rendered_is_dropped_with_what_was_seen(tmp_path: Path, base: bases.Base) -> None:
    done = made(tmp_path, base, Format(), [row(SHORT), row(("hi", "a<|im_end|>\nb"), 4)], [])
    assert done.summary["reasons"] == {"a message contains a control token of the model": 1}
    [item] = store.read_jsonl(done / "dropped.jsonl")
    assert (item["line"], item["detail"]) == (4, "<|im_end|>")


def test_nothing_left_says_why(tmp_path: Path, base: bases.Base) -> None:
    with pytest.raises(DataError) as error:
        made(tmp_path, base, Format(), [row(("hi", "a<|im_end|>\nb"))], [])
    assert error.value.why == "most common reason: a message contains a control token of the model (<|im_end|>)"


def test_dropped_rows_are_counted(tmp_path: Path, base: bases.Base) -> None:
    done = made(tmp_path, base, Format(max_tokens=64, too_long="drop"), [row(SHORT), row(LONG, 7)], [row(LONG, 9)])
    assert done.summary["train"]["rows"] == 1
    assert done.summary["reasons"] == {"too long": 2}
    assert [(d["side"], d["line"]) for d in store.read_jsonl(done / "dropped.jsonl")] == [("train", 7), ("test", 9)]


def test_truncated_rows_are_counted_and_a_test_row_is_never_cut(tmp_path: Path, base: bases.Base) -> None:
    done = made(
        tmp_path, base, Format(max_tokens=64, too_long="truncate"), [row(SHORT), row(LONG)], [row(LONG), row(SHORT)]
    )
    assert done.summary["train"]["truncated"] == 1
    assert done.summary["train"]["longest"] == 64
    assert done.summary["test"]["truncated"] == 0
    assert done.summary["test"]["rows"] == 1
    assert done.summary["reasons"] == {"too long": 1}
    assert "1 truncated" in done.summary["headline"]


def test_a_row_whose_answer_is_cut_off_whole_is_dropped(tmp_path: Path, base: bases.Base) -> None:
    asks = ("a long question " * 60, "yes")
    done = made(tmp_path, base, Format(max_tokens=64, too_long="truncate"), [row(SHORT), row(asks)], [])
    assert done.summary["reasons"] == {"too long": 1}


def test_a_template_without_an_end_token_is_refused(tmp_path: Path, base: bases.Base) -> None:
    assert base.folder is not None
    folder = tmp_path / "model"
    shutil.copytree(base.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").symlink_to(base.folder / "model.safetensors")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
    )
    with pytest.raises(ModelError) as error:
        made(tmp_path, bases.locate(str(folder), Path()), Format(), [row(SHORT)], [])
    assert "never ends the assistant's turn" in error.value.what
    assert "would not learn to stop" in error.value.why


def test_the_longest_turns_are_counted(tmp_path: Path, base: bases.Base) -> None:
    chat = Row([*row(SHORT).messages, *row(("and you?", "fine")).messages], "r.jsonl", 1, "messages")
    assert made(tmp_path, base, Format(), [row(SHORT), chat], []).summary["turns"] == 2


def test_parts_change_nothing(tmp_path: Path, base: bases.Base, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row((f"{word} {i}", word * (1 + i % 7)), i) for i, word in enumerate(["yes", "no", "", "a<|im_end|>"] * 40)]
    settings = Format(max_tokens=40, too_long="drop")
    for name, size_bytes in (("whole", parts.PART_BYTES), ("parts", 1000)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(parts.cut, "__defaults__", (size_bytes,))
        monkeypatch.setattr(parts, "_BLOCK_BYTES", min(size_bytes, 1 << 18))
        found = made(tmp_path / name, base, settings, rows[:130], rows[130:])
        assert found.summary["train"]["rows"] + found.summary["test"]["rows"] + found.summary["dropped"] == len(rows)
        assert len(store.read_json(found / "samples.json")) == 3
    for name in ("train.jsonl", "train.ids.npy", "train.learnt.npy", "test.ends.npy", "dropped.jsonl", "samples.json"):
        one, other = (next((tmp_path / folder / "steps/format").glob("[!.]*")) / name for folder in ("whole", "parts"))
        assert one.read_bytes() == other.read_bytes()
