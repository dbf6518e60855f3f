"""Evaluates a finished run on any of its splits: every metric with a bootstrap interval.

Cost: one pass of the side model over the split's cached samples, and 1,000 evaluations of each
metric.
"""

from pathlib import Path

from pydantic import Field

from pipeline.config import Config, ConfigError
from pipeline.run import Run
from pipeline.systems import Setup, load_dataset
from pipeline.systems.inference import choose_device
from pipeline.systems.locate import locate, modality_of
from pipeline.systems.memo import Memo
from pipeline.systems.taps import select
from pipeline.tasks.base import Judged
from pipeline.training.files import write_json
from pipeline.training.judge import (
    Evaluation,
    evaluated,
    judge_split,
    render_table,
    write_records,
)

__all__ = ["EvaluateConfig", "Evaluation", "evaluate", "judge_run", "render_table", "run_setup"]


class EvaluateConfig(Config):
    """Which run is evaluated, on what."""

    run: Path
    """Folder of the finished run."""
    split: str = "test"
    """Split to evaluate: train, dev or test."""
    cache: tuple[str, ...] = ()
    """Where a cache of the run is now, if it has moved since the training; of a run of several
    towers TOWER=PLACE (repeatable)."""
    resamples: int = Field(default=1000, ge=0)
    """Bootstrap resamples of an interval."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Share of the resamples inside an interval."""
    seed: int = Field(default=0, ge=0)
    """Seed of the resamples."""
    batch_size: int = Field(default=64, ge=1)
    """Examples of one pass."""
    device: str = "auto"
    """Torch device; auto takes CUDA, then MPS, then the CPU."""


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Evaluate a run; write its records and `evaluation_<split>.json` into its folder.

    Raises:
        RunError: there is no finished run.
        FingerprintMismatch: a cache is not the one the run was trained on.
        DataError: the split is missing, or not in the caches.
    """
    run = Run.open(config.run)
    judged = judge_run(run, config)
    result = evaluated(
        judged,
        name="side network",
        split=config.split,
        resamples=config.resamples,
        level=config.level,
        seed=config.seed,
        predictions=write_records(run.path, config.split, judged),
    )
    write_json(run.path / f"evaluation_{config.split}.json", result.to_dict())
    return result


def judge_run(run: Run, config: EvaluateConfig) -> Judged:
    """Return the judgement of a run on `config.split`; errors are those of `evaluate`."""
    setup = run_setup(run, (config.split,), moved=config.cache, device=config.device)
    model = run.model().to(setup.device)
    return judge_split(setup, model, config.split, batch_size=config.batch_size)


def run_setup(
    run: Run,
    splits: tuple[str, ...],
    *,
    moved: tuple[str, ...] = (),
    device: str = "auto",
) -> Setup:
    """Return what a run was trained from, with some of its splits found in the caches.

    Args:
        run: a finished run.
        splits: to find.
        moved: where caches are now, see `Run.caches`.
        device: where the model is to be.

    Raises:
        ConfigError: the files now give other class names.
        FingerprintMismatch: a cache is not the one the run was trained on.
        DataError: a split is missing, or not in the caches.
    """
    system, training = run.system, run.config
    caches = run.caches(moved)
    dataset = load_dataset(training.data)
    task = system.task(dataset, training)
    if task.facts != run.info["facts"]:
        raise ConfigError(
            f"the run was trained on {run.info['facts']}, its files now give {task.facts}; restore "
            "the files"
        )
    towers = system.towers(dataset)
    modalities = {
        name: modality_of(cache, towers[name].modalities[0]) for name, cache in caches.items()
    }
    return Setup(
        system=system,
        dataset=dataset,
        task=task,
        caches=caches,
        taps={
            name: select(caches[name], each.taps, "taps", towers[name].facts)
            for name, each in run.towers.items()
        },
        splits={split: locate(dataset, split, caches, modalities) for split in splits},
        device=choose_device(device),
        memo=Memo(),
    )
