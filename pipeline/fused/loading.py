"""Loads an exported folder with this version's own code, or with the folder's where trusted.

Cost: the weights in memory once. transformers draws progress bars while it loads; here it does not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as hf_logging

from pipeline.errors import PipelineError
from pipeline.fused.folder import is_export
from pipeline.fused.modeling_unipt import UniPTForSequenceClassification
from pipeline.fused.package import source_files


class NotAnExport(PipelineError, ValueError):  # noqa: N818 (reads as what is wrong)
    """A folder holds no exported model, or one whose code is not this version's own."""


def load_fused(folder: Path) -> tuple[UniPTForSequenceClassification, Any]:
    """Return the model, in eval mode, and the tokenizer of `folder`, run by this version's code."""
    with quiet_loading():
        model: Any = UniPTForSequenceClassification.from_pretrained(folder)
        return model.eval(), AutoTokenizer.from_pretrained(folder, config=model.config)


def load_exported(folder: Path, *, trust_code: bool = False) -> tuple[Any, Any]:
    """Return the model and the tokenizer of `folder`; its code runs only if it is ours, or trusted.

    Raises:
        NotAnExport: there is no exported model, or its code differs and `trust_code` is off.
    """
    if not is_export(folder):
        raise NotAnExport(f"{folder} holds no exported model (config.json of type unipt)")
    if _is_ours(folder):
        return load_fused(folder)
    if not trust_code:
        raise NotAnExport(
            f"the model code in {folder} is not this version's own (another version wrote it, or "
            "it was edited); to run it, look at its .py files and set trust_code"
        )
    with quiet_loading():
        model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
        return model.eval(), AutoTokenizer.from_pretrained(folder, config=model.config)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Switch the progress bars of transformers off, and back on if they were."""
    active = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if active:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _is_ours(folder: Path) -> bool:
    def read(name: str) -> str | None:
        path = folder / name
        return path.read_text(encoding="utf-8") if path.is_file() else None

    return all(read(name) == text for name, text in source_files().items())
