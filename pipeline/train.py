"""Trains a side network from a cache: targets and activations in, a run folder out.

The backbone is neither loaded nor imported. Memory: the weights (about four copies), and the
cache's blocks in the host tier or a window of them in the disk tier. A step costs one pass over
the batch's states (taps x tokens x width) in the Down maps and as much again for their gradients.
The loop itself, with its checkpoints, is `pipeline.training.loop`.
"""

import torch
from torch import Tensor

from cache import Batch
from pipeline.evaluate import split_metrics
from pipeline.run import INFO, Run
from pipeline.training.augment import training_states
from pipeline.training.build import (
    Setup,
    build_model,
    identity,
    make_loader,
    make_optimizer,
    prepare,
    set_statistics,
    split_outputs,
    target_tensor,
)
from pipeline.training.checkpoint import Progress
from pipeline.training.config import TrainConfig
from pipeline.training.loop import Diverged, Job, ProgressCallback, TrainProgress, run_loop
from pipeline.training.results import RunResult, finish, reuse
from unipt import SideClassifier

__all__ = ["Diverged", "RunResult", "TrainConfig", "TrainProgress", "train"]


def train(config: TrainConfig, progress: ProgressCallback | None = None) -> RunResult:
    """Train, or finish, the run that `config` describes.

    Args:
        config: data, cache, side network, optimizer; `config.out` is the run folder.
        progress: called after each step.

    Raises:
        RunError: the folder holds another run.
        Diverged: the loss is not finite.
        DataError: the data are unusable or not in the cache.
        CacheError: the cache is missing, incomplete or damaged.
        ValueError: the options do not fit the data or the cache.
    """
    setup = prepare(config)
    own = identity(config, setup)
    if (config.out / INFO).exists():
        return reuse(Run.open(config.out), own)
    config.out.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model, job = make_job(config, setup)
        now = run_loop(config, job, identity=own, progress=progress)
        return finish(config, setup, model, now, identity=own, tier=job.batches.tier_reason)


def make_job(config: TrainConfig, setup: Setup) -> tuple[SideClassifier, Job]:
    """Build the classifier, with the batches and the loss it is trained on."""
    device, task = setup.device, setup.task
    loader = make_loader(config, setup)
    targets = target_tensor(setup)
    model = build_model(config, setup)
    if model.config["side"]["input_norm"] == "standard":
        set_statistics(model, loader)
    model = model.to(device)
    low = config.precision == "bfloat16"

    def loss_of(batch: Batch, now: Progress) -> Tensor:
        states, offsets = training_states(
            config, batch, device, epoch=now.epoch, number=now.batch, convert=False
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            outputs = model(states, offsets=offsets).logits  # [B, C]
        return task.loss(outputs, targets[batch.index].to(device))

    def score_dev() -> dict[str, float]:
        return _score(config, setup, model, "dev") if "dev" in setup.splits else {}

    return model, Job(
        model=model,
        optimizer=make_optimizer(model, config),
        batches=loader,
        loss_of=loss_of,
        score_dev=score_dev,
        metric=task.metrics[0],
    )


def _score(
    config: TrainConfig, setup: Setup, model: SideClassifier, split: str
) -> dict[str, float]:
    outputs = split_outputs(model, setup, split, config.batch_size)
    scale, shift = setup.task.unscale
    return split_metrics(setup.task, outputs.logits * scale + shift, setup.splits[split].targets)
