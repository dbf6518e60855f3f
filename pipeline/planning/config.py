"""What a plan is asked beside the extraction it prices."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.extraction.config import ExtractConfig
from pipeline.places import Place

_UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")


def parse_bytes(text: str) -> int:
    """Return the bytes of '200GB' (10^9 each), '64 GiB' (2^30 each) or a plain number.

    Raises:
        ValueError: it is no size.
    """
    found = _BYTES.fullmatch(text.strip())
    unit = _UNITS.get(found[2].upper() or "B") if found else None
    if found is None or unit is None:
        raise ValueError(f"a size is a number and one of B kB MB GB TB KiB ... TiB, not {text!r}")
    return int(float(found[1]) * unit)


def _checked_bytes(text: str) -> str:
    parse_bytes(text)
    return text


class PlanConfig(ExtractConfig):
    """An extraction to be priced, and the training it is meant for."""

    out: Place = Path("cache.zarr")
    """Folder the cache would go to: its disk counts, and what is already written there."""
    trial_seconds: float = 3.0
    """Length of the measured trial, in seconds."""
    side_width: int = 192
    """Width of the side network whose step is measured for the break-even."""
    assume: int | None = Field(default=None, ge=1)
    """Price so many inputs like those given, each with a content of its own."""
    budget: Annotated[str, AfterValidator(_checked_bytes)] | None = None
    """Size the cache must stay under, such as '200GB': the plan names the options that do it."""
