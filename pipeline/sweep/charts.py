"""The charts of a sweep's report: history, parallel coordinates, curves, confidence.

Each takes the rows of `results.json` and returns SVG.
"""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sweep.axis import encode
from pipeline.sweep.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    axes,
    bars,
    dot,
    number,
    padded,
    path,
    svg,
    tag,
    text,
)
from pipeline.sweep.results import points, shown

Row = Mapping[str, Any]
WIDE = 1180
UNDER = 12
"""Room under the axes of the parallel coordinates."""


def describe(trial: Row, metric: str) -> str:
    """Return what a tooltip says of a trial."""
    score = "failed" if trial["score"] is None else f"{metric} {points(trial['score'])}"
    params = "\n".join(f"{name} = {shown(value)}" for name, value in trial["params"].items())
    return f"trial {trial['number']}: {score}, {trial['state']} after {trial['epochs']}\n{params}"


def history(trials: Sequence[Row], metric: str, *, lower: bool) -> str:
    """Draw the score of each trial by number, and the best one up to each."""
    sound = [trial for trial in trials if trial["score"] is not None]
    across = Scale(-1, len(trials), LEFT, WIDTH - RIGHT)
    up = padded([trial["score"] for trial in sound], HEIGHT - BOTTOM, TOP)
    marks = [axes(across, up, x_label="trial", y_label=f"dev {metric}", whole=True)]
    choose = np.minimum if lower else np.maximum
    complete = [trial for trial in sound if trial["state"] == "complete"]
    best = choose.accumulate([trial["score"] for trial in complete])
    steps: list[tuple[float, float]] = []
    for trial, score in zip(complete, best, strict=True):
        if steps:
            steps.append((across(trial["number"]), steps[-1][1]))
        steps.append((across(trial["number"]), up(float(score))))
    if steps:
        marks.append(path([*steps, (WIDTH - RIGHT, steps[-1][1])], class_="best"))
    for trial in trials:
        y = HEIGHT - BOTTOM - 4.0 if trial["score"] is None else up(trial["score"])
        words = describe(trial, metric)
        marks.append(
            dot(
                across(trial["number"]),
                y,
                class_=trial["state"],
                trial=trial["number"],
                words=words,
            )
        )
    return svg("".join(marks), label=f"dev {metric} of each trial")


def parallel(trials: Sequence[Row], metric: str, *, lower: bool, logs: frozenset[str]) -> str:
    """Draw each trial as a line through its values, coloured by its score."""
    sound = [trial for trial in trials if trial["score"] is not None]
    names = list(dict.fromkeys(name for trial in sound for name in trial["params"]))
    height = 358.0
    places = np.linspace(70, WIDE - 90, len(names) + 1)
    columns = [_Column(sound, name, height, log=name in logs) for name in names]
    ends = [trial["score"] for trial in sound]
    scores = Scale(min(ends), max(ends), height - UNDER, 44)
    marks = []
    ordered = sorted(sound, key=lambda t: t["score"], reverse=lower)  # the best one on top
    for rank, trial in enumerate(ordered):
        values = [
            column(trial["params"].get(name)) for name, column in zip(names, columns, strict=True)
        ]
        ways = zip(places, [*values, scores(trial["score"])], strict=True)
        shade = round(9 * rank / max(1, len(ordered) - 1))
        tip = tag("title", escape(describe(trial, metric)))
        line = path(
            [(x, y) for x, y in ways if y], class_=f"line shade{shade}", trial=trial["number"]
        )
        marks.append(line.replace("/>", f">{tip}</path>"))
    for x, name, column in zip(places, names, columns, strict=False):
        marks.append(_upright(x, name, column.marks(), height))
    ticks = [(scores(value), number(value)) for value in scores.ticks()]
    marks.append(_upright(places[-1], f"dev {metric}", ticks, height, side=1))
    return svg("".join(marks), label="parallel coordinates", width=WIDE, height=height)


def _upright(
    x: float, name: str, ticks: Sequence[tuple[float, str]], height: float, *, side: int = -1
) -> str:
    """Return one axis of the parallel coordinates, its numbers left (-1) or right of it (1)."""
    marks = [tag("line", x1=x, x2=x, y1=44, y2=height - UNDER, class_="axis")]
    marks.append(text(x, 22, name, class_="name"))
    for y, words in ticks:
        marks.append(tag("line", x1=x + 4 * side, x2=x, y1=y, y2=y, class_="axis"))
        anchor = "end" if side < 0 else "start"
        marks.append(text(x + 8 * side, y + 4, words, anchor=anchor, class_="tick halo"))
    return "".join(marks)


