"""Taps of a model whose family has no file: found, or refused with what was found instead.

The layers are the one module list as long as `config.num_hidden_layers`; tap names come from the
module paths. The module that emits the model's final state joins as the last tap if that is not
the last layer itself. Costs one more pass over a few tokens: an unknown model may ignore the mask.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pipeline.backbones.family import BackboneError, layer_name
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
    depth = getattr(config, "num_hidden_layers", None)
    fitting = [path for path, modules in lists.items() if len(modules) == depth]
    if len(fitting) != 1:
        candidates = ", ".join(f"{path} ({len(m)})" for path, m in lists.items()) or "none"
        raise BackboneError(
            f"cannot find the layers of a {type(model).__name__} (model type "
            f"{getattr(config, 'model_type', '?')!r}): need exactly one module list of "
            f"num_hidden_layers = {depth} entries, found {len(fitting)}. Module lists (length): "
            f"{candidates}. Add a family file that names the right one (docs/backbones.md)."
        )
    layers = [f"{fitting[0]}.{i}" for i in range(len(lists[fitting[0]]))]
    if odd := [path for path in layers if seen.calls.get(path) != 1 or path not in seen.emitted]:
        raise BackboneError(
            f"the layers {odd} of a {type(model).__name__} are not called exactly once in a "
            "forward pass, so a hook cannot tell their calls apart"
        )
    taps = {layer_name(i, fitting[0]): path for i, path in enumerate(layers)}
    embeddings = _path_of(model, getattr(model, "get_input_embeddings", lambda: None)())
    head = {embeddings: embeddings} if embeddings in seen.emitted else {}
    return head | taps | _final(layers[-1], seen)


def _final(last_layer: str, seen: Trace) -> dict[str, str]:
    """Return the module after the last layer that emits the model's result, as a tap."""
    result = seen.last_hidden_state[0]
    if seen.emitted[last_layer] is result:
        return {}
    emitters = [
        path
        for path, begun in seen.begun.items()
        if seen.emitted.get(path) is result and begun > seen.ended[last_layer]
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


def _path_of(model: nn.Module, wanted: nn.Module | None) -> str:
    return next((path for path, module in model.named_modules() if module is wanted), "")
