"""Steps: identity, resuming, why, atomic publication, and what must not be hashed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tunesmith.core import store
from tunesmith.core.errors import ResourceError, UserError
from tunesmith.core.project import Train
from tunesmith.core.step import Artifact, Steps, Stopped, last_record, only_run

VERSION = 1
CALLS: list[str] = []


def numbers(train: Train, out: Path) -> dict[str, Any]:
    CALLS.append("numbers")
    store.write_json(out / "numbers.json", [train.seed])
    return {"seed": train.seed}


def double(numbers: Artifact, factor: int, out: Path) -> dict[str, Any]:
    CALLS.append("double")
    return {"value": numbers.summary["seed"] * factor}


def story(steps: Steps, seed: int = 1, factor: int = 2) -> Artifact:
    first = steps("numbers", numbers, Train(seed=seed))
    return steps("double", double, first, factor)


def test_unchanged_steps_are_not_run_again(tmp_path: Path) -> None:
    CALLS.clear()
    assert story(Steps(tmp_path)).summary == {"value": 2}
    assert story(Steps(tmp_path)).state == "done"
    assert CALLS == ["numbers", "double"]


def test_a_change_reruns_what_follows_and_nothing_before(tmp_path: Path) -> None:
    story(Steps(tmp_path))
    CALLS.clear()
    story(Steps(tmp_path), factor=3)
    assert CALLS == ["double"]
    CALLS.clear()
    story(Steps(tmp_path), seed=5, factor=3)
    assert CALLS == ["numbers", "double"]


def test_an_earlier_result_is_found_again(tmp_path: Path) -> None:
    story(Steps(tmp_path), seed=1)
    story(Steps(tmp_path), seed=2)
    CALLS.clear()
    assert story(Steps(tmp_path), seed=1).summary == {"value": 2}
    assert CALLS == []


def test_why_names_the_field_and_traces_it_through_inputs(tmp_path: Path) -> None:
    story(Steps(tmp_path), seed=1)
    look = Steps(tmp_path, look=True)
    story(look, seed=9)
    assert look.why("numbers") == ["train.seed: 1 -> 9"]
    assert look.why("double") == ["train.seed: 1 -> 9 (via numbers)"]
    story(Steps(tmp_path), seed=9)
    record = last_record(tmp_path, "double")
    assert record is not None
    assert record["because"] == ["train.seed: 1 -> 9 (via numbers)"]


def test_looking_runs_nothing(tmp_path: Path) -> None:
    CALLS.clear()
    assert story(Steps(tmp_path, look=True)).state == "to run"
    assert CALLS == []
    assert not (tmp_path / "steps").exists()


def test_force_and_until(tmp_path: Path) -> None:
    story(Steps(tmp_path))
    CALLS.clear()
    story(Steps(tmp_path, force="double"))
    assert CALLS == ["double"]
    with pytest.raises(Stopped):
        story(Steps(tmp_path, until="numbers"))


def test_a_step_that_raises_leaves_no_result(tmp_path: Path) -> None:
    def broken(value: int, out: Path) -> dict[str, Any]:
        (out / "half").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        Steps(tmp_path)("broken", broken, 1)
    assert not list((tmp_path / "steps" / "broken").glob("[!.]*"))


def test_what_a_refused_step_wrote_is_kept_to_be_read(tmp_path: Path) -> None:
    def refused(value: int, out: Path) -> dict[str, Any]:
        (out / "quarantine.jsonl").write_text("{}\n")
        raise UserError("what", "why", "next")

    with pytest.raises(UserError):
        Steps(tmp_path)("refused", refused, 1)
    assert (tmp_path / "failed" / "refused" / "quarantine.jsonl").read_text() == "{}\n"
    assert not list((tmp_path / "steps" / "refused").glob("[!.]*"))


@pytest.mark.parametrize("value", [{1, 2}, object(), float("nan"), {1: "a"}, lambda: None])
def test_values_without_a_stable_text_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="step's argument"):
        Steps(tmp_path)("double", double, value, 2)


def test_a_file_counts_by_its_content(tmp_path: Path) -> None:
    def size(path: Path, out: Path) -> dict[str, Any]:
        return {"bytes": path.stat().st_size}

    data = tmp_path / "data.jsonl"
    data.write_text("one")
    first = Steps(tmp_path)("size", size, data)
    os.utime(data, (0, 0))
    assert Steps(tmp_path)("size", size, data).state == "done"
    data.write_text("two")
    assert Steps(tmp_path)("size", size, data).identity != first.identity


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    def fills(value: int, out: Path) -> dict[str, Any]:
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)
        return {}

    with pytest.raises(ResourceError) as error:
        Steps(tmp_path)("fills", fills, 1)
    assert "disk is full" in error.value.what
    assert "run the same command again" in error.value.next


def test_a_full_disk_is_recognised_inside_a_library_error(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("1m")

    def fills(value: int, out: Path) -> dict[str, Any]:
        save_file({"x": np.zeros(1_000_000)}, out / "x.safetensors")
        return {}

    with pytest.raises(ResourceError, match="disk is full"):
        Steps(disk)("fills", fills, 1)


def test_a_disk_too_small_for_the_record_is_explained(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("1m")

    def fills(value: int, out: Path) -> dict[str, Any]:
        (out / "rows").write_bytes(b"x" * 900_000)
        return {"long": "x" * 300_000}

    with pytest.raises(ResourceError, match="disk is full"):
        Steps(disk)("fills", fills, 1)
    assert not list((disk / "steps" / "fills").glob("[!.]*"))


def test_two_runs_do_not_share_a_project(tmp_path: Path) -> None:
    with only_run(tmp_path), pytest.raises(ResourceError) as error, only_run(tmp_path):
        pass
    assert str(os.getpid()) in error.value.why


def test_a_killed_step_is_run_again_and_never_trusted(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from tunesmith.core.step import Steps
        VERSION = 1
        def slow(value, out):
            (out / "result.json").write_text('"half"')
            print("writing", flush=True)
            time.sleep(60)
            return {{}}
        Steps(Path({str(tmp_path)!r}))("slow", slow, 1)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()

    def slow(value: int, out: Path) -> dict[str, Any]:
        assert not list(out.iterdir()), "the killed attempt's files must not reach the next one"
        return {"finished": time.time()}

    steps = Steps(tmp_path)
    artifact = steps("slow", slow, 1)
    assert artifact.state == "ran"
    record = last_record(tmp_path, "slow")
    assert record is not None
    assert record["because"] == ["the last attempt did not finish"]


def test_why_names_a_changed_file_and_where_it_came_in(tmp_path: Path) -> None:
    def size(path: Path, out: Path) -> dict[str, Any]:
        return {"bytes": path.stat().st_size}

    def twice(size: Artifact, out: Path) -> dict[str, Any]:
        return {"bytes": 2 * size.summary["bytes"]}

    def thrice(twice: Artifact, out: Path) -> dict[str, Any]:
        return {}

    def chain(steps: Steps) -> Steps:
        steps("thrice", thrice, steps("twice", twice, steps("size", size, data)))
        return steps

    data = tmp_path / "data.jsonl"
    data.write_text("one")
    chain(Steps(tmp_path))
    data.write_text("three")
    assert chain(Steps(tmp_path, look=True)).why("thrice") == ["path: data.jsonl has other contents (via size)"]


def test_looking_does_not_count_as_use(tmp_path: Path) -> None:
    story(Steps(tmp_path), seed=1)
    story(Steps(tmp_path), seed=2)
    story(Steps(tmp_path, look=True), seed=1)
    look = Steps(tmp_path, look=True)
    story(look, seed=3)
    assert look.why("numbers") == ["train.seed: 2 -> 3"]


def test_a_step_that_was_made_again_takes_its_followers_along(tmp_path: Path) -> None:
    """Training is not bit-stable everywhere: a verdict must not stand beside weights that it never saw."""
    story(Steps(tmp_path))
    CALLS.clear()
    story(Steps(tmp_path, force="numbers"))
    assert CALLS == ["numbers", "double"]
    record = last_record(tmp_path, "double")
    assert record is not None
    assert record["because"] == ["numbers was made again"]
    [numbers_folder] = (tmp_path / "steps" / "numbers").glob("[!.]*")
    shutil.rmtree(numbers_folder)
    CALLS.clear()
    story(Steps(tmp_path))
    assert CALLS == ["numbers", "double"]
    CALLS.clear()
    story(Steps(tmp_path))
    assert CALLS == []


def test_forcing_the_first_of_two_and_stopping_there_is_remembered(tmp_path: Path) -> None:
    story(Steps(tmp_path))
    with pytest.raises(Stopped):
        story(Steps(tmp_path, force="numbers", until="numbers"))
    assert story(Steps(tmp_path, look=True)).state == "to run"


def test_data_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("old")

    def reads(path: Path, out: Path) -> dict[str, Any]:
        path.write_text("new")
        return {"text": path.read_text()}

    with pytest.raises(ResourceError, match="changed while it was read"):
        Steps(tmp_path)("reads", reads, data)
    data.write_text("old")
    assert Steps(tmp_path, look=True)("reads", reads, data).state == "to run"


def test_a_message_names_the_real_folder_of_what_was_refused_until_it_succeeds(tmp_path: Path) -> None:
    def picky(value: int, out: Path) -> dict[str, Any]:
        if value < 0:
            raise UserError("what", "why", "read output/failed/picky/rows.jsonl")
        return {}

    with pytest.raises(UserError) as error:
        Steps(tmp_path)("picky", picky, -1)
    assert error.value.next == f"read {tmp_path}/failed/picky/rows.jsonl"
    Steps(tmp_path)("picky", picky, 1)
    assert not (tmp_path / "failed" / "picky").exists()


def test_an_output_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("mine")
    with pytest.raises(ResourceError, match="cannot be written"), only_run(tmp_path / "output"):
        pass


def test_half_a_result_does_not_stay_on_a_disk_that_is_too_small(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("1m")

    def large(value: int, out: Path) -> dict[str, Any]:
        (out / "half").write_bytes(b"x" * 300_000)
        store.require_space(out, 10_000_000, "the other half")
        return {}

    with pytest.raises(ResourceError) as error:
        Steps(disk)("large", large, 1)
    assert error.value.what == f"not enough disk space in {disk / 'steps' / 'large'}"
    assert "the other half needs 10 MB" in error.value.why
    assert not list(disk.rglob("half"))


def saves(numbers: Artifact, factor: int, out: Path, kept: Path) -> dict[str, Any]:
    """Works through four parts, and keeps what it has done. Where there is a file `break` it breaks off after two."""
    done = [int(path.name) for path in kept.glob("[0-9]*")]
    for part in range(max(done, default=0) + 1, 5):
        (kept / str(part)).mkdir()
        store.write_json(kept / str(part) / "state.json", {"step": part, "of": 4})
        if part == 2 and (kept.parent.parent / "break").is_file():
            raise RuntimeError("killed")
    return {"done_before": len(done)}


def saved_story(steps: Steps, seed: int = 1, factor: int = 2) -> Artifact:
    return steps("saves", saves, steps("numbers", numbers, Train(seed=seed)), factor)


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """The folder of checkpoints of a step that broke off after two parts of four."""
    (tmp_path / "break").touch()
    with pytest.raises(RuntimeError):
        saved_story(Steps(tmp_path))
    (tmp_path / "break").unlink()
    return tmp_path / "unfinished/saves"


def test_a_step_goes_on_from_what_it_kept_and_the_folder_goes_when_it_is_done(tmp_path: Path, unfinished: Path) -> None:
    assert sorted(os.listdir(unfinished)) == ["1", "2", "step.json"]
    look = Steps(tmp_path, look=True)
    assert saved_story(look).state == "to run"
    assert look.why("saves") == ["unfinished, at step 2 of 4"]
    told: list[str] = []
    assert saved_story(Steps(tmp_path, say=told.append)).summary == {"done_before": 2}
    assert told[-1].split(maxsplit=1) == ["saves", "unfinished, at step 2 of 4"]
    assert not unfinished.exists()
    assert saved_story(Steps(tmp_path)).state == "done"


def test_what_was_kept_does_not_count_for_the_identity(tmp_path: Path, unfinished: Path) -> None:
    identity = saved_story(Steps(tmp_path)).identity
    assert saved_story(Steps(tmp_path, force="saves")).summary == {"done_before": 0}
    assert saved_story(Steps(tmp_path)).identity == identity


@pytest.mark.parametrize(("change", "told"), [
    ({"factor": 3}, "factor: 2 -> 3"), ({"seed": 9}, "train.seed: 1 -> 9 (via numbers)")], ids=str)  # fmt: skip
def test_other_settings_do_not_throw_unfinished_work_away(
    tmp_path: Path, unfinished: Path, change: dict[str, int], told: str
) -> None:
    with pytest.raises(UserError) as error:
        saved_story(Steps(tmp_path), **change)
    assert error.value.what == "step saves stands unfinished at step 2 of 4, with other settings"
    assert error.value.why.startswith(f"{told}: ")
    assert "set it back" in error.value.next
    assert "tunesmith run --fresh" in error.value.next
    look = Steps(tmp_path, look=True)
    saved_story(look, **change)
    assert look.why("saves")[0] == "unfinished at step 2 of 4, with other settings"
    assert saved_story(Steps(tmp_path)).summary == {"done_before": 2}


def test_an_input_that_was_made_again_is_another_input(tmp_path: Path, unfinished: Path) -> None:
    """The plan of a machine with less memory has the same identity and other values."""
    with pytest.raises(UserError) as error:
        saved_story(Steps(tmp_path, force="numbers"))
    assert error.value.why.startswith("numbers was made again: ")


def test_fresh_starts_over(tmp_path: Path, unfinished: Path) -> None:
    assert saved_story(Steps(tmp_path, fresh=True), factor=3).summary == {"done_before": 0}
    assert not unfinished.exists()


def test_fresh_starts_the_same_settings_over_too(tmp_path: Path, unfinished: Path) -> None:
    assert saved_story(Steps(tmp_path, fresh=True)).summary == {"done_before": 0}


def test_without_a_checkpoint_nothing_is_lost_and_nothing_refused(tmp_path: Path, unfinished: Path) -> None:
    for part in ("1", "2"):
        shutil.rmtree(unfinished / part)
    (unfinished / ".3").mkdir()  # half written
    (unfinished / "log").write_text("x")
    assert saved_story(Steps(tmp_path), factor=3).summary == {"done_before": 0}


def test_what_a_finished_step_left_is_not_worth_a_refusal(tmp_path: Path, unfinished: Path) -> None:
    """It was killed after its result was published, and before its checkpoints were removed."""
    left = tmp_path / "left"
    shutil.copytree(unfinished, left)
    saved_story(Steps(tmp_path))
    shutil.copytree(left, unfinished)
    assert saved_story(Steps(tmp_path), factor=3).summary == {"done_before": 0}


@pytest.mark.parametrize("text", ["{", "{}", '["step"]', '{"step": "two", "of": 4}'])
def test_a_damaged_checkpoint_is_told_as_one(tmp_path: Path, unfinished: Path, text: str) -> None:
    (unfinished / "2/state.json").write_text(text)
    look = Steps(tmp_path, look=True)
    saved_story(look)
    assert look.why("saves") == ["unfinished, at a checkpoint that is damaged"]
    assert saved_story(Steps(tmp_path, fresh=True)).summary == {"done_before": 0}


def test_checkpoints_whose_owner_cannot_be_told_are_not_used_and_not_thrown_away(
    tmp_path: Path, unfinished: Path
) -> None:
    (unfinished / "step.json").write_text('{"hashed')
    for call in (lambda: saved_story(Steps(tmp_path)), lambda: Steps(tmp_path, look=True).why("saves")):
        with pytest.raises(ResourceError, match=r"whose checkpoints lie in .* cannot be told") as error:
            call()
        assert "step.json is damaged" in error.value.why
        assert "tunesmith run --fresh" in error.value.next
    assert {"1", "2"} <= set(os.listdir(unfinished))
    assert saved_story(Steps(tmp_path, fresh=True)).summary == {"done_before": 0}
