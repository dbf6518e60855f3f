"""Weights of a ConvNet from one published file: `.pth`, `.pt` or `.safetensors`.

Costs reading the file once. Nothing is unpickled but tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.backbones.convnets import ARCHITECTURES, build_convnet
from pipeline.backbones.family import BackboneError

SUFFIXES = (".pth", ".pt", ".safetensors", ".bin")
_CLASSIFIERS = ("fc.", "_fc.")
_COUNTER = "num_batches_tracked"  # of no use in eval mode, and absent from old files
_SHOWN = 5


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name.

    A dictionary under `state_dict` or `model`, and the prefix `module.`, are unwrapped.

    Raises:
        BackboneError: the file holds no tensors by name, or more than tensors.
    """
    try:
        found: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise BackboneError(
            f"cannot read weights from {path} ({str(error).splitlines()[0]}). Give a state dict "
            f"saved as {', '.join(SUFFIXES)}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise BackboneError(f"{path} holds a {type(found).__name__}, not tensors by name")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def load_convnet(architecture: str, path: Path | None, *, seed: int = 0) -> nn.Module:
    """Return the ConvNet `architecture` with the weights at `path`, or with random ones.

    Args:
        architecture: a name of `convnets.ARCHITECTURES`.
        path: the weights; the file's classifier is left out. None makes random ones.
        seed: of the random weights.

    Raises:
        BackboneError: the architecture is unknown, or the file's names and shapes are not its own.
    """
    if architecture not in ARCHITECTURES:
        raise BackboneError(
            f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_convnet(architecture)
    if path is None:
        return model
    wanted = model.state_dict()
    given = {k: v for k, v in read_state_dict(path).items() if not k.startswith(_CLASSIFIERS)}
    missing = [k for k in wanted if k not in given and not k.endswith(_COUNTER)]
    odd = [k for k, v in given.items() if k not in wanted or v.shape != wanted[k].shape]
    if missing or odd:
        raise BackboneError(
            f"{path} does not hold a {architecture}: {len(missing)} weight(s) are missing"
            f"{_some(missing)}, {len(odd)} are unknown or of another shape{_some(odd)}"
        )
    model.load_state_dict(given, strict=False)
    return model.float()


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''})" if names else ""
