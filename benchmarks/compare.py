"""The same benchmark in another checkout of the project and in this one: figures side by side.

    python -m benchmarks.compare OLD_TREE [epoch "reading --gigabytes 1" ...] [--rounds 2]

Each command runs as `python -m benchmarks.COMMAND` with one tree and then with the other, and again
in each further round, so that what else the machine does falls on both. Every figure that differs
is shown as median over the rounds (of seconds: over all repetitions) of the old tree, the new one,
and their ratio. Both use the downloads of this tree, and neither's committed results are touched.
Takes twice the time of the benchmarks, times the rounds; by default they are those of `make bench`.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import report
from benchmarks.run import SHORT
from benchmarks.sentences import WORK

ROOT = Path(__file__).parent.parent
RUN = """
import os, runpy
from pathlib import Path
from benchmarks import common
common.RESULTS = Path(os.environ["BENCHMARK_RESULTS"])  # older trees do not know the variable
runpy.run_module("benchmarks." + os.environ["BENCHMARK_NAME"], run_name="__main__", alter_sys=True)
"""
Figures = dict[str, list[float]]
"""A figure's place in the results, such as "seconds.cached" -> its values."""


def figures_of(tree: Path, command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a benchmark with the code of a tree; return what it reports.

    Args:
        tree: a checkout of the project.
        command: the benchmark's name and its options.
        folder: an empty one, to work in.

    Raises:
        RuntimeError: it failed.
    """
    WORK.mkdir(exist_ok=True)
    (folder / WORK.name).symlink_to(WORK.resolve())
    results, (name, *options) = folder / "results", command
    own = {"PYTHONPATH": str(tree), "BENCHMARK_RESULTS": str(results), "BENCHMARK_NAME": name}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *options], cwd=folder, env=os.environ | own, check=False
    )
    found = sorted(results.glob("*.json"))
    if done.returncode or not found:
        raise RuntimeError(f"{shlex.join(command)} failed in {tree}")
    return {key: value for file in found for key, value in json.loads(file.read_text()).items()}


def flat(value: Any, place: str = "") -> Iterator[tuple[str, list[float]]]:
    """Yield the place and the values of each measured number within some results."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from flat(inner, f"{place}.{name}" if place else str(name))
    elif isinstance(value, float):
        yield place, [value]
    elif isinstance(value, list) and value and all(isinstance(each, float) for each in value):
        yield place, value
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from flat(inner, f"{place}.{number}")


def measure(trees: Mapping[str, Path], command: Sequence[str], rounds: int) -> dict[str, Figures]:
    """Return the figures of each tree over all rounds, which alternate."""
    found: dict[str, Figures] = {name: {} for name in trees}
    for _ in range(rounds):
        for name, tree in trees.items():
            with tempfile.TemporaryDirectory() as folder:
                results = figures_of(tree, command, Path(folder))
            for place, values in flat({k: v for k, v in results.items() if k != "machine"}):
                found[name].setdefault(place, []).extend(values)
    return found


def rows(found: Mapping[str, Figures]) -> dict[str, dict[str, float]]:
    """Return old, new and new/old of each figure that both trees have and that differs."""
    table = {}
    for place in found["old"].keys() & found["new"].keys():
        old, new = (statistics.median(found[name][place]) for name in ("old", "new"))
        if old != new:
            table[place] = {"old": old, "new": new, "ratio": new / old if old else float("inf")}
    return dict(sorted(table.items()))


def main(arguments: Sequence[str] | None = None) -> None:
    usual = [shlex.join([module.rpartition(".")[2], *options]) for module, *options in SHORT]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", type=Path, help="the other checkout")
    parser.add_argument("commands", nargs="*", default=usual, help="benchmarks, with options")
    parser.add_argument("--rounds", type=int, default=2, help="times that each tree runs")
    options = parser.parse_args(arguments)
    trees = {"old": options.tree.resolve(), "new": ROOT.resolve()}
    figures = {
        command: rows(measure(trees, shlex.split(command), options.rounds))
        for command in options.commands
    }
    lines = [f"{'median over the rounds':<58}{'old':>12}{'new':>12}{'new/old':>9}"]
    for command, found in figures.items():
        lines.append(command)
        lines += [
            f"  {place:<56}{row['old']:>12.4g}{row['new']:>12.4g}{row['ratio']:>9.2f}"
            for place, row in found.items()
        ]
    report("compare", {"rounds": options.rounds, "commands": figures}, lines)


if __name__ == "__main__":
    main()
