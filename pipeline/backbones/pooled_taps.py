"""What pooling makes of a backbone's taps. Pure: descriptions only."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cache import TapSpec
from pipeline.backbones.family import BackboneError
from pipeline.backbones.pooling import check_pool, pooled_shape


def pooled_taps(taps: Sequence[TapSpec], pool: str) -> tuple[TapSpec, ...]:
    """Return the taps of one text or image as they are after pooling.

    Raises:
        BackboneError: the pooling is unknown, does not fit a tap, or changes none.
    """
    try:
        if check_pool(pool) == "none":
            return tuple(taps)
    except ValueError as error:
        raise BackboneError(str(error)) from error
    pooled = tuple(_pooled(tap, pool) for tap in taps)
    if pooled == tuple(taps):
        listed = ", ".join(f"{tap.name} ({tap.kind} {list(tap.shape)})" for tap in taps)
        raise BackboneError(f"--pool {pool} changes no tap: {listed}. Leave it out")
    return pooled


def _pooled(tap: TapSpec, pool: str) -> TapSpec:
    if tap.kind == "vector":
        return tap
    one = (1, *tap.shape) if tap.kind == "tokens" else tap.shape
    try:
        shape = pooled_shape(pool, one)
    except ValueError as error:
        raise BackboneError(
            f"tap {tap.name} ({tap.kind} {list(tap.shape)}) cannot be pooled by --pool {pool}: "
            f"{error}; or choose other --taps"
        ) from error
    if len(shape) == 1:
        return replace(tap, kind="vector", shape=shape, stride=1)
    return replace(tap, shape=shape, stride=max(1, round(tap.stride * tap.shape[1] / shape[1])))


def describe_pooling(before: TapSpec, after: TapSpec, pool: str) -> dict[str, str]:
    """Return what a fingerprint says of a tap's pooling; nothing where it changed nothing."""
    return {} if before == after else {"pool": pool}


def recorded_pool(taps: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the pooling that the taps of a fingerprint were recorded with."""
    return next((str(tap["pool"]) for tap in taps.values() if "pool" in tap), "none")
