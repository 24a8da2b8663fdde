"""Charts place what they are given where the numbers say, and stand on any of them."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.result import Figure
from tunesmith.web import charts

LOSSES = st.lists(st.floats(0, 20), min_size=1, max_size=50)


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def percent(element: ElementTree.Element, name: str) -> float:
    return float(element.attrib[name].rstrip("%"))


def points(svg: str, kind: str) -> list[tuple[float, float]]:
    places = re.search(rf'class="{kind}" points="([^"]*)"', svg)
    assert places
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in places[1].split())]


def test_a_strip_has_dots_on_their_intervals() -> None:
    strip = drawn(charts.strip(Figure(value=0.25, low=0.1, high=0.4), Figure(value=0.9, low=0.8, high=1.0)))
    assert [(c.attrib["class"], percent(c, "cx")) for c in strip.iter("circle")] == [("base", 25), ("tuned", 90)]
    whiskers = [line for line in strip.iter("line") if "whisker" in line.attrib["class"]]
    assert [(percent(w, "x1"), percent(w, "x2")) for w in whiskers] == [(10, 40), (80, 100)]


def test_a_strip_without_figures_or_bounds() -> None:
    strip = drawn(charts.strip(Figure(value=None, low=None, high=None), Figure(value=0.5, low=None, high=None)))
    assert len(list(strip.iter("circle"))) == 1
    assert strip.attrib["aria-label"] == "base not measured, tuned 0.500"
    assert not [line for line in strip.iter("line") if "whisker" in line.attrib["class"]]


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=6))
def test_the_parts_of_a_stack_fill_it_in_their_order(counts: list[int]) -> None:
    rects = list(drawn(charts.stack({f"part{i}": count for i, count in enumerate(counts)})).iter("rect"))
    end = 0.0
    for rect, count in zip(rects, counts, strict=True):
        assert percent(rect, "x") == pytest.approx(end, abs=0.1)
        assert percent(rect, "width") == pytest.approx(100 * count / max(1, sum(counts)), abs=0.01)
        end = percent(rect, "x") + percent(rect, "width")
    assert end == pytest.approx(100 if sum(counts) else 0, abs=0.1)


def test_the_last_bin_of_a_histogram_may_hold_all_that_are_longer() -> None:
    chart = drawn(charts.histogram([1, 4, 2], [0, 10, 20, 900], {"median": 12}, "words", whole=True))
    rects = list(chart.iter("rect"))
    assert [percent(r, "width") for r in rects] == [33.33, 33.33, 33.33]
    assert [rect[0].text for rect in rects] == ["0 to 9 words: 1", "10 to 19 words: 4", "20 to 899 words: 2"]
    assert "20 or more words" in [text.text for text in chart.iter("text")]


def test_a_histogram_has_its_highest_bar_as_high_as_it_is() -> None:
    rects = list(drawn(charts.histogram([1, 4, 0], [10, 20, 30, 40], {"median": 25})).iter("rect"))
    assert [percent(r, "height") for r in rects] == [25, 100, 0]
    assert [round(percent(r, "x")) for r in rects] == [0, 33, 67]


def test_loss_falls_on_a_logarithmic_axis() -> None:
    svg = charts.loss([(1, 1.0), (2, 0.1), (3, 0.01)], [(0, 1.0), (3, 0.02)], 3)
    heights = [y for _, y in points(svg, "raw")]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.02)
    circles = list(drawn(svg).iter("circle"))
    assert [c.attrib["class"] for c in circles] == ["point", "point best"]
    assert [percent(c, "cx") for c in circles] == [0, 100]
    assert "best step 3" in svg
    assert "best step" not in charts.loss([(1, 1.0)], [], 1)


@given(LOSSES, LOSSES)
def test_loss_of_any_kind_stays_in_its_box(steps: list[float], evaluations: list[float]) -> None:
    svg = charts.loss(list(enumerate(steps, 1)), list(enumerate(evaluations)), 1)
    assert all(-0.01 <= part <= 100.01 for kind in ("raw", "smooth") for place in points(svg, kind) for part in place)
    assert all(-0.01 <= percent(c, "cy") <= 100.01 for c in drawn(svg).iter("circle"))


def test_nothing_to_draw() -> None:
    assert charts.loss([], [], 0) == ""
    assert "step 1" in charts.series([], "learning rate")


def test_a_long_curve_is_thinned_and_keeps_its_spikes() -> None:
    steps = [(float(i), 1.0) for i in range(1, 20_001)]
    steps[777] = (778.0, 50.0)
    places = points(charts.series(steps, "gradient norm"), "smooth")
    assert len(places) <= 600
    assert min(y for _, y in places) == 0


@given(LOSSES, st.integers(0, 60))
def test_a_smoothed_curve_stays_between_its_values(values: list[float], reach: int) -> None:
    smooth = list(charts.smoothed(values, reach))
    assert len(smooth) == len(values)
    low, high = max(min(values), 1e-9), max(*values, 1e-9)
    assert all(low * 0.999 <= value <= high * 1.001 for value in smooth)


@given(st.floats(-1, 1), st.integers(3, 40), st.integers(0, 10))
def test_smoothing_does_not_lag(slope: float, count: int, reach: int) -> None:
    values = [math.exp(slope * i / 10) for i in range(count)]
    assert list(charts.smoothed(values, reach)) == pytest.approx(values)
