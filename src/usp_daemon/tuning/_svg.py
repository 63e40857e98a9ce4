"""Drawings in SVG: scatter charts on linear, logarithmic or categorical axes, and bars."""

import dataclasses
import html
import math
from collections.abc import Sequence

_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 10.0, 34.0


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """An interval of numbers with its labelled ticks; positions outside are drawn at its ends."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Where ``value`` lies, 0 to 1."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


def linear_axis(low: float, high: float, *, whole: bool = False) -> Axis:
    """From ``low`` to ``high``, a little wider where they are equal."""
    if not high > low:
        low, high = low - (abs(low) * 0.01 or 0.5), high + (abs(high) * 0.01 or 0.5)
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    if whole:
        step = max(1.0, round(step))
    count = math.floor((high - math.ceil(low / step) * step) / step + 1e-9)
    ticks = [math.ceil(low / step) * step + index * step for index in range(count + 1)]
    return Axis(low, high, tuple((tick, f"{tick:.10g}" if abs(tick) > step / 2 else "0") for tick in ticks))


def log_axis(low: float, high: float) -> Axis:
    """From ``low`` to ``high``, both above 0, with a tick per power of ten."""
    if not high > low:
        low, high = low / 1.1, high * 1.1
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    ticks = [(10.0**power, f"{10.0**power:g}") for power in powers] or [(low, f"{low:g}"), (high, f"{high:g}")]
    return Axis(low, high, tuple(ticks), is_log=True)


def category_axis(names: Sequence[str]) -> Axis:
    """One place per name: 0, 1, 2, ..."""
    return Axis(-0.5, len(names) - 0.5, tuple((float(index), name) for index, name in enumerate(names)))


class Chart:
    """Marks over two axes. ``name`` says what the horizontal one shows."""

    def __init__(self, width: float, height: float, across: Axis, up: Axis, *, name: str) -> None:
        self._width, self._height = width, height
        self._across, self._up, self._name = across, up, name
        self._marks: list[str] = []

    def point(self, across: float, up: float, kind: str, tip: str) -> None:
        """A dot of the class ``kind`` with a text that shows when it is pointed at."""
        radius = 4.5 if kind == "best" else 3
        self._marks.append(
            f'<circle class="{kind}" cx="{self._x(across):.1f}" cy="{self._y(up):.1f}" r="{radius}">'
            f"<title>{html.escape(tip)}</title></circle>"
        )

    def horizontal(self, up: float, kind: str) -> None:
        """A line across at ``up``, unless it lies outside."""
        if self._up.low <= up <= self._up.high:
            y = self._y(up)
            self._marks.append(
                f'<line class="{kind}" x1="{_LEFT}" x2="{self._width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )

    def steps(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line that holds each height until the next point."""
        if not points:
            return
        path = f"M{self._x(points[0][0]):.1f} {self._y(points[0][1]):.1f}"
        path += "".join(f"H{self._x(across):.1f}V{self._y(up):.1f}" for across, up in points[1:])
        self._marks.append(f'<path class="{kind}" d="{path}"/>')

    def svg(self) -> str:
        """The drawing."""
        right, bottom = self._width - _RIGHT, self._height - _BOTTOM
        parts = [f'<svg viewBox="0 0 {self._width:g} {self._height:g}" role="img">']
        for value, label in self._up.ticks:
            y = self._y(value)
            parts.append(f'<line class="grid-line" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{html.escape(label)}</text>')
        for value, label in self._across.ticks:
            x = self._x(value)
            parts.append(f'<line class="grid-line" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{html.escape(label)}</text>')
        middle = (_LEFT + right) / 2
        parts.append(
            f'<text class="name" x="{middle:.1f}" y="{self._height - 5:g}" text-anchor="middle">'
            f"{html.escape(self._name)}</text>"
        )
        return "".join([*parts, *self._marks, "</svg>"])

    def _x(self, value: float) -> float:
        return _LEFT + self._across.share(value) * (self._width - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        return self._height - _BOTTOM - self._up.share(value) * (self._height - _TOP - _BOTTOM)


def bars(rows: Sequence[tuple[str, float, str]], *, width: float) -> str:
    """A bar per row: name, length from 0 to 1, label."""
    height, left = 22.0, 210.0
    longest = max((length for _, length, _ in rows), default=0.0) or 1.0
    parts = [f'<svg viewBox="0 0 {width:g} {height * len(rows):g}" role="img">']
    for index, (name, length, label) in enumerate(rows):
        y = index * height
        drawn = length / longest * (width - left - 70.0)
        parts.append(f'<text class="name" x="{left - 8}" y="{y + 15:g}" text-anchor="end">{html.escape(name)}</text>')
        parts.append(f'<rect class="bar" x="{left}" y="{y + 4:g}" width="{drawn:.1f}" height="14" rx="3"/>')
        parts.append(f'<text x="{left + drawn + 6:.1f}" y="{y + 15:g}">{html.escape(label)}</text>')
    return "".join([*parts, "</svg>"])
