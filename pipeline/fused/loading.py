"""Loads an exported folder with this version's own code, or with the folder's where trusted.

Cost: the weights in memory once.
"""

from pathlib import Path
from typing import Any

import transformers

from pipeline.backbones.quiet import quiet_transformers
from pipeline.errors import PipelineError
from pipeline.fused.folder import export_api
from pipeline.fused.package import api_class, source_files

_SHOWN = 5


class NotAnExport(PipelineError, ValueError):  # noqa: N818 (reads as what is wrong)
    """A folder holds no exported model, another kind, or one that lacks weights or has own code."""


def load_fused(folder: Path) -> Any:
    """Return the model of `folder`, in eval mode, run by this version's code.

    Raises:
        NotAnExport: there is no exported model, or it lacks weights.
    """
    return _load(api_class(_api(folder)), folder)


def load_exported(folder: Path, stage: str, *, trust_code: bool = False) -> Any:
    """Return the model of `folder`; its code runs only if it is ours, or trusted.

    Args:
        folder: of the exported model.
        stage: what it is needed for: "predict", "index" or "search".
        trust_code: run the folder's code where it is not this version's own.

    Raises:
        NotAnExport: there is no exported model for that, it lacks weights, or its code differs
            and `trust_code` is off.
    """
    api = _api(folder)
    kind = api_class(api)
    if stage not in kind.stages:
        uses = " and ".join(f"`{name}`" for name in kind.stages)
        raise NotAnExport(f"{folder} holds a model for {uses}, not for `{stage}`")
    if _is_ours(folder, api):
        return load_fused(folder)
    if not trust_code:
        raise NotAnExport(
            f"the model code in {folder} is not this version's own (another version wrote it, or "
            "it was edited); to run it, look at its .py files and set trust_code"
        )
    return _load(getattr(transformers, kind.auto), folder, trust_remote_code=True)


def _api(folder: Path) -> str:
    found = export_api(folder)
    if found is None:
        raise NotAnExport(f"{folder} holds no exported model (config.json of type unipt)")
    return found


def _load(loader: Any, folder: Path, **options: Any) -> Any:
    with quiet_transformers():
        model, report = loader.from_pretrained(folder, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise NotAnExport(
            f"the exported model in {folder} lacks {len(missing)} weight(s), such as "
            f"{', '.join(missing[:_SHOWN])}: they would be random; export it again"
        )
    return model.eval()


def _is_ours(folder: Path, api: str) -> bool:
    def read(name: str) -> str | None:
        path = folder / name
        return path.read_text(encoding="utf-8") if path.is_file() else None

    return all(read(name) == text for name, text in source_files(api).items())
