"""Charts as inline SVG: a string each, coloured by the page's style sheet."""

from __future__ import annotations

import colorsys
import html
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bsdkit.combine.reliability import Reliability
from bsdkit.report.page.analysis import Ambiguity
from bsdkit.report.page.data import Curves
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "SHAPES",
    "ambiguity_chart",
    "curves_charts",
    "family_colours",
    "marker",
    "reliability_chart",
]

FloatArray = npt.NDArray[np.float64]

SHAPES = (
    "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z",
    "M-.9-.9h1.8v1.8h-1.8z",
    "M0-1.2L1.1.8H-1.1z",
    "M0-1.3L1.05 0 0 1.3-1.05 0z",
    "M-.38-1.15h.76v.77h.77v.76h-.77v.77h-.76v-.77h-.77v-.76h.77z",
    "M0 1.2L1.1-.8H-1.1z",
    "M-1-1H1L-1 1H1z",
    "M-.8-1.1L0-.3.8-1.1 1.1-.8.3 0 1.1.8.8 1.1 0 .3-.8 1.1-1.1.8-.3 0-1.1-.8z",
)
"""Outlines of the markers, about one unit around the origin; families take them in turn."""

# Light and dark page: hues of Okabe and Ito (2008), told apart by the colour-blind, moved in
# lightness until each has a contrast of 3 to 1 with the page.
_COLOURS = (
    ("#0068a8", "#5ab4f0"),
    ("#c24e00", "#ff9a5c"),
    ("#008560", "#35cfa0"),
    ("#b0568c", "#ee9fcb"),
    ("#8f6a00", "#ecc24a"),
    ("#3f4a54", "#c3ccd4"),
    ("#6a4fc0", "#b3a2f7"),
    ("#8a3324", "#e8988a"),
)


def family_colours(n: int) -> list[tuple[str, str]]:
    """(colour on a light page, on a dark page) of n families.

    Up to eight are a palette for the colour-blind. Of more, the hues are spread over the circle
    and neighbours differ in lightness; the markers' shapes tell them apart as well.
    """
    if n <= len(_COLOURS):
        return list(_COLOURS[:n])
    found = []
    for k in range(n):
        hue = (0.58 + k * 0.61803398875) % 1.0  # the golden angle keeps neighbours far apart
        step = (0.0, 0.05, -0.06)[k % 3]
        pair = (
            colorsys.hls_to_rgb(hue, 0.31 + step, 0.6),
            colorsys.hls_to_rgb(hue, 0.7 + step, 0.7),
        )
        light, dark = ("#" + "".join(f"{round(255 * c):02x}" for c in rgb) for rgb in pair)
        found.append((light, dark))
    return found


def marker(family: int, x: float = 0.0, y: float = 0.0, radius: float = 4.5) -> str:
    """The marker of a family, as a path."""
    return (
        f'<path class="mark" style="--c:var(--f{family})" d="{SHAPES[family % len(SHAPES)]}" '
        f'transform="translate({x:.1f} {y:.1f}) scale({radius:g})"/>'
    )


def _svg(width: int, height: int, label: str, body: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" style="max-width:{width}px" '
        f'role="img" aria-label="{html.escape(label)}">{body}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", style: str = "tick") -> str:
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str = "grid") -> str:
    return f'<path class="{style}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def _ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Round numbers from low to high, about n of them."""
    span = high - low
    if not span > 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / n))
    step *= next((m for m in (1, 2, 5) if span / (step * m) <= n), 10)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:.3g}"


def reliability_chart(found: Reliability) -> str:
    """Accuracy against confidence in bins, with intervals, the diagonal and the counts."""
    left, top, side, strip = 52, 12, 330, 56

    def x(value: float) -> float:
        return left + side * value

    def y(value: float) -> float:
        return top + side * (1 - value)

    parts = []
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1.0):
        parts += [
            _line(left, y(tick), left + side, y(tick)),
            _text(left - 7, y(tick) + 4, f"{100 * tick:.0f}", "end"),
            _text(x(tick), top + side + strip + 16, f"{100 * tick:.0f}"),
        ]
    most = max(b.n_clips for b in found.bins)
    foot = top + side + strip
    for b in found.bins:
        width = side * (b.high - b.low)
        centre = x((b.low + b.high) / 2)
        tall = 28 * b.n_clips / most
        parts += [
            f'<rect class="fill" x="{x(b.low) + 1:.1f}" y="{y(b.accuracy):.1f}" '
            f'width="{width - 2:.1f}" height="{side * b.accuracy:.1f}"/>',
            _line(centre, y(b.accuracy_low), centre, y(b.accuracy_high), "whisker"),
            f'<circle class="dot" cx="{x(b.confidence):.1f}" cy="{y(b.accuracy):.1f}" r="3.5"/>',
            f'<rect class="count" x="{x(b.low) + 1:.1f}" y="{foot - tall:.1f}" '
            f'width="{width - 2:.1f}" height="{tall:.1f}"/>',
            _text(centre, foot - tall - 4, str(b.n_clips), style="tick small"),
        ]
    parts += [
        _line(x(0), y(0), x(1), y(1), "diagonal"),
        _line(left, foot, left + side, foot, "axis"),
        _line(left, y(0), left + side, y(0), "axis"),
        _text(left + side / 2, foot + 34, "confidence: probability of the most probable class, %"),
        f'<text class="tick" transform="translate(14 {top + side / 2}) rotate(-90)" '
        'text-anchor="middle">accuracy, %</text>',
    ]
    label = f"Accuracy against confidence in {len(found.bins)} bins; the table below has the same"
    return _svg(left + side + 14, foot + 42, label, "".join(parts))


