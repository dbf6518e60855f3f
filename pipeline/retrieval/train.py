"""Trains two towers of side networks from two caches: pairs in, a run folder out.

No backbone is loaded or imported. An example is a caption with its item, so an item's states are
read once for each of its captions. A step costs both side networks, forward and backward, and one
[b, b] matrix of scores for a batch of b. The loop with its checkpoints is `pipeline.training.loop`.
"""

from typing import Any

import torch
from torch import Tensor

from cache import JointBatch
from pipeline.retrieval.build import (
    RetrievalSetup,
    build_towers,
    make_pair_loader,
    prepare_retrieval,
    retrieval_identity,
)
from pipeline.retrieval.config import RetrievalTrainConfig
from pipeline.retrieval.evaluate import write_ranks
from pipeline.retrieval.fits import Fits
from pipeline.retrieval.inference import embed_split
from pipeline.retrieval.metrics import rank_all, summarize
from pipeline.retrieval.taps import input_type
from pipeline.run import CHECKPOINT, INFO, Run
from pipeline.training.build import make_optimizer
from pipeline.training.checkpoint import Progress
from pipeline.training.loop import Job, ProgressCallback, run_loop
from pipeline.training.results import (
    RunResult,
    describe_cache,
    reuse,
    save_weights,
    write_run,
)
from unipt import SideTower, TwoTowers, contrastive_loss, hinge_loss

__all__ = ["METRIC", "RetrievalTrainConfig", "finish", "make_job", "train_retrieval"]

METRIC = "rsum"
"""The metric of dev that chooses the epoch, and the trial of a sweep."""


def train_retrieval(
    config: RetrievalTrainConfig, progress: ProgressCallback | None = None
) -> RunResult:
    """Train, or finish, the run that `config` describes.

    Args:
        config: data, caches, side networks, loss, optimizer; `config.out` is the run folder.
        progress: called after each step.

    Raises:
        RunError: the folder holds another run.
        Diverged: the loss is not finite.
        DataError: the data are unusable or not in the caches.
        CacheError: a cache is missing, incomplete or damaged.
        ValueError: the options do not fit the data or the caches.
    """
    setup = prepare_retrieval(config)
    own = retrieval_identity(config, setup)
    if (config.out / INFO).exists():
        return reuse(Run.open(config.out), own)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        begun = (config.out / CHECKPOINT).exists()  # which has all that is fitted
        model, job = make_job(config, setup, None if begun else Fits())
        config.out.mkdir(parents=True, exist_ok=True)
        now = run_loop(config, job, identity=own, progress=progress)
        return finish(config, setup, model, now, identity=own, tier=job.batches.tier_reason)


def make_job(
    config: RetrievalTrainConfig, setup: RetrievalSetup, fits: Fits | None
) -> tuple[TwoTowers, Job]:
    """Build the towers, with the pairs and the loss they are trained on.

    `fits` gives statistics and bases; None where a checkpoint is restored, which has them.
    """
    loader = make_pair_loader(config, setup)
    model = build_towers(config, setup)
    if fits is not None:
        fits.fit(model, config, setup)
    model = model.to(setup.device)
    same = _Same(config, setup)
    compute = torch.bfloat16 if config.precision == "bfloat16" else torch.float32

    def side(tower: SideTower, name: str, batch: JointBatch) -> Tensor:
        """Embeddings [b, E] of one tower's part of a batch."""
        noise = getattr(config, f"{name}_noise")
        given = setup.taps[name].inputs(
            batch.parts[name],
            setup.device,
            input_type(tower, compute, noise=noise),
            drop=getattr(config, f"{name}_drop"),
            noise=noise,
        )
        with torch.autocast(setup.device.type, torch.bfloat16, enabled=compute == torch.bfloat16):
            output = tower(given.anchor, given.targets, offsets=given.offsets, frames=given.frames)
        vector: Tensor = output.vector.float()
        return vector

    def loss_of(batch: JointBatch, now: Progress) -> Tensor:
        text, media = side(model.text, "text", batch), side(model.media, "media", batch)
        ignore = same.of(batch.index)
        if config.loss == "infonce":
            return contrastive_loss(media, text, model.scale, ignore=ignore)
        return _hinge(config, media, text, ignore=ignore, now=now, batches=len(loader))

    def score_dev() -> dict[str, float]:
        return _ranked(config, setup, model, "dev") if "dev" in setup.splits else {}

    return model, Job(
        model=model,
        optimizer=make_optimizer(model, config),
        batches=loader,
        loss_of=loss_of,
        score_dev=score_dev,
        metric=METRIC,
    )


