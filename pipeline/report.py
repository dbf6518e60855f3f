"""Draws a run: the confidence of each layer, the learning curve, the comparison with probes.

Needs the extra `plot` (matplotlib, without a display). Reads only the run folder.
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.run import Run, RunError
from pipeline.training.files import write_with
from pipeline.training.judge import Evaluation

COLOURS = ("#2a6f97", "#e07a5f", "#81b29a", "#8d6a9f", "#f2b134", "#5c677d", "#b56576", "#6d9f71")
DPI = 150
METRICS = 4
"""Metrics of a comparison, at most: the first ones."""
Array = NDArray[np.float64]
Groups = dict[str, Array]
Panel = tuple[str, Sequence[str], Groups]
"""Title, target layers, and confidences [n, N] by group."""


def report(run_path: Path, out: Path | None = None, *, split: str = "test") -> list[Path]:
    """Draw everything that a run has the data for.

    Args:
        run_path: a finished run.
        out: folder of the files; the run's own by default.
        split: split whose predictions and evaluations are drawn.

    Returns:
        The PNG files: `confidence.png`, `learning.png`, and `comparison.png` if the run was
        evaluated.

    Raises:
        RunError: there is no finished run, or it has no predictions of `split`.
        ImportError: matplotlib is not installed.
    """
    run = Run.open(run_path)
    out = out or run.path
    out.mkdir(parents=True, exist_ok=True)
    files = [
        draw_confidence(run, out / "confidence.png", split=split),
        draw_learning(run, out / "learning.png"),
    ]
    rows = read_evaluations(run.path, split)
    if rows:
        files.append(draw_comparison(rows, out / "comparison.png"))
    return files


def read_evaluations(folder: Path, split: str) -> list[dict[str, Any]]:
    """Return the probes' and the run's own evaluations of `split`, as `Evaluation.to_dict`."""
    rows = []
    for layers in ("last", "all"):
        file = folder / f"probe_{layers}.json"
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))["evaluations"]
            rows += [found[split]] if split in found else []
    file = folder / f"evaluation_{split}.json"
    if file.is_file():
        rows.append(json.loads(file.read_text(encoding="utf-8")))
    return [row for row in rows if row["metrics"]]


def draw_confidence(run: Run, path: Path, *, split: str = "test") -> Path:
    """Draw the confidence of each layer: mean and standard deviation over samples.

    A panel a tower; a bar for each class where there are some, else one for all samples.
    """
    panels = confidence_panels(run, split)
    most = max(len(layers) for _, layers, _ in panels)
    figure, axes = _figure((len(panels) * max(6.0, 1.0 + 0.75 * most), 3.8), columns=len(panels))
    for panel, (name, layers, groups) in zip(np.atleast_1d(axes), panels, strict=True):
        _draw_layers(panel, [short_name(layer) for layer in layers], groups)
        panel.set_title(name, fontsize=10)
    figure.suptitle(f"Confidence of each layer ({split}; mean and deviation)", fontsize=10)
    return _save(figure, path)


def confidence_panels(run: Run, split: str) -> list[Panel]:
    """Return a panel for each tower whose confidence the records of a split hold.

    Raises:
        RunError: there are no such records.
    """
    files = sorted(run.path.glob(f"*_{split}.jsonl"), key=lambda path: path.stem)
    files.sort(key=lambda path: not path.name.startswith("predictions"))
    found = [records for records in map(_records, files) if "confidence" in records[0]]
    if not found:
        raise RunError(
            f"{run.path} has no predictions_{split}.jsonl with the confidence of each layer; run "
            f"`evaluate` with split {split}"
        )
    towers = {(each.taps, each.cache["digest"]): name for name, each in run.towers.items()}
    several = len(towers) > 1
    return [
        (f"{name} tower" * several, taps[:-1] or taps, confidence_groups(run, records))
        for ((taps, _), name), records in zip(towers.items(), found, strict=False)
    ]


def confidence_groups(run: Run, records: Sequence[dict[str, Any]]) -> Groups:
    """Return the confidences [n, N] of each true class (of all samples if there are none)."""
    values = np.asarray([record["confidence"] for record in records], dtype=np.float64)
    labels = run.labels
    if labels is None or len(labels) > len(COLOURS) or records[0].get("target") is None:
        return {"all samples": values}
    targets = np.asarray([record["target"] for record in records])
    return {name: values[targets == name] for name in labels if (targets == name).any()}


def _records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] or [{}]


def _draw_layers(axes: Any, layers: Sequence[str], groups: dict[str, Array]) -> None:
    """Draw the bars of one panel: layers side by side, a bar for each group."""
    width = 0.8 / len(groups)
    places = np.arange(len(layers))
    for number, (name, values) in enumerate(groups.items()):
        shift = (number - (len(groups) - 1) / 2) * width
        axes.bar(
            places + shift,
            values.mean(0),
            width * 0.92,
            yerr=_spread(values),
            color=COLOURS[number % len(COLOURS)],
            error_kw={"elinewidth": 1.0, "ecolor": "#444444", "capsize": 2},
            label=f"{name} (n = {len(values):,})",
        )
    axes.axhline(1 / len(layers), color="#888888", linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        "even",
        (1.0, 1 / len(layers)),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color="#666666",
    )
    axes.set_xticks(places, layers)
    axes.set_xlabel("layer")
    axes.set_ylabel("confidence p")
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
    axes.legend(frameon=False, ncols=min(3, len(groups)), fontsize=9, loc="upper left")


def draw_learning(run: Run, path: Path) -> Path:
    """Draw training loss and dev metric by epoch, with the chosen epoch marked."""
    history = run.info["history"]
    metric = run.info["task_metrics"][0]
    epochs = [record["epoch"] for record in history]
    figure, axes = _figure((6.0, 3.6))
    axes.plot(epochs, [record["loss"] for record in history], color=COLOURS[0], label="loss")
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss", color=COLOURS[0])
    axes.xaxis.get_major_locator().set_params(integer=True)
    values = [record["dev"][metric] for record in history if record["dev"]]
    if not values:  # fitted on the dev rows too
        axes.set_title("Learning curve (kept: the last epoch)", fontsize=10)
        return _save(figure, path)
    right = axes.twinx()
    right.spines["top"].set_visible(False)
    right.plot(epochs, values, color=COLOURS[1], marker="o", markersize=3)
    best = run.info["best_epoch"]
    right.plot(
        [best], [values[best - 1]], "o", markersize=9, markerfacecolor="none", color=COLOURS[1]
    )
    right.set_ylabel(f"dev {metric}", color=COLOURS[1])
    axes.set_title(
        f"Learning curve (kept: epoch {best}, dev {metric} {values[best - 1]:.3f})", fontsize=10
    )
    return _save(figure, path)


def draw_comparison(rows: Sequence[Evaluation | dict[str, Any]], path: Path) -> Path:
    """Draw evaluations of one split beside each other, a panel a metric, with their intervals.

    Of many metrics, the first `METRICS` are drawn.
    """
    records = [row.to_dict() if isinstance(row, Evaluation) else row for row in rows]
    if not records:
        raise ValueError("there is nothing to compare; give at least one evaluation")
    metrics = list(records[0]["metrics"])[:METRICS]
    digits = records[0]["digits"]
    size = (1.2 + 3.2 * len(metrics), 1.3 + 0.5 * len(records))
    figure, panels = _figure(size, columns=len(metrics))
    places = np.arange(len(records))[::-1]
    for panel, metric in zip(np.atleast_1d(panels), metrics, strict=True):
        found = [record["metrics"][metric] for record in records]
        for number, (place, value) in enumerate(zip(places, found, strict=True)):
            own = number == len(records) - 1
            low, high = value["value"] - value["low"], value["high"] - value["value"]
            panel.errorbar(
                value["value"],
                place,
                xerr=[[max(0.0, low)], [max(0.0, high)]],
                fmt="o",
                capsize=3,
                color=COLOURS[1] if own else COLOURS[0],
            )
            panel.annotate(
                f"{value['value']:.{digits}f}",
                (value["value"], place),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        panel.set_title(metric, fontsize=10)
        panel.set_ylim(-0.6, len(records) - 0.3)
        panel.set_yticks(places, [record["name"] for record in records])
        panel.grid(axis="x", color="#dddddd", linewidth=0.7)
        panel.tick_params(axis="y", length=0)
    first = records[0]
    figure.suptitle(
        f"{first['split']}, {first['examples']:,} {first['unit']}, {first['level']:.0%} intervals",
        fontsize=10,
    )
    return _save(figure, path)


def _spread(values: Array) -> Array:
    """Return the whiskers [2, N]: one standard deviation, cut at zero."""
    mean, deviation = values.mean(0), values.std(0)
    return np.stack([np.minimum(mean, deviation), deviation])


def short_name(name: str) -> str:
    """Shorten a tap's name for an axis: "encoder.layer.03" becomes "3", others their last part."""
    last = name.rsplit(".", 1)[-1]
    if last.isdecimal():
        return str(int(last))
    return "emb" if last.startswith("embed") else last


def _figure(size: tuple[float, float], columns: int = 1) -> tuple[Any, Any]:
    try:
        backend = importlib.import_module("matplotlib.backends.backend_agg")
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError("drawing needs matplotlib; pip install 'unipt[plot]'") from error
    figure = figures.Figure(figsize=size, layout="constrained")
    backend.FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, sharey=True)
    for one in np.atleast_1d(axes):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    write_with(path, lambda file: figure.savefig(file, dpi=DPI, format="png"))
    return path
