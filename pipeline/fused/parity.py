"""Does an exported artefact give what training saw? Cached logits against the artefact's.

The reference is the trained side classifier on the cached, packed values. The artefact reads the
same texts: one by one without padding, and in padded batches. Errors are compared with the scale of
the logits, S = max(1, largest reference logit), a regression's being standardised first; the
tolerance follows from the coarsest number type on the way, see `tolerance`. Cost: two
passes of each artefact over the samples.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.fused.artefacts import Runner

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
STORED_GROWTH = 4.0
"""Units of the storage type's roundoff that a logit may be off by."""
ARITHMETIC_GROWTH = 128.0
"""Units of the arithmetic's roundoff that a logit may be off by."""
FLOOR = 1e-4
"""Tolerance of float32 arithmetic alone: padded and packed sums differ in order."""
BATCH = 8
EXTRA_LENGTH = 3
"""Padding beyond the longest text of a batch, in tokens."""

Encoder = Callable[[Sequence[int], int], dict[str, Tensor]]
"""Maps sample positions and extra padding to the artefact's inputs, int64 [B, L] each."""


class ExportParityError(PipelineError, RuntimeError):
    """An exported artefact disagrees with the cache it was trained from; nothing was kept."""


@dataclass(frozen=True, kw_only=True)
class ParityRow:
    """How one artefact did at one batch size; errors are relative to the logits' scale."""

    artefact: str
    batch: int
    length: int
    max_error: float
    mean_error: float
    changed: int


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The replay of cached samples through every artefact.

    Attributes:
        samples: number of replayed samples.
        types: number types on the way: storage, extraction's arithmetic, the exported weights.
        scale: S, the scale of the logits.
        tolerance: largest allowed error, relative to `scale`.
        rows: one per artefact and batch size.
    """

    samples: int
    types: dict[str, str]
    scale: float
    tolerance: float
    rows: tuple[ParityRow, ...]

    @property
    def worst(self) -> float:
        """The largest error, relative to the logits' scale; not a number if an output is not."""
        return max((row.max_error for row in self.rows), key=lambda e: (math.isnan(e), e))

    @property
    def passed(self) -> bool:
        """Whether every artefact stays within the tolerance."""
        return bool(self.rows) and self.worst <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"passed": self.passed, "worst": self.worst}

    def render(self) -> str:
        """Return the report as a table."""
        lines = [f"{'artefact':<14}{'batch':>6}{'length':>8}{'max error':>12}{'mean':>12}  changed"]
        lines += [
            f"{r.artefact:<14}{r.batch:>6}{r.length:>8}{r.max_error:>12.2e}{r.mean_error:>12.2e}"
            f"{r.changed:>9}"
            for r in self.rows
        ]
        types = ", ".join(f"{name} {value}" for name, value in self.types.items())
        verdict = "passed" if self.passed else "FAILED"
        lines.append(
            f"parity {verdict}: worst {self.worst:.2e} of the logits' scale {self.scale:.3g} over "
            f"{self.samples} samples, tolerance {self.tolerance:.2e} ({types})"
        )
        return "\n".join(lines)


def tolerance(types: Mapping[str, str]) -> float:
    """Return the largest allowed error relative to the logits' scale.

    Storage: the fused model rounds the states as the cache did, so a value differs only where the
    two sides, equal up to float32 arithmetic, fall on different sides of a rounding boundary:
    rarely, and by two units u at most. `STORED_GROWTH` = 4 u (2e-3 for float16, 1.6e-2 for
    bfloat16) leaves room for an amplifying head; 1.5e-5 was measured on MiniLM in float16.

    Arithmetic: where extraction or the exported weights use a half type, every state differs, and
    alike for every token. One rounding of MiniLM's states, not repeated by the other side, moved
    logits by 65 u; `ARITHMETIC_GROWTH` = 128 u is twice that (6e-2 for float16, 0.5 for bfloat16,
    where the count of changed labels says more than the error).

    Below both stands `FLOOR`, for the order of float32 sums over 10**2 to 10**3 terms.

    Raises:
        ValueError: a number type is unknown.
    """
    unknown = sorted(set(types.values()) - UNIT_ROUNDOFF.keys())
    if unknown:
        raise ValueError(f"unknown number type(s) {unknown}; known: {', '.join(UNIT_ROUNDOFF)}")
    allowed = [
        UNIT_ROUNDOFF[name] * (STORED_GROWTH if role == "stored" else ARITHMETIC_GROWTH)
        for role, name in types.items()
    ]
    return max(FLOOR, *allowed)


def replay(
    runners: Mapping[str, Runner],
    encode: Encoder,
    reference: Tensor,
    *,
    types: Mapping[str, str],
    unscale: tuple[float, float] = (1.0, 0.0),
    batch: int = BATCH,
) -> ParityReport:
    """Run every artefact over the samples at batch 1 and at `batch`, and compare.

    Args:
        runners: artefact name -> runner.
        encode: gives the inputs of some samples, padded by some more tokens.
        reference: cached-path logits [n, labels].
        types: number types on the way, by role.
        unscale: deviation and mean of a regression's targets; (1, 0) for classes.
        batch: the second batch size.
    """
    deviation, mean = unscale
    reference = (reference - mean) / deviation
    scale = max(1.0, float(reference.abs().max()))
    rows = []
    for name, run in runners.items():
        for size in (1, min(batch, len(reference))):
            logits, length = _run_all(run, encode, len(reference), size)
            found = (logits - mean) / deviation
            error, changed = _compare(found, reference, scale)
            rows.append(
                ParityRow(
                    artefact=name,
                    batch=size,
                    length=length,
                    max_error=float(error.max()),
                    mean_error=float(error.mean()),
                    changed=changed,
                )
            )
    return ParityReport(
        samples=len(reference),
        types=dict(types),
        scale=scale,
        tolerance=tolerance(types),
        rows=tuple(rows),
    )


def check(report: ParityReport) -> None:
    """Raise `ExportParityError`, with the whole table, unless the report passed."""
    if not report.passed:
        raise ExportParityError(
            "the exported model does not reproduce the cached logits, so nothing was written:\n"
            f"{report.render()}\nIs the cache from this backbone and this version of transformers? "
            "`verify` checks the cache; extracting again and retraining sets both right"
        )


def _run_all(run: Runner, encode: Encoder, n: int, size: int) -> tuple[Tensor, int]:
    found, longest = [], 0
    for positions in _batches(n, size):
        inputs = encode(positions, 0 if size == 1 else EXTRA_LENGTH)
        longest = max(longest, inputs["input_ids"].shape[1])
        found.append(run(inputs).float().cpu())
    return torch.cat(found), longest


def _batches(n: int, size: int) -> Iterator[Sequence[int]]:
    return (range(start, min(start + size, n)) for start in range(0, n, size))


def _compare(found: Tensor, wanted: Tensor, scale: float) -> tuple[Tensor, int]:
    """Return the relative errors [n, labels] and how many rows have another largest logit."""
    several = wanted.shape[1] > 1
    changed = int((found.argmax(1) != wanted.argmax(1)).sum()) if several else 0
    return (found - wanted).abs() / scale, changed
