"""What an extraction would cost, before it starts: bytes, time, disk, tier, break-even.

Writes nothing. Bytes and counts are exact; times come from a trial of a few real forward passes
(about `trial_seconds`), chosen evenly over the whole run. Costs loading the backbone, tokenising
the inputs and the trial.

Break-even: training K trials for E epochs takes E K (F + S) with the backbone in every step, and
X + E K (R + S) from a cache, where for one pass over all rows F is the forward time, S the side
network's step, R the reading, and X the extraction. The cache wins after E K = X / (F - R).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache import CacheLayout
from cache.format.spec import StorageTypes, describe_types
from cache.memory import usual_device_limit
from pipeline.backbones import Backbone, check_frozen
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.disk import free_bytes, written_bytes
from pipeline.extraction.fill import shard_batches
from pipeline.extraction.rows import Source
from pipeline.extraction.table import InputTable, build_table, describe_truncation
from pipeline.planning.assumed import assume_rows
from pipeline.planning.budget import Alternative, alternatives
from pipeline.planning.config import PlanConfig, parse_bytes
from pipeline.planning.report import Plan
from pipeline.planning.tier import pick_tier
from pipeline.planning.trial import measure

__all__ = ["Alternative", "Plan", "PlanConfig", "plan"]


class _Priced(NamedTuple):
    """What is priced: the inputs given, and the table of those that are assumed."""

    options: PlanConfig
    backbone: Backbone
    given: InputTable
    table: InputTable
    stored: StorageTypes

    def layout(self, table: InputTable) -> CacheLayout:
        """Lay out the cache of a table."""
        return table.layout(
            self.backbone,
            dtype=self.stored,
            seed=self.options.seed,
            block_tokens=self.options.block_tokens,
            compression=self.options.compress,
        )


def plan(config: ExtractConfig) -> Plan:
    """Price the extraction `config` describes, with a short measured trial; writes nothing.

    Args:
        config: what to extract; a `PlanConfig` says how it is priced.

    Raises:
        BackboneError: the backbone cannot be loaded or tapped.
        InputError: inputs without a token.
        ConfigError: no tower of the task reads what the backbone does, or a pattern of
            `store_dtype_of` matches no tap.
        BadMedia: images or videos cannot be read, and none may be skipped.
    """
    options = config if isinstance(config, PlanConfig) else PlanConfig(**dict(config))
    priced = _priced(options)
    backbone, table = priced.backbone, priced.table
    layout = priced.layout(table)
    total, already, free = layout.total_bytes, written_bytes(options.out), free_bytes(options.out)
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
        compress=options.compress,
        pool=backbone.pool,
        **_counts(priced),
        **_times(priced, layout),
        **_within_budget(priced, total),
    )


def _priced(options: PlanConfig) -> _Priced:
    """Load the backbone, and encode the inputs that it reads."""
    source = Source.of(options)
    backbone = source.loader()()
    check_frozen(backbone.model, backbone.tap_modules)
    rows = source.rows(backbone)
    given = build_table(
        backbone,
        rows.inputs,
        views=rows.views,
        augmented=rows.augmented,
        on_bad_media=rows.bad_media,
    )
    table = given if options.assume is None else assume_rows(given, options.assume)
    return _Priced(options, backbone, given, table, options.storage(backbone))


def _counts(priced: _Priced) -> dict[str, Any]:
    """Return how much of what there is to extract."""
    table, encoded = priced.table, priced.table.encoded
    max_length = getattr(priced.backbone, "max_length", None)
    return {
        "rows": len(table.row_ids),
        "samples": table.n_samples,
        "duplicates": table.n_duplicates,
        "tokens": int(encoded.lengths.sum()),
        "max_length": max_length,
        "longest": int(encoded.lengths.max()),
        "truncated": int(encoded.truncated.sum()),
        "truncation": describe_truncation(table, max_length),
        "unit": priced.backbone.unit,
        "views": table.views,
        "assumed": table is not priced.given,
        "notes": dict(priced.given.notes),
        "skipped": dict(priced.given.skipped),
    }


def _times(priced: _Priced, layout: CacheLayout) -> dict[str, Any]:
    """Return what extracting takes, and a pass over all rows with a cache and without."""
    options, backbone, given, table, stored = priced
    bound = options.batch_bound(backbone)
    first = layout if table is given else priced.layout(given)
    batches = [batch for _, batch in shard_batches(backbone, first, given, bound)]
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
    row_tokens, extract_seconds = table.row_tokens, tokens / rate
    forward, side = row_tokens / rate, row_tokens / side_rate if side_rate else 0.0
    read = total / tokens * row_tokens / speed
    return {
        "padding": _padding(given.encoded.lengths, batches) if backbone.pads else 0.0,
        "tokens_per_second": rate,
        "extract_seconds": extract_seconds,
        "tier": tier,
        "tier_reason": reason,
        "forward_seconds": forward,
        "side_seconds": side,
        "read_seconds": read,
        "speedup": (forward + side) / (read + side),
        "break_even": extract_seconds / (forward - read) if forward > read else None,
    }


def _padding(lengths: NDArray[np.int64], batches: list[NDArray[np.int64]]) -> float:
    """Return the share of the forward passes that is padding."""
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1 - int(lengths.sum()) / padded


def _within_budget(priced: _Priced, total: int) -> dict[str, Any]:
    """Return the budget, and what else would be within it where this is not."""
    options = priced.options
    budget = None if options.budget is None else parse_bytes(options.budget)
    if budget is None or total <= budget:
        return {"budget": budget}
    found = alternatives(options, priced.backbone, priced.table, budget)
    return {"budget": budget, "alternatives": found}
