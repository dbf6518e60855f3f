"""What an extraction would cost, before it starts: bytes, time, disk, tier, break-even.

Writes nothing. Bytes and counts are exact; times come from a trial of a few real forward passes
(about `trial_seconds`), chosen evenly over the whole run. Costs loading the backbone, tokenising
the inputs and the trial.

Break-even: training K trials for E epochs takes E K (F + S) with the backbone in every step, and
X + E K (R + S) from a cache, where for one pass over all rows F is the forward time, S the side
network's step, R the reading, and X the extraction. The cache wins after E K = X / (F - R).
"""

import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from cache.memory import available_memory
from cache.spec import TORCH_TYPES
from pipeline.backbones import TextBackbone, check_frozen
from pipeline.data import load_dataset
from pipeline.extract import ExtractConfig, free_bytes, shard_batches, written_bytes
from pipeline.table import InputTable, build_table, describe_truncation
from unipt import SideNetwork

DISK_BYTES_PER_SECOND = 1.0e9
"""Reading speed assumed of a disk: measuring it would need a written file."""
SIDE_TOKENS = 2048
"""Least tokens of the batch on which a side network's step is measured, where there are as many."""
HOST_SHARE = 0.5
"""Share of the available memory that a cache may fill to be kept there."""


class PlanConfig(ExtractConfig):
    """An extraction to be priced, and the training it is meant for."""

    out: Path = Path("cache.zarr")
    """Folder the cache would go to: its disk counts, and what is already written there."""
    trial_seconds: float = 3.0
    """Length of the measured trial, in seconds."""
    side_width: int = 192
    """Width of the side network whose step is measured for the break-even."""


class Plan(BaseModel):
    """The price of an extraction; sizes in bytes, times in seconds, per pass over all rows."""

    model_config = ConfigDict(frozen=True)

    backbone: str
    family: str
    device: str
    compute_dtype: str
    store_dtype: str
    taps: dict[str, int]
    """Bytes of each tap."""
    total_bytes: int
    """Size of the finished folder, exactly."""
    already_written: int
    free_disk: int
    fits: bool
    shards: int
    rows: int
    samples: int
    duplicates: int
    tokens: int
    max_length: int
    longest: int
    truncated: int
    truncation: str | None
    padding: float
    """Share of the forward passes that is padding."""
    tokens_per_second: float
    extract_seconds: float
    tier: Literal["host memory", "disk"]
    tier_reason: str
    forward_seconds: float
    side_seconds: float
    read_seconds: float
    speedup: float
    """Time of a pass with the backbone over the time of a pass from the cache."""
    break_even: float | None
    """Epochs x trials after which the cache has paid; None if reading costs more than computing."""

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return self.model_dump(mode="json")

    def render(self) -> str:
        """Return the plan as lines of text."""
        state = "fits" if self.fits else "DOES NOT FIT"
        widest = max(map(len, self.taps))
        lines = [
            f"backbone   {self.backbone} ({self.family}), {self.compute_dtype} on {self.device}",
            f"inputs     {self.rows:,} rows, {self.samples:,} unique ({self.duplicates:,} "
            f"duplicates), {self.tokens:,} tokens, longest {self.longest} of {self.max_length}",
            f"truncated  {self.truncation or 'none'}",
            f"taps       {len(self.taps)} in {self.store_dtype}:",
            *(
                f"             {name:<{widest}}  {size:>16,} bytes"
                for name, size in self.taps.items()
            ),
            f"size       {self.total_bytes:,} bytes in {self.shards} shards",
            f"disk       {self.free_disk:,} bytes free, {self.already_written:,} already written: "
            f"{state}",
            f"time       {self.extract_seconds:,.1f} s to extract at {self.tokens_per_second:,.0f} "
            f"tokens/s (measured), {self.padding:.1%} padding",
            f"tier       {self.tier}: {self.tier_reason}",
            f"one pass   backbone F = {self.forward_seconds:.3g} s, side step S = "
            f"{self.side_seconds:.3g} s, reading R = {self.read_seconds:.3g} s: (F + S) / (R + S) "
            f"= {self.speedup:.1f} x",
        ]
        if self.break_even is None:
            lines.append("break-even never: reading takes longer than computing (R >= F)")
        else:
            lines.append(
                f"break-even X / (F - R) = {self.break_even:.1f} epochs x trials (X: extraction)"
            )
        return "\n".join(lines)


