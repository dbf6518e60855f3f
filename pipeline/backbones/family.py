"""What a family of backbones is: where its taps sit, and how its positions are counted.

A family file holds `register_family(Family(...))` calls and nothing else. A tap is the output of a
*named module*, taken by a forward hook: `hidden_states[i]` means something else in each family, a
module's own output does not.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pipeline.backbones.registry import Registry
from pipeline.errors import PipelineError
from pipeline.selection import select_names


class BackboneError(PipelineError, ValueError):
    """A backbone cannot be loaded, tapped or used as asked; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where the taps of one family sit.

    Of alternative module paths, written best first, the one that exists in a model is taken.

    Attributes:
        name: the family's name, as shown to the user.
        model_types: the `config.model_type` values it covers.
        modality: what its models read.
        embeddings: paths of the tap `embeddings`.
        layers: paths of the module list whose entries are the taps `encoder.layer.00`, ...
        stages: paths of the module list whose entries are the taps `stage.1`, ...; or one path
            with a `{}` that stands for 1, 2, ...
        stage_end: list inside a stage whose last entry is tapped instead of the stage; for stages
            that end with a change to the next resolution.
        blocks: paths of the module list whose entries are the taps `block.00`, ...; the last one
            at each resolution is also the tap `stage.1`, ...
        final: paths of the last tap of the states, `final_norm`.
        head: paths of the tap `head`, a map wider than the last stage.
        projection: paths of the tap `projection`: one vector for the whole input.
        cells: the tokens a stage emits are the cells of a map, in rows, and are kept as one.
        offset_positions: positions start at `pad_token_id + 1` (RoBERTa and its heirs), so that
            the longest input is that much shorter than `max_position_embeddings`.
        shared_layers: the list's modules are called several times a forward pass, one after the
            other (ALBERT); each call is a layer, `path@k`.
        full_length: every text is filled up to `max_length` with pad tokens that nothing masks,
            as the model was trained (SigLIP).
    """

    name: str
    model_types: tuple[str, ...]
    modality: Literal["text", "image"] = "text"
    embeddings: tuple[str, ...] = ()
    layers: str | tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    stage_end: str = ""
    blocks: tuple[str, ...] = ()
    final: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    projection: tuple[str, ...] = ()
    cells: bool = False
    offset_positions: bool = False
    shared_layers: bool = False
    full_length: bool = False

    def tap_modules(
        self,
        model: nn.Module,
        calls: Mapping[str, int] | None = None,
        emitted: Mapping[str, Tensor] | None = None,
    ) -> dict[str, str]:
        """Return tap name -> module path in `model`, in the order of computation.

        Args:
            model: the backbone.
            calls: module path -> its calls in a forward pass; needed for shared layers only.
            emitted: module path -> what it emitted in a forward pass; needed for `blocks` only.

        Raises:
            BackboneError: a module of the family is missing from `model`.
        """
        taps = {"embeddings": _first(model, self.embeddings)}
        if self.embeddings and taps["embeddings"] is None:
            raise BackboneError(
                f"{type(model).__name__} has none of the embedding modules "
                f"{list(self.embeddings)} of the family {self.name!r}"
            )
        taps |= self._layers(model, calls or {}) if self.layers else {}
        taps |= self._stages(model) if self.stages else {}
        taps |= resolutions(self._entries(model, self.blocks), emitted or {}) if self.blocks else {}
        taps["final_norm"] = _first(model, self.final)
        taps["head"] = _first(model, self.head)
        taps["projection"] = _first(model, self.projection)
        return {name: path for name, path in taps.items() if path is not None}

    def _layers(self, model: nn.Module, calls: Mapping[str, int]) -> dict[str, str]:
        paths = self._entries(model, self.layers)
        if self.shared_layers:
            paths = [f"{path}@{k}" for path in paths for k in range(calls.get(path, 0))]
        return {layer_name(i): path for i, path in enumerate(paths)}

    def _stages(self, model: nn.Module) -> dict[str, str]:
        numbered = [path.format(i + 1) for path in self.stages if "{}" in path for i in range(9)]
        paths = [path for path in numbered if _find(model, path) is not None]
        paths = paths or self._entries(model, self.stages)
        if self.stage_end:
            paths = [self._entries(model, f"{path}.{self.stage_end}")[-1] for path in paths]
        return {stage_name(i): path for i, path in enumerate(paths)}

    def _entries(self, model: nn.Module, lists: str | Sequence[str]) -> list[str]:
        """Return the paths of the entries of the first of `lists` that exists."""
        path = _first(model, known := [lists] if isinstance(lists, str) else lists)
        found = _find(model, path) if path else None
        if not isinstance(found, (nn.ModuleList, nn.Sequential)):
            raise BackboneError(
                f"{type(model).__name__} has no module list {' or '.join(map(repr, known))}, where "
                f"the family {self.name!r} keeps its layers"
            )
        return [f"{path}.{i}" for i in range(len(found))]


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


def stage_name(index: int) -> str:
    """Return the tap name of stage `index`, counted from 0: `stage.1` is the first."""
    return f"stage.{index + 1}"


def resolutions(blocks: Sequence[str], emitted: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the taps of `blocks`: each one, and the last one at each resolution as a stage.

    Args:
        blocks: paths of modules that emit maps, in the order of computation.
        emitted: module path -> what it emitted, [B, C, H, W].
    """
    sizes = [emitted[path].shape[2:] for path in blocks]
    stages = 0
    taps: dict[str, str] = {}
    for i, path in enumerate(blocks):
        taps[layer_name(i, "block")] = path
        if i + 1 == len(blocks) or sizes[i] != sizes[i + 1]:
            taps[stage_name(stages)] = path
            stages += 1
    return taps


def select_taps(known: Sequence[str], patterns: Sequence[str] | None) -> tuple[str, ...]:
    """Return the `known` taps that any of `patterns` selects (see `select_names`), in their order.

    Without patterns these are all but single blocks of a ConvNet and its head, which repeat what
    the stages hold.

    Raises:
        BackboneError: a pattern matches nothing; the message lists the known taps.
    """
    if patterns is None:
        return tuple(name for name in known if not _FINER.match(name))
    chosen, lost = select_names(known, patterns)
    if lost or not patterns:
        what = f"no tap matches {', '.join(map(repr, lost))}" if lost else "no tap was named"
        raise BackboneError(f"{what}; known taps: {', '.join(known)}")
    return chosen


_FINER = re.compile(r"block\.\d+$|head$")


def _find(model: nn.Module, path: str) -> nn.Module | None:
    """Return the module at `path`, or None where there is none (a module set to None included)."""
    found: nn.Module | None = model
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, nn.Module) else None


def _first(model: nn.Module, paths: Sequence[str]) -> str | None:
    return next((path for path in paths if _find(model, path) is not None), None)
