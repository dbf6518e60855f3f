"""The measured trial of a plan: some real forward passes, and a side network's step on them.

Costs about `seconds`, and at least two forward passes. Images are decoded by the same threads as
in the extraction, so that the rate holds for it. N taps, T tokens.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cache import TapSpec
from cache.format.spec import StorageTypes, common_type, types_by_tap
from pipeline.backbones import Backbone
from pipeline.extraction.feed import feed
from pipeline.extraction.table import InputTable
from pipeline.inputs import FACTS
from unipt import ConvSideNetwork, SideNetwork

SIDE_TOKENS = 2048
"""Least tokens (cells of a last map) of the batch on which a side network's step is measured."""
_REPEATS = 3


def measure(
    backbone: Backbone,
    table: InputTable,
    batches: Sequence[NDArray[np.int64]],
    *,
    dtype: StorageTypes,
    seconds: float,
    side_width: int,
) -> tuple[float, float]:
    """Return tokens (frames, images) a second of extraction, and of a side network's step.

    The batches are visited in random order, so that any prefix covers long and short ones of many
    shards; the first is run once more beforehand to warm up.
    """
    types = types_by_tap(dtype, backbone.taps)
    taps = [tap for tap in backbone.taps if tap.name not in FACTS]
    taken = common_type(types[tap.name] for tap in taps)
    order = np.random.default_rng(0).permutation(len(batches))
    tokens, spent, enough = 0, 0.0, False
    kept: list[tuple[dict[str, Tensor], NDArray[np.int64]]] = []
    backbone.forward(table.encoded.select(batches[order[0]]))
    passes = feed(backbone, table, ((0, batches[number]) for number in order))
    mark = time.perf_counter()
    try:
        for each in passes:
            states = each.states(backbone, taken)
            for value in states.values():
                value.cpu()
            spent += time.perf_counter() - mark
            tokens += int(each.encoded.lengths.sum())
            if not enough:
                kept.append((states, each.encoded.lengths))
                enough = sum(_side_tokens(taps, part) for part, _ in kept) >= SIDE_TOKENS
            if spent >= seconds:
                break
            mark = time.perf_counter()
    finally:
        passes.close()
    states = {tap.name: torch.cat([part[tap.name] for part, _ in kept]) for tap in taps}
    lengths = np.concatenate([lengths for _, lengths in kept])
    side = _side_seconds(taps, states, lengths, side_width)
    return tokens / spent, int(lengths.sum()) / side if side else 0.0


def _side_tokens(taps: Sequence[TapSpec], states: dict[str, Tensor]) -> int:
    last = states[taps[-1].name]
    return last.numel() // _width(taps[-1])


def _width(tap: TapSpec) -> int:
    """Return the width of a token, or the channels of a cell."""
    return tap.shape[0] if len(tap.shape) == 3 else tap.shape[-1]


def _side_seconds(
    taps: Sequence[TapSpec], states: dict[str, Tensor], lengths: NDArray[np.int64], width: int
) -> float:
    """Return the seconds of a side network's pass, and back; 0 where there are no two taps."""
    maps = [tap for tap in taps if len(tap.shape) == 3]
    tokens = [tap for tap in taps if len(tap.shape) == 2 or tap.kind == "tokens"]
    tokens = tokens or [tap for tap in taps if len(tap.shape) == 1]
    return _map_step(maps, states, width) or _token_step(tokens, states, lengths, width)


def _map_step(maps: Sequence[TapSpec], states: dict[str, Tensor], width: int) -> float:
    targets = [tap for tap in maps[:-1] if _divides(maps[-1], tap)]
    if not targets:
        return 0.0
    anchor = states[maps[-1].name].float().clone()  # leaves inference mode
    values = [states[tap.name].float().clone() for tap in targets]
    net = ConvSideNetwork(
        widths=[tap.shape[0] for tap in targets],
        anchor_width=maps[-1].shape[0],
        side_width=width,
        out_width=width,
    )
    return _best(net, lambda: net(anchor, values).features, anchor.device)


def _token_step(
    taps: Sequence[TapSpec], states: dict[str, Tensor], lengths: NDArray[np.int64], width: int
) -> float:
    alike = [tap for tap in taps if tap.shape == taps[-1].shape and tap.kind == taps[-1].kind]
    if len(alike) < 2:
        return 0.0
    stacked = torch.stack([states[tap.name] for tap in alike]).float()  # [N, T or b, ...]
    wide = stacked.shape[-1]
    packed = stacked.reshape(len(alike), -1, wide).clone()  # [N, T, D]; leaves inference mode
    if alike[-1].kind == "tokens":
        sizes = lengths
    else:  # each image or frame is a sample of P tokens, or of one
        count = 1 if stacked.dim() == 3 else stacked.shape[2]
        sizes = np.full(stacked.shape[1], count, dtype=np.int64)
    offsets = torch.from_numpy(np.cumsum([0, *sizes])).to(packed.device)
    net = SideNetwork(
        widths=[wide] * (len(alike) - 1), anchor_width=wide, side_width=width, out_width=width
    )
    return _best(net, lambda: net(packed[-1], packed[:-1], offsets=offsets).features, packed.device)


def _divides(anchor: TapSpec, tap: TapSpec) -> bool:
    sides = zip(anchor.shape[1:], tap.shape[1:], strict=True)
    return all(big % small == 0 for small, big in sides)


def _best(net: nn.Module, step: Callable[[], Tensor], device: torch.device) -> float:
    net.eval().to(device)  # a batch norm over one cell has no statistics
    best = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        step().sum().backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
