"""What a family of backbones is: where its taps sit, and how its positions are counted.

A family file holds one `register_family(Family(...))` call and nothing else. A tap is the output
of a *named module*, taken by a forward hook: `hidden_states[i]` means something else in each
family, a module's own output does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from pipeline.backbones.registry import Registry
from pipeline.errors import PipelineError


class BackboneError(PipelineError, ValueError):
    """A backbone cannot be loaded, tapped or used as asked; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where the taps of one family sit.

    Attributes:
        name: the family's name, as shown to the user.
        model_types: the `config.model_type` values it covers.
        embeddings: module paths, best first; the first that exists is the tap `embeddings`.
        layers: path of the module list whose entries are the taps `encoder.layer.00`, ...
        final: module paths, best first; the first that exists is the last tap, `final_norm`.
        offset_positions: positions start at `pad_token_id + 1` (RoBERTa and its heirs), so that
            the longest input is that much shorter than `max_position_embeddings`.
        shared_layers: the list's modules are called several times a forward pass, one after the
            other (ALBERT); each call is a layer, `path@k`.
    """

    name: str
    model_types: tuple[str, ...]
    embeddings: tuple[str, ...]
    layers: str
    final: tuple[str, ...] = ()
    offset_positions: bool = False
    shared_layers: bool = False

    def tap_modules(
        self, model: nn.Module, calls: Mapping[str, int] | None = None
    ) -> dict[str, str]:
        """Return tap name -> module path in `model`, in the order of computation.

        Args:
            model: the backbone.
            calls: module path -> its calls in a forward pass; needed for shared layers only.

        Raises:
            BackboneError: a module of the family is missing from `model`.
        """
        taps = {"embeddings": _first(model, self.embeddings)}
        if None in taps.values():
            raise BackboneError(
                f"{type(model).__name__} has none of the embedding modules "
                f"{list(self.embeddings)} of the family {self.name!r}"
            )
        if not isinstance(layers := _find(model, self.layers), nn.ModuleList):
            raise BackboneError(
                f"{type(model).__name__} has no module list {self.layers!r}, where the family "
                f"{self.name!r} keeps its layers"
            )
        paths = [f"{self.layers}.{i}" for i in range(len(layers))]
        if self.shared_layers:
            paths = [f"{path}@{k}" for path in paths for k in range((calls or {}).get(path, 0))]
        taps |= {layer_name(i): path for i, path in enumerate(paths)}
        taps["final_norm"] = _first(model, self.final)
        return {name: path for name, path in taps.items() if path is not None}


FAMILIES: Registry[Family] = Registry("backbone family for the model type")
"""Families by the `config.model_type` they cover."""


def register_family(family: Family) -> Family:
    """Register `family` under each of its model types; a type that is taken raises."""
    for model_type in family.model_types:
        FAMILIES.register(model_type, family)
    return family


def layer_name(index: int, prefix: str = "encoder.layer") -> str:
    """Return the tap name of layer `index`, counted from 0: `encoder.layer.03`."""
    return f"{prefix}.{index:02d}"


def select_taps(known: Sequence[str], patterns: Sequence[str] | None) -> tuple[str, ...]:
    """Return the `known` taps that match any of the glob `patterns`, in the order of `known`.

    Raises:
        BackboneError: a pattern matches nothing; the message lists the known taps.
    """
    if patterns is None:
        return tuple(known)
    lost = [p for p in patterns if not any(fnmatchcase(name, p) for name in known)]
    if lost or not patterns:
        what = f"no tap matches {', '.join(map(repr, lost))}" if lost else "no tap was named"
        raise BackboneError(f"{what}; known taps: {', '.join(known)}")
    return tuple(name for name in known if any(fnmatchcase(name, p) for p in patterns))


def _find(model: nn.Module, path: str) -> nn.Module | None:
    """Return the module at `path`, or None where there is none (a module set to None included)."""
    found: nn.Module | None = model
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, nn.Module) else None


def _first(model: nn.Module, paths: Sequence[str]) -> str | None:
    return next((path for path in paths if _find(model, path) is not None), None)
