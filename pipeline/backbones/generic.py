"""Taps of a model whose family has no file: found, or refused with what was found instead.

The layers are the one module list as long as `config.num_hidden_layers`; tap names come from the
module paths. The module that emits the model's final state joins as the last tap if that is not
the last layer itself.
"""

from typing import Any

from torch import nn

from pipeline.backbones.family import BackboneError, layer_name
from pipeline.backbones.trace import Trace


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
        for path, value in seen.emitted.items()
        if value is result and seen.begun[path] > seen.ended[last_layer]
    ]
    return {path: path for path in sorted(emitters, key=len)[-1:]}


def _path_of(model: nn.Module, wanted: nn.Module | None) -> str:
    return next((path for path, module in model.named_modules() if module is wanted), "")
