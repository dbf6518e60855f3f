"""Augmentation of cached features: noise on the states and dropped tokens.

It stands in for what a frozen backbone in training mode would give (live dropout, corrupted
tokens) and that a cache of evaluation-mode activations cannot. N taps, T packed tokens, P patches
of a grid, D width. Cost: one pass over the batch each.
"""

import torch
from torch import Tensor


def add_noise(states: Tensor, share: float) -> Tensor:
    """Add Gaussian noise to states [N, T, D], `share` times each feature's deviation in the batch.

    The deviation is taken feature by feature, as a few features of a language model are a hundred
    times larger than the others.
    """
    if not share:
        return states
    scale = states.float().std(dim=1, keepdim=True, correction=0) * share  # [N, 1, D]
    return states + torch.randn_like(states) * scale.to(states.dtype)


def add_grid_noise(states: Tensor, share: float) -> Tensor:
    """As `add_noise`, for grids [N, b, P, D] and maps [N, b, C, H, W] (features are channels)."""
    if not share:
        return states
    dims = (1, 3, 4) if states.dim() == 5 else (1, 2)
    scale = states.float().std(dim=dims, keepdim=True, correction=0) * share
    return states + torch.randn_like(states) * scale.to(states.dtype)


def drop_tokens(states: Tensor, offsets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Drop each token with probability `share`, but never the first one of a segment.

    Args:
        states: packed states [N, T, D].
        offsets: bounds of the segments [S + 1], from 0 to T.
        share: probability of a token to be dropped.

    Returns:
        The kept states [N, T', D] and their offsets [S + 1].
    """
    if not share:
        return states, offsets
    (kept,), bounds = drop_rows([states], offsets, share)
    return kept, bounds


def drop_rows(
    stacks: list[Tensor], offsets: Tensor, share: float, *, keep_last: bool = False
) -> tuple[list[Tensor], Tensor]:
    """As `drop_tokens`, the same tokens of several stacks [N_i, T, ...].

    `keep_last` spares the last token of a segment too (EOS).
    """
    keep = torch.rand(stacks[0].shape[1], device=stacks[0].device) >= share  # [T]
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
