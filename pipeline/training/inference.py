"""Runs a trained side classifier over cached samples, in evaluation mode.

n examples, C outputs, N targets (taps but the anchor). Memory: one batch and the outputs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cache import Cache, Loader


@dataclass(frozen=True)
class Outputs:
    """Outputs of a model over n examples, in their order."""

    logits: NDArray[np.float32]
    """[n, C]; of K trials at once [K, n, C]."""
    confidence: NDArray[np.float32]
    """How much each target layer counted for each example, [n, N] or [K, n, N]; rows sum to 1."""


def choose_device(name: str) -> torch.device:
    """Return the torch device `name`; "auto" takes CUDA, then Apple's MPS, then the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@torch.inference_mode()
def run_model(
    model: nn.Module,
    cache: Cache,
    samples: NDArray[np.int64],
    *,
    taps: tuple[str, ...],
    batch_size: int,
    device: torch.device,
) -> Outputs:
    """Return the model's outputs for `samples` [n] or [n, 2], in their order."""
    loader = Loader(
        cache, samples, taps=taps, batch_size=batch_size, seed=0, shuffle=False, device=device
    )
    was_training = model.training
    model.eval()
    logits, confidence = [], []
    for batch in loader.epoch(0):
        states = batch.values.to(device)  # [N + 1, T, D]
        prediction = model(states, offsets=batch.offsets.to(device))
        logits.append(prediction.logits.float().cpu())
        confidence.append(prediction.confidence.float().cpu())
    model.train(was_training)
    return Outputs(torch.cat(logits, -2).numpy(), torch.cat(confidence, -2).numpy())
