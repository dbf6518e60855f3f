"""SVG of a sweep's report, by hand: scales, axes and marks as text, a few KB a chart.

Colours are CSS variables, so a page is readable on dark and on light; every mark of a trial carries
its number, by which the page shows it in all charts at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 640
HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 40


@dataclass(frozen=True)
class Scale:
    """Maps numbers between `low` and `high` to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`."""
        low, high, value = (self._inner(v) for v in (self.low, self.high, value))
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def _inner(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, count: int = 5) -> list[float]:
        """Return round numbers along the scale; 1, 2 and 5 of each power of ten if logarithmic."""
        if self.high == self.low:
            return [self.low]
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            most = math.log10(self.high / self.low)
            digits = (1, 2, 5) if most < 3 else (1,)
            marks = [digit * 10.0**power for power in powers for digit in digits]
            return [m for m in marks if self.low <= m * (1 + 1e-9) and m <= self.high * (1 + 1e-9)]
        raw = (self.high - self.low) / count
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * m for m in (1, 2, 5, 10) if size * m >= raw)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def padded(values: Sequence[float], start: float, end: float, *, share: float = 0.06) -> Scale:
    """Return a scale of `values` with some room at both ends."""
    low, high = min(values), max(values)
    room = (high - low) * share or abs(low) * share or 1.0
    return Scale(low - room, high + room, start, end)


def number(value: float) -> str:
    """Return a number as short as a tick allows."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        mantissa, _, power = f"{value:.0e}".partition("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:.4g}"


def tag(name: str, content: str = "", **attributes: object) -> str:
    """Return an element; `class_` is the class, `data_trial` the attribute data-trial."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_plain(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{pairs}>{content}</{name}>" if content else f"<{name}{pairs}/>"


def _plain(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else escape(str(value), quote=True)


def text(x: float, y: float, words: str, *, class_: str = "tick", anchor: str = "middle") -> str:
    """Return words at a place."""
    return tag("text", escape(words), x=x, y=y, class_=class_, text_anchor=anchor)


def path(points: Sequence[tuple[float, float]], *, class_: str, trial: int | None = None) -> str:
    """Return a line through points."""
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return tag("path", d=line, class_=class_, data_trial=trial)


def dot(x: float, y: float, *, class_: str, trial: int, words: str, r: float = 4.0) -> str:
    """Return a mark of a trial, which tells `words` when it is pointed at."""
    tip = tag("title", escape(words))
    return tag("circle", tip, cx=x, cy=y, r=r, class_=class_, data_trial=trial)


def axes(
    across: Scale | None,
    up: Scale,
    *,
    x_label: str,
    y_label: str,
    whole: bool = False,
    height: float = HEIGHT,
    width: float = WIDTH,
) -> str:
    """Return grid lines, ticks and labels of a chart; None has no ticks."""
    marks = []
    for value in up.ticks():
        y = up(value)
        marks.append(tag("line", x1=LEFT, x2=width - RIGHT, y1=y, y2=y, class_="grid"))
        marks.append(text(LEFT - 8, y + 4, number(value), anchor="end"))
    for value in [] if across is None else across.ticks(8):
        if across is not None and (not whole or value == round(value)):
            marks.append(text(across(value), height - BOTTOM + 18, number(value)))
    base = height - BOTTOM
    marks.append(tag("line", x1=LEFT, x2=width - RIGHT, y1=base, y2=base, class_="axis"))
    marks.append(text((LEFT + width - RIGHT) / 2, height - 4, x_label, class_="label"))
    turned = f"rotate(-90 14 {(TOP + base) / 2:.0f})"
    label = tag(
        "text",
        escape(y_label),
        x=14,
        y=(TOP + base) / 2,
        class_="label",
        text_anchor="middle",
        transform=turned,
    )
    return "".join(marks) + label


def svg(content: str, *, label: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    """Return an image that grows with its place; `label` is what a reader of screens says."""
    box = f"0 0 {width:.0f} {height:.0f}"
    return tag("svg", content, viewBox=box, role="img", aria_label=label)


def bars(
    rows: Sequence[tuple[str, float, str]], *, label: str, shown: Callable[[float], str]
) -> str:
    """Return horizontal bars: name, length and tooltip of each."""
    line, left = 30, 150
    height = line * len(rows) + 10
    scale = Scale(0, max((value for _, value, _ in rows), default=1) or 1, left, WIDTH - 70)
    marks = []
    for place, (name, value, words) in enumerate(rows):
        y = place * line + 8
        tip = tag("title", escape(words))
        long = max(1.0, scale(value) - left)
        marks.append(text(left - 10, y + 15, name, anchor="end", class_="name"))
        marks.append(tag("rect", tip, x=left, y=y, width=long, height=20, rx=3, class_="bar"))
        marks.append(text(left + long + 6, y + 15, shown(value), anchor="start"))
    return svg("".join(marks), label=label, height=height)
