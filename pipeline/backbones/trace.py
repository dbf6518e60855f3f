"""One small forward pass, watched: which module runs when, and what it emits.

Costs a pass over four tokens or one image. Shapes of taps, the taps of an unknown family and the
check that everything upstream of a tap is frozen all follow from what really ran, not from names.
"""

import inspect
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

PROBE_TOKENS = 4
PROBE_PIXELS = 64
"""Side of the image for a model whose configuration names none."""


@dataclass(frozen=True)
class Trace:
    """Order and outputs of one forward pass.

    Attributes:
        begun: module path -> when it was first entered; the model itself is "".
        ended: module path -> when it was last left; `path@k` -> when its k-th call was left.
        calls: module path -> number of calls.
        emitted: module path -> its last output (of a tuple, the first element), if a tensor;
            `path@k` -> that of its k-th call. Of images only the shape and type are kept: their
            states weigh gigabytes.
        last_hidden_state: the model's own result, such as [1, PROBE_TOKENS, D].
    """

    begun: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    emitted: dict[str, Tensor] = field(default_factory=dict)
    last_hidden_state: list[Tensor] = field(default_factory=list)
    _outputs: dict[str, Any] = field(default_factory=dict)

    def gave_result(self, path: str) -> bool:
        """Whether the module at `path` emitted the very tensor that is the model's result."""
        output = self._outputs.get(path)
        return output is not None and output() is self.last_hidden_state[0]


def trace(
    model: nn.Module,
    *,
    padding: Sequence[int] = (),
    inputs: Mapping[str, Any] | None = None,
) -> Trace:
    """Run `model` once in eval mode and record what ran.

    The training flags, and other plain values that modules keep, are put back and the hooks are
    removed, whatever happens: a Swin that saw a small image remembers its windows for the next.

    Args:
        model: what to run.
        padding: ids that follow the `PROBE_TOKENS` tokens, masked; what is recorded then has them
            too.
        inputs: the model's arguments; None gives it four tokens, or one black image.
    """
    seen, clock = Trace(), iter(range(1 << 62))
    paths = dict(model.named_modules())
    kept = {path: _plain(module) for path, module in paths.items()}
    arguments = dict(inputs) if inputs is not None else probe(model, padding)
    whole = not reads_pixels(model)
    handles = []
    try:
        for path, module in paths.items():
            handles.append(module.register_forward_pre_hook(_on_entry(seen, path, clock)))
            handles.append(module.register_forward_hook(_on_exit(seen, path, clock, whole)))
        model.eval()
        with torch.no_grad():
            result = model(**arguments)
        seen.last_hidden_state.append(first_tensor(result))
    finally:
        for handle in handles:
            handle.remove()
        for path, module in paths.items():
            module.__dict__.update(kept[path])
    return seen


def reads_pixels(model: nn.Module) -> bool:
    """Whether `model` takes images, as it says itself."""
    return getattr(model, "main_input_name", "input_ids") == "pixel_values"


def probe(model: nn.Module, padding: Sequence[int] = ()) -> dict[str, Any]:
    """Return the arguments of a small forward pass: four tokens, or one black image."""
    if reads_pixels(model):
        size = getattr(model.config, "image_size", None) or PROBE_PIXELS
        return black_image(model, size)
    device = next(model.parameters()).device
    ids = torch.tensor([[*range(PROBE_TOKENS), *padding]], device=device)
    mask = (torch.arange(ids.shape[1], device=device) < PROBE_TOKENS)[None].long()
    return {"input_ids": ids, "attention_mask": mask, **no_kv_cache(model)}


def black_image(model: nn.Module, size: int | Sequence[int]) -> dict[str, Any]:
    """Return one image of `size` (a side, or height and width) as arguments of `model`."""
    weight = next(model.parameters())
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(model.config, "num_channels", 3)
    shape = (1, channels, height, width)
    return {"pixel_values": torch.zeros(shape, device=weight.device, dtype=weight.dtype)}


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


def _plain(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of `module` that are plain values; `training` is one of them."""
    return {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str, tuple))}


def _on_entry(seen: Trace, path: str, clock: Any) -> Any:
    def hook(_module: nn.Module, _args: Any) -> None:
        seen.begun.setdefault(path, next(clock))

    return hook


def _on_exit(seen: Trace, path: str, clock: Any, whole: bool) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        call = seen.calls.get(path, 0)
        seen.calls[path] = call + 1
        seen.ended[path] = seen.ended[f"{path}@{call}"] = next(clock)
        if isinstance(value := first_tensor(output), Tensor):
            seen._outputs[path] = weakref.ref(value)
            kept = value if whole else torch.empty_like(value, device="meta")
            seen.emitted[path] = seen.emitted[f"{path}@{call}"] = kept

    return hook
