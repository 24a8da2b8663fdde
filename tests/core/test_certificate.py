"""A certificate vouches for the files that stood there when it was sealed, and for nothing else."""

from pathlib import Path

import pytest

from tunesmith.core import certificate, store
from tunesmith.core.errors import DataError


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "test.jsonl").write_text("")
    certificate.seal(tmp_path, {"leaks": 0, "alike_from": 0.7}, ["train.jsonl", "test.jsonl"])
    return tmp_path


def test_what_was_sealed_is_vouched_for(sealed):
    told = certificate.require(sealed)
    assert (told["leaks"], told["alike_from"], sorted(told["files"])) == (0, 0.7, ["test.jsonl", "train.jsonl"])


def changed(folder: Path) -> None:
    (folder / "test.jsonl").write_text("{}\n")


def removed(folder: Path) -> None:
    (folder / "test.jsonl").unlink()


def leaking(folder: Path) -> None:
    path = folder / "certificate.json"
    store.write_json(path, store.read_json(path) | {"leaks": 2})


def absent(folder: Path) -> None:
    (folder / "certificate.json").unlink()


def cut(folder: Path) -> None:
    path = folder / "certificate.json"
    path.write_text(path.read_text()[:40])


def without_facts(folder: Path) -> None:
    (folder / "certificate.json").write_text("{}")


def no_object(folder: Path) -> None:
    (folder / "certificate.json").write_text("[]")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (changed, "is not the file that was certified"),
        (removed, "is not the file that was certified"),
        (leaking, "2 rows of the exam are known"),
        (absent, "has no certificate"),
        (cut, "is damaged"),
        (without_facts, "is damaged"),
        (no_object, "is damaged"),
    ],
)
def test_anything_else_is_not(sealed, change, told):
    change(sealed)
    with pytest.raises(DataError, match=told) as caught:
        certificate.require(sealed)
    assert "--force split" in caught.value.next
