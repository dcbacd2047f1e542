"""Charts as SVG of any width: lengths are percentages, texts keep their size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from mlpfusion.errors import cut
from mlpfusion.report.html.element import element

_LONGEST = 34  # characters of a label beside its number, on a phone
_ROW, _BAR = 36, 8  # pixels from one bar to the next, and of a bar
_HEIGHT, _FOOT, _TOP = 220, 22, 8  # pixels of a chart of curves, of the numbers below it, and above its highest point
_LEFT, _WIDTH = 14, 85  # percent left of the curves, for the numbers, and of the curves
_LARGEST = 1e100  # beyond it sums and quotients of two numbers may not be finite any more
_POINTS = 200  # points of a curve: neighbours are averaged


@dataclass(frozen=True)
class Bar:
    """One row of a chart: a number, how far it spreads to both sides, and the number as text."""

    label: str
    value: float
    text: str
    spread: float = 0.0
    is_marked: bool = True


@dataclass(frozen=True)
class Curve:
    """One line of a chart: pairs of step and number. `style` is the last part of its class in chart.css."""

    label: str
    points: Sequence[tuple[float, float]]
    style: str


def bar_chart(title: str, bars: Sequence[Bar]) -> Element:
    """Bars from zero, one below the other; the full length is 1, or the largest number above."""
    finite = [bar.value for bar in bars if _is_drawn(bar.value)]
    full = max([1.0, *finite])
    rows: list[Element] = []
    for row, bar in enumerate(bars):
        top = row * _ROW
        rows += [*_labels(bar, top), _box("track", 0, 100, top)]
        if _is_drawn(bar.value):
            rows.append(_box("bar", 0, 100 * max(0.0, bar.value) / full, top))
    return _chart(title, [f"{bar.label} {bar.text}" for bar in bars], len(bars) * _ROW, rows)


def dot_chart(title: str, bars: Sequence[Bar], guide: float | None = None) -> Element:
    """Dots with error bars, one below the other, on an axis around them all; a line at `guide`."""
    finite = [bar for bar in bars if _is_drawn(bar.value) and _is_drawn(bar.spread)]
    ends = [bar.value + side * bar.spread for bar in finite for side in (-1, 1)] + ([] if guide is None else [guide])
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def place(value: float) -> float:
        return 3 + 94 * (value - low) / (high - low)  # room for half a dot, and half a number below

    height = len(bars) * _ROW
    rows = [_line("grid", place(tick), place(tick), 0, height) for tick in ticks]
    rows += [_text("tick", place(tick), height + 14, f"{tick:g}", "middle") for tick in ticks]
    if guide is not None:
        rows.append(_line("guide", place(guide), place(guide), 0, height))
    for row, bar in enumerate(bars):
        rows += _labels(bar, row * _ROW)
        if bar in finite:
            middle, kind = row * _ROW + 24, "" if bar.is_marked else " plain"
            low_end, high_end = place(bar.value - bar.spread), place(bar.value + bar.spread)
            rows.append(_line(f"spread{kind}", low_end, high_end, middle, middle))
            rows.append(element("circle", class_=f"dot{kind}", cx=f"{place(bar.value):.4g}%", cy=middle, r=4.5))
    return _chart(title, [f"{bar.label} {bar.text}" for bar in bars], height + 20, rows)


def curve_chart(title: str, curves: Sequence[Curve], told: Sequence[str]) -> Element:
    """Lines over steps, without numbers near infinity; `told` says them in words."""
    drawn = [(curve, _thinned(curve.points)) for curve in curves]
    every = [point for _, points in drawn for point in points]
    if not every:
        return _chart(title, told, _ROW, [_text("label", 0, 14, "no finite number")])
    last = max(step for step, _ in every) or 1.0
    ticks = _ticks(min(number for _, number in every), max(number for _, number in every))
    low = min(ticks[0], *(number for _, number in every))
    high = max(ticks[-1], *(number for _, number in every))
    parts: list[Element] = []
    for tick in ticks:
        down = _TOP + (_HEIGHT - _TOP) * (high - tick) / (high - low)
        parts.append(_line("grid", _LEFT, _LEFT + _WIDTH, down, down))
        parts.append(_text("tick", _LEFT - 1.5, down + 4, f"{tick:g}", "end"))
    for step in _ticks(0, last):
        if step <= last:
            place = _LEFT + _WIDTH * step / last
            parts.append(_text("tick", place, _HEIGHT + 16, f"{step:,g}", "middle" if step < 0.98 * last else "end"))
    lines = [_polyline(curve, points, last, low, high) for curve, points in drawn]
    box = {"x": f"{_LEFT}%", "width": f"{_WIDTH}%", "y": _TOP, "height": _HEIGHT - _TOP}
    parts.append(element("svg", *lines, viewBox="0 0 1000 1000", preserveAspectRatio="none", overflow="visible", **box))
    return _chart(title, told, _HEIGHT + _FOOT, parts)


def swatch(curve: Curve) -> Element:
    """A short piece of a curve, for a legend."""
    line = element("line", class_=f"curve {curve.style}", x1=0, x2=28, y1=5, y2=5)
    return element("svg", line, class_="swatch", width=28, height=10, aria_hidden="true")


def standalone(chart: Element, style: str, width: int = 640) -> Element:
    """The chart as a file of its own: with its title, colours and a margin."""
    height, margin = float(chart.get("height", "0")), 16
    title = _text("title", 0, 0, chart.get("aria-label", "").partition(": ")[0])
    title.attrib |= {"x": f"{margin}", "y": "26"}
    chart.attrib |= {"x": f"{margin}", "y": "42", "width": f"{width - 2 * margin}"}
    paper = element("rect", class_="paper", width="100%", height="100%")
    tall = height + 42 + margin
    size = {"width": width, "height": tall, "viewBox": f"0 0 {width} {tall:g}"}  # so that a page may shrink it
    told = {"role": "img", "aria_label": chart.get("aria-label", "")}
    return element(
        "svg",
        element("style", style),
        paper,
        title,
        chart,
        xmlns="http://www.w3.org/2000/svg",
        class_="chart",
        **size,
        **told,
    )


def _is_drawn(number: float) -> bool:
    return abs(number) < _LARGEST  # False for NaN


def _chart(title: str, told: Sequence[str], height: int, parts: Sequence[Element]) -> Element:
    words = f"{title}: {'; '.join(told)}"
    return element("svg", *parts, class_="chart", role="img", aria_label=words, width="100%", height=height)


def _labels(bar: Bar, top: int) -> list[Element]:
    label = _text("label", 0, top + 14, cut(bar.label, _LONGEST))
    return [label, _text("number", 100, top + 14, bar.text, "end")]


def _box(kind: str, left: float, width: float, top: int) -> Element:
    return element("rect", class_=kind, x=f"{left:.4g}%", width=f"{width:.4g}%", y=top + 20, height=_BAR, rx=2)


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> Element:
    return element("line", class_=kind, x1=f"{x1:.4g}%", x2=f"{x2:.4g}%", y1=y1, y2=y2)


def _text(kind: str, x: float, y: float, words: str, anchor: str = "start") -> Element:
    return element("text", words, class_=kind, x=f"{x:.4g}%", y=y, text_anchor=anchor)


def _polyline(curve: Curve, points: Sequence[tuple[float, float]], last: float, low: float, high: float) -> Element:
    places = [(1000 * step / last, 1000 * (high - number) / (high - low)) for step, number in points]
    return element("polyline", class_=f"curve {curve.style}", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places))


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_POINTS` finite points; neighbours are averaged."""
    finite = [(step, number) for step, number in points if _is_drawn(number)]
    size = math.ceil(len(finite) / _POINTS) or 1
    parts = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(part[-1][0], sum(number for _, number in part) / len(part)) for part in parts]


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers from `low` to `high`.

    >>> _ticks(0.31, 0.69)
    [0.3, 0.4, 0.5, 0.6, 0.7]
    """
    if not high > low:
        low, high = low - (abs(low) or 1.0) / 10, low + (abs(low) or 1.0) / 10
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{number * step:.6g}") for number in range(first, last + 1)]
