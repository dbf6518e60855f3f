"""Optional packages: which extra brings each of them, and the sentence that says so."""

import importlib
from typing import Any

from pipeline.errors import PipelineError

EXTRAS = {
    "transformers": "extract",
    "PIL": "extract",
    "av": "video",
    "dask": "workers",
    "distributed": "workers",
    "optuna": "sweep",
    "obstore": "cloud",
    "pyarrow": "parquet",
    "datasets": "datasets",
    "matplotlib": "plot",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "tensorboard": "tensorboard",
}
"""Module -> the extra of this package that installs it."""


class MissingExtra(PipelineError, ImportError):  # noqa: N818 - says it all
    """A package that an extra brings is not installed; the message has the command."""


def require(module: str) -> Any:
    """Import a module that an extra brings.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (sentence := missing(error)) is None:
            raise
        raise MissingExtra(sentence) from error


def missing(error: ModuleNotFoundError) -> str | None:
    """Return the sentence for a module that an extra brings; None for any other one."""
    package = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(package)
    if extra is None:
        return None
    return f"this needs the package {package}, which is not installed: pip install 'unipt[{extra}]'"
