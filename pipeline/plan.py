"""What an extraction would cost, before it starts: bytes, time, disk, tier, break-even.

Writes nothing. Bytes and counts are exact; times come from a trial of a few real forward passes
(about `trial_seconds`), chosen evenly over the whole run. Costs loading the backbone, tokenising
the inputs and the trial.

Break-even: training K trials for E epochs takes E K (F + S) with the backbone in every step, and
X + E K (R + S) from a cache, where for one pass over all rows F is the forward time, S the side
network's step, R the reading, and X the extraction. The cache wins after E K = X / (F - R).
"""

import time
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from cache.format.spec import describe_types
from cache.memory import (
    Demand,
    Placement,
    available_memory,
    plan_memory,
    usual_device_limit,
)
from pipeline.backbones import check_frozen
from pipeline.console import duration
from pipeline.extract import free_bytes, shard_batches, unit_of, written_bytes
from pipeline.extraction.config import ExtractOptions
from pipeline.extraction.report import describe_media, describe_rate
from pipeline.planning.assumed import assume_rows
from pipeline.planning.budget import Alternative, alternatives
from pipeline.planning.config import (
    PlanConfig,
    RetrievalPlanConfig,
    parse_bytes,
    with_plan_options,
)
from pipeline.planning.trial import measure
from pipeline.table import build_table, describe_truncation

__all__ = ["Alternative", "Plan", "PlanConfig", "RetrievalPlanConfig", "pick_tier", "plan"]

