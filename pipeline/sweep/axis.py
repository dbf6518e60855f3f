"""One axis of a search space: choices, a range, or a distribution of scipy; pure.

An axis maps a number in [0, 1) to a value, so random and quasi-random points need no state, and
says what it is to Optuna. In words:

    2,4,8             choices                   0..0.5            any number between
    log:1e-4..1e-2    by order of magnitude     int:2..10         whole numbers, both ends included
    int:16..128:16    in steps of 16            logint:8..512     both
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import yaml

from pipeline.config import ConfigError

Scalar = str | int | float | bool | None
EXAMPLES = (
    "'2,4,8' or a list, '0..0.5', 'log:1e-4..1e-2', 'int:2..10', 'int:16..128:16', 'logint:8..512'"
)
_RANGE = re.compile(r"(?:(log|int|logint):)?\s*([^.,:\s][^,:\s]*?)\.\.([^,:\s]+?)(?::([^,:\s]+))?")
_KEYS = {"low", "high", "log", "int", "step"}


class Frozen(Protocol):
    """A frozen distribution of scipy.stats."""

    dist: Any
    args: tuple[Any, ...]
    kwds: dict[str, Any]

    def ppf(self, q: float) -> Any:
        """Return the value below which the share `q` lies."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What one field may be.

    Attributes:
        name: the field.
        choices: the values, if they are listed.
        low: the least number of a range.
        high: the greatest.
        log: whether the range is even in the logarithm.
        whole: whether its numbers are whole.
        step: between neighbours, counted from `low`; None for any number.
        frozen: scipy's distribution, where it is none of those.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    step: float | None = None
    frozen: Frozen | None = None

    @property
    def spacing(self) -> float | None:
        """Distance of neighbouring values; None for any number."""
        return 1 if self.whole and self.step is None else self.step

    def at(self, share: float) -> Any:
        """Return the value at `share` in [0, 1) of the axis."""
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.frozen is not None:
            return _plain(self.frozen.ppf(min(max(share, 1e-9), 1 - 1e-9)))
        if self.spacing is None:
            return self._between(self.low, self.high, share)
        half = 0.5 * self.spacing  # every value gets an equal part of the axis, ends included
        found = self._between(self.low - half, self.high + half, share)
        number = min(max(round((found - self.low) / self.spacing), 0), self.count() - 1)
        value = self.low + number * self.spacing
        return round(value) if self.whole else float(value)

    def _between(self, low: float, high: float, share: float) -> float:
        if not self.log:
            return low + share * (high - low)
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))

    def count(self) -> int:
        """Number of values of choices, whole numbers and steps; 0 where there is no end of them."""
        if self.choices or self.frozen is not None or self.spacing is None:
            return len(self.choices)
        return 1 + math.floor((self.high - self.low) / self.spacing + 1e-9)

    def values(self) -> list[Any]:
        """Return all values, for a grid.

        Raises:
            ConfigError: there is no end of them.
        """
        if self.choices:
            return list(self.choices)
        if not self.count():
            raise ConfigError(
                f"{self.name}: a grid needs choices, whole numbers or steps, not {self.describe()}"
            )
        step = self.spacing or 1
        found = [self.low + number * step for number in range(self.count())]
        return [round(value) if self.whole else float(value) for value in found]

    def ends(self) -> list[Any]:
        """Return the values that bound the axis: if the run takes them it takes all."""
        return list(self.choices) or [self.at(0.0), self.at(1.0)]

    def describe(self) -> str:
        """Return the axis in words, as `parse_axis` reads them."""
        if self.choices:
            return ",".join(str(value) for value in self.choices)
        if self.frozen is not None:
            return f"scipy {self.frozen.dist.name}{self.frozen.args or ''}"
        kind = ("log" if self.log else "") + ("int" if self.whole else "")
        step = "" if self.step is None else f":{self.step:g}"
        return f"{kind}{':' * bool(kind)}{self.low:g}..{self.high:g}{step}"

    def to_json(self) -> Any:
        """Return the axis as JSON values that `parse_axis` reads."""
        if self.choices:
            return [list(c) if isinstance(c, tuple) else c for c in self.choices]
        if self.frozen is not None:
            one = self.frozen
            return {"scipy": one.dist.name, "args": list(one.args), "kwds": dict(one.kwds)}
        whole = {"int": self.whole, "log": self.log, "step": self.step}
        return {"low": self.low, "high": self.high} | whole