def plan(config: ExtractConfig) -> Plan:
    """Price the extraction `config` describes, with a short measured trial; writes nothing.

    Raises:
        BackboneError: the backbone cannot be loaded or tapped.
        InputError: inputs without a token.
    """
    options = config if isinstance(config, PlanConfig) else PlanConfig(**dict(config))
    backbone = config.load_backbone()
    check_frozen(backbone.model, backbone.tap_modules)
    table = build_table(backbone, load_dataset(config.data).inputs())
    layout = table.layout(
        backbone, dtype=config.store_dtype, seed=config.seed, block_tokens=config.block_tokens
    )
    batches = [batch for _, batch in shard_batches(backbone, layout, table, config.batch_tokens)]
    lengths, tokens = table.encoded.lengths, int(table.encoded.lengths.sum())
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    rate, side_rate = _trial(backbone, table, batches, options)
    tier, reason, speed = pick_tier(layout.total_bytes, available_memory())
    already, free = written_bytes(config.out), free_bytes(config.out)
    row_tokens, extract_seconds = table.row_tokens, tokens / rate
    forward, side = row_tokens / rate, row_tokens / side_rate if side_rate else 0.0
    read = layout.total_bytes / tokens * row_tokens / speed
    return Plan(
        backbone=backbone.name,
        family=backbone.family,
        device=str(backbone.device),
        compute_dtype=str(backbone.compute_dtype).removeprefix("torch."),
        store_dtype=config.store_dtype,
        taps=dict(layout.tap_bytes),
        total_bytes=layout.total_bytes,
        already_written=already,
        free_disk=free,
        fits=layout.total_bytes - already <= free,
        shards=layout.n_shards,
        rows=len(table.row_ids),
        samples=table.n_samples,
        duplicates=table.n_duplicates,
        tokens=tokens,
        max_length=backbone.max_length,
        longest=int(lengths.max()),
        truncated=int(table.encoded.truncated.sum()),
        truncation=describe_truncation(table, backbone.max_length),
        padding=1 - tokens / padded,
        tokens_per_second=rate,
        extract_seconds=extract_seconds,
        tier=tier,
        tier_reason=reason,
        forward_seconds=forward,
        side_seconds=side,
        read_seconds=read,
        speedup=(forward + side) / (read + side),
        break_even=extract_seconds / (forward - read) if forward > read else None,
    )


def pick_tier(total_bytes: int, memory: int) -> tuple[Literal["host memory", "disk"], str, float]:
    """Return where training would read the cache from, why, and the speed in bytes a second."""
    budget = int(memory * HOST_SHARE)
    size = f"{total_bytes:,} bytes against {budget:,} ({HOST_SHARE:.0%} of the available memory)"
    if total_bytes <= budget:
        return "host memory", f"{size}; copying measured", _copy_speed()
    return "disk", f"{size}; {DISK_BYTES_PER_SECOND / 1e9:g} GB/s assumed", DISK_BYTES_PER_SECOND


def _copy_speed(size: int = 1 << 25) -> float:
    source, target = torch.ones(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
    target.copy_(source)  # touches the pages
    started = time.perf_counter()
    target.copy_(source)
    return size / max(time.perf_counter() - started, 1e-9)


def _trial(
    backbone: TextBackbone,
    table: InputTable,
    batches: list[NDArray[np.int64]],
    options: PlanConfig,
) -> tuple[float, float]:
    """Return tokens a second of the forward pass with recording, and of a side network's step.

    The batches are visited in random order, so that any prefix covers long and short ones of many
    shards; the first is run once more beforehand to warm up.
    """
    order = np.random.default_rng(0).permutation(len(batches))
    lengths, tokens, spent = table.encoded.lengths, 0, 0.0
    kept: list[tuple[Tensor, NDArray[np.int64]]] = []  # states [N, T, D] and their lengths
    backbone.forward(table.encoded.select(batches[order[0]]))
    for number in order:
        encoded = table.encoded.select(batches[number])
        started = time.perf_counter()
        states = backbone.forward(encoded, TORCH_TYPES[options.store_dtype])
        for value in states.values():
            value.cpu()
        spent += time.perf_counter() - started
        if tokens < SIDE_TOKENS:
            width = next(reversed(states.values())).shape[-1]
            same = [value for value in states.values() if value.shape[-1] == width]
            kept.append((torch.stack(same), encoded.lengths))
        tokens += int(lengths[batches[number]].sum())
        if spent >= options.trial_seconds:
            break
    packed = torch.cat([stacked for stacked, _ in kept], 1)  # [N, T, D]
    offsets = np.cumsum([0, *np.concatenate([sizes for _, sizes in kept])])
    side = _side_seconds(packed, torch.from_numpy(offsets).to(packed.device), options.side_width)
    return tokens / spent, packed.shape[1] / side if side else 0.0


def _side_seconds(states: Tensor, offsets: Tensor, width: int, repeats: int = 3) -> float:
    """Return the seconds of a side network's pass over [N, T, D], and back; 0 with one tap."""
    if len(states) < 2:
        return 0.0
    states = states.float().clone()  # leaves inference mode
    targets, anchor = states[:-1], states[-1]
    net = SideNetwork(
        widths=[targets.shape[-1]] * len(targets),
        anchor_width=anchor.shape[-1],
        side_width=width,
        out_width=width,
    ).to(anchor.device)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        net(anchor, targets, offsets=offsets).features.sum().backward()
        if anchor.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
