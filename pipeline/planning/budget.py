"""What brings a cache under a budget: other options, each priced to the byte by the same layout.

Costs a layout for each alternative (0.1 s a million samples) and, for other image sizes, a traced
forward pass; no weights are read again. An alternative keeps less of every input: the first ones
named keep most.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from cache import CacheLayout
from cache.format.spec import StorageTypes
from pipeline.backbones import Backbone, BackboneError
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.table import InputTable
from pipeline.planning.assumed import cap_lengths, keep_views

POOLINGS = {f"cells={n}": f"maps of at most {n} x {n} cells" for n in (28, 14, 7)}
POOLINGS["mean"] = "one mean vector of each tap, for tasks that need no more"


class Alternative(BaseModel):
    """Other options for the same inputs.

    Attributes:
        options: flags to add to the command.
        change: what they do, in words.
        total_bytes: size of the finished folder, exactly.
        fits: whether that is within the budget.
    """

    model_config = ConfigDict(frozen=True)

    options: tuple[str, ...]
    change: str
    total_bytes: int
    fits: bool


class _Setting(NamedTuple):
    """What is laid out."""

    backbone: Backbone
    table: InputTable
    dtype: StorageTypes
    options: tuple[str, ...]
    change: str


def alternatives(
    config: ExtractConfig, backbone: Backbone, table: InputTable, budget: int
) -> tuple[Alternative, ...]:
    """Return other options and their bytes: those within `budget`, then those that are not.

    Every single change is priced; where it is not enough, the most taps that fit with it.
    """
    found: list[Alternative] = []
    start = _Setting(backbone, table, config.storage(backbone), (), "")
    for setting in (start, *_changes(start)):
        whole = _price(config, setting, None, budget)
        if setting is not start:
            found.append(whole)
        if not whole.fits and (fewer := _fewer_taps(config, setting, budget)):
            found.append(fewer)
    return tuple(sorted(found, key=lambda each: (not each.fits, -each.total_bytes)))


def _changes(start: _Setting) -> Iterator[_Setting]:
    """Yield settings with one change each."""
    backbone, table = start.backbone, start.table
    if start.dtype == "float32":
        yield start._replace(
            dtype="float16", options=("--store-dtype float16",), change="numbers of 2 bytes"
        )
    if isinstance(start.dtype, str) and start.dtype != "int8":
        yield start._replace(
            dtype="int8",
            options=("--store-dtype int8",),
            change="numbers of 1 byte, about 0.8 % off",
        )
    for views in (4, 3, 2, 1):
        if views < table.views:
            yield start._replace(
                table=keep_views(table, views),
                options=(f"--views {views}",),
                change=f"{views} view(s) of a training input",
            )
    if backbone.pool == "none":
        yield from _poolings(start)
    for each in backbone.smaller(int(table.encoded.lengths.max())):
        yield start._replace(
            backbone=each.backbone,
            table=table if each.longest is None else cap_lengths(table, each.longest),
            options=(each.option,),
            change=each.change,
        )


def _poolings(start: _Setting) -> Iterator[_Setting]:
    for pool, change in POOLINGS.items():
        try:
            pooled = start.backbone.pooled(pool)
        except BackboneError:  # does not fit these taps, or changes nothing
            continue
        yield start._replace(backbone=pooled, options=(f"--pool {pool}",), change=change)


def _fewer_taps(config: ExtractConfig, setting: _Setting, budget: int) -> Alternative | None:
    """Return the alternative with the most taps that fits, or with two; None below three taps."""
    names = [tap.name for tap in setting.backbone.taps]
    if len(names) < 3:
        return None
    sizes = _layout(config, setting, None).tap_bytes
    weights = [sizes[name] for name in names]

    def price(count: int) -> Alternative:
        kept = tuple(names[i] for i in thinned(weights, count))
        return _price(config, setting, kept, budget)

    counts = range(2, len(names))
    fitting = bisect_right(counts, budget, key=lambda count: price(count).total_bytes)
    return price(counts[max(0, fitting - 1)])


def thinned(weights: Sequence[int], count: int) -> list[int]:
    """Return which `count` taps of these weights to keep: the last one always, it is the anchor.

    Of taps that weigh the same, evenly spaced ones; otherwise the lightest.
    """
    last = len(weights) - 1
    if len(set(weights)) == 1:
        return [round(last * i / (count - 1)) for i in range(count)] if count > 1 else [last]
    lightest = sorted(range(last), key=lambda i: (weights[i], -i))
    return sorted([*lightest[: count - 1], last])


def _price(
    config: ExtractConfig,
    setting: _Setting,
    taps: tuple[str, ...] | None,
    budget: int,
) -> Alternative:
    total = _layout(config, setting, taps).total_bytes
    options, change = setting.options, setting.change
    if taps is not None:
        options = (*options, *(f"--taps {name}" for name in taps))
        kept = f"{len(taps)} of {len(setting.backbone.taps)} taps"
        change = f"{change}, {kept}" if change else kept
    return Alternative(options=options, change=change, total_bytes=total, fits=total <= budget)


def _layout(config: ExtractConfig, setting: _Setting, taps: tuple[str, ...] | None) -> CacheLayout:
    return setting.table.layout(
        setting.backbone,
        dtype=setting.dtype,
        seed=config.seed,
        block_tokens=config.block_tokens,
        taps=taps,
        compression=config.compress,
    )
