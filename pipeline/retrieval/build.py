"""What a retrieval training needs before its first step: data, caches, towers.

Each function builds one thing, so that a search over hyperparameters can share the rest.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import Cache, JointLoader, Source
from pipeline.config import ConfigError
from pipeline.retrieval.config import RetrievalTrainConfig
from pipeline.retrieval.data import RetrievalDataset, load_retrieval
from pipeline.retrieval.samples import LocatedPairs, locate_pairs
from pipeline.retrieval.taps import TowerTaps, select, width
from pipeline.training.inference import choose_device
from unipt import ConvSideNetwork, ConvSideNetworkConfig, SideTower, TwoTowers, preset
from unipt import SideNetworkConfig as TokenSide
from unipt.towers import TowerPooling, to_tokens

logger = logging.getLogger(__name__)

DEFAULT_EMBED = 512
DEFAULT_SIDE = {"text": 128, "media": 512}
STATISTICS = 1024
"""Samples that means and deviations are taken from, at most."""


@dataclass(frozen=True, kw_only=True)
class RetrievalSetup:
    """Everything a retrieval training reads; nothing in it changes while it runs."""

    dataset: RetrievalDataset
    caches: dict[str, Cache]
    """Of the towers "text" and "media"."""
    taps: dict[str, TowerTaps]
    splits: dict[str, LocatedPairs]
    device: torch.device


def prepare_retrieval(
    config: RetrievalTrainConfig, *, known: RetrievalSetup | None = None
) -> RetrievalSetup:
    """Read the data, open both caches and find every caption and item in them.

    Args:
        config: of the training.
        known: the setup of a training with the same data, caches and views, where there is one:
            what it has read is not read again.

    Raises:
        DataError: the data are unusable, or not in the caches.
        CacheError: a cache is missing, incomplete or damaged.
        ConfigError: the options do not fit the data or the caches.
    """
    dataset = known.dataset if known else load_retrieval(config.data)
    caches = known.caches if known else _open_caches(config)
    patterns = {"text": config.text_taps, "media": config.media_taps}
    taps = {tower: select(caches[tower], patterns[tower], tower) for tower in caches}
    _check_towers(config, taps)
    return RetrievalSetup(
        dataset=dataset,
        caches=caches,
        taps=taps,
        splits=known.splits if known else _locate(config, dataset, caches),
        device=choose_device(config.device),
    )


def _open_caches(config: RetrievalTrainConfig) -> dict[str, Cache]:
    return {"text": Cache.open(config.text_cache), "media": Cache.open(config.media_cache)}


def _locate(
    config: RetrievalTrainConfig, dataset: RetrievalDataset, caches: dict[str, Cache]
) -> dict[str, LocatedPairs]:
    return {
        name: locate_pairs(dataset, name, caches, views=config.views if name == "train" else 1)
        for name in dataset.splits
    }


def _check_towers(config: RetrievalTrainConfig, taps: dict[str, TowerTaps]) -> None:
    if taps["text"].layout not in ("tokens", "vector") or taps["text"].clips:
        raise ConfigError(
            f"{config.text_cache} holds {taps['text'].anchor.kind} taps, which are no text's; did "
            "text_cache and media_cache change places?"
        )
    if taps["media"].layout == "tokens":
        raise ConfigError(
            f"{config.media_cache} holds token taps, which are no picture's or clip's; did "
            "text_cache and media_cache change places?"
        )
    if config.text_drop and taps["text"].layout == "vector":
        raise ConfigError(
            f"text_drop drops tokens, and {config.text_cache} holds one vector a text; leave it at "
            "0, or extract without --pool"
        )
    if config.media_drop and taps["media"].layout == "map":
        raise ConfigError("media_drop drops patches of grids, and maps have none; leave it at 0")
    if config.media_drop and taps["media"].layout == "vector" and not taps["media"].clips:
        raise ConfigError("media_drop has nothing to drop from single vectors; leave it at 0")


def build_towers(config: RetrievalTrainConfig, setup: RetrievalSetup) -> TwoTowers:
    """Build the two towers with fresh weights from torch's random generator.

    Raises:
        ConfigError: an option of a side network is unknown or does not fit.
    """
    anchors = [width(taps.anchor) for taps in setup.taps.values() if taps.vector_anchor]
    bases = _bases(config, setup)
    own = width(setup.taps["text"].anchor) if bases else DEFAULT_EMBED
    embed = config.embed_width or (anchors[0] if anchors else own)
    try:
        return TwoTowers(
            text=_tower(config, setup.taps["text"], "text", embed, bases.get("text", {})),
            media=_tower(config, setup.taps["media"], "media", embed, bases.get("media", {})),
            logit_scale=config.logit_scale,
            learn_scale=config.learn_scale,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the towers cannot be built: {error}") from error


def _bases(config: RetrievalTrainConfig, setup: RetrievalSetup) -> dict[str, dict[str, Any]]:
    """Return the towers' base options, none where the anchors or the width speak against them."""
    text = setup.taps["text"]
    projected = any(taps.vector_anchor for taps in setup.taps.values())
    fits = config.embed_width in (None, width(text.anchor))
    if config.text_base == "none" or text.layout != "tokens" or projected or not fits:
        return {}
    found = {"text": {"base": "anchor", "side_weight": config.text_side_weight}}
    if config.media_base == "memory":
        items = len(np.unique(setup.splits["train"].media[:, 0]))
        found["media"] = {
            "base": "memory",
            "side_weight": config.media_side_weight,
            "memory_keys": min(config.memory_keys, items),
        }
    return found


