"""Runs made of trials: ordinary run folders that `evaluate`, `report` and `export` take.

A trial whose state was kept becomes a run without training; any other trial is trained again by
`train --from-trial`, which gives the same run. The test split is read here, after all is chosen.
"""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data import DataConfig, load_dataset
from pipeline.evaluate import EvaluateConfig, run_outputs, run_task
from pipeline.run import INFO, Run
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.folder import SweepError, is_sweep, read_config, read_results
from pipeline.sweep.setups import Setups
from pipeline.sweep.space import Params, apply
from pipeline.sweep.state import TrialState
from pipeline.sweep.trial import Trial
from pipeline.sweep.units import Member, last_state, member_config
from pipeline.tasks.metrics import METRICS, Interval
from pipeline.train import RunResult, train
from pipeline.training.build import build_model, identity
from pipeline.training.config import TrainConfig
from pipeline.training.results import finish

Tested = dict[str, Interval]
_TRIAL = re.compile(r"(.+):(\d+)")


def parse_trial(words: str) -> tuple[Path, int]:
    """Return folder and number of `SWEEP:NUMBER`.

    Raises:
        SweepError: it is not that, or there is no such sweep.
    """
    found = _TRIAL.fullmatch(words)
    if found is None or not is_sweep(Path(found[1])):
        raise SweepError(f"{words} names no trial; give SWEEP:NUMBER, as in sweeps/tweets:12")
    return Path(found[1]), int(found[2])


def trial_settings(words: str) -> dict[str, Any]:
    """Return the settings of the trial `SWEEP:NUMBER`, as `train` takes them, without `out`."""
    config = trial_config(*parse_trial(words), Path())
    return config.model_dump(mode="json", exclude={"out"})


def run_of(words: str) -> Path:
    """Return the run of the trial `SWEEP:NUMBER`, or the path `words` if that is a folder."""
    return Path(words) if Path(words).is_dir() else trial_run(*parse_trial(words))


def trial_values(sweep: Path, number: int) -> Params:
    """Return the point of a trial.

    Raises:
        SweepError: the sweep is not finished, or has no such trial.
    """
    trials = read_results(sweep)["trials"]
    if not 0 <= number < len(trials):
        raise SweepError(f"{sweep} has the trials 0 .. {len(trials) - 1}, not {number}")
    params: Params = trials[number]["params"]
    return params


def trial_config(sweep: Path, number: int, out: Path) -> TrainConfig:
    """Return the training of a trial's first seed, as `train` takes it, into the folder `out`.

    Raises:
        SweepError: the sweep is not finished, or has no such trial.
    """
    return _run_config(read_config(sweep), trial_values(sweep, number), out)


def trial_run(sweep: Path, number: int, *, seed: int = 0) -> Path:
    """Return the run of a trial that kept its weights, written on first use.

    Raises:
        SweepError: there is no such trial, or it kept no weights.
    """
    config = read_config(sweep)
    params = trial_values(sweep, number)
    setups = Setups(config.folds, config.run.data.split_seed)
    path = None if config.folds else _as_run(config, setups, params, Member(number, seed))
    if path is None:
        why = "its weights are those of folds" if config.folds else "only the best keep theirs"
        raise SweepError(
            f"trial {number} of {sweep} has no weights: {why}. Train it: "
            f"`unipt train --from-trial {sweep}:{number} --out RUN`"
        )
    return path


def test_trials(config: SweepConfig, setups: Setups, trials: Sequence[Trial]) -> dict[int, Tested]:
    """Return the chosen metric of trials on test by number, with its bootstrap interval.

    With several seeds it is the mean over the seeds. Models of folds are not tested, nor is
    anything without a labelled test split.
    """
    whole = setups.whole(config.run)
    if config.folds or "test" not in whole.splits or whole.splits["test"].targets is None:
        return {}
    found = {}
    for trial in trials:
        runs = [_as_run(config, setups, trial.params, member) for member in trial.configs]
        found[trial.number] = tested([Run.open(run) for run in runs if run is not None])
    return found


def tested(runs: Sequence[Run], *, resamples: int = 1000, level: float = 0.95) -> Tested:
    """Return the first metric of the runs' task on test: mean over the runs, with its interval.

    Rows are resampled for all runs together; for one run this is what `evaluate` gives.
    """
    dataset = load_dataset(runs[0].data)
    task = run_task(runs[0], dataset)
    guesses: list[NDArray[Any]] = []
    for run in runs:
        located, outputs = run_outputs(run, dataset, "test", EvaluateConfig(run=run.path))
        guesses.append(task.decode(outputs.logits))
    targets, metric = located.targets, METRICS[task.kind][task.metrics[0]]
    if targets is None:
        raise SweepError(f"{runs[0].path}: the test split has no targets")

    def mean(rows: Any) -> float:
        return statistics.fmean(metric(targets[rows], guess[rows]) for guess in guesses)

    random, tails = np.random.default_rng(0), (50 * (1 - level), 50 * (1 + level))
    draws = [mean(random.integers(0, len(targets), len(targets))) for _ in range(resamples)]
    low, high = map(float, np.percentile(draws, tails))
    return {task.metrics[0]: Interval(mean(slice(None)), low, high)}


def refit(config: SweepConfig, params: Params, out: Path) -> RunResult:
    """Train the point `params` into the folder `out`, on train, or on train and dev."""
    return train(_run_config(config, params, out, dev_too=config.refit == "train+dev"))


def _run_config(
    config: SweepConfig, params: Params, out: Path, *, dev_too: bool = False
) -> TrainConfig:
    data: DataConfig = config.run.data.model_copy(update={"fit_on_dev": dev_too})
    seeds = {"seed": config.run.seed, "order_seed": config.run.batch_seed}
    return apply(config.run, params, out=out, data=data.model_dump(), **seeds)


def _as_run(config: SweepConfig, setups: Setups, params: Params, member: Member) -> Path | None:
    """Write the run of a member, unless it is there; None if its state was not kept."""
    run = member_config(config, params, member)
    if (run.out / INFO).is_file():
        return run.out
    path = last_state(config.out, member)
    if path is None:
        return None
    setup = setups.whole(run)
    state = TrialState.load(path)
    with torch.random.fork_rng():
        model = build_model(run, setup)
    run.out.mkdir(parents=True, exist_ok=True)
    own = identity(run, setup)
    finish(run, setup, model, state.progress, identity=own, tier="the cohorts of a sweep")
    return run.out