def _hinge(
    config: RetrievalTrainConfig,
    media: Tensor,
    text: Tensor,
    *,
    ignore: Tensor | None,
    now: Progress,
    batches: int,
) -> Tensor:
    """Return the hinge loss of VSE-infinity's schedule.

    All negatives in the first epochs, then the hardest; the loss of the first epoch of these grows
    from 0 to its whole, batch by batch.
    """
    early = now.epoch < config.all_negatives_epochs
    loss = hinge_loss(
        media,
        text,
        margin=config.margin,
        negatives="all" if early else "hardest",
        ignore=ignore,
    )
    ramp = config.all_negatives_epochs and now.epoch == config.all_negatives_epochs
    return loss * (now.batch / batches) if ramp else loss


class _Same:
    """Which pairs of a batch match though they were not drawn together."""

    def __init__(self, config: RetrievalTrainConfig, setup: RetrievalSetup) -> None:
        located = setup.splits["train"]
        self.wanted, self.device = config.mask_positives, setup.device
        self.item = torch.from_numpy(located.media[located.split.item_of, 0])  # [m], by content
        self.text = torch.from_numpy(located.text[:, 0])  # [m]

    def of(self, index: Tensor) -> Tensor | None:
        """Return which item (row) and caption (column) of a batch match, [b, b], None if unused."""
        if not self.wanted:
            return None
        item, text = self.item[index], self.text[index]
        return ((item[:, None] == item) | (text[:, None] == text)).to(self.device)


def _ranked(
    config: RetrievalTrainConfig,
    setup: RetrievalSetup,
    model: TwoTowers,
    split: str,
    *,
    write: bool = False,
) -> dict[str, float]:
    """Return the metrics of a split; `write` its ranks and confidences into the run folder."""
    located = setup.splits[split]
    text, media = embed_split(
        model,
        setup.caches,
        setup.taps,
        located,
        batch_size=config.batch_size,
        device=setup.device,
    )
    over = setup.dataset.config.m2t_over
    ranks = rank_all(text.vectors, media.vectors, located.split.item_of, m2t_over=over)
    if write:
        write_ranks(config.out, split, located, ranks, trust=(text, media))
    found = summarize(ranks)
    return {METRIC: found[METRIC]} | found  # the one that chooses comes first


def finish(
    config: RetrievalTrainConfig,
    setup: RetrievalSetup,
    model: TwoTowers,
    now: Progress,
    *,
    identity: str,
    tier: str,
) -> RunResult:
    """Write the best weights, the ranks of dev and test, and run.json last.

    Args:
        config: of the training.
        setup: its data and caches.
        model: takes the best weights.
        now: the finished training's progress, with a best epoch.
        identity: what must be equal for the run to be the same.
        tier: where the batches came from, and why.
    """
    model.load_state_dict(now.best_weights)
    save_weights(config.out, model)
    model = model.to(setup.device)
    splits = [split for split in setup.splits if split != "train"]
    return write_run(
        config.out,
        model,
        now,
        metrics={split: _ranked(config, setup, model, split, write=True) for split in splits},
        tier=tier,
        info=_info(config, setup, model) | {"identity": identity},
    )


def _info(config: RetrievalTrainConfig, setup: RetrievalSetup, model: TwoTowers) -> dict[str, Any]:
    return {
        "kind": "retrieval",
        "config": config.model_dump(mode="json"),
        "model": model.config,
        "task": config.data.task,
        "task_metrics": [METRIC],
        "towers": {
            name: {"taps": list(setup.taps[name].names), "cache": describe_cache(cache)}
            for name, cache in setup.caches.items()
        },
        "examples": {
            name: {"captions": len(located.text), "items": len(located.media)}
            for name, located in setup.splits.items()
        },
        "seed": config.seed,
        "device": str(setup.device),
    }
