"""The report's charts: inline SVG from plain functions.

Places are percentages of a chart's box, so that it is as wide as the page lets it be while its type and its strokes keep
their size. Curves cannot be placed in percent: they stand in a stretched inner box of 100 by 100 with strokes that do not
stretch. Colours and heights are the page's (style.css), by class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tunesmith.show import Figure

Point = tuple[float, float]

_MOST_POINTS = 600  # of a curve: more than a screen has columns for
_SMOOTHED_SHARE = 1 / 20  # of the run, over which the loss is smoothed


def strip(base: Figure, tuned: Figure) -> Markup:
    """Both figures of one metric between 0 and 1, each a dot on its 95 % interval."""
    grid = [_line("grid", x, 0, x, 100) for x in range(0, 101, 25)]
    lanes = [_whisker(kind, figure, y) for kind, figure, y in (("base", base, 30), ("tuned", tuned, 70))]
    said = ", ".join(f"{kind} {_said(figure)}" for kind, figure in (("base", base), ("tuned", tuned)))
    return _svg("strip", said, *grid, *lanes)


def scale() -> Markup:
    """The axis under strips."""
    return _svg("scale", "scale from 0 to 1", *(_text(100 * x, 75, f"{x:g}", _anchor(100 * x)) for x in (0, 0.25, 0.5, 0.75, 1)))


def bar(share: float) -> Markup:
    """A bar over `share` of its place, from 0 to 1; the number beside it says the rest."""
    return Markup('<svg class="bar" aria-hidden="true"><rect class="tuned" width="{:.2f}%" height="100%"/></svg>').format(100 * share)


def stack(parts: Mapping[str, int]) -> Markup:
    """One bar of several parts, each as long as its share and of the class of its name."""
    whole = max(1, sum(parts.values()))
    drawn, at = [], 0.0
    for name, count in parts.items():
        drawn.append(Markup('<rect class="{}" x="{:.3f}%" width="{:.3f}%" height="100%"><title>{}: {:,}</title></rect>').format(
            name, at, 100 * count / whole, name, count))
        at += 100 * count / whole
    return _svg("stack", ", ".join(f"{count:,} {name}" for name, count in parts.items()), *drawn)


def histogram(counts: Sequence[int], edges: Sequence[float], marks: Mapping[str, float]) -> Markup:
    """Rows by length in tokens: a bar a bin, from `edges[i]` to `edges[i + 1]`, and a line at each mark."""
    low, high, most = edges[0], edges[-1], max(1, *counts)

    def x(value: float) -> float:
        return 100 * (value - low) / ((high - low) or 1)

    bars = [Markup('<rect class="tuned" x="{:.2f}%" y="{:.2f}%" width="{:.2f}%" height="{:.2f}%">'
                   "<title>{:.0f} to {:.0f} tokens: {:,} rows</title></rect>").format(
                x(a), 100 - 100 * n / most, x(b) - x(a), 100 * n / most, a, b, n)
            for n, a, b in zip(counts, edges, edges[1:])]
    lines = [part for i, (name, value) in enumerate(marks.items()) for part in (
        _line("mark", x(value), 0, x(value), 100), _beside(x(value), 10 + 12 * i, f"{name} {value:,.0f}"))]
    ends = [_text(0, 100, f"{low:,.0f}", "start", below=True), _text(100, 100, f"{high:,.0f} tokens", "end", below=True)]
    return _svg("plot short", f"rows by length, {low:,.0f} to {high:,.0f} tokens", *bars, *lines, *ends)


def loss(steps: Sequence[Point], evaluations: Sequence[Point], best_step: int) -> Markup:
    """Training loss by step, raw and smoothed, validation loss as dots, and the step that was kept, on a logarithmic axis."""
    values = [y for _, y in (*steps, *evaluations) if y > 0]
    if not values:
        return Markup("")
    low, high = 0.9 * min(values), 1.1 * max(values)
    last = max(x for x, _ in (*steps, *evaluations)) or 1

    def at(point: Point) -> Point:
        share = math.log(max(point[1], low) / low) / math.log(high / low)
        return 100 * point[0] / last, 100 - 100 * share

    window = max(1, round(len(steps) * _SMOOTHED_SHARE))
    smooth = list(zip((x for x, _ in steps), smoothed([y for _, y in steps], window)))
    grid = [part for tick in _log_ticks(low, high) for part in _level(at((0, tick))[1], f"{tick:g}")]
    dots = [Markup('<circle class="point" cx="{:.2f}%" cy="{:.2f}%" r="4"><title>step {:.0f}: validation loss {:.3f}</title>'
                   "</circle>").format(*at(point), *point) for point in evaluations]
    kept = at((best_step, high))[0]
    best = [_line("mark", kept, 0, kept, 100), _beside(kept, 4, f"best step {best_step:,}" if evaluations else f"step {best_step:,}")]
    return _svg("plot", f"training loss over {last:,.0f} steps, from {steps[0][1]:.3f} to {steps[-1][1]:.3f}" if steps else "loss",
                *grid, _curve("raw", map(at, _thinned(steps))), _curve("smooth", map(at, _thinned(smooth))), *best, *dots, *_steps(last))


def series(points: Sequence[Point], name: str) -> Markup:
    """A small curve by step over an axis that begins at 0."""
    high, last = max((y for _, y in points), default=0) or 1, max((x for x, _ in points), default=0) or 1
    drawn = ((100 * x / last, 100 - 100 * y / high) for x, y in _thinned(points))
    return _svg("plot small", f"{name} over {last:,.0f} steps, at most {high:.3g}", *_level(0, f"{high:,.3g}" if high < 100 else f"{high:,.0f}"),
                *_level(100, "0"), _curve("smooth", drawn), *_steps(last))


def smoothed(values: Iterable[float], window: int) -> Iterator[float]:
    """The exponential moving average over about `window` values; the first ones weigh no more than the others."""
    keep = 1 - 2 / (window + 1)
    total = weight = 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        yield total / weight


def _svg(kind: str, said: str, *parts: Markup) -> Markup:
    return Markup('<svg class="{}" role="img" aria-label="{}">{}</svg>').format(kind, said, Markup("").join(parts))


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.2f}%" y1="{:.2f}%" x2="{:.2f}%" y2="{:.2f}%"/>').format(kind, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, anchor: str, *, left: int = 0, below: bool = False) -> Markup:
    """A text at a place; `left` moves it by pixels to the left, `below` under it."""
    return Markup('<text x="{:.2f}%" y="{:.2f}%" dx="{}" dy="{}" text-anchor="{}">{}</text>').format(
        x, y, -left, 16 if below else 4, anchor, text)


def _beside(x: float, y: float, text: str) -> Markup:
    """A text beside a vertical line, on the side where there is more room."""
    return _text(x, y, text, "start", left=-6) if x < 50 else _text(x, y, text, "end", left=6)


def _anchor(x: float) -> str:
    return "start" if x == 0 else "end" if x == 100 else "middle"


def _level(y: float, text: str) -> list[Markup]:
    return [_line("grid", 0, y, 100, y), _text(0, y, text, "end", left=8)]


def _steps(last: float) -> list[Markup]:
    middle = [_text(50, 100, f"{last / 2:,.0f}", "middle", below=True)] if last >= 4 else []
    return [_text(0, 100, "0", "start", below=True), *middle, _text(100, 100, f"step {last:,.0f}", "end", below=True)]


def _whisker(kind: str, figure: Figure, y: float) -> Markup:
    if figure.value is None:
        return Markup("")
    whisker = Markup("")
    if figure.low is not None and figure.high is not None:
        whisker = _line(f"whisker {kind}", 100 * max(0.0, figure.low), y, 100 * min(1.0, figure.high), y)
    return whisker + Markup('<circle class="{}" cx="{:.2f}%" cy="{}%" r="4.5"/>').format(kind, 100 * figure.value, y)


def _curve(kind: str, points: Iterable[Point]) -> Markup:
    """A line through points of the inner box; a single point becomes a dot, since the line's caps are round."""
    places = [f"{x:.2f},{y:.2f}" for x, y in points]
    return Markup('<svg viewBox="0 0 100 100" preserveAspectRatio="none"><polyline class="{}" points="{}"/></svg>').format(
        kind, " ".join(places * 2 if len(places) == 1 else places))


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """Few enough points for a curve: of each run of them the lowest and the highest, so that spikes remain."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [p for run in runs for p in sorted({min(run, key=_height), max(run, key=_height)})]


def _height(point: Point) -> float:
    return point[1]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values between the bounds: 1, 2 and 5 of each power of ten, or the powers alone where those are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [tick for power in powers for digit in digits if low <= (tick := round(digit * 10.0**power, 12)) <= high]


def _said(figure: Any) -> str:
    return "not measured" if figure.value is None else f"{figure.value:.3f}"
