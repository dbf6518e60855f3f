"""The search space: which fields of a run vary, checked against the run before anything starts.

A space is a mapping of fields to axes, or a list of such mappings, of which a trial takes one: what
scikit-learn's ParameterGrid and ParameterSampler take. Points of random, grid and quasi-random
search are functions of the seed and the number of the trial alone: nothing is lost by a crash.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import yaml
from pydantic import ValidationError

from pipeline.config import ConfigError, read_mapping
from pipeline.sweep.axis import Axis, parse_axis
from pipeline.systems.config import SAME, TrainConfig

C = TypeVar("C", bound=TrainConfig)
Params = dict[str, Any]
Given = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Space:
    """The axes of each branch; most spaces have one branch."""

    branches: tuple[tuple[Axis, ...], ...]

    @classmethod
    def parse(cls, given: Given) -> Self:
        """Read a mapping, or a list of mappings, of fields to axes.

        Raises:
            ConfigError: with every axis that cannot be read.
        """
        maps = [given] if isinstance(given, Mapping) else list(given)
        branches, problems = [], []
        for branch in maps:
            axes = []
            for name, words in branch.items():
                try:
                    axes.append(parse_axis(str(name).replace("-", "_"), words))
                except ConfigError as error:
                    problems.append(str(error))
            branches.append(tuple(axes))
        if not maps or not all(maps):
            problems.append("the space is empty; name a field and its values: lr=log:1e-4..1e-2")
        _raise(problems)
        return cls(tuple(branches))

    def check(self, base: TrainConfig) -> None:
        """Raise ConfigError with every axis that the run `base` does not allow."""
        unsearched = base.UNSEARCHED | dict.fromkeys(base.caches(), SAME)
        known = set(type(base).model_fields) - unsearched.keys()
        problems = []
        for axis in itertools.chain(*self.branches):
            if axis.name in unsearched:
                problems.append(f"{axis.name}: {unsearched[axis.name]}")
            elif axis.name not in known:
                problems.append(
                    f"{axis.name}: no field of a run; known: {', '.join(sorted(known))}"
                )
            else:
                problems += _misfits(base, axis)
        for given, idle in base.INSTEAD.items():
            names = {axis.name for axis in itertools.chain(*self.branches)}
            if idle in names and (given in names or getattr(base, given, None) is not None):
                problems.append(
                    f"{idle}: has no effect where {given} is given; vary one of the two"
                )
        _raise(problems)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every field that varies, in order of first appearance."""
        return tuple(dict.fromkeys(axis.name for axis in itertools.chain(*self.branches)))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of a space of one branch.

        Raises:
            ConfigError: there are several.
        """
        if len(self.branches) > 1:
            raise ConfigError("tpe needs one mapping as its space; use sampler random, grid or qmc")
        return self.branches[0]

    def grid(self) -> list[Params]:
        """Return all points, the last axis running fastest.

        Raises:
            ConfigError: an axis has no end of values.
        """
        points: list[Params] = []
        for branch in self.branches:
            names = [axis.name for axis in branch]
            for values in itertools.product(*(axis.values() for axis in branch)):
                points.append(dict(zip(names, values, strict=True)))
        return points

    def random(self, seed: int, number: int) -> Params:
        """Return the random point of trial `number`."""
        draw = np.random.default_rng([seed, number])
        branch = self.branches[int(draw.integers(len(self.branches)))]
        return {axis.name: axis.at(float(draw.random())) for axis in branch}

    def quasi_random(self, seed: int, number: int) -> Params:
        """Return point `number` of a scrambled Sobol sequence (Owen 1998) over the space."""
        from scipy.stats import qmc  # noqa: PLC0415 (slow to import)

        several = int(len(self.branches) > 1)
        size = max(map(len, self.branches)) + several
        sequence = qmc.Sobol(d=size, scramble=True, rng=np.random.default_rng(seed))
        if number:
            sequence.fast_forward(number)
        place = [float(share) for share in sequence.random(1)[0]]
        which = int(place[-1] * len(self.branches)) if several else 0
        branch = self.branches[which]
        return {axis.name: axis.at(place[i]) for i, axis in enumerate(branch)}

    def to_json(self) -> list[dict[str, Any]]:
        """Return the space as JSON values that `parse` reads."""
        return [{axis.name: axis.to_json() for axis in branch} for branch in self.branches]

    def describe(self) -> str:
        """Return one line an axis."""
        lines = [
            "\n".join(f"  {axis.name}: {axis.describe()}" for axis in branch)
            for branch in self.branches
        ]
        return "\n  or\n".join(lines)


def read_space(config: Path | None, file: Path | None, items: Sequence[str]) -> dict[str, Any]:
    """Return `{"space": ...}` of what the command line gives; empty if it says nothing.

    Args:
        config: file of the run or the sweep, whose key `space` counts least.
        file: YAML or JSON of the space.
        items: `field=values`, which win.

    Raises:
        ConfigError: a file cannot be read, or an item has no equals sign.
    """
    space: Any = read_mapping(config).get("space", {}) if config else {}
    try:
        space = space if file is None else yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the space {file}: {error}") from error
    if items and not isinstance(space, dict):
        raise ConfigError("-s adds to a space of one mapping; the file holds something else")
    space = space | _parse_items(items) if items else space
    return {"space": space} if space else {}


def _parse_items(items: Sequence[str]) -> dict[str, str]:
    """Return what the command line gives as `field=values`, by field."""
    wrong = [item for item in items if "=" not in item]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)}: give field=values, as in -s lr=log:1e-4..1e-2")
    return {name.strip(): words for name, _, words in (item.partition("=") for item in items)}


def apply(base: C, params: Mapping[str, Any], **more: Any) -> C:
    """Return the run `base` with the values of a point, checked.

    Raises:
        ConfigError: they do not go together.
    """
    return type(base).build(base.model_dump() | dict(params) | more)


def _misfits(base: TrainConfig, axis: Axis) -> list[str]:
    """Return what is wrong with the ends, or the choices, of an axis."""
    problems = []
    for value in axis.ends():
        try:
            type(base).model_validate(base.model_dump() | {axis.name: value})
        except ValidationError as error:
            why = "; ".join(problem["msg"] for problem in error.errors())
            problems.append(f"{axis.name}: {value!r} is not allowed: {why}")
    return problems


def _raise(problems: list[str]) -> None:
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ConfigError(f"{len(problems)} problem(s) in the space:\n{lines}")
