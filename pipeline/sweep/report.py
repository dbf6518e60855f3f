"""One page on a sweep, in one file that needs no network: charts, costs, table.

Pointing at a trial shows it in all charts and in the table; about 1 KB a trial and chart.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline.console import duration
from pipeline.report import confidence_panels, short_name
from pipeline.run import Run, RunError
from pipeline.sweep import charts, page
from pipeline.sweep.folder import BEST, REPORT, SweepError, read_config, read_results
from pipeline.sweep.results import points, shown
from pipeline.sweep.space import Space
from pipeline.tasks.metrics import LOWER_IS_BETTER
from pipeline.training.files import write_with

STATES = (("blue", "complete"), ("grey", "pruned"), ("red", "failed"))


def report_sweep(sweep: Path, out: Path | None = None) -> Path:
    """Draw a finished sweep.

    Args:
        sweep: its folder.
        out: folder of the page; the sweep's own by default.

    Returns:
        The page, `report.html`.

    Raises:
        SweepError: the sweep is not finished, or no trial has a score.
    """
    results = read_results(sweep)
    if all(trial["score"] is None for trial in results["trials"]):
        raise SweepError(f"no trial of {sweep} has a score; see the reasons in results.json")
    target = (out or sweep) / REPORT
    target.parent.mkdir(parents=True, exist_ok=True)
    words = page.page(f"Sweep {sweep.resolve().name}", _body(sweep, results))
    write_with(target, lambda file: file.write_text(words, encoding="utf-8"))
    return target


def _body(sweep: Path, results: Mapping[str, Any]) -> str:
    config = read_config(sweep)
    trials, metric = results["trials"], results["metric"]
    lower = metric in LOWER_IS_BETTER
    space = Space.parse(config.space)
    logs = frozenset(a.name for branch in space.branches for a in branch if a.log)
    rungs = [rung["stop"] for rung in results["rungs"][:-1]]
    judged = f"{config.folds} folds of the training rows" if config.folds else "the dev split"
    intro = (
        f"{len(trials)} trials of {config.run.data.task}, points by {config.sampler}, "
        f"pruner {config.pruner}; {judged} chose by {metric}. Point at a trial to see it "
        "everywhere; click to keep it."
    )
    parts = [
        f"<header><h1>Sweep {escape(sweep.resolve().name)}</h1><p>{intro}</p></header>",
        page.tiles(_facts(results, config.run.epochs)),
        page.section(
            "Every trial at a glance",
            "A line is a trial; the best ones are orange, the worst pale.",
            charts.parallel(trials, metric, lower=lower, logs=logs),
            wide=True,
        ),
        page.pair(
            page.section(
                "History",
                page.key([*STATES, ("orange", "best complete one so far")]),
                charts.history(trials, metric, lower=lower),
            ),
            page.section(
                "Learning curves",
                "Best dev score up to each epoch; rungs are dashed, the winner is orange.",
                charts.curves(trials, metric, rungs, results["best"]),
            ),
        ),
        _insights(results, _confidence(sweep)),
        page.section("Cost", _cost_note(results), _costs(results), wide=True),
        page.section("Trials", _trials_note(sweep), _table(results), wide=True),
    ]
    return "".join(parts)


def _facts(results: Mapping[str, Any], epochs: int) -> list[tuple[str, str]]:
    trials, metric, best = results["trials"], results["metric"], results["best"]
    facts = []
    if best is not None:
        facts.append((points(trials[best]["score"]), f"best dev {metric}, trial {best}"))
        for name, value in results["tested"].get(str(best), {}).items():
            low, high = points(value["low"], 3), points(value["high"], 3)
            told = f"its test {name}, 95 % in [{low}, {high}]"
            facts.append((points(value["value"], 3), told))
    trained = sum(trial["epochs"] for trial in trials)
    whole = sum(trial["planned"] for trial in trials)
    ended = sum(trial["state"] == "complete" for trial in trials)
    facts.append((f"{ended} of {len(trials)}", "trials trained to their end"))
    facts.append((f"{trained / max(1, whole):.0%}", f"of the epochs, {trained:,} of {whole:,}"))
    facts.append((duration(sum(t["seconds"] for t in trials)), "of training, all workers together"))
    read = sum(trial["bytes_read"] for trial in trials) / len(trials)
    facts.append((f"{read / 1e6:,.1f} MB", "of activations read for a trial, on average"))
    return facts


def _insights(results: Mapping[str, Any], layers: Sequence[str]) -> str:
    """Return what matters and which layers count: beside each other, or two towers below."""
    if len(layers) == 1:
        return page.pair(_importance(results), *layers)
    return _importance(results, wide=True) + page.pair(*layers)


def _importance(results: Mapping[str, Any], *, wide: bool = False) -> str:
    shares = results["importances"]
    if not shares:
        note = "Too few trials, or equal scores, to tell."
        return page.section("Importance", note, "", wide=wide)
    note = "Share of the variance of the scores after the first rung that each field explains."
    return page.section("Importance", note, charts.importance(shares), wide=wide)


def _confidence(sweep: Path) -> list[str]:
    """Return a card for each tower of the winner's run, or one that says there is no such run."""
    for split in ("test", "dev"):
        try:
            panels = confidence_panels(Run.open(sweep / BEST), split)
        except RunError:
            continue
        return [
            page.section(
                f"Layers of the winner{', ' * bool(name)}{escape(name)}",
                f"The winner's confidence in each layer ({split}; mean and deviation).",
                charts.confidence([short_name(tap) for tap in layers], groups),
            )
            for name, layers, groups in panels
        ]
    return [page.section("Layers of the winner", "The winner was not trained again (refit).", "")]


