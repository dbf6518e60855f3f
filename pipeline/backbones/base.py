"""What every backbone offers, of whatever modality: extraction, planning and export use no more.

encode -> prepare -> run: what is kept of an input before its turn (token ids, paths), what the
model takes (padded ids, pixels), what it emits. b inputs of a batch, n of a run; T tokens, F frames
of a batch; P grid tokens, D wide.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import TapSpec

Modality = Literal["text", "image", "video"]


class Encoded(Protocol):
    """Inputs as they wait for their turn: cheap to keep, never pixels."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens or frames of each input, 1 an image, int64 [n]."""

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """Whether an input is longer than what is taken of it, bool [n]."""

    def __len__(self) -> int:
        """Return the number of inputs."""

    def select(self, samples: NDArray[np.int64] | Sequence[int]) -> Self:
        """Return the inputs numbered `samples`, in that order."""


class Backbone(Protocol):
    """A frozen model with named taps and the preprocessing that goes with it.

    Attributes:
        name: what to call it in messages.
        family: the family of its taps.
        modality: what an input is.
        model: the module that computes.
        axis: the ragged axis of its taps, "tokens" or "frames"; None where there is none (images).
        unit: what the lengths of its inputs count: "tokens", "images" or "frames".
        pads: whether the inputs of a pass are filled up to the longest of them.
        decodes: whether `prepare` reads files, so that threads ahead of the model pay.
        augmentation: what a view above 0 is; part of the fingerprint of a cache that has some.
        taps: the selected taps, in the order of computation.
        tap_modules: tap name -> module path, of the selected taps.
        all_taps: the names of every tap of the model.
        pool: how what a tap emits is pooled, "none" where it is not.
    """

    name: str
    family: str
    modality: Modality
    model: Any
    axis: str | None
    unit: str
    pads: bool
    decodes: bool
    augmentation: str
    taps: tuple[TapSpec, ...]
    tap_modules: dict[str, str]
    all_taps: tuple[str, ...]
    pool: str

    @property
    def device(self) -> torch.device:
        """Where the model computes."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of the arithmetic."""

    def with_facts(self, facts: Sequence[str]) -> Self:
        """Return this backbone recording facts of its inputs too (see `pipeline.inputs.FACTS`).

        Raises:
            BackboneError: they cannot be told of its inputs.
        """

    def pooled(self, pool: str) -> Self:
        """Return this backbone with its taps pooled by `pool`; it shares the model.

        Raises:
            BackboneError: the pooling does not fit the taps.
        """

    def smaller(self, longest: int) -> "Iterator[Smaller]":
        """Yield backbones of the same model that keep less of an input; `longest` is one's length.

        Costs a traced forward pass each where another size of the input is another shape of a tap.
        """

    def encode(self, inputs: Sequence[Any], views: Sequence[int] | None = None) -> Encoded:
        """Return `inputs` ready to wait, each in the view given (0 is clean); None takes all clean.

        Raises:
            PipelineError: an input cannot be read.
        """

    def batches(
        self, samples: NDArray[np.int64], lengths: NDArray[np.int64], batch_bound: int | None
    ) -> Iterator[NDArray[np.int64]]:
        """Yield `samples` in the batches of the forward passes.

        Args:
            samples: sample numbers, int64 [m].
            lengths: length of every sample, int64 [n].
            batch_bound: tokens with padding, frames, or images of a pass; None chooses.
        """

    def prepare(self, encoded: Any) -> dict[str, Tensor]:
        """Return the model's arguments for one batch, on the CPU: decoded, resized, padded.

        Does no device work and may run in several threads at a time.

        Raises:
            PipelineError: an input can no longer be read; the message names it.
        """

    def run(self, prepared: Mapping[str, Tensor]) -> Any:
        """Run the bare model on what `prepare` returned: what recording is measured against."""

    def forward(
        self,
        encoded: Any,
        dtype: torch.dtype | None = None,
        *,
        prepared: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return tap name -> states of one batch, in the layout of the tap's kind.

        Tokens [T, D], frames [F, *shape], one input after the other; grids [b, P, D], maps
        [b, C, H, W], vectors [b, D].

        Args:
            encoded: the inputs of one batch.
            dtype: type of the result; None keeps the type each module emits.
            prepared: what `prepare(encoded)` returned, if that is done.
        """

    def provenance(self) -> dict[str, Any]:
        """Return where the backbone came from and what ran it; neither identifies it."""

    def fingerprint_parts(self) -> dict[str, Any]:
        """Return what identifies the backbone: weights, preprocessing and taps, as JSON values."""


class Smaller(NamedTuple):
    """A backbone that keeps less of every input, as an option of an extraction."""

    backbone: Backbone
    option: str
    """Flag that makes it."""
    change: str
    """What the flag does, in words."""
    longest: int | None = None
    """Tokens or frames of an input, at most; None where the lengths stay."""
