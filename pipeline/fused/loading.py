"""Loads an exported folder with this version's own code, or with the folder's where trusted.

Cost: the weights in memory once.
"""

from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from pipeline.backbones.quiet import quiet_transformers
from pipeline.errors import PipelineError
from pipeline.fused.folder import export_type
from pipeline.fused.modeling_unipt import UniPTForSequenceClassification
from pipeline.fused.modeling_unipt_retrieval import UniPTForRetrieval
from pipeline.fused.package import source_files

_SHOWN = 5
_OWN: dict[str, Any] = {
    "unipt": UniPTForSequenceClassification,
    "unipt_retrieval": UniPTForRetrieval,
}
_AUTO: dict[str, Any] = {
    "unipt": AutoModelForSequenceClassification,
    "unipt_retrieval": AutoModel,
}
_USES = {
    "unipt": "a classifier, for `predict`",
    "unipt_retrieval": "a two-tower model, for `index` and `search`",
}


class NotAnExport(PipelineError, ValueError):  # noqa: N818 (reads as what is wrong)
    """A folder holds no exported model, another kind, or one that lacks weights or has own code."""


def load_fused(folder: Path) -> tuple[Any, Any]:
    """Return the model, in eval mode, and the tokenizer of `folder`, run by this version's code.

    Raises:
        NotAnExport: there is no exported model, or it lacks weights.
    """
    return _load(_OWN[_type(folder)], folder)


def load_exported(
    folder: Path, *, kind: str = "unipt", trust_code: bool = False
) -> tuple[Any, Any]:
    """Return the model and the tokenizer of `folder`; its code runs only if it is ours, or trusted.

    Args:
        folder: of the exported model.
        kind: its `model_type`: "unipt" for a classifier, "unipt_retrieval" for two towers.
        trust_code: run the folder's code where it is not this version's own.

    Raises:
        NotAnExport: there is no exported model of that kind, it lacks weights, or its code differs
            and `trust_code` is off.
    """
    found = _type(folder)
    if found != kind:
        raise NotAnExport(f"{folder} holds {_USES[found]}; needed is {_USES[kind]}")
    if _is_ours(folder, kind):
        return load_fused(folder)
    if not trust_code:
        raise NotAnExport(
            f"the model code in {folder} is not this version's own (another version wrote it, or "
            "it was edited); to run it, look at its .py files and set trust_code"
        )
    return _load(_AUTO[kind], folder, trust_remote_code=True)


def load_retrieval(folder: Path, *, trust_code: bool = False) -> Any:
    """Return the two-tower model of `folder`, which holds its tokenizer; see `load_exported`."""
    return load_exported(folder, kind="unipt_retrieval", trust_code=trust_code)[0]


def _type(folder: Path) -> str:
    found = export_type(folder)
    if found is None:
        raise NotAnExport(f"{folder} holds no exported model (config.json of type unipt...)")
    return found


def _load(loader: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    with quiet_transformers():
        model, report = loader.from_pretrained(folder, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise NotAnExport(
            f"the exported model in {folder} lacks {len(missing)} weight(s), such as "
            f"{', '.join(missing[:_SHOWN])}: they would be random; export it again"
        )
    return model.eval(), AutoTokenizer.from_pretrained(folder, config=model.config)


def _is_ours(folder: Path, kind: str) -> bool:
    def read(name: str) -> str | None:
        path = folder / name
        return path.read_text(encoding="utf-8") if path.is_file() else None

    return all(read(name) == text for name, text in source_files(kind).items())
