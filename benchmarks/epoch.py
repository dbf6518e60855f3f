"""An epoch from the cache against an epoch as the official code runs it.

Official: each step pads its batch to the longest sentence, runs the frozen backbone, then the
side network on the padded states. Ours: each step reads the packed states from the cache and runs
the same side network on the valid tokens. Same batches, same side network, same optimizer; the
losses of both are compared, so that the two epochs are known to do the same work.

    python -m benchmarks.epoch [--samples 600] [--repeats 3] [--device auto]
"""

import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import interleaved, paired_ratio, report
from benchmarks.sentences import movie_sentences, random_bert
from benchmarks.side import TOWER, states_of, token_classifier
from cache import Cache, Loader, Source, TapSpec
from pipeline.backbones import TextBackbone, load_backbone
from pipeline.backbones.encoding import EncodedTexts
from pipeline.extract import extract_inputs
from unipt import SideClassifier, States, TapRecorder

AXIS = "tokens"


def step(net: SideClassifier, optimizer: torch.optim.Optimizer, logits: Tensor, y: Tensor) -> float:
    """Take one optimizer step and return the loss."""
    loss = nn.functional.cross_entropy(logits, y)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()
    return float(loss.detach())


def official_epoch(
    backbone: TextBackbone,
    encoded: EncodedTexts,
    batches: Iterable[np.ndarray],
    net: SideClassifier,
    labels: Tensor,
) -> list[float]:
    """Recompute the backbone at every step; return the losses."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    losses = []
    for samples in batches:
        batch = backbone.prepare(encoded.select(samples))
        with torch.no_grad(), TapRecorder(backbone.model, backbone.tap_modules) as recorder:
            backbone.model(**batch)
            states = {tap: recorder.states[tap].float() for tap in backbone.tap_modules}
        given = States(states, masks={AXIS: batch["attention_mask"].bool()})
        logits = net({TOWER: given}).values["logits"]
        losses.append(step(net, optimizer, logits, labels[torch.from_numpy(samples)]))
    return losses


def cached_epoch(
    loader: Loader, taps: Sequence[TapSpec], net: SideClassifier, labels: Tensor
) -> list[float]:
    """Read the states at every step; return the losses."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    losses = []
    for batch in loader.epoch(0):
        logits = net({TOWER: states_of(batch, taps, labels.device)}).values["logits"]
        losses.append(step(net, optimizer, logits, labels[batch.index]))
    return losses


@click.command()
@click.option("--samples", default=600, show_default=True, help="Sentences of an epoch.")
@click.option("--batch-size", default=100, show_default=True, help="Sentences of a step.")
@click.option("--side-width", default=192, show_default=True, help="Width d of the side network.")
@click.option("--repeats", default=3, show_default=True, help="Measured epochs of each kind.")
@click.option("--device", default="auto", show_default=True, help="Torch device.")
def main(samples: int, batch_size: int, side_width: int, repeats: int, device: str) -> None:
    """Measure both epochs on a BERT-base with random weights and real sentences."""
    with tempfile.TemporaryDirectory() as folder:
        model = random_bert(Path(folder) / "bert")
        backbone = load_backbone(str(model), device=device, dtype="float32", max_length=128)
        assert isinstance(backbone, TextBackbone)
        inputs = movie_sentences(samples)
        rows = [(str(number), text) for number, text in enumerate(inputs)]
        extraction = extract_inputs(backbone, rows, Path(folder) / "cache", store_dtype="float16")
        cache = Cache.open(Path(folder) / "cache")
        found = cache.find(np.stack([np.frombuffer(x.key(), np.uint8) for x in inputs]))
        source = Source(cache=cache, samples=found)
        loader = Loader({TOWER: source}, batch_size=batch_size, seed=0, tier="host")
        labels = torch.arange(samples, device=backbone.device) % 2
        encoded = backbone.encode(inputs)
        batches = loader.batches(0)
        losses: dict[str, list[float]] = {}

        def official() -> None:
            net = token_classifier(cache.taps, side_width, backbone.device)
            losses["official"] = official_epoch(backbone, encoded, batches, net, labels)

        def cached() -> None:
            net = token_classifier(cache.taps, side_width, backbone.device)
            losses["cached"] = cached_epoch(loader, cache.taps, net, labels)

        seconds = interleaved({"official": official, "cached": cached}, repeats=repeats)
    ratio = paired_ratio(seconds["official"], seconds["cached"])
    padded = sum(len(b) * int(encoded.lengths[b].max()) for b in batches)
    gap = max(abs(a - b) for a, b in zip(losses["official"], losses["cached"], strict=True))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    figures = {
        "samples": samples,
        "batch_size": batch_size,
        "side_width": side_width,
        "tokens": int(encoded.lengths.sum()),
        "padded_tokens": padded,
        "seconds": seconds,
        "ratio": ratio,
        "largest_loss_difference": gap,
        "extraction_seconds": extraction.seconds,
    }
    lines = [
        f"BERT-base, random weights, side width {side_width}, {samples} sentences of movies, "
        f"{int(encoded.lengths.sum()):,} tokens ({padded:,} padded), limit 128, batch {batch_size}",
        f"official epoch  {medians['official']:8.2f} s   backbone forward at each step",
        f"cached epoch    {medians['cached']:8.2f} s   same batches, same side network",
        f"ratio           {ratio:8.1f} x   median of {repeats} neighbouring pairs",
        f"extraction      {extraction.seconds:8.2f} s   once",
        f"largest difference of the steps' losses {gap:.1e}",
    ]
    report("epoch", figures, lines)


if __name__ == "__main__":
    main()
