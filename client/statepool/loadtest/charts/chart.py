"""One chart: axes with lines, areas, cells or points on them, as an SVG element that a style sheet colours."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from statepool.loadtest.charts.scales import Scale, Values

LEFT, RIGHT, TOP, BOTTOM = 62.0, 12.0, 8.0, 24.0
"""Margins for what is written on the axes."""
WIDE, HALF = 1000.0, 500.0
"""Widths of a drawing that is as wide as the page, and of one that shares it with another."""
HEAT_LEVELS = 8
"""Shades of a heat map; the style sheet has one class for each."""


@dataclass
class Chart:
    """What is drawn between two axes; sizes are in units of the drawing, which is scaled to its place on the page."""

    label: str
    """What it shows, for those who do not see it."""
    x: Scale
    """Axis from left to right."""
    y: Scale
    """Axis from below to above."""
    width: float = WIDE
    height: float = 220.0
    _marks: list[ET.Element] = field(default_factory=list)

    def line(self, kind: str, x: Values, y: Values) -> None:
        """Draws a line; values that are not finite interrupt it.

        Args:
            kind: Class of the element.
            x: Where its points are.
            y: As many.
        """
        xs, ys = self._across(x), self._up(y)
        is_seen = np.isfinite(y)
        steps = [
            f"{'L' if number and is_seen[number - 1] else 'M'}{xs[number]:.1f} {ys[number]:.1f}"
            for number in np.flatnonzero(is_seen)
        ]
        self._mark("path", kind=f"line {kind}", d="".join(steps))

    def stack(self, kinds: Sequence[str], x: Values, y: Values) -> None:
        """Draws areas on top of each other.

        Args:
            kinds: Class of each, the lowest first.
            x: Where they are told.
            y: How much each has there, ``[len(kinds), len(x)]``.
        """
        across, upper = self._across(x), np.cumsum(y, axis=0)
        for number, kind in enumerate(kinds):
            lower = upper[number - 1] if number else np.zeros(len(x))
            there = [f"{at:.1f} {up:.1f}" for at, up in zip(across, self._up(upper[number]), strict=True)]
            back = [f"{at:.1f} {up:.1f}" for at, up in zip(across[::-1], self._up(lower)[::-1], strict=True)]
            self._mark("path", kind=f"area {kind}", d=f"M{'L'.join([*there, *back])}Z")

    def cells(self, x: Values, y: Values, counts: NDArray[np.int64]) -> None:
        """Draws a heat map; shades go by the logarithm of the counts, cells with none are empty.

        Args:
            x: Edges of the columns.
            y: Edges of the rows.
            counts: ``[rows, columns]``.
        """
        xs, ys = self._across(x), self._up(y)
        shade = np.log1p(counts) / np.log1p(max(1, counts.max()))
        levels = np.ceil(shade * HEAT_LEVELS).astype(int)
        for level in range(1, HEAT_LEVELS + 1):
            rows, columns = np.nonzero(levels == level)
            boxes = [
                f"M{xs[column]:.1f} {ys[row]:.1f}H{xs[column + 1]:.1f}V{ys[row + 1]:.1f}H{xs[column]:.1f}Z"
                for row, column in zip(rows, columns, strict=True)
            ]
            self._mark("path", kind=f"heat heat-{level}", d="".join(boxes))

    def point(self, kind: str, x: float, y: float, text: str) -> None:
        """Draws a point with a text that a pointer on it shows."""
        at, up = self._across(np.array([x]))[0], self._up(np.array([y]))[0]
        circle = self._mark("circle", kind=f"point {kind}", cx=f"{at:.1f}", cy=f"{up:.1f}", r="5")
        ET.SubElement(circle, "title").text = text

    def element(self) -> ET.Element:
        """Gives the drawing."""
        box = f"0 0 {self.width:g} {self.height:g}"
        drawing = ET.Element("svg", {"viewBox": box, "role": "img", "aria-label": self.label})
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        for value, text in self.y.ticks:
            up = self._up(np.array([value]))[0]
            ET.SubElement(drawing, "path", {"class": "grid", "d": f"M{LEFT} {up:.1f}H{right}"})
            _write(drawing, "end", LEFT - 6, up + 4, text)
        for value, text in self.x.ticks:
            at = self._across(np.array([value]))[0]
            ET.SubElement(drawing, "path", {"class": "grid", "d": f"M{at:.1f} {TOP}V{bottom}"})
            _write(drawing, "middle", at, self.height - 6, text)
        drawing.extend(self._marks)
        return drawing

    def _mark(self, tag: str, kind: str, **attributes: str) -> ET.Element:
        mark = ET.Element(tag, {"class": kind, **attributes})
        self._marks.append(mark)
        return mark

    def _across(self, x: Values) -> Values:
        return LEFT + self.x.place(x) * (self.width - LEFT - RIGHT)

    def _up(self, y: Values) -> Values:
        with np.errstate(invalid="ignore"):
            return self.height - BOTTOM - self.y.place(y) * (self.height - TOP - BOTTOM)


def _write(drawing: ET.Element, anchor: str, x: float, y: float, text: str) -> None:
    ET.SubElement(drawing, "text", {"text-anchor": anchor, "x": f"{x:.1f}", "y": f"{y:.1f}"}).text = text
