"""How much memory batches take, and what each tier keeps: decided before the first byte is read.

Tiers: "device" and "host" keep every block they need after its first touch, in the memory of the
accelerator or of the host; "disk" keeps two windows of blocks of the source that is
read in order, and of the others what blocks fit. The stated memory counts the blocks held and every
batch alive at once; the places of samples come on top.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

Tier = Literal["auto", "device", "host", "disk"]
Placement = Literal["device", "host", "disk"]
STAGED = 4
"""Blocks on their way to a device at once."""
PREFETCH = 2
"""Batches prepared ahead; one more is in work and one in the caller's hands."""
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
    """What is held: the tier and why, blocks for each demand, and bytes used at most.

    Attributes:
        nbytes: of host memory.
        device_bytes: of the device's memory; 0 if batches stay on the host.
        limit: of `nbytes`, or of `device_bytes` in the device tier.
    """

    tier: Placement
    reason: str
    capacities: tuple[int, ...]
    nbytes: int
    limit: int
    device_bytes: int = 0


def plan_memory(
    demands: Sequence[Demand], tier: Tier, limit: int | None, device_limit: int | None = None
) -> MemoryPlan:
    """Choose the tier and share the memory out.

    Args:
        demands: of all stacks of all sources, those read in block order first.
        tier: "device", "host", "disk", or "auto": the first of them that everything fits in.
        limit: bytes of host memory to use at most; None for half of what is available.
        device_limit: bytes of the device's memory to use at most; None if batches stay on the
            host, where the device tier is the host tier.

    Raises:
        ValueError: no such tier.
        MemoryError: the limit is too small; the message says what it takes.
    """
    if tier not in get_args(Tier):
        raise ValueError(f"tier {tier!r} is not one of {', '.join(get_args(Tier))}")
    limit = available_memory() // 2 if limit is None else limit
    batches = ALIVE * sum(demand.batch for demand in demands)
    block = sum(demand.block for demand in demands)
    whole = sum(demand.needed * demand.block for demand in demands) + batches
    needs = {"device": whole, "host": whole, "disk": block + batches}
    limits = {"device": device_limit or 0, "host": limit, "disk": limit}
    chosen = _choose(tier, needs, limits, device_limit is not None and STAGED * block <= limit)
    if needs[chosen] > limits[chosen]:
        raise MemoryError(
            f"the {chosen} tier needs {size(needs[chosen])}, the limit is {size(limits[chosen])}: "
            "raise the limit, choose fewer taps or a smaller batch"
            + ("" if chosen == "disk" else ", or take the disk tier")
        )
    reason = _reason(demands, tier, chosen, limits, device_limit)
    held = tuple(max(1, demand.needed) for demand in demands)
    if chosen == "disk":
        held = _share(demands, limit - batches)
        reason += _describe(demands, held)
    used = sum(count * demand.block for count, demand in zip(held, demands, strict=True)) + batches
    on_device = used if chosen == "device" else batches if device_limit is not None else 0
    return MemoryPlan(
        tier=chosen,
        reason=reason,
        capacities=held,
        nbytes=STAGED * block if chosen == "device" else used,
        limit=limits[chosen],
        device_bytes=on_device,
    )


def _choose(
    tier: Tier, needs: Mapping[str, int], limits: Mapping[str, int], has_device: bool
) -> Placement:
    if tier == "auto":
        if has_device and needs["device"] <= limits["device"]:
            return "device"
        return "host" if needs["host"] <= limits["host"] else "disk"
    return "host" if tier == "device" and not has_device else tier


def _reason(
    demands: Sequence[Demand],
    tier: Tier,
    chosen: Placement,
    limits: Mapping[str, int],
    device_limit: int | None,
) -> str:
    """Say what was chosen, and what was compared with what."""
    whole = sum(demand.needed * demand.block + ALIVE * demand.batch for demand in demands)
    compared = ["host"] if device_limit is None else ["device", "host"]
    why = f"{size(whole)} for {sum(demand.needed for demand in demands)} blocks "
    why += " and ".join(
        f"{'fits in' if whole <= limits[name] else 'exceeds'} the limit of {size(limits[name])}"
        + (" on the device" if name == "device" else "")
        for name in compared[: 1 if chosen == "device" else None]
    )
    if tier == "auto":
        return f"{chosen}: {why}"
    if tier != chosen:
        return f"{chosen}: the device is the CPU ({why})"
    return f"{chosen}: asked for ({why})"


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


def free_device_memory(device: torch.device | None) -> int | None:
    """Return the bytes that are free on an accelerator, 0 if it does not tell; None for the CPU."""
    if device is None or device.type == "cpu":
        return None
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return 0


def usual_device_limit(device: torch.device | None) -> int | None:
    """Return the bytes of a device's memory that are used unless told: half of what is free."""
    free = free_device_memory(device)
    return None if free is None else free // 2


def size(count: int) -> str:
    """Return a number of bytes as people write it."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
