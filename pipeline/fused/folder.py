"""Folders that appear whole or not at all: staged beside their place, flushed, renamed.

Replacing an existing export takes two renames; between them, for microseconds, there is none.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.fused.api import apis
from pipeline.fused.configuration_unipt import UniPTConfig
from pipeline.training.files import sync_folder


class OutputExists(FileExistsError):  # noqa: N818 (reads as what is wrong)
    """The folder to write is in use."""


def check_target(out: Path, *, force: bool) -> None:
    """Refuse a target that would lose something.

    Raises:
        OutputExists: `out` is a file, or a non-empty folder and either `force` is off or it is not
            an exported model.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if export_api(out) is None:
        raise OutputExists(
            f"{out} exists and is no exported model, so it is not replaced: choose another folder "
            "or move it away"
        )
    if not force:
        raise OutputExists(f"{out} holds an exported model: choose another folder, or force=True")


def export_api(folder: Path) -> str | None:
    """Return the API of the fused model in `folder`, None if there is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or config.get("model_type") != UniPTConfig.model_type:
        return None
    found = config.get("api")
    return found if found in apis() else None


@contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty folder that takes the name `out` on success and vanishes on failure.

    Raises:
        OutputExists: see `check_target`.
    """
    check_target(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
        for path in stage.iterdir():
            path.chmod(0o644)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        check_target(out, force=force)
        _take_place(stage, out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _take_place(stage: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    stage.rename(out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)