DISK_BYTES_PER_SECOND = 1.0e9
"""Reading speed assumed of a disk: measuring it would need a written file."""
TierName = Literal["device memory", "host memory", "disk"]
TIER_NAMES: dict[Placement, TierName] = {
    "device": "device memory",
    "host": "host memory",
    "disk": "disk",
}


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
    """Size of the finished folder, exactly; the largest it can be if it is compressed."""
    already_written: int
    free_disk: int
    fits: bool
    shards: int
    rows: int
    samples: int
    duplicates: int
    tokens: int
    max_length: int | None
    """Longest text in tokens; None for pictures and clips."""
    longest: int
    truncated: int
    truncation: str | None
    padding: float
    """Share of the forward passes that is padding."""
    tokens_per_second: float
    extract_seconds: float
    tier: TierName
    tier_reason: str
    forward_seconds: float
    side_seconds: float
    read_seconds: float
    speedup: float
    """Time of a pass with the backbone over the time of a pass from the cache."""
    break_even: float | None
    """Epochs x trials after which the cache has paid; None if reading costs more than computing."""
    compress: str = "none"
    """Compression of the numbers on disk."""
    pool: str = "none"
    """What is kept of a tap's tokens, patches or cells; "none": all."""
    unit: str = "tokens"
    """What `tokens` counts: "tokens", "frames" or "images"."""
    views: int = 1
    """Versions of each training input."""
    assumed: bool = False
    """Whether more or fewer inputs were priced than given; times are then extrapolated."""
    notes: dict[str, int] = Field(default_factory=dict)
    """What is odd about how many of the media files given."""
    skipped: dict[str, str] = Field(default_factory=dict)
    """Row id -> why it would be left out."""
    budget: int | None = None
    """Bytes to stay under."""
    alternatives: tuple[Alternative, ...] = ()
    """Options for it, those that fit first; empty if the cache is within the budget."""

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return self.model_dump(mode="json")

    def render(self) -> str:
        """Return the plan as lines of text."""
        state = "fits" if self.fits else "DOES NOT FIT"
        widest = max(map(len, self.taps))
        of = "" if self.max_length is None else f" of {self.max_length}"
        longest = "" if self.unit == "images" else f", longest {self.longest}{of}"
        assumed = " assumed" if self.assumed else ""
        views = f", {self.views} views" if self.views > 1 else ""
        most, packed = ("at most ", f", {self.compress}") if self.compress != "none" else ("", "")
        pooled = "" if self.pool == "none" else f", pooled: {self.pool}"
        speed = describe_rate(self.tokens_per_second, self.unit)
        measured = "measured on the inputs given" if self.assumed else "measured"
        lines = [
            f"backbone   {self.backbone} ({self.family}), {self.compute_dtype} on {self.device}",
            f"inputs     {self.rows:,} rows{assumed}, {self.samples:,} unique ({self.duplicates:,} "
            f"duplicates){views}, {self.tokens:,} {self.unit}{longest}",
            f"truncated  {self.truncation or 'none'}",
            f"taps       {len(self.taps)} in {self.store_dtype}{pooled}:",
            *(
                f"             {name:<{widest}}  {size:>16,} bytes"
                for name, size in self.taps.items()
            ),
            f"size       {most}{self.total_bytes:,} bytes in {self.shards} shards{packed}",
            f"disk       {self.free_disk:,} bytes free, {self.already_written:,} already written: "
            f"{state}",
            f"time       {_long(self.extract_seconds)} to extract at {speed} ({measured}), "
            f"{self.padding:.1%} padding",
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
        return "\n".join([*lines, *describe_media(self.notes, self.skipped), *self._budget_lines()])

    def _budget_lines(self) -> list[str]:
        if self.budget is None:
            return []
        if self.total_bytes <= self.budget:
            return [f"budget     {self.budget:,} bytes: within it"]
        within = [each for each in self.alternatives if each.fits]
        over = [each for each in self.alternatives if not each.fits]
        lines = [f"budget     {self.budget:,} bytes: OVER IT. Within it are:"]
        lines += [_describe(each) for each in within] or ["             none of those tried"]
        if over:
            lines.append("           still over it:")
            lines += [_describe(each) for each in over]
        return lines


def plan(config: ExtractOptions) -> Plan:
    """Price the extraction `config` describes, with a short measured trial; writes nothing.

    Args:
        config: what to extract; a `PlanConfig` or `RetrievalPlanConfig` says how it is priced.

    Raises:
        BackboneError: the backbone cannot be loaded or tapped.
        InputError: inputs without a token.
        ConfigError: a pattern of `store_dtype_of` matches no tap.
        BadMedia: pictures or clips cannot be read, and none may be skipped.
    """
    options = with_plan_options(config)
    source: ExtractOptions = options
    dataset, backbone = source.load_data(), source.load_backbone()
    check_frozen(backbone.model, backbone.tap_modules)
    rows = source.rows(dataset, backbone.modality)
    given = build_table(
        backbone,
        rows.inputs,
        views=rows.views,
        augmented=rows.augmented,
        on_bad_media=rows.bad_media,
    )
    table = given if options.assume is None else assume_rows(given, options.assume)
    stored = options.storage(backbone)
    layouts = [
        each.layout(
            backbone,
            dtype=stored,
            seed=options.seed,
            block_tokens=options.block_tokens,
            compression=options.compress,
        )
        for each in ((given,) if table is given else (given, table))
    ]
    bound, layout = options.batch_bound(backbone.modality), layouts[-1]
    batches = [batch for _, batch in shard_batches(backbone, layouts[0], given, bound)]
    found = given.encoded.lengths
    padded = sum(len(batch) * int(found[batch].max()) for batch in batches)
    padding = 1 - int(found.sum()) / padded if backbone.modality == "text" else 0.0
    rate, side_rate = measure(
        backbone,
        given,
        batches,
        dtype=stored,
        seconds=options.trial_seconds,
        side_width=options.side_width,
    )
    total, tokens = layout.total_bytes, int(table.encoded.lengths.sum())
    tier, reason, speed = pick_tier(
        total,
        layout.geometry.n_blocks,
        device_limit=usual_device_limit(backbone.device),
        device=backbone.device,
    )
    already, free = written_bytes(options.out), free_bytes(options.out)
    row_tokens, extract_seconds = table.row_tokens, tokens / rate
    forward, side = row_tokens / rate, row_tokens / side_rate if side_rate else 0.0
    read = total / tokens * row_tokens / speed
    budget = None if options.budget is None else parse_bytes(options.budget)
    over = budget is not None and total > budget
    max_length = getattr(backbone, "max_length", None)
    return Plan(
        backbone=backbone.name,
        family=backbone.family,
        device=str(backbone.device),
        compute_dtype=str(backbone.compute_dtype).removeprefix("torch."),
        store_dtype=describe_types(layout.geometry.dtype),
        taps=dict(layout.tap_bytes),
        total_bytes=total,
        already_written=already,
        free_disk=free,
        fits=total - already <= free,
        shards=layout.n_shards,
        rows=len(table.row_ids),
        samples=table.n_samples,
        duplicates=table.n_duplicates,
        tokens=tokens,
        max_length=max_length,
        longest=int(table.encoded.lengths.max()),
        truncated=int(table.encoded.truncated.sum()),
        truncation=describe_truncation(table, max_length),
        padding=padding,
        tokens_per_second=rate,
        extract_seconds=extract_seconds,
        tier=tier,
        tier_reason=reason,
        forward_seconds=forward,
        side_seconds=side,
        read_seconds=read,
        speedup=(forward + side) / (read + side),
        break_even=extract_seconds / (forward - read) if forward > read else None,
        compress=options.compress,
        pool=backbone.pool,
        unit=unit_of(backbone),
        views=table.views,
        assumed=table is not given,
        notes=dict(given.notes),
        skipped=dict(given.skipped),
        budget=budget,
        alternatives=alternatives(options, backbone, table, budget or 0) if over else (),
    )


def _long(seconds: float) -> str:
    return f"{seconds:,.1f} s" + (f" ({duration(seconds)})" if seconds >= 60 else "")


def _describe(each: Alternative) -> str:
    return f"  {each.total_bytes:>20,} bytes  {each.change}: {' '.join(each.options)}"


def pick_tier(
    total_bytes: int,
    n_blocks: int,
    *,
    limit: int | None = None,
    device_limit: int | None = None,
    device: torch.device | None = None,
) -> tuple[TierName, str, float]:
    """Return where training would read the cache from, why, and the speed in bytes a second.

    The loader decides by the same rule, `cache.memory.plan_memory`, with the batches on top.

    Args:
        total_bytes: of the cache.
        n_blocks: that it has.
        limit: bytes of host memory; None for half of what is available.
        device_limit: bytes of the device's memory; None if there is none.
        device: whose speed is measured where the cache fits there.
    """
    block = -(-total_bytes // max(1, n_blocks))
    blocks = Demand(name="", block=block, needed=n_blocks, window=1, batch=0)
    limit = max(block, available_memory() // 2 if limit is None else limit)
    found = plan_memory([blocks], "auto", limit, device_limit)
    reason = found.reason.partition(": ")[2]
    if found.tier == "disk":
        speed = DISK_BYTES_PER_SECOND
        return "disk", f"{reason}; {speed / 1e9:g} GB/s assumed", speed
    home = device if found.tier == "device" else None
    return TIER_NAMES[found.tier], f"{reason}; copying measured", _copy_speed(home)


def _copy_speed(device: torch.device | None, size: int = 1 << 25) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = source.clone()  # touches the pages
    _wait_for(device)
    started = time.perf_counter()
    target.copy_(source)
    _wait_for(device)
    return size / max(time.perf_counter() - started, 1e-9)


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type != "cpu":
        torch.accelerator.synchronize(device)