class _Column:
    """Places of one field's values on its axis: numbers by size, others side by side."""

    def __init__(self, trials: Sequence[Row], name: str, height: float, *, log: bool) -> None:
        values = [trial["params"][name] for trial in trials if name in trial["params"]]
        self.bottom, self.top = height - UNDER, 44.0
        kinds = {str(encode(_frozen(value))): value for value in values}
        self.named: list[str] = []
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if not numeric or len(kinds) <= 3:
            self.named = sorted(kinds, key=lambda k: (kinds[k] if numeric else 0, k))
        else:
            self.scale = Scale(min(values), max(values), self.bottom, self.top, log=log)

    def __call__(self, value: Any) -> float:
        if value is None:
            return 0.0
        if not self.named:
            return self.scale(value)
        place = (self.named.index(str(encode(_frozen(value)))) + 0.5) / len(self.named)
        return self.bottom + place * (self.top - self.bottom)

    def marks(self) -> list[tuple[float, str]]:
        """Return place and words of each tick."""
        if not self.named:
            return [(self.scale(value), number(value)) for value in self.scale.ticks()]
        step = (self.top - self.bottom) / len(self.named)
        return [(self.bottom + (i + 0.5) * step, name) for i, name in enumerate(self.named)]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def curves(trials: Sequence[Row], metric: str, rungs: Sequence[int], best: int | None) -> str:
    """Draw the best score up to each epoch, trial by trial; rungs are dashed."""
    drawn = [(t, [v for v in t["curve"] if v is not None]) for t in trials]
    drawn = [(trial, values) for trial, values in drawn if values]
    longest = max(len(values) for _, values in drawn)
    across = Scale(1, max(2, longest), LEFT, WIDTH - RIGHT)
    up = padded([v for _, values in drawn for v in values], HEIGHT - BOTTOM, TOP)
    marks = [axes(across, up, x_label="epoch", y_label=f"dev {metric}, best so far", whole=True)]
    for rung in rungs:
        x = across(rung)
        marks.append(tag("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="rung"))
    for trial, values in sorted(drawn, key=lambda pair: pair[0]["number"] == best):
        points = [(across(epoch), up(value)) for epoch, value in enumerate(values, 1)]
        kind = "winner" if trial["number"] == best else trial["state"]
        which = trial["number"]
        if len(points) > 1:
            marks.append(path(points, class_=f"curve {kind}", trial=which))
        words = describe(trial, metric)
        marks.append(dot(*points[-1], class_=kind, trial=which, words=words, r=2.5))
    return svg("".join(marks), label="learning curves")


def importance(shares: Mapping[str, float]) -> str:
    """Draw the share of the variance that each field explains."""
    rows = [(name, share, f"{name}: {share:.1%} of the variance") for name, share in shares.items()]
    return bars(rows, label="importance of each field", shown=lambda share: f"{share:.0%}")


def confidence(layers: Sequence[str], groups: Mapping[str, NDArray[np.float64]]) -> str:
    """Draw the mean confidence of each layer [n, N] with its deviation, a bar for each group."""
    means = {name: values.mean(0) for name, values in groups.items()}
    spreads = {name: values.std(0) for name, values in groups.items()}
    most = max(float((means[name] + spreads[name]).max()) for name in groups)
    up = Scale(0, most * 1.08, HEIGHT - BOTTOM, TOP + 16)
    edges = np.linspace(LEFT, WIDTH - RIGHT, len(layers) + 1)
    marks = [axes(None, up, x_label="layer", y_label="confidence")]
    for layer, (low, high) in zip(layers, pairwise(edges), strict=True):
        marks.append(text((low + high) / 2, HEIGHT - BOTTOM + 18, layer))
    wide = (edges[1] - edges[0]) * 0.8 / len(groups)
    for place, name in enumerate(groups):
        for spot, (mean, spread) in enumerate(zip(means[name], spreads[name], strict=True)):
            x = float(edges[spot] + (edges[1] - edges[0]) * 0.1 + place * wide)
            ends = (float(max(0.0, mean - spread)), float(mean + spread))
            words = f"{name}: {mean:.3f} (deviation {spread:.3f})"
            marks.append(_bar(x, wide, up, float(mean), ends, kind=f"group{place}", words=words))
        x = LEFT + 12 + 150 * place
        marks.append(tag("rect", x=x, y=TOP - 8, width=10, height=10, class_=f"group{place}"))
        marks.append(text(x + 16, TOP + 1, name, anchor="start"))
    even = up(1 / len(layers))
    marks.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=even, y2=even, class_="rung"))
    return svg("".join(marks), label="confidence of each layer")


def _bar(
    x: float,
    wide: float,
    up: Scale,
    mean: float,
    ends: tuple[float, float],
    *,
    kind: str,
    words: str,
) -> str:
    """Return a bar with its whisker."""
    sizes = {"width": wide * 0.92, "height": up(0) - up(mean)}
    bar = tag("rect", tag("title", escape(words)), x=x, y=up(mean), class_=kind, **sizes)
    middle = x + wide * 0.46
    low, high = map(up, ends)
    return bar + tag("line", x1=middle, x2=middle, y1=low, y2=high, class_="whisker")
