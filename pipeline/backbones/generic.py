"""Taps of a model whose family has no file: found, or refused with what was found instead.

The layers are the one module list as long as `config.num_hidden_layers`, or, of a model of stages,
as `config.depths`; tap names come from the module paths. The module that emits the model's final
state joins as the last tap if that is not the last layer itself. Of a text model it costs one more
pass over a few tokens: an unknown model may ignore the mask.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pipeline.backbones.family import FAMILIES, BackboneError, Family, layer_name
from pipeline.backbones.trace import PROBE_TOKENS, Trace, trace

_PADDING = 3


def discover_taps(model: nn.Module, config: Any, seen: Trace) -> dict[str, str]:
    """Return tap name -> module path, in the order of computation.

    Args:
        model: the backbone.
        config: its transformers configuration.
        seen: a trace of the model.

    Raises:
        BackboneError: no module list, or more than one, is as long as the model is deep; or the
            list's modules are not called exactly once.
    """
    lists = {p: m for p, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    depth, setting = _depth(config)
    fitting = [path for path, modules in lists.items() if len(modules) == depth]
    if len(fitting) != 1:
        candidates = ", ".join(f"{path} ({len(m)})" for path, m in lists.items()) or "none"
        raise BackboneError(
            f"cannot find the layers of a {type(model).__name__} (model type "
            f"{getattr(config, 'model_type', '?')!r}): need exactly one module list of "
            f"{setting} = {depth} entries, found {len(fitting)}. Module lists (length): "
            f"{candidates}. Add a family file that names the right one (docs/backbones.md)."
        )
    layers = [f"{fitting[0]}.{i}" for i in range(len(lists[fitting[0]]))]
    if odd := [path for path in layers if seen.calls.get(path) != 1 or path not in seen.emitted]:
        raise BackboneError(
            f"the layers {odd} of a {type(model).__name__} are not called exactly once in a "
            "forward pass, so a hook cannot tell their calls apart"
        )
    taps = {layer_name(i, fitting[0]): path for i, path in enumerate(layers)}
    embeddings = _path_of(model, _input_embeddings(model))
    head = {embeddings: embeddings} if _joins(embeddings, layers[0], seen) else {}
    return head | taps | _final(layers[-1], seen)


def _depth(config: Any) -> tuple[int | None, str]:
    """Return how many layers or stages a model has, and the setting that says so."""
    if depths := getattr(config, "depths", None):
        return len(depths), "len(depths)"
    return getattr(config, "num_hidden_layers", None), "num_hidden_layers"


def _joins(embeddings: str, layer: str, seen: Trace) -> bool:
    """Whether the embeddings emit a state; of images they may be patches, without a CLS token."""
    state = seen.emitted.get(embeddings)
    if state is None or not state.is_meta:
        return state is not None
    return state.shape == seen.emitted[layer].shape


def _final(last_layer: str, seen: Trace) -> dict[str, str]:
    """Return the module after the last layer that emits the model's result, as a tap."""
    if seen.gave_result(last_layer):
        return {}
    emitters = [
        path
        for path, begun in seen.begun.items()
        if seen.gave_result(path) and begun > seen.ended[last_layer]
    ]
    return {path: path for path in sorted(emitters, key=len)[-1:]}


def check_padding(model: nn.Module, paths: Iterable[str], seen: Trace, pad_id: int) -> None:
    """Raise if masked padding after a text changes what the modules at `paths` emit for it.

    Args:
        model: the backbone.
        paths: paths of the tapped modules.
        seen: a trace of the model, without padding.
        pad_id: the id that fills a batch.

    Raises:
        BackboneError: it does; batches of unequal lengths would then give other states.
    """
    padded = trace(model, padding=[pad_id] * _PADDING)
    for path in paths:
        alone = seen.emitted[path][0].float()  # [PROBE_TOKENS, D]
        among = padded.emitted[path][0, :PROBE_TOKENS].float()
        rounding = 1e-3 if seen.emitted[path].dtype == torch.float32 else 0.1
        if ((alone - among).norm(dim=-1) > rounding * alone.norm(dim=-1) + 1e-6).any():
            raise BackboneError(
                f"the states of {path!r} in a {type(model).__name__} depend on the padding behind "
                "a text, though it is masked, so they are not the text's own; this model is not "
                "supported"
            )


def _input_embeddings(model: Any) -> nn.Module | None:
    try:
        found: nn.Module | None = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # not every image model says
        return None
    return found


def _path_of(model: nn.Module, wanted: nn.Module | None) -> str:
    return next((path for path, module in model.named_modules() if module is wanted), "")


def known_taps(model: nn.Module, config: Any, seen: Trace) -> tuple[Family | None, dict[str, str]]:
    """Return the family of `model`, None where it has no file, and tap name -> module path.

    Raises:
        BackboneError: the model does not fit its family, or its taps cannot be found.
    """
    if config.model_type not in FAMILIES:
        return None, discover_taps(model, config, seen)
    family = FAMILIES.get(config.model_type)
    taps = family.tap_modules(model, seen.calls, seen.emitted)
    silent = [path for path in taps.values() if path not in seen.emitted]
    if silent:
        raise BackboneError(
            f"the modules {silent} of a {type(model).__name__} emit nothing in a forward pass; "
            f"this version of transformers does not fit the family {family.name!r}"
        )
    return family, taps
