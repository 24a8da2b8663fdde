"""What the benchmark makes of its runs: ratios, TRL's best, how often steps are taken, and what its tables say."""

from __future__ import annotations

from typing import Any

import pytest
from training import ladder, ratios, report, search
from training.ours import Engine
from training.runs import Job, Run


def test_a_ratio_is_that_of_pairs() -> None:
    found = ratios.ratio([2.0, 4.0, 9.0], [1.0, 1.0, 3.0])
    assert (found.median, found.low, found.high) == (3.0, 2.0, 4.0)
    many = ratios.ratio([float(i) for i in range(1, 41)], [1.0] * 40)
    assert 1 < many.low < many.median == 20.5 < many.high < 40
    assert ratios.intervals(5) == "the lowest and the highest, which hold the median with 94%"
    assert ratios.intervals(6).startswith("95 %")


def test_timed_steps_are_taken_as_often_as_it_says_and_the_last_time_counts() -> None:
    job = Job("ours", "ours", "base", "rows", None, [[0], [1], [2]], warmup=1, passes=2, settings={})
    assert job.steps == [[0], [1], [2], [1], [2]]
    times = {"seconds_to_first_step": 0.0, "seconds_to_first_loss": 0.0, "peak_bytes": 0, "training_peak_bytes": None}
    run = Run("ours", 1, 2, [], [], [9, 10, 20, 10, 20], [9.0, 2.0, 4.0, 1.0, 2.0], **times)
    assert (run.first_tokens_per_second, run.tokens_per_second) == (5.0, 10.0)


class Speeds:
    """Every candidate's speed; what is lucky runs fast once, and what is frail fails the second time."""

    def __init__(self, lucky: Any, frail: Any) -> None:
        self.lucky, self.frail, self.runs = lucky, frail, 0

    def attempt(self, trial: search.Trial) -> None:
        self.runs += 1
        first = not trial.tokens_per_second
        if trial.rival == self.frail and not first:
            trial.failure = "it failed"
            return
        speed = 100.0 + trial.rival.grouped - 50 * trial.rival.checkpointing
        best = {self.lucky: 150.0 if first else 10.0, self.frail: 140.0}
        trial.tokens_per_second.append(best.get(trial.rival, speed))


def test_one_runs_luck_does_not_make_a_winner(monkeypatch: pytest.MonkeyPatch) -> None:
    start = search.start("bf16")
    monkeypatch.setattr(search, "precision", lambda: "bf16")
    speeds = Speeds(lucky=start, frail=search.replace(start, weights="fp32", autocast=True))
    found = search.search(speeds.attempt, full=False)
    assert found[0].rival not in (speeds.lucky, speeds.frail)
    assert all(len(trial.tokens_per_second) >= search.RUNS for trial in found[: search.FINALISTS])
    assert next(trial for trial in found if trial.rival == speeds.frail).speed == 0


def test_a_technique_is_worth_what_is_lost_without_it() -> None:
    asked: list[Engine] = []

    def measure(name: str, engine: Engine) -> Any:
        asked.append(engine)
        speed = 800.0 if engine == Engine() else 400.0 if not engine.fused_layers else 790.0
        return type("Run", (), {"tokens_per_second": speed})

    found = {rung["technique"]: rung for rung in ladder.ladder(measure, repeats=3)}
    assert len(asked) == 3 * (len(ladder.RUNGS) + 2)
    layer = next(rung.technique for rung in ladder.RUNGS if "fused_layers" in rung.without)
    assert found[layer]["measured"] == 2.0
    assert [name for name, rung in found.items() if rung.get("worth")] == [layer]
    assert "under 3 %" in report.ladder(list(found.values()))


@pytest.mark.parametrize(
    ("difference", "told"), [(None, "Losses were not compared"), (1e-3, "differ by at most 1.0e-03")]
)
def test_losses_that_were_not_compared_have_no_figure(difference: float | None, told: str) -> None:
    found = {"max_loss_difference": difference, "noise_band": 2e-3, "loss_steps": 5, "losses_from": "nowhere"}
    assert told in report._losses(found)
