"""An epoch of the published retrieval systems from the caches, against recomputing at each step.

Recomputing: each step decodes and preprocesses its pictures or clips, tokenises its captions, runs
both frozen backbones and then the side networks' step; the next batch is decoded by a thread in the
meantime. Cached: each step reads the states and takes the same step. Same batches, same side
networks from the same seed, same loss and optimizer; the losses of both are compared, which differ
by the rounding of the stored states to float16. Random weights: times and sizes are real.

    python -m benchmarks.retrieval_epoch [--pictures 16] [--clips 16] [--repeats 3]
"""

import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from torch import Tensor

from benchmarks.common import interleaved, paired_ratio, report
from benchmarks.published import TOWERS, System, build_systems, live_part
from cache import Batch
from pipeline.backbones import Backbone, Encoded
from pipeline.data import Ints
from pipeline.systems import Setup
from pipeline.systems.config import TrainConfig
from pipeline.tasks.base import Moment
from pipeline.training.job import make_job, make_model
from pipeline.training.loop import Job
from pipeline.training.setup import make_loader, prepare

Prepared = dict[str, tuple[Encoded, dict[str, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class EpochFigures:
    """One system.

    Attributes:
        pairs: captions with their items of an epoch.
        batch_size: of a step.
        bytes: of both caches.
        extraction_seconds: of both towers, once.
        seconds: of every epoch, of each kind.
        ratio: recomputing over cached, the median of neighbouring pairs.
        largest_loss_difference: of the steps of the last pair of epochs.
        losses: of these steps, cached.
    """

    pairs: int
    batch_size: int
    bytes: int
    extraction_seconds: float
    seconds: dict[str, list[float]]
    ratio: float
    largest_loss_difference: float
    losses: list[float]


class Recomputed:
    """The batches of an epoch, made from files and texts each time."""

    def __init__(self, system: System, setup: Setup, device: str) -> None:
        self.taps = setup.taps
        self.backbones: dict[str, Backbone] = {}
        self.encoded: dict[str, Encoded] = {}
        for tower in TOWERS:
            backbone = system.extraction(tower, device).loader()()
            inputs = setup.splits["train"].examples.inputs(tower, backbone.modality)
            self.backbones[tower], self.encoded[tower] = backbone, backbone.encode(inputs)

    def batches(self, wanted: Iterable[Ints]) -> Iterator[Batch]:
        """Yield a batch for the captions at each of the positions; one more is decoded ahead."""
        with ThreadPoolExecutor(1, "decode") as thread:
            ahead: list[tuple[Ints, Future[Prepared]]] = []
            for positions in wanted:
                ahead.append((positions, thread.submit(self._prepare, positions)))
                if len(ahead) > 1:
                    yield self._batch(*ahead.pop(0))
            while ahead:
                yield self._batch(*ahead.pop(0))

    def _prepare(self, positions: Ints) -> Prepared:
        encoded = {tower: self.encoded[tower].select(positions) for tower in TOWERS}
        return {tower: (encoded[tower], self.backbones[tower].prepare(encoded[tower]))
                for tower in TOWERS}  # fmt: skip

    def _batch(self, positions: Ints, prepared: Future[Prepared]) -> Batch:
        parts = {}
        for tower, (encoded, ready) in prepared.result().items():
            backbone, taps = self.backbones[tower], self.taps[tower]
            parts[tower] = live_part(backbone, taps, encoded, prepared=ready)
        return Batch(parts=parts, index=torch.from_numpy(positions))


def epoch(job: Job, read: Iterable[Batch], batches: int) -> list[float]:
    """Take a step on each of the epoch's batches; return the losses."""
    losses = []
    job.model.train()
    for number, batch in enumerate(read):
        loss = job.loss_of(batch, Moment(0, number, batches))
        job.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        job.optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def measure(system: System, config: TrainConfig, *, repeats: int, device: str) -> EpochFigures:
    """Extract both towers, and time both kinds of epochs in turn."""
    extracted = system.extract(device)
    setup = prepare(config)
    recomputed = Recomputed(system, setup, device)
    loader = make_loader(config, setup)
    order = loader.batches(0)
    losses: dict[str, list[float]] = {}

    def timed(kind: str) -> Callable[[], None]:
        """Return an epoch of one kind; the next one starts from the same weights again."""
        jobs = iter([fresh_job(config, setup) for _ in range(repeats + 1)])

        def run() -> None:
            read = loader.epoch(0) if kind == "cached" else recomputed.batches(order)
            losses[kind] = epoch(next(jobs), read, len(order))

        return run

    seconds = interleaved({kind: timed(kind) for kind in ("recomputed", "cached")}, repeats=repeats)
    pairs = zip(losses["recomputed"], losses["cached"], strict=True)
    return EpochFigures(
        pairs=sum(map(len, order)),
        batch_size=config.batch_size,
        bytes=sum(each.bytes for each in extracted.values()),
        extraction_seconds=sum(each.seconds for each in extracted.values()),
        seconds=seconds,
        ratio=paired_ratio(seconds["recomputed"], seconds["cached"]),
        largest_loss_difference=max(abs(a - b) for a, b in pairs),
        losses=losses["cached"],
    )


def fresh_job(config: TrainConfig, setup: Setup) -> Job:
    """Return the training with the weights its seed gives."""
    torch.manual_seed(config.seed)
    return make_job(config, setup, make_model(config, setup))


def describe(system: System, found: EpochFigures) -> list[str]:
    """Return what one system comes to."""
    medians = {kind: statistics.median(values) for kind, values in found.seconds.items()}
    media, text = system.backbones["media"], system.backbones["text"]
    return [
        f"{system.name}: {media}, and {text}; {found.pairs} pairs in batches of "
        f"{found.batch_size}, {found.bytes / 1e6:,.0f} MB cached",
        f"  recomputed epoch  {medians['recomputed']:8.2f} s   decode, forward, side step",
        f"  cached epoch      {medians['cached']:8.2f} s   same batches, same side networks",
        f"  ratio             {found.ratio:8.1f} x   median of neighbouring pairs",
        f"  extraction        {found.extraction_seconds:8.2f} s   once, all splits",
        f"  largest difference of the steps' losses {found.largest_loss_difference:.1e} (losses "
        f"{min(found.losses):.3f} to {max(found.losses):.3f})",
    ]


@click.command()
@click.option("--pictures", default=16, show_default=True, help="Pictures of VSE-infinity.")
@click.option("--clips", default=16, show_default=True, help="Clips of CLIP4Clip.")
@click.option("--batch-size", default=4, show_default=True, help="Pairs of a step.")
@click.option("--repeats", default=3, show_default=True, help="Measured epochs of each kind.")
@click.option("--device", default="auto", show_default=True, help="Torch device.")
def main(pictures: int, clips: int, batch_size: int, repeats: int, device: str) -> None:
    """Measure both kinds of epochs of both systems; random weights, generated media."""
    lines, figures = ["random weights, generated pictures and clips (mp4, 15 s)"], {}
    with tempfile.TemporaryDirectory() as folder:
        for system in build_systems(Path(folder), pictures_given=pictures, clips_given=clips):
            config = system.training(batch_size=batch_size, device=device, tier="host")
            found = measure(system, config, repeats=repeats, device=device)
            figures[system.name] = asdict(found)
            lines += describe(system, found)
    report("retrieval_epoch", {"weights": "random", "systems": figures}, lines)


if __name__ == "__main__":
    main()
