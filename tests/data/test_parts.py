"""Work by parts: nothing of a file is lost between two, what is done stays done, and processes change nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs import counted, killed, refused

from tunesmith.core import hardware, store
from tunesmith.core.clean_section import Clean
from tunesmith.core.data_section import Fields, Source, Split
from tunesmith.core.errors import DataError, ResourceError
from tunesmith.core.step import Artifact
from tunesmith.data import load, parts, pipeline, split

WORDS = [f"{n:x}" for n in range(7919, 10**7, 7919)]
RUN = ["run", "--until", "clean", "--set", "data.max_quarantined=0.5"]
IN_PROCESSES = "from tunesmith.data import parts; parts._WORTH_BYTES = 0; from tunesmith.cli import main; main()"
CLEANED = [sys.executable, "-c", f"import sys; sys.argv[1:] = {RUN!r}; {IN_PROCESSES}"]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes find the jobs, too, and are worth their start."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setattr(parts, "_WORTH_BYTES", 0)


@pytest.fixture
def small(tmp_path: Path) -> list[parts.Part]:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line {i}\n" for i in range(200_000)))
    return list(parts.cut(path, 300_000))


ends = st.sampled_from(["\n", "\r\n", "\r", "\n\n", ""])


@given(st.lists(st.tuples(st.text("ab", max_size=9), ends), max_size=40), st.integers(1, 60))
def test_parts_are_the_file_and_number_its_lines(tmp_path_factory: Any, lines: Any, size_bytes: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "file"
    path.write_text("".join(text + end for text, end in lines), newline="")
    found = list(parts.cut(path, size_bytes))
    assert b"".join(line for part in found for line in part.read()) == path.read_bytes()
    with open(path, newline="") as file:
        assert sum(part.lines for part in found) == len(list(file))
    assert [part.before for part in found] == [sum(p.lines for p in found[:i]) for i in range(len(found))]


def test_parts_are_done_in_processes_and_come_in_their_order(tmp_path: Path, small: list[parts.Part]) -> None:
    done = parts.each("count", counted, small, tmp_path / "kept")
    parts.concatenate([one.folder / "lines" for one in done], tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == small[0].path.read_bytes()
    assert sum(one.found["lines"] for one in done) == 200_000
    processes = {one.found["process"] for one in done}
    assert os.getpid() in processes
    assert min(hardware.cores(), 2) <= len(processes) <= hardware.cores()


def test_what_is_done_is_not_done_again(tmp_path: Path, small: list[parts.Part]) -> None:
    first = parts.each("count", counted, small, tmp_path / "kept")
    store.write_json(first[1].folder / "found.json", {"lines": "kept"})
    (first[2].folder / "found.json").unlink()
    first[2].folder.rename(first[2].folder.with_name(f".{first[2].folder.name}.{os.getpid()}"))  # by a kill
    again = parts.each("count", counted, small, tmp_path / "kept")
    assert again[1].found == {"lines": "kept"}
    assert again[2].found["lines"] == first[2].found["lines"]


def test_a_refusal_in_a_process_is_told_as_it_was(tmp_path: Path, small: list[parts.Part]) -> None:
    with pytest.raises(DataError) as caught:
        parts.each("refuse", refused, small, tmp_path / "kept")
    assert caught.value.why.startswith("it begins at ")


def test_a_killed_process_is_explained(
    tmp_path: Path, small: list[parts.Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTS", str(os.getpid()))
    with pytest.raises(ResourceError, match="was killed"):
        parts.each("die", killed, small, tmp_path / "kept")


def test_a_script_needs_no_guard_around_its_main_part(tmp_path: Path, small: list[parts.Part]) -> None:
    """Whoever calls tunesmith from a script writes one line; processes that import that script again would not end."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom tunesmith.data import parts\nfrom jobs import counted\nparts._WORTH_BYTES = 0\n"
        f"found = list(parts.cut(Path({str(small[0].path)!r}), 300_000))\n"
        f"print(len(parts.each('count', counted, found, Path({str(tmp_path / 'kept')!r}))))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100)
    assert done.stdout == f"{len(small)}\n", done.stderr