def _tower(
    config: RetrievalTrainConfig, taps: TowerTaps, tower: str, embed: int, base: dict[str, Any]
) -> SideTower:
    chosen: TowerPooling = getattr(config, f"{tower}_pooling")
    pooling: TowerPooling = "none" if taps.vector_anchor else chosen
    doubled = pooling == "meanmax" and not config.head
    given = getattr(config, f"{tower}_side_width")
    sizes = {
        "widths": tuple(width(tap) for tap in taps.targets),
        "anchor_width": width(taps.anchor),
        "side_width": given or (embed if taps.vector_anchor else DEFAULT_SIDE[tower]),
        "out_width": embed // 2 if doubled else embed,
    }
    sequence = config.media_frames == "sequence" and not taps.vector_anchor
    return SideTower(
        side=_side(config, taps, tower, sizes),
        pooling=pooling,
        frames=("sequence" if sequence else "mean") if taps.clips else "none",
        position="last" if tower == "text" else "first",
        head_width=embed if config.head else 0,
        dropout=config.dropout,
        **base,
    )


def _side(
    config: RetrievalTrainConfig, taps: TowerTaps, tower: str, sizes: dict[str, Any]
) -> TokenSide | ConvSideNetworkConfig:
    """Return the options of a tower's side network; those given by name win."""
    wanted = getattr(config, f"{tower}_input_norm")
    options = {**sizes, **getattr(config, f"{tower}_options")}
    if taps.vector_anchor:
        side = preset("clip4clip_text", **options)
    elif taps.layout == "map" and config.media_side == "auto":
        norm = {"input_norm": "standard" if wanted == "standard" else "none"}
        side = preset("vse_image", **norm | options)
    else:
        side = preset("vse_text", **{"input_norm": wanted} | options)
    if not isinstance(side, TokenSide | ConvSideNetworkConfig):
        raise TypeError(f"{type(side).__name__} is no side network of a tower")
    return side


def sources(setup: RetrievalSetup, split: str) -> dict[str, Source]:
    """Return what a `JointLoader` reads of each caption of `split` and of its item."""
    located = setup.splits[split]
    samples = {"text": located.text, "media": located.media[located.split.item_of]}  # [m, V]
    return {
        tower: Source(
            cache=setup.caches[tower],
            samples=found if found.shape[1] > 1 else found[:, 0],
            taps=setup.taps[tower].names,
            views=found.shape[1] > 1,
        )
        for tower, found in samples.items()
    }


