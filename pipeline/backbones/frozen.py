"""Nothing above a tap may change or be random: what is cached must be what any later pass gives."""

from collections.abc import Iterable, Mapping

from torch import nn

from pipeline.backbones.family import BackboneError
from pipeline.backbones.trace import Trace, trace

_SHOWN = 8


class NotFrozen(BackboneError):  # noqa: N818 - says it all
    """Something upstream of a tap is trainable or in training mode."""


def check_frozen(
    model: nn.Module, tap_modules: Mapping[str, str], *, seen: Trace | None = None
) -> None:
    """Raise unless everything that a tap depends on is frozen and in eval mode.

    A module is upstream unless one traced pass enters it after the last tap was emitted; one that
    the pass never enters counts as upstream, because its weights may be used directly.

    Args:
        model: the backbone.
        tap_modules: tap name -> module path.
        seen: a trace of the model, if one is at hand.

    Raises:
        NotFrozen: names the trainable parameters, and the modules in training mode (dropout and
            batch norm first).
    """
    seen = seen or trace(model)
    last = max(seen.ended[path] for path in tap_modules.values())
    upstream = {
        path: module for path, module in model.named_modules() if seen.begun.get(path, -1) < last
    }
    trainable = [
        f"{path}.{name}".lstrip(".")
        for path, module in upstream.items()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    live = [path or "(the model itself)" for path, module in upstream.items() if _is_live(module)]
    problems = []
    if trainable:
        problems.append(f"{len(trainable)} trainable parameter(s): {_some(trainable)}")
    if live:
        problems.append(f"{len(live)} module(s) in training mode: {_some(live)}")
    if problems:
        raise NotFrozen(
            f"upstream of the tap(s) {_some(tap_modules)} there are {' and '.join(problems)}. "
            "A cache would not repeat such states: call model.eval() and "
            "model.requires_grad_(False), or tap only modules below them."
        )


def _is_live(module: nn.Module) -> bool:
    """Training mode that can change a result: of dropout, norms, or code that asks for the mode.

    Containers and layers of a fixed function (Linear, Embedding, LayerNorm ...) ignore the mode.
    """
    indifferent = (
        *(nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.ModuleList, nn.ModuleDict),
        *(nn.Sequential, nn.Identity, nn.GELU, nn.ReLU, nn.SiLU, nn.Tanh, nn.Conv1d),
    )
    return module.training and not isinstance(module, indifferent)


def _some(names: Iterable[str]) -> str:
    # a module's name is shorter than its children's: the deepest say most
    ordered = sorted(names, key=lambda name: (not _random(name), name))
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more


def _random(name: str) -> bool:
    return "drop" in name or "norm" in name.lower()
