"""Augmentation of cached features: noise on the states and dropped tokens.

It stands in for what a frozen backbone in training mode would give (live dropout, corrupted
tokens) and that a cache of evaluation-mode activations cannot. N taps, T packed tokens, P patches
of a grid, D width. Cost: one pass over the batch each.
"""

import numpy as np
import torch
from torch import Generator, Tensor

from cache import Batch
from pipeline.training.config import LoopConfig, TrainConfig


def batch_generator(
    seed: int, epoch: int, batch: int, device: torch.device | str = "cpu"
) -> Generator:
    """Return a generator of one batch's noise: trainings of equal `seed` see equal noise."""
    (state,) = np.random.SeedSequence([seed, epoch, batch]).generate_state(1, np.uint64)
    return Generator(device).manual_seed(int(state >> np.uint64(1)))


def compute_type(config: LoopConfig) -> torch.dtype:
    """Return the type of the arithmetic."""
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def training_states(
    config: TrainConfig,
    batch: Batch,
    device: torch.device,
    *,
    epoch: int,
    number: int,
    convert: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return a batch's states in the type of the arithmetic, augmented, and their offsets.

    Args:
        config: precision, noise, token_drop, and the seed of the batches.
        batch: from the loader.
        device: where the training runs.
        epoch: of the training, from 0.
        number: of the batch in the epoch, from 0.
        convert: without noise, false leaves the states in the cache's type.
    """
    states = batch.values.to(device, non_blocking=True)  # [N + 1, T, D]
    offsets = batch.offsets.to(device)
    if convert or config.noise:
        states = states.to(compute_type(config))
    if config.noise or config.token_drop:
        generator = batch_generator(config.batch_seed, epoch, number, device)
        states, offsets = drop_tokens(states, offsets, config.token_drop, generator)
        states = add_noise(states, config.noise, generator)
    return states, offsets


def add_noise(states: Tensor, share: float, generator: Generator | None = None) -> Tensor:
    """Add Gaussian noise to states [N, T, D], `share` times each feature's deviation in the batch.

    The deviation is taken feature by feature, as a few features of a language model are a hundred
    times larger than the others.
    """
    if not share:
        return states
    scale = states.float().std(dim=1, keepdim=True, correction=0) * share  # [N, 1, D]
    noise = torch.empty_like(states).normal_(generator=generator)
    return states + noise * scale.to(states.dtype)


def add_grid_noise(states: Tensor, share: float) -> Tensor:
    """As `add_noise`, for grids [N, b, P, D] and maps [N, b, C, H, W] (features are channels)."""
    if not share:
        return states
    dims = (1, 3, 4) if states.dim() == 5 else (1, 2)
    scale = states.float().std(dim=dims, keepdim=True, correction=0) * share
    return states + torch.randn_like(states) * scale.to(states.dtype)


def drop_tokens(
    states: Tensor, offsets: Tensor, share: float, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Drop each token with probability `share`, but never the first one of a segment.

    Args:
        states: packed states [N, T, D].
        offsets: bounds of the segments [S + 1], from 0 to T.
        share: probability of a token to be dropped.
        generator: to draw from; None for torch's own.

    Returns:
        The kept states [N, T', D] and their offsets [S + 1].
    """
    if not share:
        return states, offsets
    (kept,), bounds = drop_rows([states], offsets, share, generator=generator)
    return kept, bounds


def drop_rows(
    stacks: list[Tensor],
    offsets: Tensor,
    share: float,
    *,
    keep_last: bool = False,
    generator: Generator | None = None,
) -> tuple[list[Tensor], Tensor]:
    """As `drop_tokens`, the same tokens of several stacks [N_i, T, ...].

    `keep_last` spares the last token of a segment too (EOS).
    """
    tokens, device = stacks[0].shape[1], stacks[0].device
    keep = torch.rand(tokens, device=device, generator=generator) >= share  # [T]
    keep[offsets[:-1]] = True
    if keep_last:
        keep[offsets[1:] - 1] = True
    kept_before = torch.cat([keep.new_zeros(1, dtype=torch.long), keep.long().cumsum(0)])
    return [states[:, keep] for states in stacks], kept_before[offsets]


def drop_patches(stacks: list[Tensor], share: float) -> list[Tensor]:
    """Drop the share of patches, others for every sample, but never the first one (CLS).

    Args:
        stacks: grids of the same patches, [N_i, b, P, D_i].
        share: of the patches to drop.

    Returns:
        [N_i, b, P', D_i], in their old order.
    """
    samples, patches = stacks[0].shape[1:3]
    count = max(1, round(patches * (1 - share)))
    turn = torch.rand(samples, patches, device=stacks[0].device)
    turn[:, 0] = -1.0
    kept = turn.argsort(1)[:, :count].sort(1).values  # [b, P']
    rows = torch.arange(samples, device=kept.device)[:, None]
    return [states[:, rows, kept] for states in stacks]
