"""Reading from each tier, and the share of a training that waits for data.

    python -m benchmarks.tiers [--samples 1500] [--repeats 3] [--batches 40]

Made-up states of BERT-base's size (13 taps of width 768, float16, sentences of 29 tokens) and of
CLIP ViT-B/32's (13 taps of 50 x 768, pictures), in shuffled batches, for each tier that this
machine has:

- GB/s of an epoch that only reads, from the second on; the disk tier holds 32 blocks, and its files
  lie in the page cache.
- the share of a training epoch spent in `next(batches)`, in the first epoch, which fills the tier
  from the disk (page cache dropped), and in later ones: BERT-base's size, a side network of width
  192, AdamW, batches of 32; on CUDA under bfloat16 autocast, every step synchronised so that
  waiting is not hidden.
- on a GPU also the forward pass that the cached states spare: BERT-base and CLIP ViT-B/32 with
  random weights in bfloat16, samples a second, against a training epoch from each tier.

Without a GPU its part is skipped, and a line says so.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.activations import Activations, forget
from benchmarks.common import interleaved, report, synchronize
from benchmarks.side import TOWER, states_of, token_classifier
from cache import Batch, Cache, Loader, Source, TapSpec, Tier

BATCH = 32
SIDE_WIDTH = 192


def make_loader(cache: Cache, tier: Tier, device: torch.device) -> Loader:
    """Return a shuffled loader; the disk tier with two windows of blocks, whatever is free."""
    source = Source(cache=cache, samples=np.arange(cache.n_samples))
    return Loader({TOWER: source}, batch_size=BATCH, seed=0, tier=tier, device=device)


def reading(loader: Loader) -> Callable[[], None]:
    """Return a run through one epoch, another each time."""
    number = iter(range(1, 10**9))

    def run() -> None:
        for batch in loader.epoch(next(number)):
            del batch

    return run


class Training:
    """A side network of BERT-base's states, trained step by step.

    Args:
        taps: that it reads.
        device: to train on.
    """

    def __init__(self, taps: Sequence[TapSpec], device: torch.device) -> None:
        self.taps, self.device = taps, device
        self.net = token_classifier(taps, SIDE_WIDTH, device)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4)

    def step(self, batch: Batch) -> None:
        """Take one optimizer step."""
        fast = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast):
            states = states_of(batch, self.taps, self.device)
            logits = self.net({TOWER: states}).values["logits"]
        labels = (batch.index % 2).to(self.device)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        synchronize()

    def waiting(self, batches: Iterator[Batch], most: int) -> dict[str, float]:
        """Train on at most so many batches; return seconds, those waited, and samples."""
        found = {"seconds": 0.0, "waited": 0.0, "samples": 0.0}
        start = time.perf_counter()
        for _ in range(most):
            asked = time.perf_counter()
            batch = next(batches, None)
            found["waited"] += time.perf_counter() - asked
            if batch is None:
                break
            found["samples"] += len(batch.index)
            self.step(batch)
        found["seconds"] = time.perf_counter() - start
        return found


def measure_waiting(
    path: Path, tier: Tier, device: torch.device, repeats: int, most: int
) -> dict[str, dict[str, float]]:
    """Train from a tier: the first epoch, and the later ones put together."""
    training = Training(Cache.open(path).taps, device)
    warmed = make_loader(Cache.open(path), tier, device).epoch(0)
    training.waiting(warmed, 2)
    warmed.close()
    loader = make_loader(Cache.open(path), tier, device)
    forget(path)
    first = training.waiting(loader.epoch(0), most)
    for _ in loader.epoch(0):  # the rest of a long epoch
        pass
    later = [training.waiting(loader.epoch(number), most) for number in range(1, 1 + repeats)]
    return {
        "first epoch": first,
        "later epochs": {key: sum(run[key] for run in later) for key in first},
    }


def forward_rates(device: torch.device, repeats: int) -> dict[str, float]:
    """Samples a second of the bare frozen networks, in bfloat16 with random weights."""
    from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel  # noqa: PLC0415

    models: list[nn.Module] = [BertModel(BertConfig()), CLIPVisionModel(CLIPVisionConfig())]
    bert, clip = (model.to(device, torch.bfloat16).eval() for model in models)
    words = torch.randint(0, 30000, (256, 32), device=device)
    pictures = torch.randn(256, 3, 224, 224, device=device, dtype=torch.bfloat16)

    @torch.no_grad()
    def pass_through(model: nn.Module, inputs: Tensor) -> None:
        model(inputs)

    work = {
        "BERT-base": lambda: pass_through(bert, words),
        "CLIP ViT-B/32": lambda: pass_through(clip, pictures),
    }
    seconds = interleaved(work, repeats=repeats)
    return {name: 256 / statistics.median(values) for name, values in seconds.items()}


def tiers_of(device: torch.device) -> tuple[Tier, ...]:
    """Return the tiers that differ on a device."""
    return ("disk", "host") if device.type == "cpu" else ("disk", "host", "device")


@click.command()
@click.option("--samples", default=1500, show_default=True, help="Sentences; a third of pictures.")
@click.option("--repeats", default=3, show_default=True, help="Measured epochs of each kind.")
@click.option(
    "--batches", default=40, show_default=True, help="Training steps of an epoch, at most."
)
@click.option("--device", default="auto", show_default=True, help="Torch device.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write; temporary files.")
def main(samples: int, repeats: int, batches: int, device: str, folder: Path | None) -> None:
    """Measure every tier of the device."""
    has_gpu = torch.cuda.is_available()
    place = torch.device(("cuda" if has_gpu else "cpu") if device == "auto" else device)
    lines = [f"{samples} sentences, {samples // 3} pictures, batches of {BATCH}, on {place}"]
    figures: dict[str, Any] = {"samples": samples, "device": str(place)}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        kinds = {
            "BERT-base": Activations(samples),
            "CLIP ViT-B/32": Activations(samples // 3, length=50),
        }
        for kind, made in kinds.items():
            path = Path(name) / kind.replace("/", "-")
            cache = made.write(path)
            loaders = {tier: make_loader(cache, tier, place) for tier in tiers_of(place)}
            seconds = interleaved({t: reading(x) for t, x in loaders.items()}, repeats=repeats)
            figures[f"reading {kind}"] = seconds
            for tier, values in seconds.items():
                rate = made.nbytes / statistics.median(values) / 1e9
                lines.append(f"{kind:<14} {tier:<7} {rate:8.2f} GB/s")
            del loaders, cache
        for tier in tiers_of(place):
            path = Path(name) / "BERT-base"
            found = measure_waiting(path, tier, place, repeats, batches)
            figures[f"waiting {tier}"] = found
            for epoch, run in found.items():
                lines.append(
                    f"training from {tier:<7} {epoch:<13} {run['waited'] / run['seconds']:6.1%} "
                    f"waiting, {run['samples'] / run['seconds']:,.0f} samples/s"
                )
    if place.type == "cuda":
        figures["forward"] = forward_rates(place, repeats)
        for kind, rate in figures["forward"].items():
            lines.append(f"{kind:<14} forward {rate:,.0f} samples/s, bfloat16, 32 tokens or 224 px")
    else:
        lines.append("no GPU: the device tier and the bare forward passes are left out")
    report("tiers", figures, lines)


if __name__ == "__main__":
    main()
