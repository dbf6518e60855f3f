"""int8 numbers with a static size for each channel and a float16 scale for each token. Pure torch.

A state is code x scale x rms: the RMS of a channel is fixed for a cache (a few channels of a
language model are a hundred times larger than the others), the scale is that of the token's largest
normalised feature. A token is one of a text, a patch of a grid, a cell of a map, or a vector.
Error: half a step, 1/254 of the token's largest normalised feature; 0.8 % of a state's length on
MiniLM. n rows of D features or C channels. Cost: three passes over the states each way.

Written into exported folders, where live states are rounded as the cached ones were.
"""

import torch
from torch import Tensor

LEVELS = 127.0
MIN_SCALE, MAX_SCALE = 2.0**-14, 65504.0
"""Normal float16 numbers; a token of zeros has the least scale."""
MAX_PEAK = LEVELS * MAX_SCALE
"""Largest normalised feature that can be stored."""


def channel_axis(states: Tensor) -> int:
    """Return the axis of the channels: that of [n, C, H, W], or the last one."""
    return 1 if states.dim() == 4 else -1


def token_peaks(states: Tensor, rms: Tensor) -> Tensor:
    """Return the largest normalised feature of every token, float32 with an axis of length 1."""
    return (states.float() / _along(rms, states)).abs().amax(channel_axis(states), keepdim=True)


def quantize(states: Tensor, rms: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and scales of finite states.

    Args:
        states: [n, D], [n, P, D] or [n, C, H, W], any float type.
        rms: of each channel, float32, positive.

    Returns:
        int8 like `states`, and float16 [n], [n, P] or [n, H, W].
    """
    numbers, scale = _steps(states, rms)
    return numbers.to(torch.int8), scale.squeeze(channel_axis(states))


def dequantize(codes: Tensor, scales: Tensor, rms: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the float32 numbers of `codes` and `scales`, see `quantize`; in `out` if given."""
    numbers = torch.empty(codes.shape, device=codes.device) if out is None else out
    scale = scales.unsqueeze(channel_axis(codes)).float()
    return numbers.copy_(codes).mul_(scale).mul_(_along(rms, codes))


def requantized(states: Tensor, rms: Tensor) -> Tensor:
    """Return float32 states rounded as `quantize` and `dequantize` round them."""
    numbers, scale = _steps(states, rms)
    return numbers * scale.float() * _along(rms, states)


def _steps(states: Tensor, rms: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers from -127 to 127, float32, and float16 scales that broadcast."""
    scale = (token_peaks(states, rms) / LEVELS).clamp(MIN_SCALE, MAX_SCALE).half()
    steps = states.float() / _along(rms, states) / scale.float()
    return steps.round().clamp(-LEVELS, LEVELS), scale


def _along(rms: Tensor, states: Tensor) -> Tensor:
    return rms.view(-1, 1, 1) if states.dim() == 4 else rms
