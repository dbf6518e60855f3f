"""Augmentation of cached features: noise on the states and dropped tokens.

It stands in for what a frozen backbone in training mode would give (live dropout, corrupted
tokens) and that a cache of evaluation-mode activations cannot. N taps, T packed tokens, D width.
Cost: one pass over the batch each.
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
    keep = torch.rand(states.shape[1], device=states.device) >= share  # [T]
    keep[offsets[:-1]] = True
    kept_before = torch.cat([keep.new_zeros(1, dtype=torch.long), keep.long().cumsum(0)])
    return states[:, keep], kept_before[offsets]