def encode(value: Any) -> Scalar:
    """Return a value as Optuna stores it: lists as JSON text."""
    return value if isinstance(value, Scalar) else json.dumps(value)


def parse_axis(name: str, given: Any) -> Axis:
    """Read an axis from a list, a string, a mapping, or a frozen distribution of scipy.stats.

    Raises:
        ConfigError: it is none of these; the message shows what is.
    """
    if hasattr(given, "ppf"):
        return _from_scipy(name, given)
    if isinstance(given, Mapping):
        return _from_mapping(name, given)
    if isinstance(given, str):
        return _from_words(name, given)
    if isinstance(given, Sequence):
        return _chosen(name, given)
    return _chosen(name, [given])


def _chosen(name: str, values: Sequence[Any]) -> Axis:
    if not values:
        raise ConfigError(f"{name}: an empty list leaves nothing to try; give values: {EXAMPLES}")
    frozen = tuple(tuple(v) if isinstance(v, list) else v for v in values)
    if len({json.dumps(v) for v in frozen}) < len(frozen):
        raise ConfigError(f"{name}: the choices {list(values)} hold one value twice")
    return Axis(name=name, choices=frozen)


def _from_words(name: str, text: str) -> Axis:
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        return _chosen(name, [_scalar(part) for part in text.split(",") if part.strip()])
    kind, low, high, step = found.groups()
    kind = kind or ""
    return _range(
        name,
        text,
        low=low,
        high=high,
        log=kind.startswith("log"),
        whole=kind.endswith("int"),
        step=step,
    )


def _from_mapping(name: str, given: Mapping[str, Any]) -> Axis:
    if "scipy" in given:
        from scipy import stats  # noqa: PLC0415 (slow to import, and rare)

        make = getattr(stats, str(given["scipy"]))
        return _from_scipy(name, make(*given.get("args", ()), **given.get("kwds", {})))
    if not {"low", "high"} <= given.keys() <= _KEYS:
        raise ConfigError(f"{name}: {dict(given)} needs low and high, and may have log, int, step")
    flags = {"log": bool(given.get("log")), "whole": bool(given.get("int"))}
    values = {"low": given["low"], "high": given["high"], "step": given.get("step")}
    return _range(name, dict(given), **values, **flags)


def _range(
    name: str, given: Any, *, low: Any, high: Any, log: bool, whole: bool, step: Any
) -> Axis:
    try:
        bottom, top = float(low), float(high)
        width = None if step is None else float(step)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {given!r} is no range of numbers; give {EXAMPLES}") from error
    problems = {
        "the first end must be below the second": not bottom < top < math.inf,
        "a logarithmic range must begin above 0": log and bottom <= 0,
        "ends and step must be whole numbers": whole
        and any(v % 1 for v in (bottom, top, width or 1)),
        "the step must be above 0": width is not None and width <= 0,
        "a logarithmic range has no step": log and width is not None,
    }
    wrong = [problem for problem, found in problems.items() if found]
    if wrong:
        raise ConfigError(f"{name}: {'; '.join(wrong)} (given: {given!r})")
    if width is not None:  # the last value is a whole number of steps away
        top = bottom + math.floor((top - bottom) / width + 1e-9) * width
    return Axis(name=name, low=bottom, high=top, log=log, whole=whole, step=width)


def _from_scipy(name: str, frozen: Any) -> Axis:
    """Keep scipy's distribution; uniform, log-uniform and whole ones become ranges."""
    kind = frozen.dist.name
    low, high = (float(frozen.ppf(share)) for share in (0.0, 1.0))
    if kind == "uniform":
        return Axis(name=name, low=low, high=high)
    if kind in ("loguniform", "reciprocal"):
        return Axis(name=name, low=low, high=high, log=True)
    if kind == "randint":
        return Axis(name=name, low=low + 1, high=high, whole=True)
    return Axis(name=name, low=low, high=high, frozen=frozen)


def _plain(value: Any) -> Any:
    """Return a number of numpy as one of Python."""
    return value.item() if hasattr(value, "item") else value


def _scalar(text: str) -> Any:
    """Return a word as YAML reads it, numbers such as 1e-4 included."""
    try:
        return (
            float(text)
            if re.fullmatch(r"\s*[-+]?\d+(\.\d*)?[eE][-+]?\d+\s*", text)
            else (yaml.safe_load(text))
        )
    except yaml.YAMLError:
        return text.strip()
