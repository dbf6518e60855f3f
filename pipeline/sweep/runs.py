"""Runs made of trials: ordinary run folders that `evaluate`, `report` and `export` take.

A trial whose state was kept becomes a run without training; any other trial is trained again by
`train --from-trial`, which gives the same run. The test split is read here, after all is chosen.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.run import INFO, Run
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.folder import SweepError, is_sweep, read_config, read_results
from pipeline.sweep.space import Params, apply
from pipeline.sweep.trainer import Tested, Trainer
from pipeline.sweep.trial import Trial
from pipeline.sweep.units import Replicate, last_state, replicate_config, seeds
from pipeline.systems.config import TrainConfig
from pipeline.train import train
from pipeline.training.results import RunResult

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
    config = read_config(sweep)
    return apply(config.run, trial_values(sweep, number), out=out, **seeds(config.run))


def trial_run(sweep: Path, number: int, *, seed: int = 0) -> Path:
    """Return the run of a trial that kept its weights, written on first use.

    Raises:
        SweepError: there is no such trial, or it kept no weights.
    """
    config = read_config(sweep)
    params = trial_values(sweep, number)
    path = None
    if not config.folds:
        path = _as_run(config, Trainer(config), params, Replicate(number, seed))
    if path is None:
        why = "its weights are those of folds" if config.folds else "only the best keep theirs"
        raise SweepError(
            f"trial {number} of {sweep} has no weights: {why}. Train it: "
            f"`unipt train --from-trial {sweep}:{number} --out RUN`"
        )
    return path


def test_trials(
    config: SweepConfig, trainer: Trainer, trials: Sequence[Trial]
) -> dict[int, Tested]:
    """Return the chosen metric of trials on test by number, with its bootstrap interval.

    With several seeds it is the mean over the seeds. Models of folds are not tested, nor is
    anything without a labelled test split.
    """
    found: dict[int, Tested] = {}
    for trial in trials if not config.folds and trainer.has_test() else ():
        runs = [_as_run(config, trainer, trial.params, each) for each in trial.configs]
        tested = trainer.tested([Run.open(run) for run in runs if run is not None])
        if tested:
            found[trial.number] = tested
    return found


def refit(config: SweepConfig, trainer: Trainer, trial: Trial, out: Path) -> RunResult:
    """Write the run of a trial (its first seed) on train, or on train and dev, into `out`.

    What the sweep has trained on train is not trained again: the run is that very training.
    """
    run = config.last_fit(apply(config.run, trial.params, out=out, **seeds(config.run)))
    state = last_state(config.out, Replicate(trial.number))
    if config.refit == "train" and not config.folds and state and not (out / INFO).is_file():
        return trainer.write_run(run, state)
    return train(run, memo=trainer.memo)


def _as_run(
    config: SweepConfig, trainer: Trainer, params: Params, replicate: Replicate
) -> Path | None:
    """Write the run of a replicate, unless it is there; None if its state was not kept."""
    run = replicate_config(config.run, params, replicate)
    if not (run.out / INFO).is_file():
        state = last_state(config.out, replicate)
        if state is None:
            return None
        trainer.write_run(run, state)
    return run.out
