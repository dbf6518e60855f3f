"""How much memory batches take, and what each tier keeps: decided before the first byte is read.

Tiers: "host" keeps every block it needs after its first touch; "disk" keeps a window of blocks of
the source that is read in order, of the others what fits, and prepares the next batches in a
thread. The stated memory counts the blocks held and every batch alive at once; places and, where
a batch has more blocks than are held, 1 MiB of copying come on top.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Tier = Literal["auto", "host", "disk"]
PREFETCH = 2
"""Batches prepared ahead in the disk tier; one more is in work and one in the caller's hands."""
ALIVE = PREFETCH + 2


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one stack of one source asks for.

    Attributes:
        name: of the source, for the reason; empty if it is the only one.
        block: bytes of the chosen taps of a block.
        needed: blocks that an epoch touches.
        window: blocks worth holding at once when not all can be.
        batch: bytes of the largest batch.
    """

    name: str
    block: int
    needed: int
    window: int
    batch: int


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What is held: the tier and why, blocks for each demand, and bytes used at most."""

    tier: Literal["host", "disk"]
    reason: str
    capacities: tuple[int, ...]
    nbytes: int
    limit: int


def plan_memory(demands: Sequence[Demand], tier: Tier, limit: int | None) -> MemoryPlan:
    """Choose the tier and share the memory out.

    Args:
        demands: of all stacks of all sources, those read in block order first.
        tier: "host", "disk", or "auto": host if everything fits.
        limit: bytes to use at most; None for half of what is available.

    Raises:
        ValueError: no such tier.
        MemoryError: the limit is too small; the message says what it takes.
    """
    if tier not in get_args(Tier):
        raise ValueError(f"tier {tier!r} is not one of {', '.join(get_args(Tier))}")
    limit = available_memory() // 2 if limit is None else limit
    batches = sum(demand.batch for demand in demands)
    host = sum(demand.needed * demand.block for demand in demands) + 2 * batches
    least = sum(demand.block for demand in demands) + ALIVE * batches
    blocks = sum(demand.needed for demand in demands)
    fits = host <= limit
    why = (
        f"{size(host)} for {blocks} blocks {'fits in' if fits else 'exceeds'} the limit of "
        f"{size(limit)}"
    )
    chosen: Literal["host", "disk"] = ("host" if fits else "disk") if tier == "auto" else tier
    minimum = host if chosen == "host" else least
    if minimum > limit:
        raise MemoryError(
            f"the {chosen} tier needs {size(minimum)}, the limit is {size(limit)}: raise "
            "the limit, choose fewer taps or a smaller batch"
            + ("" if chosen == "disk" else ", or take the disk tier")
        )
    reason = f"{chosen}: {why}" if tier == "auto" else f"{chosen}: asked for ({why})"
    if chosen == "host":
        held = tuple(max(1, demand.needed) for demand in demands)
        return MemoryPlan(tier="host", reason=reason, capacities=held, nbytes=host, limit=limit)
    held = _share(demands, limit - ALIVE * batches)
    used = sum(count * demand.block for count, demand in zip(held, demands, strict=True))
    return MemoryPlan(
        tier="disk",
        reason=reason + _describe(demands, held),
        capacities=held,
        nbytes=used + ALIVE * batches,
        limit=limit,
    )


def _share(demands: Sequence[Demand], room: int) -> tuple[int, ...]:
    """Return blocks to hold: one each, then in the order of the demands as many as they want."""
    held = [1] * len(demands)
    room -= sum(demand.block for demand in demands)
    for number, demand in enumerate(demands):
        wanted = min(demand.needed, demand.window) - 1
        more = max(0, min(wanted, room // demand.block if demand.block else wanted))
        held[number] += more
        room -= more * demand.block
    return tuple(held)


def _describe(demands: Sequence[Demand], held: Sequence[int]) -> str:
    """Say which sources are held whole and which are read again and again."""
    if not any(demand.name for demand in demands):
        return ""
    parts = []
    for name in dict.fromkeys(demand.name for demand in demands):
        mine = [(h, d.needed) for h, d in zip(held, demands, strict=True) if d.name == name]
        have, need = sum(h for h, _ in mine), sum(n for _, n in mine)
        parts.append(f"{name} whole" if have >= need else f"{have} of {need} blocks of {name}")
    return "; held: " + ", ".join(parts)


def available_memory() -> int:
    """Return the bytes of memory that can be used without swapping."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def size(count: int) -> str:
    """Return a number of bytes as people write it."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
