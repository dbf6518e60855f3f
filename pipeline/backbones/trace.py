"""One small forward pass, watched: which module runs when, and what it emits.

Costs a pass over four tokens. Widths of taps, the taps of an unknown family and the check that
everything upstream of a tap is frozen all follow from what really ran, not from names.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

PROBE_TOKENS = 4


@dataclass(frozen=True)
class Trace:
    """Order and outputs of one forward pass.

    Attributes:
        begun: module path -> when it was first entered; the model itself is "".
        ended: module path -> when it was last left; `path@k` -> when its k-th call was left.
        calls: module path -> number of calls.
        emitted: module path -> its last output (of a tuple, the first element), if a tensor;
            `path@k` -> that of its k-th call.
        last_hidden_state: the model's own result, [1, PROBE_TOKENS, D].
    """

    begun: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    emitted: dict[str, Tensor] = field(default_factory=dict)
    last_hidden_state: list[Tensor] = field(default_factory=list)


def trace(model: nn.Module, *, padding: Sequence[int] = ()) -> Trace:
    """Run `model` once on `PROBE_TOKENS` tokens in eval mode and record what ran.

    `padding` holds ids that follow the tokens, masked; what is recorded then has them too.
    The training flags are put back and the hooks removed, whatever happens.
    """
    seen, clock = Trace(), iter(range(1 << 62))
    paths = dict(model.named_modules())
    modes = {path: module.training for path, module in paths.items()}
    handles = []
    try:
        for path, module in paths.items():
            handles.append(module.register_forward_pre_hook(_on_entry(seen, path, clock)))
            handles.append(module.register_forward_hook(_on_exit(seen, path, clock)))
        model.eval()
        device = next(model.parameters()).device
        ids = torch.tensor([[*range(PROBE_TOKENS), *padding]], device=device)
        mask = (torch.arange(ids.shape[1], device=device) < PROBE_TOKENS)[None].long()
        with torch.no_grad():
            result = model(input_ids=ids, attention_mask=mask, **no_kv_cache(model))
        seen.last_hidden_state.append(first_tensor(result))
    finally:
        for handle in handles:
            handle.remove()
        for path, module in paths.items():
            module.training = modes[path]
    return seen


def no_kv_cache(model: nn.Module) -> dict[str, Any]:
    """Return the argument that keeps a decoder from building a key-value cache, if it takes one."""
    return (
        {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    )


def first_tensor(output: Any) -> Any:
    """Return `output` itself, or the first element of a tuple, list or ModelOutput."""
    if isinstance(output, Tensor) or output is None:
        return output
    if isinstance(output, dict):
        return next(iter(output.values()), None)
    return output[0] if isinstance(output, (tuple, list)) and output else None


def _on_entry(seen: Trace, path: str, clock: Any) -> Any:
    def hook(_module: nn.Module, _args: Any) -> None:
        seen.begun.setdefault(path, next(clock))

    return hook


def _on_exit(seen: Trace, path: str, clock: Any) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        call = seen.calls.get(path, 0)
        seen.calls[path] = call + 1
        seen.ended[path] = seen.ended[f"{path}@{call}"] = next(clock)
        if isinstance(value := first_tensor(output), Tensor):
            seen.emitted[path] = seen.emitted[f"{path}@{call}"] = value

    return hook
