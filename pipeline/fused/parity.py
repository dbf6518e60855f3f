"""Does an exported artefact give what training saw? Cached outputs against the artefact's.

The reference is the trained side model on the cached, packed values. The artefact reads the same
texts, images or videos: one by one without padding, and in batches. The error of a row of outputs
(logits, a regression's standardised first; an embedding) is the length of the difference, relative
to the longest reference row, or to 1: of normalised embeddings, no score can differ by more. The
tolerance follows from the coarsest number type on the way, see `tolerance`. Cost: two passes of
each artefact over the samples.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import PipelineError

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 2.0**-8}
"""Of int8: half a step, relative to the largest feature of a token."""
STORED_GROWTH = 4.0
"""Units of the storage type's roundoff that an output may be off by."""
ARITHMETIC_GROWTH = 128.0
"""Units of the arithmetic's roundoff that an output may be off by."""
FLOOR = 1e-4
"""Tolerance of float32 arithmetic alone: padded and packed sums differ in order."""
BATCH = 8
EXTRA_LENGTH = 3
"""Padding beyond the longest text of a batch, in tokens."""

Runner = Callable[[Mapping[str, Tensor]], Tensor]
"""Maps the inputs of a batch to its outputs, [B, K]."""
Encoder = Callable[[Sequence[int], int], dict[str, Tensor]]
"""Maps sample positions and extra padding to the artefact's inputs, by name."""


class ExportParityError(PipelineError, RuntimeError):
    """An exported artefact disagrees with the cache it was trained from; nothing was kept."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing to check: an inference pass.

    Attributes:
        runners: artefact name -> runner.
        encode: gives the inputs of some samples, padded by some more tokens.
        reference: outputs of the cached path, [n, K].
        answers: gives the answer that each row of outputs stands for, [n, K] to [n].
        types: number types on the way: storage, extraction's arithmetic, the exported weights.
        name: of the pass; empty if it is the only one.
    """

    runners: Mapping[str, Runner]
    encode: Encoder
    reference: Tensor
    answers: Callable[[Tensor], Tensor]
    types: Mapping[str, str]
    name: str = ""

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.reference)

    @property
    def scale(self) -> float:
        """What the errors are relative to."""
        return max(1.0, float(self.reference.norm(dim=1).max()))


@dataclass(frozen=True, kw_only=True)
class ParityRow:
    """How one artefact did at one batch size; errors are relative to the outputs' scale."""

    artefact: str
    batch: int
    length: int
    max_error: float
    mean_error: float
    changed: int
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is a number, and within the tolerance."""
        return self.max_error <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The replay of cached samples through every artefact.

    Attributes:
        samples: number of replayed samples.
        types: number types on the way: storage, extraction's arithmetic, the exported weights.
        scale: of the outputs: what errors are relative to.
        tolerance: largest allowed error, relative to `scale`; of several passes, the laxest one.
        rows: one per artefact and batch size, each with the tolerance of its pass.
    """

    samples: int
    types: dict[str, str]
    scale: float
    tolerance: float
    rows: tuple[ParityRow, ...]

    @property
    def worst(self) -> float:
        """The largest error, relative to the outputs' scale; not a number if an output is not."""
        return max((row.max_error for row in self.rows), key=lambda e: (math.isnan(e), e))

    @property
    def passed(self) -> bool:
        """Whether every artefact stays within the tolerance."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"passed": self.passed, "worst": self.worst}

    def render(self) -> str:
        """Return the report as a table."""
        wide = max([14, *(len(row.artefact) + 2 for row in self.rows)])
        lines = [
            f"{'artefact':<{wide}}{'batch':>6}{'length':>8}{'max error':>12}{'mean':>12}  changed"
        ]
        lines += [
            f"{r.artefact:<{wide}}{r.batch:>6}{r.length:>8}{r.max_error:>12.2e}{r.mean_error:>12.2e}"
            f"{r.changed:>9}"
            for r in self.rows
        ]
        types = ", ".join(f"{name} {value}" for name, value in self.types.items())
        verdict = "passed" if self.passed else "FAILED"
        lines.append(
            f"parity {verdict}: worst {self.worst:.2e} of the outputs' scale "
            f"{self.scale:.3g} over {self.samples} samples, tolerance {self.tolerance:.2e} "
            f"({types})"
        )
        return "\n".join(lines)


def tolerance(types: Mapping[str, str]) -> float:
    """Return the largest allowed error relative to the outputs' scale.

    Storage: the fused model rounds the states as the cache did, so a value differs only where the
    two sides, equal up to float32 arithmetic, fall on different sides of a rounding boundary:
    rarely, and by two units u at most. `STORED_GROWTH` = 4 u (2e-3 for float16, 1.6e-2 for
    bfloat16 and int8) leaves room for an amplifying head; 1.5e-5 was measured on MiniLM in float16.

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


def replay(parts: Sequence[Part], *, batch: int = BATCH) -> ParityReport:
    """Run every artefact of every part over its samples at batch 1 and at `batch`, and compare."""
    rows: list[ParityRow] = []
    types: dict[str, str] = {}
    for part in parts:
        types |= {f"{part.name} {role}".strip(): name for role, name in part.types.items()}
        for artefact, run in part.runners.items():
            rows += [_row(part, artefact, run, size) for size in (1, min(batch, part.samples))]
    return ParityReport(
        samples=sum(part.samples for part in parts),
        types=types,
        scale=max(part.scale for part in parts),
        tolerance=max(tolerance(part.types) for part in parts),
        rows=tuple(rows),
    )


def check(report: ParityReport) -> None:
    """Raise `ExportParityError`, with the whole table, unless the report passed."""
    if not report.passed:
        raise ExportParityError(
            "the exported model does not reproduce the cached outputs, so nothing was written:\n"
            f"{report.render()}\nIs the cache from this backbone and this version of transformers? "
            "`verify` checks the cache; extracting again and retraining sets both right"
        )


def _row(part: Part, artefact: str, run: Runner, size: int) -> ParityRow:
    found, longest = [], 0
    for positions in _batches(part.samples, size):
        inputs = part.encode(positions, 0 if size == 1 else EXTRA_LENGTH)
        longest = max(longest, _length(inputs))
        found.append(run(inputs).float().cpu())
    outputs = torch.cat(found)
    errors = (outputs - part.reference).norm(dim=1) / part.scale
    changed = part.answers(outputs) != part.answers(part.reference)
    return ParityRow(
        artefact=f"{part.name} {artefact}".strip(),
        batch=size,
        length=longest,
        max_error=float(errors.max()),
        mean_error=float(errors.mean()),
        changed=int(changed.sum()),
        tolerance=tolerance(part.types),
    )


def _batches(n: int, size: int) -> Iterator[Sequence[int]]:
    return (range(start, min(start + size, n)) for start in range(0, n, size))


def _length(inputs: Mapping[str, Tensor]) -> int:
    """Return the tokens of a row, the frames of the longest video, or 1 for images."""
    if "input_ids" in inputs:
        return inputs["input_ids"].shape[1]
    return int(inputs["frame_counts"].max()) if "frame_counts" in inputs else 1
