"""Collecting: folders, globs and compressed files come to the same rows as plain files, and nothing goes untold."""

from __future__ import annotations

import bz2
import contextlib
import glob
import gzip
import io
import json
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from tunesmith.core import inputs, store
from tunesmith.core.data_section import Source
from tunesmith.core.errors import DataError
from tunesmith.core.step import Steps
from tunesmith.data import load
from tunesmith.data.reading import collect, unpack


def records(*numbers: int) -> bytes:
    return b"".join(b'{"prompt": "p%d", "completion": "c%d"}\n' % (i, i) for i in numbers)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def source(path: Path, **more: Any) -> Source:
    return Source.model_validate({"path": str(path), **more})


def loaded(folder: Path, *paths: Path, kept: Path | None = None, **more: Any) -> dict[str, Any]:
    out = folder / ".out"
    out.mkdir(exist_ok=True)
    return load.run([source(path, **more) for path in paths], None, 0.5, out, kept)


def rows(folder: Path) -> list[tuple[str, int, str]]:
    return [(row.source, row.line, row.answer) for row in store.read_rows(folder / ".out/rows.jsonl")]


def refusal(folder: Path, path: Path) -> DataError:
    with pytest.raises(DataError) as error:
        loaded(folder, path)
    assert error.value.next
    return error.value


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder with two files of one name, an empty one, and what does not belong."""
    folder = tmp_path / "logs"
    write(folder / "b/day.jsonl", records(3))
    write(folder / "a/day.jsonl", records(1, 2))
    write(folder / "b.csv", b"prompt,completion\np4,c4\n")
    write(folder / "b/quiet.jsonl", b"\n\n")
    write(folder / "README.md", b"# Logs\n\nAbout, these.\n")
    write(folder / "a/chart.png", b"\x89PNG\r\n")
    write(folder / ".git/hidden.jsonl", records(9))
    write(folder / "a/.hidden.jsonl", records(9))
    return folder


def test_a_folder_is_read_in_sorted_order_and_what_is_passed_over_is_told(logs: Path, tmp_path: Path) -> None:
    summary = loaded(tmp_path, logs)
    assert rows(tmp_path) == [
        ("a/day.jsonl", 1, "c1"), ("a/day.jsonl", 2, "c2"), ("b/day.jsonl", 1, "c3"), ("b.csv", 2, "c4"),
    ]  # fmt: skip
    assert [(one["path"], one["kept"]) for one in summary["sources"]] == [
        ("a/day.jsonl", 2), ("b/day.jsonl", 1), ("b.csv", 1),
    ]  # fmt: skip
    assert summary["skipped"] == {
        "text has no answers": ["README.md"],
        "of a kind that holds no examples": ["a/chart.png"],
        "empty": ["b/quiet.jsonl"],
    }
    assert "1 skipped, empty: `b/quiet.jsonl`" in summary["headline"]


def test_a_glob_is_read_in_sorted_order(logs: Path, tmp_path: Path) -> None:
    assert loaded(tmp_path, logs / "**/*.jsonl")["kept"] == 3
    assert [name for name, _, _ in rows(tmp_path)] == ["a/day.jsonl", "a/day.jsonl", "b/day.jsonl"]
    assert loaded(tmp_path, logs / "?/d*")["skipped"] == {}


def test_a_folder_with_brackets_in_its_name_is_no_glob(tmp_path: Path) -> None:
    path = write(tmp_path / "[a]/x[1].jsonl", records(1))
    assert loaded(tmp_path, path, path.parent, path.parent / "*.jsonl")["kept"] == 3


def test_a_glob_that_names_a_suffix_reads_it_whatever_it_is(tmp_path: Path) -> None:
    write(tmp_path / "logs/requests.log", records(1, 2))
    assert loaded(tmp_path, tmp_path / "logs/*.log")["kept"] == 2
    assert "of a kind that holds no examples: `requests.log`" in refusal(tmp_path, tmp_path / "logs").why


def test_text_is_read_where_a_convert_file_makes_examples_of_it(tmp_path: Path) -> None:
    write(tmp_path / "in/a.txt", b"one\ntwo\n")
    code = write(tmp_path / "own.py", b"def convert(r):\n    return {'prompt': 'p', 'completion': r['text']}\n")
    assert loaded(tmp_path, tmp_path / "in", convert=str(code))["kept"] == 2
    assert "text has no answers" in refusal(tmp_path, tmp_path / "in").why


def test_links_are_followed_once_and_one_that_leads_nowhere_is_no_silence(tmp_path: Path) -> None:
    write(tmp_path / "real/a.jsonl", records(1))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "real")
    (folder / "loop").symlink_to(folder)
    assert loaded(tmp_path, folder)["kept"] == 1
    assert rows(tmp_path)[0][0] == "linked/a.jsonl"
    (folder / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    assert "gone.jsonl cannot be opened" in refusal(tmp_path, folder).what


def test_a_folder_that_is_linked_beside_itself_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "in/2024/a.jsonl", records(1))
    (tmp_path / "in/latest").symlink_to("2024")
    (tmp_path / "in/2023").symlink_to("2024")
    assert list(inputs.files(tmp_path / "in")) == ["2024/a.jsonl"]
    assert list(inputs.files(tmp_path / "in/**/*.jsonl")) == ["2024/a.jsonl"]
    assert list(inputs.files(tmp_path / "in/l*/*.jsonl")) == ["latest/a.jsonl"]


def test_a_glob_ends_where_links_go_round(tmp_path: Path) -> None:
    write(tmp_path / "in/deep/a.jsonl", records(1))
    (tmp_path / "in/deep/up").symlink_to("..")
    (tmp_path / "in/deep/top").symlink_to(tmp_path / "in")
    for pattern in ("**/*.jsonl", "**/a.*", "*/**/a.jsonl", "**/**/?.jsonl", "deep/**", "**"):
        assert list(inputs.files(tmp_path / "in" / pattern)) in (["deep/a.jsonl"], ["a.jsonl"]), pattern


@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "ab", ".a"]), min_size=1, max_size=4), min_size=1, max_size=5),
    st.lists(st.sampled_from(["**", "*", "a", "a*", "?", "[ab]", ".*"]), min_size=1, max_size=4),
)
def test_globs_match_what_the_standard_library_matches(
    tmp_path_factory: pytest.TempPathFactory, names: list[list[str]], pattern: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    for name in names:
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            write(folder.joinpath(*name), b"x")
    path = folder.joinpath(*pattern)
    if not inputs.is_glob(path):
        return
    expected = {one for one in glob.glob(str(path), recursive=True) if os.path.isfile(one)}
    found = inputs.files(path)
    assert {str(one) for one in found.values()} == expected
    assert list(found) == sorted(found, key=lambda name: Path(name).parts)


def test_what_is_no_regular_file_is_refused_before_it_is_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jsonl", records(1))
    os.mkfifo(tmp_path / "in/pipe.jsonl")
    assert list(inputs.files(tmp_path / "in")) == list(inputs.files(tmp_path / "in/*.jsonl")) == ["a.jsonl"]
    for path in (tmp_path / "in/pipe.jsonl", Path("/dev/null")):
        with pytest.raises(ValueError, match="neither a file nor a folder"):
            source(path)


@pytest.mark.parametrize("named", ["hf://org/name", "in/*.py", "in"])
def test_where_one_file_is_meant_nothing_else_is_taken(tmp_path: Path, named: str) -> None:
    write(tmp_path / "in/own.py", b"def convert(r):\n    return r\n")
    path = write(tmp_path / "a.jsonl", records(1))
    with pytest.raises(ValueError, match="name one file"):
        source(path, convert=named if named.startswith("hf:") else str(tmp_path / named))


def test_a_name_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "in" / os.fsdecode(b"caf\xe9.jsonl"), records(1))
    for named in (path, tmp_path / "in", tmp_path / "in/*.jsonl"):
        with pytest.raises(ValueError, match=r"the name of .*caf\?.jsonl is not UTF-8: rename it"):
            source(named)


def test_a_link_that_leads_nowhere_is_told_wherever_it_stands(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jsonl", records(1))
    (tmp_path / "in/gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"gone.jsonl is a link, and .*nowhere is not there"):
        source(tmp_path / "in/gone.jsonl")
    for path in (tmp_path / "in", tmp_path / "in/*.jsonl"):
        with pytest.raises(DataError, match=r"gone.jsonl cannot be opened"):
            Steps(tmp_path / "output")("load", load.run, [source(path)], None, 0.05)


def test_the_projects_own_output_is_never_read(tmp_path: Path) -> None:
    write(tmp_path / "data.jsonl", records(1))
    for output in ("output", "output-other"):
        write(tmp_path / output / ".lock", b"")
        write(tmp_path / output / "steps/load/0/rows.jsonl", records(7))
    write(tmp_path / "output-of-us/a.jsonl", records(2))
    assert list(inputs.files(tmp_path)) == ["data.jsonl", "output-of-us/a.jsonl"]
    assert list(inputs.files(tmp_path / "**/*.jsonl")) == ["data.jsonl", "output-of-us/a.jsonl"]
    assert list(inputs.files(tmp_path / "output/steps/*/*/*.jsonl")) == ["load/0/rows.jsonl"]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("empty", "empty holds no file"),
        ("lags", "did you mean logs?"),
        ("lags/*.jsonl", "no such folder"),
        ("logs/*.json", "did you mean a.jsonl?"),
        ("empty/*.json", "empty is empty"),
    ],
)
def test_what_names_no_file_is_told_with_what_is_there(tmp_path: Path, path: str, told: str) -> None:
    write(tmp_path / "logs/a.jsonl", records(1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="path") as error:
        source(tmp_path / path)
    assert told in str(error.value)


def test_a_folder_in_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in/a.png", b"\x89PNG")
    error = refusal(tmp_path, tmp_path / "in")
    assert error.what == f"there is no file to read in {tmp_path / 'in'}"
    assert error.why == "1 skipped, of a kind that holds no examples: `a.png`"


def test_what_another_source_passes_over_is_no_reason(tmp_path: Path) -> None:
    write(tmp_path / "one/a.jsonl", records(1))
    write(tmp_path / "one/b.png", b"\x89PNG")
    write(tmp_path / "two/c.txt", b"Text.")
    with pytest.raises(DataError) as error:
        loaded(tmp_path, tmp_path / "one", tmp_path / "two")
    assert error.value.why == "1 skipped, text has no answers: `c.txt`"


def test_files_that_are_added_removed_or_changed_make_the_step_run_again(logs: Path, tmp_path: Path) -> None:
    def why(path: Path) -> list[str]:
        looked = Steps(tmp_path / "out", look=True, keys={"load.sources": "data.sources"})
        looked("load", load.run, [source(path)], None, 0.05)
        return looked.why("load") if looked.artifacts["load"].state == "to run" else []

    for path in (logs, logs / "**/*.jsonl"):
        Steps(tmp_path / "out")("load", load.run, [source(path)], None, 0.05)
        assert why(path) == []
        added = write(logs / "c/day.jsonl", records(5))
        assert why(path) == ["data.sources.0.path.c/day.jsonl: c/day.jsonl is new"]
        added.unlink()
        changed = write(logs / "b/day.jsonl", records(6))
        assert why(path) == ["data.sources.0.path.b/day.jsonl: b/day.jsonl has other contents"]
        os.rename(changed, changed.with_name("night.jsonl"))
        assert why(path) == [
            "data.sources.0.path.b/day.jsonl: b/day.jsonl is gone",
            "data.sources.0.path.b/night.jsonl: b/night.jsonl is new",
        ]
        os.rename(changed.with_name("night.jsonl"), write(changed, b"") and changed)
        write(logs / "b/day.jsonl", records(3))


def zst(content: bytes) -> bytes:
    try:
        from compression import zstd
    except ImportError:
        zstd = pytest.importorskip("backports.zstd")
    # As the command-line tool does; without a checksum nobody can tell damage.
    return bytes(zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: True}))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zst,
    ".zip": lambda content: zipped({"data.jsonl": content}),
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_file_is_read_as_what_it_holds(suffix: str, tmp_path: Path) -> None:
    content = records(*range(3000))
    write(tmp_path / "plain.jsonl", content)
    path = write(tmp_path / f"data.jsonl{suffix}", PACKERS[suffix](content))
    loaded(tmp_path, tmp_path / "plain.jsonl")
    plain = rows(tmp_path)
    assert loaded(tmp_path, path)["kept"] == 3000
    name = f"{path.name}/data.jsonl" if suffix == ".zip" else path.name
    assert rows(tmp_path) == [(name, line, answer) for _, line, answer in plain]
    assert not list((tmp_path / ".out").glob(".unpacked*"))


@pytest.mark.parametrize("suffix", PACKERS)
def test_what_is_cut_off_or_damaged_is_never_taken_for_the_whole(suffix: str, tmp_path: Path) -> None:
    packed = PACKERS[suffix](os.urandom(50_000).hex().encode())
    path = tmp_path / f"data.jsonl{suffix}"
    for content in (packed[: len(packed) // 2], packed[:-3]):
        error = refusal(tmp_path, write(path, content))
        assert error.what == f"{path.name} cannot be unpacked"
        assert "cut off" in error.why or suffix == ".zip"
    middle = len(packed) // 2
    damaged = packed[:middle] + bytes(b ^ 0xFF for b in packed[middle : middle + 40]) + packed[middle + 40 :]
    assert "cannot be unpacked" in refusal(tmp_path, write(path, damaged)).what


@given(st.sampled_from(sorted(PACKERS)), st.data())
def test_no_damage_to_a_compressed_file_is_a_traceback_or_changes_rows(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    packed = bytearray(PACKERS[suffix](records(*range(50))))
    for at in data.draw(st.lists(st.integers(8, len(packed) - 1), min_size=1, max_size=3)):
        packed[at] ^= data.draw(st.integers(1, 255))
    path = write(folder / f"data.jsonl{suffix}", bytes(packed))
    try:
        loaded(folder, path)
    except DataError:
        return
    assert [answer for _, _, answer in rows(folder)] == [f"c{i}" for i in range(50)]


def test_an_archive_is_like_a_folder(tmp_path: Path) -> None:
    table = io.BytesIO()
    parquet.write_table(pyarrow.table({"prompt": ["p7"], "completion": ["c7"]}), table)
    members = {
        "b/x.jsonl": records(2), "a/x.jsonl": records(1), "c.parquet": table.getvalue(), "a.png": b"\x89PNG",
        "__MACOSX/a/._x.jsonl": b"\0", "d.jsonl.gz": gzip.compress(records(8)), "e.zip": zipped({}), "f.jsonl": b"",
        "../../escaped.jsonl": records(9),
    }  # fmt: skip
    summary = loaded(tmp_path, write(tmp_path / "in/all.zip", zipped(members)))
    assert rows(tmp_path) == [
        ("all.zip/a/x.jsonl", 1, "c1"), ("all.zip/b/x.jsonl", 1, "c2"), ("all.zip/c.parquet", 1, "c7"),
        ("all.zip/d.jsonl.gz", 1, "c8"),
    ]  # fmt: skip
    assert summary["skipped"] == {
        "of a kind that holds no examples": ["all.zip/a.png"],
        "a name that leads out of the archive": ["all.zip/../../escaped.jsonl"],
        "an archive in an archive": ["all.zip/e.zip"],
        "empty": ["all.zip/f.jsonl"],
    }
    assert sorted(path.name for path in tmp_path.rglob("*.jsonl")) == ["quarantine.jsonl", "rows.jsonl"]
    assert loaded(tmp_path, tmp_path / "in")["kept"] == 4


def test_an_archive_without_files_is_told(tmp_path: Path) -> None:
    error = refusal(tmp_path, write(tmp_path / "a.zip", zipped({})))
    assert (error.what, error.why) == (f"there is no file to read in {tmp_path / 'a.zip'}", "it names no file")


def test_an_encrypted_archive_is_told(tmp_path: Path) -> None:
    content = bytearray(zipped({"a.jsonl": records(1)}))
    for signature, flags_at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags_at] |= 1
    assert refusal(tmp_path, write(tmp_path / "a.zip", bytes(content))).what == "a.zip is encrypted"


def test_a_file_that_was_made_to_fill_the_disk_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "_BOMB_BYTES", 4 << 20)
    for suffix in (".gz", ".xz", ".zip"):
        path = write(tmp_path / f"data.jsonl{suffix}", PACKERS[suffix](bytes(16 << 20)))
        error = refusal(tmp_path, path)
        assert error.what == f"{path.name} unpacks to more than 250 times its size"
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_tar_archive_is_told(tmp_path: Path) -> None:
    import tarfile

    write(tmp_path / "a.jsonl", records(1))
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.jsonl", "a.jsonl")
    assert "tar xf all.tar.gz" in refusal(tmp_path, tmp_path / "all.tar.gz").next


def test_what_was_unpacked_before_a_kill_is_not_unpacked_again(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl.gz", gzip.compress(records(1, 2)))
    kept = tmp_path / "kept"
    loaded(tmp_path, path, kept=kept)
    (unpacked,) = (one for one in kept.rglob("data.jsonl"))
    before = unpacked.stat().st_mtime_ns
    loaded(tmp_path, path, kept=kept)
    assert unpacked.stat().st_mtime_ns == before


def test_a_preview_unpacks_a_beginning_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_PREVIEW_BYTES", 1 << 20)
    content = b"".join(
        json.dumps({"prompt": os.urandom(500).hex(), "completion": "c"}).encode() + b"\n" for _ in range(5000)
    )
    path = write(tmp_path / "in/data.jsonl.gz", gzip.compress(content))
    write(tmp_path / "in/more.jsonl", records(1))
    found = load.preview(source(tmp_path / "in"), limit=10_000)
    assert 900 < found["rows_in"] < 2500
    assert (found["quarantined"], found["files"]) == (0, 2)
    path.write_bytes(path.read_bytes()[:-40])
    assert load.preview(source(path))["rows_in"] == 200
