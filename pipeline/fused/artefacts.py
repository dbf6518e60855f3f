"""Traced artefacts of a fused model: a `torch.export` archive and an ONNX file.

Both take `input_ids`, `attention_mask` (and `token_type_ids` where the model uses them), int64
[batch, length] with any batch and length, and give `logits` [batch, labels] and `confidence`
[batch, taps]. Cost: one symbolic trace each, a few seconds, and the weights once more on disk.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import PipelineError

PT2_FILE = "model.pt2"
ONNX_FILE = "model.onnx"
OUTPUTS = ("logits", "confidence")
Runner = Callable[[Mapping[str, Tensor]], Tensor]
"""Maps padded inputs, int64 [B, L] each, to logits [B, labels]."""

_EXPORTER_NOISE = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    (UserWarning, r"# The axis name: .* will not be used"),
)


class ExtraMissing(PipelineError, ImportError):  # noqa: N818 (reads as what is wrong)
    """An optional dependency is not installed."""


class _Traceable(nn.Module):
    """Tensors in, tensors out: the signature of the traced artefacts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            output_confidence=True,
        )
        return output.logits, output.confidence


def eager_runner(model: Any) -> Runner:
    """Run the model itself."""

    @torch.inference_mode()
    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = model(**inputs).logits
        return logits

    return run


def write_pt2(model: nn.Module, example: Mapping[str, Tensor], folder: Path) -> Runner:
    """Write `PT2_FILE` and return a runner of the file as read back.

    Args:
        model: a fused model in eval mode.
        example: its inputs, int64 [B, L] each with B and L at least 2.
        folder: where to write.
    """
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(
            _Traceable(model).eval(),
            (),
            kwargs=dict(example),
            dynamic_shapes=dict.fromkeys(example, axes),
            strict=False,
        )
    torch.export.save(program, folder / PT2_FILE)
    loaded = torch.export.load(folder / PT2_FILE).module()

    @torch.inference_mode()
    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = loaded(**inputs)[0]
        return logits

    return run


def write_onnx(model: nn.Module, example: Mapping[str, Tensor], folder: Path) -> Runner:
    """Write `ONNX_FILE` (weights beyond 2 GB beside it) and return a runner on onnxruntime.

    Raises:
        ExtraMissing: onnx, onnxscript or onnxruntime is not installed.
    """
    runtime = require_onnx()
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            _Traceable(model).eval(),
            (),
            kwargs=dict(example),
            dynamic_shapes={name: {0: "batch", 1: "length"} for name in example},
            input_names=list(example),
            output_names=list(OUTPUTS),
            dynamo=True,
            optimize=False,  # onnxscript takes `+ 1e-8` for `+ 0`; runtimes optimise anyway
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    program.save(folder / ONNX_FILE)
    session = runtime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        values = {name: value.numpy() for name, value in inputs.items()}
        return torch.from_numpy(session.run([OUTPUTS[0]], values)[0])

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
