"""Where training would read a cache from: the memory of the device, that of the host, or the disk.

Costs one copy of 32 MB where the cache fits in a memory.
"""

import time
from typing import Literal

import torch

from cache.memory import Demand, Placement, available_memory, plan_memory

DISK_BYTES_PER_SECOND = 1.0e9
"""Reading speed assumed of a disk: measuring it would need a written file."""
TierName = Literal["device memory", "host memory", "disk"]
TIER_NAMES: dict[Placement, TierName] = {
    "device": "device memory",
    "host": "host memory",
    "disk": "disk",
}


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
