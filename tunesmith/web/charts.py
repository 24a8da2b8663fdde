"""The report's charts: inline SVG from plain functions.

Places are percentages of a chart's box, so that it is as wide as the page lets it be while its type and its strokes
keep their size. Curves cannot be placed in percent: they stand in a stretched inner box of 100 by 100, with strokes
that do not stretch. Colours and heights come from the page (templates/style.css), by class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from markupsafe import Markup

from tunesmith.result import Figure

Point = tuple[float, float]

_MOST_POINTS = 600  # of a curve: more than a page has columns for
_SMOOTHED_SHARE = 1 / 40  # of the run, on both sides of a step, over which the loss is smoothed
_LEAST_LOSS = 1e-9  # a loss of 0 has no place on a logarithmic axis


def strip(base: Figure, tuned: Figure) -> Markup:
    """Both figures of one metric between 0 and 1, each a dot on its 95 % interval."""
    grid = [_line("grid", x, 0, x, 100) for x in range(0, 101, 25)]
    said = f"base {_said(base)}, tuned {_said(tuned)}"
    return _svg("strip", said, *grid, _whisker("base", base, 30), _whisker("tuned", tuned, 70))


def scale() -> Markup:
    """The axis under strips."""
    anchors = {0: "start", 25: "middle", 50: "middle", 75: "middle", 100: "end"}
    return _svg("scale", "scale from 0 to 1", *(_text(x, 75, f"{x / 100:g}", anchor) for x, anchor in anchors.items()))


def bar(share: float) -> Markup:
    """A bar over `share` of its place, from 0 to 1; the number beside it says what it is."""
    return Markup('<svg class="bar" aria-hidden="true">{}</svg>').format(_rect("tuned", 0, 0, 100 * share, 100))


def stack(parts: Mapping[str, int]) -> Markup:
    """One bar of several parts, each as long as its share of the whole; its name is its class."""
    unit = 100 / max(1, sum(parts.values()))
    starts = accumulate((unit * count for count in parts.values()), initial=0.0)
    drawn = [
        _rect(name, start, 0, unit * count, 100, f"{name}: {count:,}")
        for (name, count), start in zip(parts.items(), starts)
    ]
    return _svg("stack", ", ".join(f"{count:,} {name}" for name, count in parts.items()), *drawn)


def histogram(
    counts: Sequence[int],
    edges: Sequence[float],
    marks: Mapping[str, float],
    unit: str = "tokens",
    whole: bool = False,
) -> Markup:
    """Rows by length: a bar for each bin, from `edges[i]` to `edges[i + 1]`, and a line at each mark. A last bin that
    is wider than the first holds all that are longer; it is drawn as wide as the others. In bins of `whole` numbers,
    the last number of each is one less than where the next begins."""
    less = 1 if whole else 0
    low, longest, most = edges[0], edges[-1], max(1, *counts)
    rest = len(edges) > 2 and edges[-1] - edges[-2] > 1.01 * (edges[1] - edges[0])
    drawn = [*edges[:-1], edges[-2] + edges[1] - edges[0]] if rest else edges
    high = drawn[-1]

    def x(value: float) -> float:
        return min(100, 100 * (value - low) / ((high - low) or 1))

    bars = [
        _rect(
            "tuned", x(p), 100 - 100 * n / most, x(q) - x(p), 100 * n / most, f"{a:.0f} to {b - less:.0f} {unit}: {n:,}"
        )
        for n, a, b, p, q in zip(counts, edges, edges[1:], drawn, drawn[1:])
    ]
    lines = [_line("mark", x(value), -12 * i, x(value), 100) for i, value in enumerate(marks.values())]
    names = [_beside(x(value), -6 - 12 * i, f"{name} {value:,.0f}") for i, (name, value) in enumerate(marks.items())]
    end = f"{edges[-2]:,.0f} or more {unit}" if rest else f"{longest - less:,.0f} {unit}"
    ends = [_below(0, f"{low:,.0f}", "start"), _below(100, end, "end")]
    return _svg(
        "plot short", f"rows by length, {low:,.0f} to {longest - less:,.0f} {unit}", *bars, *lines, *names, *ends
    )


def loss(steps: Sequence[Point], evaluations: Sequence[Point], best_step: int) -> Markup:
    """Training loss by step, raw and smoothed, validation loss as dots and the step that was kept; logarithmic axis."""
    everything = [*steps, *evaluations]
    if not everything:
        return Markup("")
    values = [max(y, _LEAST_LOSS) for _, y in everything]
    low, high, last = 0.9 * min(values), 1.1 * max(values), max(x for x, _ in everything) or 1

    def at(point: Point) -> Point:
        return 100 * point[0] / last, 100 * math.log(high / max(point[1], low)) / math.log(high / low)

    reach = round(len(steps) * _SMOOTHED_SHARE)
    smooth = list(zip((x for x, _ in steps), smoothed([y for _, y in steps], reach)))
    grid = [part for tick in _log_ticks(low, high) for part in _level(at((0, tick))[1], f"{tick:g}")]
    dot = Markup('<circle class="{}" cx="{:.2f}%" cy="{:.2f}%" r="4"><title>step {:,}: {:.3f}</title></circle>')
    dots = [dot.format("point best" if point[0] == best_step else "point", *at(point), *point) for point in evaluations]
    kept, name = 100 * best_step / last, "best step" if evaluations else "step"
    return _svg(
        "plot",
        f"loss over {last:,.0f} steps, from {values[0]:.3f} to {values[len(steps) - 1]:.3f}",
        *grid,
        _curve("raw", map(at, _thinned(steps))),
        _curve("smooth", map(at, _thinned(smooth))),
        _line("mark", kept, 0, kept, 100),
        _beside(kept, 4, f"{name} {best_step:,}"),
        *dots,
        *_steps(last),
    )


def series(points: Sequence[Point], name: str) -> Markup:
    """A small curve by step over an axis that begins at 0."""
    high, last = max((y for _, y in points), default=0) or 1, max((x for x, _ in points), default=0) or 1
    top = f"{high:.3g}" if high < 100 else f"{high:,.0f}"
    drawn = ((100 * x / last, 100 - 100 * y / high) for x, y in _thinned(points))
    return _svg(
        "plot small",
        f"{name} over {last:,.0f} steps, at most {top}",
        *_level(0, top),
        *_level(100, "0"),
        _curve("smooth", drawn),
        *_steps(last),
    )


def smoothed(values: Sequence[float], reach: int) -> Iterator[float]:
    """The geometric mean of each value and its neighbours: on a logarithmic axis, a moving average.

    As many neighbours on the one side as on the other, `reach` or what there is, so that the curve does not lag.
    """
    sums = [0.0, *accumulate(math.log(max(value, _LEAST_LOSS)) for value in values)]
    for i in range(len(values)):
        near = min(i, len(values) - 1 - i, reach)
        yield math.exp((sums[i + near + 1] - sums[i - near]) / (2 * near + 1))


def _svg(kind: str, said: str, *parts: Markup) -> Markup:
    drawn = Markup("").join(parts)
    return Markup('<svg class="{}" role="img" aria-label="{}">{}</svg>').format(kind, said, drawn)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    line = Markup('<line class="{}" x1="{:.2f}%" y1="{:.2f}%" x2="{:.2f}%" y2="{:.2f}%"/>')
    return line.format(kind, x1, y1, x2, y2)


def _rect(kind: str, x: float, y: float, width: float, height: float, said: str = "") -> Markup:
    title = Markup("<title>{}</title>").format(said) if said else ""
    rect = Markup('<rect class="{}" x="{:.2f}%" y="{:.2f}%" width="{:.2f}%" height="{:.2f}%">{}</rect>')
    return rect.format(kind, x, y, width, height, title)


def _text(x: float, y: float, text: str, anchor: str, right: int = 0, down: int = 4) -> Markup:
    """A text at a place, moved to the right and down by pixels."""
    place = Markup('<text x="{:.2f}%" y="{:.2f}%" dx="{}" dy="{}" text-anchor="{}">{}</text>')
    return place.format(x, y, right, down, anchor, text)


def _beside(x: float, y: float, text: str) -> Markup:
    """A text beside a vertical line, on the side that has more room."""
    return _text(x, y, text, "start", right=6) if x < 50 else _text(x, y, text, "end", right=-6)


def _below(x: float, text: str, anchor: str) -> Markup:
    return _text(x, 100, text, anchor, down=16)


def _level(y: float, text: str) -> list[Markup]:
    return [_line("grid", 0, y, 100, y), _text(0, y, text, "end", right=-8)]


def _steps(last: float) -> list[Markup]:
    middle = [_below(50, f"{last / 2:,.0f}", "middle")] if last >= 4 else []
    return [_below(0, "0", "start"), *middle, _below(100, f"step {last:,.0f}", "end")]


def _whisker(kind: str, figure: Figure, y: float) -> Markup:
    if figure.value is None:
        return Markup("")
    interval = Markup("")
    if figure.low is not None and figure.high is not None:
        interval = _line(f"whisker {kind}", 100 * max(0.0, figure.low), y, 100 * min(1.0, figure.high), y)
    dot = Markup('<circle class="{}" cx="{:.2f}%" cy="{}%" r="4.5"/>')
    return interval + dot.format(kind, 100 * figure.value, y)


def _curve(kind: str, points: Iterable[Point]) -> Markup:
    """A line through points of the inner box; a single point becomes a dot, since the line's ends are round."""
    places = [f"{x:.2f},{y:.2f}" for x, y in points]
    curve = Markup('<svg viewBox="0 0 100 100" preserveAspectRatio="none"><polyline class="{}" points="{}"/></svg>')
    return curve.format(kind, " ".join(places * 2 if len(places) == 1 else places))


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """Few enough points for a curve: of each run of them the lowest and the highest, so that spikes remain."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [point for run in runs for point in sorted({min(run, key=_height), max(run, key=_height)})]


def _height(point: Point) -> float:
    return point[1]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values between the bounds: 1, 2 and 5 times the powers of ten, or the powers alone where those are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if high / low < 1000 else (1,)
    return [tick for power in powers for digit in digits if low <= (tick := float(f"{digit}e{power}")) <= high]


def _said(figure: Figure) -> str:
    return "not measured" if figure.value is None else f"{figure.value:.3f}"
