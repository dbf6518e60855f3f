"""From what a module of an image model emits to the layout of its tap. Pure torch.

b images, P tokens, L = H * W cells, C channels, D wide.
"""

from collections.abc import Sequence

from torch import Tensor

Size = tuple[int, int]


def as_tap(state: Tensor, shape: Sequence[int]) -> Tensor:
    """Return `state` as [b, *shape]: cells [b, H * W, C] become a map [b, C, H, W].

    Args:
        state: what the module emitted.
        shape: of the tap for one image: (P, D), (C, H, W) or (D,).
    """
    if state.dim() == 3 and len(shape) == 3:
        return state.transpose(1, 2).reshape(state.shape[0], *shape)
    return state


def map_shape(state: Tensor, patches: Size) -> tuple[int, int, int] | None:
    """Return (C, H, W) of cells [b, H * W, C], or None where they fit no halving of `patches`.

    Args:
        state: what the module emitted.
        patches: rows and columns of the finest map.
    """
    cells, (height, width) = state.shape[1], patches
    while height * width > cells:
        height, width = -(-height // 2), -(-width // 2)
    return (state.shape[2], height, width) if height * width == cells else None
