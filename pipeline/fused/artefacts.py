"""Traced artefacts of a fused model: `torch.export` archives and ONNX files.

A classifier is one artefact, a two-tower model one a tower. Texts are int64 [batch, length] of any
batch and length (`input_ids`, `attention_mask`, and `token_type_ids` where the model uses them),
pictures float32 [batch, 3, height, width] with any batch. Cost: one symbolic trace each, a few
seconds, and the weights once more on disk.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim

from pipeline.errors import PipelineError

Form = Literal["torch_export", "onnx"]
Runner = Callable[[Mapping[str, Tensor]], Tensor]
"""Maps the inputs of a batch to its logits [B, labels] or embeddings [B, E]."""
TEXT_AXES = {0: "batch", 1: "length"}
PICTURE_AXES = {0: "batch"}

_EXPORTER_NOISE = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    (UserWarning, r"# The axis name: .* will not be used"),
)


class ExtraMissing(PipelineError, ImportError):  # noqa: N818 (reads as what is wrong)
    """An optional dependency is not installed."""


def eager_runner(function: Runner) -> Runner:
    """Run the model itself, without gradients."""
    return torch.inference_mode()(function)


@dataclass(frozen=True, kw_only=True)
class Traceable:
    """What is traced of a fused model, and how.

    Attributes:
        name: of the files, without suffix.
        module: tensors in, a tuple of tensors out; in eval mode.
        example: its inputs by name; dynamic axes of at least 2.
        outputs: names of its outputs; the first is compared with the cache.
        axes: dynamic axes of every input: their names, or `Dim`s where they have a longest size.
    """

    name: str
    module: nn.Module
    example: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    axes: Mapping[int, str | Dim]

    def write(self, form: Form, folder: Path) -> Runner:
        """Write the artefact to `folder` and return a runner of the file as read back.

        Raises:
            ExtraMissing: for ONNX, its packages are not installed.
        """
        return write_pt2(self, folder) if form == "torch_export" else write_onnx(self, folder)


def write_pt2(traced: Traceable, folder: Path) -> Runner:
    """Write a `torch.export` archive and return a runner of the file as read back."""
    axes = {k: Dim.DYNAMIC if isinstance(v, str) else v for k, v in traced.axes.items()}
    with torch.no_grad():
        program = torch.export.export(
            traced.module.eval(),
            (),
            kwargs=dict(traced.example),
            dynamic_shapes=dict.fromkeys(traced.example, axes),
            strict=False,
        )
    path = folder / f"{traced.name}.pt2"
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()

    @torch.inference_mode()
    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        found: Tensor = loaded(**inputs)[0]
        return found

    return run


def write_onnx(traced: Traceable, folder: Path) -> Runner:
    """Write ONNX (weights beyond 2 GB beside it) and return a runner on onnxruntime.

    Raises:
        ExtraMissing: onnx, onnxscript or onnxruntime is not installed.
    """
    runtime = require_onnx()
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            traced.module.eval(),
            (),
            kwargs=dict(traced.example),
            dynamic_shapes={name: dict(traced.axes) for name in traced.example},
            input_names=list(traced.example),
            output_names=list(traced.outputs),
            dynamo=True,
            optimize=False,  # onnxscript takes `+ 1e-8` for `+ 0`; runtimes optimise anyway
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    path = folder / f"{traced.name}.onnx"
    program.save(path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        values = {name: value.numpy() for name, value in inputs.items()}
        return torch.from_numpy(session.run([traced.outputs[0]], values)[0])

    return run


def require_onnx() -> Any:
    """Return onnxruntime, checking that the exporter's packages are there too.

    Raises:
        ExtraMissing: one of them is not installed.
    """
    try:
        import onnx  # noqa: F401, PLC0415 - optional
        import onnxruntime  # noqa: PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise ExtraMissing(
            f"writing ONNX needs the package {error.name}: install with `pip install unipt[onnx]`"
        ) from error
    return onnxruntime


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence two warnings torch raises about its own code, and its note on torchvision."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    try:
        with warnings.catch_warnings():
            for category, message in _EXPORTER_NOISE:
                warnings.filterwarnings("ignore", message=message, category=category)
            logger.setLevel(logging.ERROR)
            yield
    finally:
        logger.setLevel(level)