def _cost_note(results: Mapping[str, Any]) -> str:
    reasons = sorted({size["reason"] for size in results["sizes"].values()})
    listed = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    note = "Trainings of one unit share each read of the caches."
    return f"{note}<details><summary>Sizes of the units</summary><ul>{listed}</ul></details>"


def _costs(results: Mapping[str, Any]) -> str:
    head = ["epochs", "trials", "trainings", "units", "epochs trained", "seconds", "MB read"]
    rows: list[list[tuple[str, object]]] = []
    for rung in results["rungs"]:
        values = [rung[name] for name in ("trials", "trainings", "units", "epochs")]
        seconds, read = rung["seconds"], rung["bytes_read"] / 1e6
        cells: list[tuple[str, object]] = [(f"{rung['start']} - {rung['stop']}", rung["start"])]
        cells += [(f"{value:,}", value) for value in values]
        rows.append([*cells, (f"{seconds:,.1f}", seconds), (f"{read:,.1f}", read)])
    return page.table(head, rows)


def _trials_note(sweep: Path) -> str:
    place = escape(str(sweep))
    return (
        "Click a column to sort. Any trial is trained again by "
        f"<code>unipt train --from-trial {place}:NUMBER RUN</code>; those with a test score kept "
        f"their weights: <code>unipt export {place}:NUMBER MODEL</code>."
    )


def _table(results: Mapping[str, Any]) -> str:
    trials, metric = results["trials"], results["metric"]
    names = list(dict.fromkeys(name for trial in trials for name in trial["params"]))
    head = ["trial", f"dev {metric}", f"test {metric}", "state", "epochs", "seconds", "MB", *names]
    last = len(trials)
    places = {number: place for place, number in enumerate(results["ranked"])}
    ordered = sorted(trials, key=lambda t: (places.get(t["number"], last), t["number"]))
    rows = []
    for trial in ordered:
        score = trial["score"]
        tested = results["tested"].get(str(trial["number"]), {}).get(metric)
        read = trial["bytes_read"] / 1e6
        cells: list[tuple[str, object]] = [
            (str(trial["number"]), trial["number"]),
            ("" if score is None else points(score), "" if score is None else score),
            _interval(tested),
            (trial["state"], trial["state"]),
            (str(trial["epochs"]), trial["epochs"]),
            (f"{trial['seconds']:,.1f}", trial["seconds"]),
            (f"{read:,.1f}", read),
        ]
        values = [trial["params"].get(name, "") for name in names]
        rows.append([*cells, *((shown(value), value) for value in values)])
    numbers = [trial["number"] for trial in ordered]
    return f'<div class="scroll">{page.table(head, rows, trials=numbers)}</div>'


def _interval(tested: Mapping[str, float] | None) -> tuple[str, object]:
    if tested is None:
        return "", ""
    value, low, high = (points(tested[name], 3) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]", tested["value"]
