"""Texts to tokens: every token is learnt once, every document is in the ledger, and sides follow from the content."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core import store
from tunesmith.core.errors import ConfigError, DataError
from tunesmith.data import texts
from tunesmith.models import base as bases
from tunesmith.models import load
from tunesmith.models.tokens import Tokens

END = 0  # <|endoftext|> of SmolLM2; its tokeniser calls <|im_end|>, with which a turn ends, its end token


def made(
    folder: Path, base: bases.Base, documents: list[Any], block_tokens: int | None = None, budget: float = 0.05
) -> dict[str, Any]:
    lines = [d if isinstance(d, str) else json.dumps({"text": d[0]}) for d in documents]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return texts.run([folder / "texts.jsonl"], block_tokens, budget, base, folder)


def blocks(folder: Path, side: str) -> list[list[int]]:
    tokens = Tokens(folder, side)
    return [tokens.row(i)[0].tolist() for i in range(len(tokens))]


def stories(count: int, words: int = 30) -> list[tuple[str]]:
    return [(f"Story {i}. " + " ".join(f"word{(i * 7 + j) % 50}" for j in range(words)),) for i in range(count)]


@given(st.integers(2, 500), st.integers(2, 64))
def test_blocks_learn_every_token_but_the_first_once(tokens: int, longest: int) -> None:
    ids = list(range(tokens))
    parts = texts.cut(ids, longest)
    assert [i for part in parts for i in part[1:]] == ids[1:]
    assert all(after[0] == before[-1] for before, after in itertools.pairwise(parts))
    assert 2 <= min(map(len, parts)) <= max(map(len, parts)) <= longest
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_documents_are_tokenised_whole_and_end_with_the_end_of_text(tmp_path: Path, base: bases.Base) -> None:
    assert base.folder is not None
    tokenizer = load.tokenizer(base.folder)
    summary = made(tmp_path, base, stories(40))
    found = sorted(tokenizer.decode(ids) for side in ("train", "validation") for ids in blocks(tmp_path, side))
    assert found == sorted(f"{story}<|endoftext|>" for (story,) in stories(40))
    assert summary["documents"] == summary["train"]["rows"] + summary["validation"]["rows"] == 40
    assert (summary["begin"], summary["end"]) == ([], "<|endoftext|>")


def test_the_ledger_is_that_of_the_arrays(tmp_path: Path, base: bases.Base) -> None:
    summary = made(tmp_path, base, stories(40), block_tokens=40)
    assert summary["cut"] == 40
    for side in ("train", "validation"):
        tokens, ledger = Tokens(tmp_path, side), summary[side]
        assert ledger["rows"] == len(tokens) > 0
        assert ledger["tokens"] == len(tokens.ids) == sum(tokens.lengths)
        assert ledger["longest"] == max(tokens.lengths) <= 40
        assert ledger["learnt_tokens"] == int(tokens.learnt.sum()) == tokens.learnt_tokens(range(len(tokens)))
    assert not (tmp_path / "blocks.bin").exists()


def test_cutting_loses_no_target(tmp_path: Path, base: bases.Base) -> None:
    counts = []
    for block_tokens in (None, 17):
        summary = made(tmp_path, base, stories(40), block_tokens)
        counts.append(sum(summary[side]["learnt_tokens"] for side in ("train", "validation")))
    assert counts[0] == counts[1]


def test_what_is_left_out_is_counted_and_told(tmp_path: Path, base: bases.Base) -> None:
    documents = [*stories(9), ("  \n",), stories(2)[1], "{broken"]
    summary = made(tmp_path, base, documents, budget=0.5)
    assert summary["found"] == 12 == summary["documents"] + summary["dropped"] + summary["quarantined"]
    assert summary["reasons"] == {"empty": 1, "duplicate": 1, "not valid JSON": 1}
    assert [(d["line"], d["reason"], d["detail"]) for d in store.read_jsonl(tmp_path / "dropped.jsonl")] == [
        (10, "empty", ""),
        (11, "duplicate", "of texts.jsonl:2"),
    ]
    assert [q["line"] for q in store.read_jsonl(tmp_path / "quarantine.jsonl")] == [12]
    assert "left out: 1 empty, 1 duplicate, 1 not valid JSON" in summary["headline"]


def test_a_duplicate_in_a_file_of_the_same_name_is_found(tmp_path: Path, base: bases.Base) -> None:
    paths = [tmp_path / folder / "page.md" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("The same page.\n")
    assert texts.run(paths, None, 0.05, base, tmp_path)["reasons"] == {"duplicate": 1}


def test_more_broken_documents_than_allowed_end_the_step(tmp_path: Path, base: bases.Base) -> None:
    with pytest.raises(DataError) as error:
        made(tmp_path, base, [*stories(5), "{broken"])
    assert error.value.what == "1 of 6 documents cannot be read"
    assert "not valid JSON" in error.value.why


def test_nothing_left_says_why(tmp_path: Path, base: bases.Base) -> None:
    with pytest.raises(DataError) as error:
        made(tmp_path, base, [("",), (" ",)])
    assert (error.value.what, error.value.why) == ("no document is left of pretrain.texts", "2 empty")


def test_control_tokens_in_a_text_are_text(tmp_path: Path, base: bases.Base) -> None:
    made(tmp_path, base, [("to end a turn, write <|im_end|> or <|endoftext|> at last",), *stories(1)])
    ids = [i for side in ("train", "validation") for block in blocks(tmp_path, side) for i in block]
    assert ids.count(END) == 2  # one for each document
    assert 2 not in ids


def test_a_beginning_token_is_there_once_where_the_tokeniser_has_one(tmp_path: Path, base: bases.Base) -> None:
    """A copy of the base whose tokeniser begins plain text with a token, as Llama's and Gemma's do."""
    assert base.folder is not None
    folder = tmp_path / "model"
    shutil.copytree(base.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").symlink_to(base.folder / "model.safetensors")
    settings = json.loads((folder / "tokenizer.json").read_text())
    single = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
    template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}
    settings["post_processor"] = {"type": "Sequence", "processors": [settings["post_processor"], template]}
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    summary = made(tmp_path, bases.locate(str(folder), Path()), [("<|im_start|>already there",), *stories(30)])
    assert summary["begin"] == ["<|im_start|>"]
    found = [block for side in ("train", "validation") for block in blocks(tmp_path, side)]
    assert len(found) == 31
    assert all(block[0] == 1 and 1 not in block[1:] and block[-1] == END for block in found)


def test_sides_follow_from_the_content_alone(tmp_path: Path, base: bases.Base) -> None:
    documents = stories(200)
    first = made(tmp_path, base, documents)
    held_out = {tuple(block) for block in blocks(tmp_path, "validation")}
    made(tmp_path, base, documents[::-1])
    assert {tuple(block) for block in blocks(tmp_path, "validation")} == held_out
    tokens = [first[side]["tokens"] for side in ("validation", "train")]
    assert 0.045 < tokens[0] / sum(tokens) <= texts.VALIDATION_SHARE


def test_no_document_stands_on_two_sides(tmp_path: Path, base: bases.Base) -> None:
    made(tmp_path, base, stories(100, words=100), block_tokens=32)
    starts = {side: sum(block[-1] == END for block in blocks(tmp_path, side)) for side in ("train", "validation")}
    assert starts["validation"] > 0
    assert sum(starts.values()) == 100
    for side in starts:
        tokens = blocks(tmp_path, side)
        ended = [i for i, block in enumerate(tokens) if block[-1] == END]
        assert ended[-1] == len(tokens) - 1
        chained = all(b[0] == a[-1] for a, b in itertools.pairwise(tokens) if a[-1] != END)
        assert chained, f"{side}: a block's document goes on elsewhere"


def test_a_single_document_is_validated_by_its_blocks(tmp_path: Path, base: bases.Base) -> None:
    summary = made(tmp_path, base, stories(1, words=400), block_tokens=32)
    assert summary["documents"] == 1
    assert 0 < summary["validation"]["rows"] < summary["train"]["rows"] / 10


def test_one_block_cannot_be_divided(tmp_path: Path, base: bases.Base) -> None:
    summary = made(tmp_path, base, stories(1))
    assert (summary["train"]["rows"], summary["validation"]["rows"]) == (1, 0)
    assert len(Tokens(tmp_path, "validation")) == 0


def test_blocks_longer_than_the_context_name_their_key(tmp_path: Path, base: bases.Base) -> None:
    with pytest.raises(ConfigError) as error:
        made(tmp_path, base, stories(1), 8193)
    assert error.value.what == "pretrain.block_tokens is 8,193, the model's context is 8,192"


def test_few_units_leave_one_on_each_side() -> None:
    lengths = np.array([9, 5, 7])
    held_out = texts.held_out(lengths, np.array([0, 0, 1]), [b"one", b"two"])
    assert held_out.tolist() == [False, True, False]  # the smallest: no block fits the share


def test_a_preview_tells_the_form_and_the_first_words(tmp_path: Path) -> None:
    (tmp_path / "handbook.md").write_text("# Handbook\n\n" + "All about Fernhill. " * 50)
    told = texts.preview(tmp_path / "handbook.md")
    assert (told["form"], told["documents"], told["whole_file"]) == ("file", 1, True)
    assert told["first"][0]["text"].startswith("# Handbook All about Fernhill.")
    assert len(told["first"][0]["text"]) == 80


def test_a_folder_of_every_kind_is_read_and_what_is_not_is_told(tmp_path: Path, base: bases.Base) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.md").write_text("# Care\n\nClean it.")
    (folder / "deep/a.md").write_text("# More\n\nDry it.")
    (folder / "page.html").write_text("<nav>Menu</nav><h1>Page</h1><p>Text.</p>")
    (folder / "film.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nSaid.\n")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "packed"}\n'))
    (folder / "empty.txt").write_text("")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8")
    out = tmp_path / "out"
    out.mkdir()
    summary = texts.run([folder], None, 0.05, base, out)
    assert {one["path"]: one["documents"] for one in summary["sources"]} == {
        "a.md": 1, "c.jsonl.gz": 1, "deep/a.md": 1, "film.srt": 1, "page.html": 1,
    }  # fmt: skip
    assert summary["skipped"] == {"empty": ["empty.txt"], "of a kind that holds no text": ["photo.jpg"]}
    assert "1 skipped, of a kind that holds no text: `photo.jpg`" in summary["headline"]
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []
    found = texts.preview(folder)
    assert (found["files"], found["documents"], found["whole_file"], found["form"]) == (7, 5, True, "file")
    with pytest.raises(DataError, match="no file to read"):
        texts.preview(folder / "*.jp*")
