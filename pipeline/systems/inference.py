"""One inference pass over cached samples, in evaluation mode: the same for every system.

n samples. Equal samples go through the model once, in the order of the disk. Memory: one batch and
the outputs.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cache import Cache, Loader, Source
from pipeline.data import Ints
from pipeline.systems.base import Setup, System
from pipeline.systems.locate import Located
from pipeline.systems.states import batch_states
from pipeline.systems.taps import TowerTaps
from unipt import Outputs, States

__all__ = ["Call", "choose_device", "infer", "run_passes", "take"]

Call = Callable[[Mapping[str, States]], Outputs]
"""What is done with the states of a batch."""


def choose_device(name: str) -> torch.device:
    """Return the torch device `name`; "auto" takes CUDA, then Apple's MPS, then the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def run_passes(
    model: nn.Module, setup: Setup, located: Located, *, batch_size: int
) -> list[Outputs]:
    """Return a model's outputs for a split, one for each pass of its system."""
    was_training = model.training
    model.eval()
    try:
        return [
            infer(model, samples, setup.caches, setup.taps, batch_size=batch_size,
                  device=setup.device)
            for samples in setup.system.passes(located)
        ]  # fmt: skip
    finally:
        model.train(was_training)


def feature_passes(
    system: System,
    caches: Mapping[str, Cache],
    taps: Mapping[str, TowerTaps],
    located: Located,
    *,
    batch_size: int = 64,
) -> list[Outputs]:
    """Return what probes see of a split, one for each pass of its system."""
    return [
        infer(
            lambda towers: system.features(towers, taps),
            samples,
            caches,
            taps,
            batch_size=batch_size,
            device=torch.device("cpu"),
        )
        for samples in system.passes(located)
    ]


@torch.inference_mode()
def infer(
    call: Call,
    samples: Mapping[str, Ints],
    caches: Mapping[str, Cache],
    taps: Mapping[str, TowerTaps],
    *,
    batch_size: int,
    device: torch.device,
) -> Outputs:
    """Return what `call` gives for samples, in their order, on the CPU.

    Args:
        call: a side model in evaluation mode, or anything else that maps states to outputs.
        samples: tower -> [n], of some or all towers.
        caches: of the towers.
        taps: of the towers.
        batch_size: samples of a batch.
        device: where the states go.
    """
    names = tuple(samples)
    rows = np.stack([samples[name] for name in names], 1)  # [n, towers]
    present, where = np.unique(rows, axis=0, return_inverse=True)
    order = np.argsort(caches[names[0]].table.block[present[:, 0]], kind="stable")
    loader = Loader(
        {
            name: Source(
                cache=caches[name],
                samples=present[order, place],
                taps=[tap.name for tap in taps[name].read],
            )
            for place, name in enumerate(names)
        },
        batch_size=batch_size,
        seed=0,
        shuffle=False,
        device=device,
    )
    found = [_on_cpu(call(batch_states(b.parts, taps, device))) for b in loader.epoch(0)]
    return take(_joined(found), np.argsort(order)[where.reshape(-1)])


def take(outputs: Outputs, rows: Ints) -> Outputs:
    """Return the outputs of the samples at these positions, packed ones too."""
    index = torch.from_numpy(rows)
    values, offsets = {}, {}
    for name, value in outputs.values.items():
        if name not in outputs.offsets:
            values[name] = value[index]
            continue
        bounds = outputs.offsets[name]
        lengths = bounds.diff()[index]
        offsets[name] = _bounds(lengths)
        starts = torch.repeat_interleave(bounds[:-1][index] - offsets[name][:-1], lengths)
        values[name] = value[starts + torch.arange(len(starts))]
    confidence = {name: trust[index] for name, trust in outputs.confidence.items()}
    return Outputs(values, offsets, confidence, outputs.scalars)


def _on_cpu(outputs: Outputs) -> Outputs:
    def moved(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: (value.float() if value.is_floating_point() else value).cpu()
            for name, value in values.items()
        }

    return Outputs(*map(moved, outputs))


def _joined(outputs: Sequence[Outputs]) -> Outputs:
    first = outputs[0]
    return Outputs(
        values={name: torch.cat([each.values[name] for each in outputs]) for name in first.values},
        offsets={
            name: _bounds(torch.cat([each.offsets[name].diff() for each in outputs]))
            for name in first.offsets
        },
        confidence={
            name: torch.cat([each.confidence[name] for each in outputs])
            for name in first.confidence
        },
        scalars=first.scalars,
    )


def _bounds(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
