"""Loads an exported folder with this version's own code, or with the folder's where trusted.

Cost: the weights in memory once.
"""

from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.backbones.quiet import quiet_transformers
from pipeline.errors import PipelineError
from pipeline.fused.folder import is_export
from pipeline.fused.modeling_unipt import UniPTForSequenceClassification
from pipeline.fused.package import source_files

_SHOWN = 5


class NotAnExport(PipelineError, ValueError):  # noqa: N818 (reads as what is wrong)
    """A folder holds no exported model, or one that lacks weights or has other code than ours."""


def load_fused(folder: Path) -> tuple[UniPTForSequenceClassification, Any]:
    """Return the model, in eval mode, and the tokenizer of `folder`, run by this version's code.

    Raises:
        NotAnExport: weights are missing.
    """
    return _load(UniPTForSequenceClassification, folder)


def load_exported(folder: Path, *, trust_code: bool = False) -> tuple[Any, Any]:
    """Return the model and the tokenizer of `folder`; its code runs only if it is ours, or trusted.

    Raises:
        NotAnExport: there is no exported model, it lacks weights, or its code differs and
            `trust_code` is off.
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
    return _load(AutoModelForSequenceClassification, folder, trust_remote_code=True)


def _load(loader: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    with quiet_transformers():
        model, report = loader.from_pretrained(folder, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise NotAnExport(
            f"the exported model in {folder} lacks {len(missing)} weight(s), such as "
            f"{', '.join(missing[:_SHOWN])}: they would be random; export it again"
        )
    return model.eval(), AutoTokenizer.from_pretrained(folder, config=model.config)


def _is_ours(folder: Path) -> bool:
    def read(name: str) -> str | None:
        path = folder / name
        return path.read_text(encoding="utf-8") if path.is_file() else None

    return all(read(name) == text for name, text in source_files().items())
