"""Traced artefacts of a fused model: `torch.export` archives and ONNX files.

One artefact an inference pass of the system: the whole model, or a tower. Texts are int64
[batch, length] of any batch and length (`input_ids`, `attention_mask`, and `token_type_ids` where
the model uses them), images float32 [batch, 3, height, width] with any batch. Cost: one symbolic
trace each, a few seconds, and the weights once more on disk.
"""

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import Dim

from pipeline.errors import PipelineError
from pipeline.fused.modeling_unipt import Traced, UniPTModel

Form = Literal["torch_export", "onnx"]
Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Maps the inputs of a batch to the artefact's outputs, by name."""

_EXPORTER_NOISE = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    (UserWarning, r"# The axis name: .* will not be used"),
)


class ExtraMissing(PipelineError, ImportError):  # noqa: N818 (reads as what is wrong)
    """An optional dependency is not installed."""


def write_artefact(
    model: UniPTModel,
    towers: Sequence[str],
    example: Mapping[str, Tensor],
    form: Form,
    folder: Path,
) -> Run:
    """Write what a model traces of some towers to `folder`; return what runs the file as read back.

    Args:
        model: in evaluation mode.
        towers: of one inference pass.
        example: inputs of at least two samples; those that the artefact does not take are left out.
        form: of the file.
        folder: takes it.

    Raises:
        ExtraMissing: for ONNX, its packages are not installed.
    """
    copied: Any = model.to_trace(towers)
    traced: Traced = copied.traced(towers)
    names = [name for name in inspect.signature(traced.call).parameters if name in example]
    given = {name: example[name][: traced.longest] for name in names}
    copied.forward = traced.call
    return _WRITERS[form](copied.eval(), traced, given, folder)


def write_pt2(module: Any, traced: Traced, example: Mapping[str, Tensor], folder: Path) -> Run:
    """Write a `torch.export` archive and return what runs the file as read back."""
    axes = {k: Dim.DYNAMIC if isinstance(v, str) else v for k, v in _axes(traced).items()}
    with torch.no_grad():
        program = torch.export.export(
            module,
            (),
            kwargs=dict(example),
            dynamic_shapes=dict.fromkeys(example, axes),
            strict=False,
        )
    path = folder / f"{traced.name}.pt2"
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()

    @torch.inference_mode()
    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = loaded(**{name: inputs[name] for name in example})
        listed = [found] if isinstance(found, Tensor) else found
        return dict(zip(traced.outputs, listed, strict=True))

    return run


def write_onnx(module: Any, traced: Traced, example: Mapping[str, Tensor], folder: Path) -> Run:
    """Write ONNX (weights beyond 2 GB beside it) and return what runs it, on onnxruntime.

    Raises:
        ExtraMissing: onnx, onnxscript or onnxruntime is not installed.
    """
    runtime = require_onnx()
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            module,
            (),
            kwargs=dict(example),
            dynamic_shapes={name: _axes(traced) for name in example},
            input_names=list(example),
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

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(None, {name: inputs[name].numpy() for name in example})
        return dict(zip(traced.outputs, map(torch.from_numpy, found), strict=True))

    return run


_WRITERS: dict[Form, Callable[..., Run]] = {"torch_export": write_pt2, "onnx": write_onnx}


def _axes(traced: Traced) -> dict[int, Any]:
    """Return the dynamic axes: their names, or a `Dim` where there is a longest size."""
    if traced.longest is None:
        return dict(traced.axes)
    if traced.longest == 1:
        return {}
    return {axis: Dim(name, max=traced.longest) for axis, name in traced.axes.items()}


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