def ambiguity_chart(found: Ambiguity, taxonomy: Taxonomy) -> str:
    """Accuracy of each class against the annotators' mean confidence in its clips."""
    left, top, width, height = 52, 12, 560, 340
    shown = np.flatnonzero(found.counts > 0)
    said, accuracy = found.confidence[shown], found.accuracy[shown]
    margin = max(0.06 * float(np.ptp(said)), 0.05)
    low, high = float(said.min()) - margin, float(said.max()) + margin
    bottom = max(-0.02, float(accuracy.min()) - 0.06)
    ceiling = min(1.04, float(accuracy.max()) + 0.06)

    def x(value: float) -> float:
        return left + width * (value - low) / (high - low)

    def y(value: float) -> float:
        return top + height * (ceiling - value) / (ceiling - bottom)

    parts = []
    for tick in _ticks(max(bottom, 0), min(ceiling, 1)):
        parts += [
            _line(left, y(tick), left + width, y(tick)),
            _text(left - 7, y(tick) + 4, f"{100 * tick:.0f}", "end"),
        ]
    for tick in _ticks(low, high, 7):
        parts += [
            _line(x(tick), top, x(tick), top + height),
            _text(x(tick), top + height + 17, _number(tick)),
        ]
    marks = {int(c): (x(found.confidence[c]), y(found.accuracy[c])) for c in shown}
    boxes = [(a - 6, b - 6, a + 6, b + 6) for a, b in marks.values()]
    for c, (across, down) in sorted(marks.items(), key=lambda item: item[1][1]):
        size = 6.6 * len(taxonomy.labels[c])
        start, base = _free_place(across, down, size, boxes, left + width)
        boxes.append((start, base - 10, start + size, base + 1))
        if abs(base - 4 - down) > 14:
            parts.append(_line(across, down, start + size / 2, base - 9, "leader"))
        parts += [
            marker(int(taxonomy.family_of[c]), across, down),
            _text(start, base, taxonomy.labels[c], "start", "label"),
        ]
    parts += [
        _line(left, top + height, left + width, top + height, "axis"),
        _text(left + width / 2, top + height + 36, "annotators' mean confidence in the label"),
        f'<text class="tick" transform="translate(14 {top + height / 2}) rotate(-90)" '
        'text-anchor="middle">accuracy, %</text>',
    ]
    label = "Accuracy of each class against mean annotation confidence; the classes' table has both"
    return _svg(left + width + 14, top + height + 44, label, "".join(parts))


def _free_place(
    across: float,
    down: float,
    size: float,
    boxes: Sequence[tuple[float, float, float, float]],
    right: float,
) -> tuple[float, float]:
    """Where a label of some size near a mark starts: at its side, above or below, or further."""
    places = [(across + 8, down + 4), (across - 8 - size, down + 4)]
    for step in range(0, 60, 4):
        places += [(across - size / 2, down - 9 - step), (across - size / 2, down + 17 + step)]
    for start, base in places:
        is_free = all(
            start + size < x1 or start > x2 or base + 1 < y1 or base - 10 > y2
            for x1, y1, x2, y2 in boxes
        )
        if is_free and start > 0 and start + size < right + 12:
            return start, base
    return places[0]


def curves_charts(curves: Curves) -> str:
    """Training loss, and validation score where there is one: the mean and the full range."""
    charts = [_curve(curves.losses, "training loss", curves.member)]
    if curves.scores.shape[1]:
        charts.append(_curve(curves.scores, f"validation {curves.metric}", curves.member))
    return "".join(charts)


def _curve(values: FloatArray, what: str, member: str) -> str:
    left, top, width, height = 52, 22, 250, 150
    n_epochs = values.shape[1]
    is_there = np.isfinite(values).any(axis=0)
    columns = np.flatnonzero(is_there)
    mean = np.array([np.nanmean(values[:, e]) for e in columns])
    lowest = np.array([np.nanmin(values[:, e]) for e in columns])
    highest = np.array([np.nanmax(values[:, e]) for e in columns])
    if not len(columns):
        return ""
    low, high = float(lowest.min()), float(highest.max())
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5

    def x(epoch: float) -> float:
        return float(left + width * (epoch / max(n_epochs - 1, 1)))

    def y(value: float) -> float:
        return float(top + height * (high - value) / (high - low))

    def points(line: Sequence[float] | FloatArray, epochs: npt.NDArray[np.integer]) -> str:
        return "L".join(f"{x(e):.1f} {y(v):.1f}" for e, v in zip(epochs, line, strict=True))

    parts = [_text(left, 13, what, "start", "label")]
    for tick in _ticks(low, high, 4):
        parts += [
            _line(left, y(tick), left + width, y(tick)),
            _text(left - 6, y(tick) + 4, _number(tick), "end"),
        ]
    for epoch in sorted({0, n_epochs // 2, n_epochs - 1}):
        parts.append(_text(x(epoch), top + height + 16, str(epoch + 1)))
    parts += [
        f'<path class="band" d="M{points(highest, columns)}L'
        f'{points(lowest[::-1], columns[::-1])}z"/>',
        f'<path class="curve" d="M{points(mean, columns)}"/>',
        _line(left, top + height, left + width, top + height, "axis"),
        _text(left + width / 2, top + height + 32, "epoch"),
    ]
    label = f"{what} of {member} by epoch, from {_number(mean[0])} to {_number(mean[-1])}"
    return _svg(left + width + 12, top + height + 38, label, "".join(parts))
