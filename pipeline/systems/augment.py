"""Augmentation of cached features: noise on the states, dropped tokens, patches and frames.

It stands in for what a frozen backbone in training mode would give (live dropout, corrupted
tokens) and that a cache of evaluation-mode activations cannot. N taps, T packed tokens, P patches
of a grid, D width. Cost: one pass over the batch each.
"""

import numpy as np
import torch
from torch import Generator, Tensor


def batch_generator(
    seed: int, epoch: int, batch: int, device: torch.device | str = "cpu"
) -> Generator:
    """Return a generator of one batch's noise: trainings of equal `seed` see equal noise."""
    (state,) = np.random.SeedSequence([seed, epoch, batch]).generate_state(1, np.uint64)
    return Generator(device).manual_seed(int(state >> np.uint64(1)))


def add_noise(states: Tensor, share: float, generator: Generator, *, features: int = -1) -> Tensor:
    """Add Gaussian noise, `share` times each feature's deviation in the batch.

    The deviation is taken feature by feature, as a few features of a language model are a hundred
    times larger than the others.

    Args:
        states: N taps, ``[N, ..., D]``, or maps ``[N, b, C, H, W]``.
        share: of the deviation.
        generator: to draw from.
        features: the dimension of the features, 2 for maps.
    """
    kept = (0, features % states.dim())
    dims = [dim for dim in range(states.dim()) if dim not in kept]
    scale = states.float().std(dim=dims, keepdim=True, correction=0) * share
    noise = torch.empty_like(states).normal_(generator=generator)
    return states + noise * scale.to(states.dtype)


def drop_rows(
    stacks: list[Tensor],
    offsets: Tensor,
    share: float,
    generator: Generator,
    *,
    keep_last: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """Drop each row with probability `share`, but never the first one of a sample.

    Args:
        stacks: packed states of the same rows, ``[N_i, T, ...]`` each.
        offsets: bounds of the samples ``[B + 1]``, from 0 to T.
        share: probability of a row to be dropped.
        generator: to draw from.
        keep_last: spare the last row of a sample too (EOS).

    Returns:
        The kept states ``[N_i, T', ...]`` and their offsets ``[B + 1]``.
    """
    tokens, device = stacks[0].shape[1], stacks[0].device
    keep = torch.rand(tokens, device=device, generator=generator) >= share  # [T]
    keep[offsets[:-1]] = True
    if keep_last:
        keep[offsets[1:] - 1] = True
    kept_before = torch.cat([keep.new_zeros(1, dtype=torch.long), keep.long().cumsum(0)])
    return [states[:, keep] for states in stacks], kept_before[offsets]


def drop_patches(stacks: list[Tensor], share: float, generator: Generator) -> list[Tensor]:
    """Drop the share of patches, others for every sample, but never the first one (CLS).

    Args:
        stacks: grids of the same patches, [N_i, b, P, D_i].
        share: of the patches to drop.
        generator: to draw from.

    Returns:
        [N_i, b, P', D_i], in their old order.
    """
    samples, patches = stacks[0].shape[1:3]
    count = max(1, round(patches * (1 - share)))
    turn = torch.rand(samples, patches, device=stacks[0].device, generator=generator)
    turn[:, 0] = -1.0
    kept = turn.argsort(1)[:, :count].sort(1).values  # [b, P']
    rows = torch.arange(samples, device=kept.device)[:, None]
    return [states[:, rows, kept] for states in stacks]