def make_pair_loader(config: RetrievalTrainConfig, setup: RetrievalSetup) -> JointLoader:
    """Return the shuffled loader of the training captions with their items."""
    return JointLoader(
        sources(setup, "train"),
        batch_size=config.batch_size,
        seed=config.seed,
        tier=config.tier,
        device=setup.device,
        drop_last=len(setup.splits["train"].text) > config.batch_size,
    )


def set_tower_statistics(
    tower: SideTower, cache: Cache, taps: TowerTaps, samples: NDArray[np.int64], batch_size: int
) -> None:
    """Give a tower with standardised inputs the mean and deviation of the states of `samples`.

    One pass over them, or over `STATISTICS` of them: those of the first blocks, a random choice as
    samples were permuted before packing.
    """
    reducers = _reducers(tower)
    if not reducers:
        return
    samples = samples[np.argsort(cache.table.block[samples], kind="stable")][:STATISTICS]
    source = Source(cache=cache, samples=samples, taps=taps.names)
    loader = JointLoader({"it": source}, batch_size=batch_size, seed=0, shuffle=False)
    counts: list[int] = []
    total: list[Tensor] = []
    squares: list[Tensor] = []
    for batch in loader.epoch(0):
        given = taps.inputs(batch.parts["it"], torch.device("cpu"), torch.float32)
        anchor, targets = given.anchor, list(given.targets)
        if anchor.dim() == 4 and not isinstance(tower.side, ConvSideNetwork):
            anchor, targets = to_tokens(anchor, targets)
        states = (*targets, anchor)
        sums = [_sums(state) for state in states]
        total = _added(total, [first for first, _ in sums])
        squares = _added(squares, [second for _, second in sums])
        rows = [x.numel() // len(first) for x, (first, _) in zip(states, sums, strict=True)]
        counts = [a + b for a, b in zip(counts or [0] * len(rows), rows, strict=True)]
    for take, count, first, second in zip(reducers, counts, total, squares, strict=True):
        mean = first / count
        deviation = (second / count - mean.square()).clamp_min(0).sqrt()
        take(mean.float(), deviation.float())


def _sums(states: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums and the sums of squares of the features of ``[..., D]`` or ``[B, C, H, W]``.

    In float64, [D] each; of a map each channel's cells are summed in float32, where they lie.
    """
    if states.dim() == 4:
        cells = states.flatten(2)  # [B, C, H W]
        first, root = cells.sum(2), torch.linalg.vector_norm(cells, dim=2)  # [B, C]
        return first.sum(0, dtype=torch.float64), root.double().square().sum(0)
    rows = states.flatten(0, -2)  # [rows, D]
    return rows.sum(0, dtype=torch.float64), rows.square().sum(0, dtype=torch.float64)


def _reducers(tower: SideTower) -> list[Callable[[Tensor, Tensor], None]]:
    """Return what takes mean and deviation of each target and of the anchor, if anything does."""
    side = tower.side
    if isinstance(side, ConvSideNetwork):
        maps = range(len(side.standard or ()))
        return [partial(side.set_statistics, number) for number in maps]
    targets, anchor = side.target_down.linear, side.anchor_down.linear
    if not targets.standardize:
        return []
    numbers = range(len(side.widths))
    return [
        *(partial(targets.set_statistics, i) for i in numbers),
        partial(anchor.set_statistics, 0),
    ]


def _added(before: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(before, new, strict=True)] if before else new


def retrieval_identity(config: RetrievalTrainConfig, setup: RetrievalSetup) -> str:
    """Return what must be equal for a training to be continued, as JSON text."""
    places = {"out", "text_cache", "media_cache"}
    digest = hashlib.blake2b(digest_size=16)
    for name, located in setup.splits.items():
        digest.update(name.encode() + located.keys)
        digest.update(located.split.item_of.astype("<i8").tobytes())
    return json.dumps(
        {
            "config": config.model_dump(mode="json", exclude=places),
            "caches": {name: cache.fingerprint.digest for name, cache in setup.caches.items()},
            "taps": {name: taps.names for name, taps in setup.taps.items()},
            "examples": digest.hexdigest(),
        },
        sort_keys=True,
    )