def test_ctrl_c_that_comes_while_processes_are_started_is_heard(tmp_path: Path, small: list[parts.Part]) -> None:
    """In a process of its own, in which none was started before."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, signal, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from contextlib import contextmanager\nfrom pathlib import Path\nfrom tunesmith.core import interrupt\n"
        "from tunesmith.data import parts\nfrom jobs import counted\n"
        "deaf = parts._deaf\n@contextmanager\ndef disturbed():\n    with deaf():\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n        yield\n"
        "parts._deaf, parts._WORTH_BYTES = disturbed, 0\ninterrupt.install()\n"
        f"found = list(parts.cut(Path({str(small[0].path)!r}), 300_000))\n"
        f"try:\n    parts.each('count', counted, found, Path({str(tmp_path / 'kept')!r}))\n"
        "except interrupt.Interrupted:\n    print('heard')\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100)
    assert done.stdout == "heard\n", done.stderr


def rows_of(path: Path, count: int) -> Path:
    """Rows of which some are equal, alike, contradictory, empty or no rows at all."""
    with open(path, "wb") as file:
        for i in range(count):
            words = " ".join(WORDS[(i * 31 + k) % 900] for k in range(12))
            prompt = words if i % 7 else words + " please"
            record = {
                "prompt": f"{prompt} {'a@b.com' if i % 50 == 3 else ''}",
                "completion": "" if i % 40 == 5 else "ok",
            }
            file.write(b"{broken\n" if i % 100 == 99 else orjson.dumps(record) + b"\n")
    return path


def prepared(folder: Path, data: Path, clean: Clean = Clean()) -> list[dict[str, Any]]:  # noqa: B008
    """What the steps from file to split say; they write into folders of their names."""
    steps = {
        "raw": partial(load.run, [Source(path=data, fields=Fields())], None, 0.5),
        "clean": partial(pipeline.run, clean, Artifact("load", "0", folder / "raw", "done")),
        "split": partial(split.run, Split(), [], Artifact("clean", "0", folder / "clean", "done")),
    }
    summaries = []
    for name, step in steps.items():
        (folder / name).mkdir(parents=True)
        summaries.append(step(folder / name))
    return summaries


def test_neither_parts_nor_processes_change_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows_of(tmp_path / "data.jsonl", 2000)
    prepared(tmp_path / "whole", data, Clean(personal_data="replace"))
    for cut, cores in ((20_000, 2), (3_000, 1)):
        monkeypatch.setattr(parts.cut, "__defaults__", (cut,))
        monkeypatch.setattr(parts, "_BLOCK_BYTES", 1000)
        monkeypatch.setattr(hardware, "cores", lambda cores=cores: cores)
        prepared(tmp_path / f"{cut}", data, Clean(personal_data="replace"))
        for file in (
            "raw/rows.jsonl",
            "raw/quarantine.jsonl",
            "clean/rows.jsonl",
            "split/train.jsonl",
            "split/test.jsonl",
        ):
            assert (tmp_path / f"{cut}" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        dropped = [
            Counter((tmp_path / name / "clean/dropped.jsonl").read_bytes().splitlines()) for name in ("whole", f"{cut}")
        ]
        assert dropped[0] == dropped[1]
        assert sum(dropped[0].values()) > 500


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """Killed amid cleaning, the second run finds parts that are done, and comes to what an undisturbed run comes to."""
    data = rows_of(tmp_path / "data.jsonl", 26_000)
    (tmp_path / "tunesmith.yaml").write_text("name: small\ndata:\n  sources:\n    - path: data.jsonl\n")
    process = subprocess.Popen(CLEANED, cwd=tmp_path, stderr=subprocess.PIPE)
    unfinished = tmp_path / "output/unfinished/clean/.parts"
    end = time.monotonic() + 120
    while not list(unfinished.glob("[0-9]*")):
        assert time.monotonic() < end
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = {folder.name: folder.stat().st_mtime_ns for folder in unfinished.glob("[0-9]*")}
    again = subprocess.run(CLEANED, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    [result] = (tmp_path / "output/steps/clean").glob("[!.]*")
    wanted = prepared(tmp_path / "whole", data)[1]
    found = store.read_json(result / "record.json")["summary"]
    assert done
    assert {key: found[key] for key in ("rows_in", "kept", "reasons")} == {
        key: wanted[key] for key in ("rows_in", "kept", "reasons")
    }
    assert (result / "rows.jsonl").read_bytes() == (tmp_path / "whole/clean/rows.jsonl").read_bytes()
    assert not unfinished.exists()


@pytest.mark.parametrize("delay_seconds", [0.0, 0.1, 0.4])
def test_ctrl_c_is_told_once(tmp_path: Path, delay_seconds: float) -> None:
    """A terminal sends it to every process, also to those that are just being started: they say nothing of it."""
    rows_of(tmp_path / "data.jsonl", 60_000)
    (tmp_path / "tunesmith.yaml").write_text("name: small\ndata:\n  sources:\n    - path: data.jsonl\n")
    process = subprocess.Popen(
        CLEANED,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not (tmp_path / "output/unfinished/load/.parts").exists():
        time.sleep(0.005)
    time.sleep(delay_seconds)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 130, told
    assert "Traceback" not in told, told
