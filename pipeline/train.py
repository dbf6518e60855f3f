"""Trains a side model from caches: targets and activations in, a run folder out.

No backbone is loaded or imported. Memory: the weights (about four copies), and the caches' blocks
in the host tier or a window of them in the disk tier. A step costs one pass over the batch's states
(taps x tokens x width) in the Down maps and as much again for their gradients. The loop itself,
with its checkpoints, is `pipeline.training.loop`.
"""

import importlib
import logging
from pathlib import Path
from typing import Any

import torch

from pipeline.run import CHECKPOINT, CURVES, INFO, Run
from pipeline.systems import train_config
from pipeline.systems.config import LoopConfig, TrainConfig
from pipeline.systems.memo import Memo
from pipeline.training.checkpoint import Progress
from pipeline.training.files import write_lines
from pipeline.training.job import make_job, make_model
from pipeline.training.loop import (
    Diverged,
    ProgressCallback,
    Training,
    TrainProgress,
    train_epochs,
)
from pipeline.training.results import RunResult, finish, reuse
from pipeline.training.setup import identity, make_loader, prepare

__all__ = ["Diverged", "RunResult", "TrainConfig", "TrainProgress", "train", "train_config"]

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig, progress: ProgressCallback | None = None, *, memo: Memo | None = None
) -> RunResult:
    """Train, or finish, the run that `config` describes.

    Args:
        config: data, caches, side model, optimizer; `config.out` is the run folder.
        progress: called after each step.
        memo: what other trainings of this process have read.

    Raises:
        RunError: the folder holds another run.
        Diverged: the loss is not finite.
        DataError: the data are unusable or not in the caches.
        CacheError: a cache is missing, incomplete or damaged.
        ConfigError: the options do not fit the data or the caches.
    """
    setup = prepare(config, memo)
    own = identity(config, setup)
    if (config.out / INFO).exists():
        return reuse(Run.open(config.out), own)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        begun = (config.out / CHECKPOINT).exists()  # which has all that is fitted
        model = setup.system.build(config, setup) if begun else make_model(config, setup)
        loader = make_loader(config, setup)
        logger.info("batches from %s", loader.tier_reason)
        config.out.mkdir(parents=True, exist_ok=True)
        training = Training(
            config,
            make_job(config, setup, model),
            len(loader),
            config.out / CHECKPOINT,
            identity=own,
            after_epoch=lambda now: _write_curves(config, now),
        )
        train_epochs([training], loader, until=config.epochs, progress=progress)
        if training.failed is not None:
            raise training.failed
        return finish(config, setup, model, training.now, identity=own, tier=loader.tier_reason)


def _write_curves(config: LoopConfig, now: Progress) -> None:
    write_lines(config.out / CURVES, now.history)
    if config.tensorboard:
        _write_tensorboard(config.out / "tensorboard", now.history[-1])


def _write_tensorboard(folder: Path, record: dict[str, Any]) -> None:
    try:
        tensorboard = importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise ImportError(
            "tensorboard: true needs the package; pip install 'unipt[tensorboard]'"
        ) from error
    with tensorboard.SummaryWriter(str(folder)) as writer:
        writer.add_scalar("loss", record["loss"], record["step"])
        writer.add_scalar("lr", record["lr"], record["step"])
        for name, value in record["dev"].items():
            writer.add_scalar(f"dev/{name}", value, record["step"])
