"""What a plan says: the numbers of an extraction before it starts, as values and as text."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.console import duration
from pipeline.extraction.report import describe_media, describe_rate
from pipeline.planning.budget import Alternative
from pipeline.planning.tier import TierName


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
    """Longest text in tokens; None for images and videos."""
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


def _long(seconds: float) -> str:
    return f"{seconds:,.1f} s" + (f" ({duration(seconds)})" if seconds >= 60 else "")


def _describe(each: Alternative) -> str:
    return f"  {each.total_bytes:>20,} bytes  {each.change}: {' '.join(each.options)}"
