"""ConvSideNetwork: UniPT over the feature maps of a ConvNet's stages.

Legend: B images, N target stages of [C_i, H_i, W_i], anchor stage [C, H, W], cells k_h x k_w with
H_i = k_h H and W_i = k_w W, L = H W. A 1x1 convolution is a Linear over the cells, so everything
after the pre-step is a `SideNetwork` with BatchNorm.

Pre-step of stage i: ``g = relu(Conv1x1(anchor))`` on the coarse grid, ``s = sum_c g h_i`` at every
pixel of its cell, ``w = l1(relu(s)) + 1 / (k_h k_w)`` within the cell, pooled = sum over the cell
of ``w h_i``. It depends on trained weights, so it cannot be precomputed. Price: each map is copied
once, cell by cell and in the type of the arithmetic, then read thrice forward, twice backward;
g is never upsampled, and no product of the size of a map is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .interaction import EpsMode, l1_normalize
from .layers import ProjectionKind, UpKind, check_choice
from .network import SideNetwork, SideOutput

__all__ = ["ConvSideNetwork", "MapNorm", "pool_cells"]

MapNorm = Literal["none", "standard"]


def pool_cells(
    guide: Tensor,
    stage: Tensor,
    *,
    eps: float,
    eps_mode: EpsMode,
    mean: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Pool every cell of a map, weighted by its likeness to the guide.

    With ``mean`` and ``scale`` the result is that of the map ``(stage - mean) / scale``, which is
    never written: both are folded into the guide and into the pooled vectors.

    Args:
        guide: g, ``[B, H, W, C]``.
        stage: ``[B, C, k_h H, k_w W]``, of any floating type.
        eps: see `unipt.interaction.l1_normalize`.
        eps_mode: see `unipt.interaction.l1_normalize`.
        mean: of each channel, ``[C]``; None for 0.
        scale: of each channel, ``[C]``; None for 1.

    Returns:
        ``[B, H W, C]``, in the guide's type.

    Raises:
        ValueError: if the sides of the map are no multiples of the guide's.
    """
    pixels = split_cells(stage, guide.shape[1:3], guide.dtype)  # [B H W, k, C]
    query = guide.flatten(0, 2)  # [B H W, C]
    if scale is not None:
        query = query / scale
    scores = torch.bmm(pixels, query[..., None])[..., 0]  # [B H W, k]
    if mean is not None:
        scores = scores - (query @ mean)[:, None]
    weights = l1_normalize(F.relu(scores), eps=eps, eps_mode=eps_mode)  # [B H W, k], without 1 / k
    pooled = torch.bmm(weights[:, None], pixels)[:, 0] + pixels.mean(1)  # [B H W, C]
    if mean is not None:
        pooled = pooled - (weights.sum(1, keepdim=True) + 1.0) * mean
    if scale is not None:
        pooled = pooled / scale
    return pooled.view(guide.shape[0], -1, guide.shape[3])


def split_cells(stage: Tensor, grid: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Copy a map cell by cell, ``[B, C, k_h H, k_w W] -> [B H W, k_h k_w, C]``.

    Args:
        stage: the map.
        grid: H and W.
        dtype: of the copy.

    Raises:
        ValueError: if the sides of the map are no multiples of H and W.
    """
    (rows, columns), (height, width) = grid, stage.shape[2:]
    if height % rows or width % columns:
        raise ValueError(
            f"a stage of {height}x{width} does not divide into the {rows}x{columns} cells of the "
            "last stage; resize or pad the images to a multiple of the backbone's largest stride"
        )
    high, wide = height // rows, width // columns
    cells = stage.reshape(*stage.shape[:2], rows, high, columns, wide)  # [B, C, H, kh, W, kw]
    cells = cells.permute(0, 2, 4, 3, 5, 1)  # [B, H, W, kh, kw, C]
    copied = cells.to(dtype, memory_format=torch.contiguous_format)
    return copied.reshape(-1, high * wide, stage.shape[1])


class ChannelStandard(nn.Module):
    """``(x - mean) / scale`` for each channel of maps ``[B, C, H, W]``; 0 and 1 until set.

    Args:
        width: C.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def set_statistics(self, mean: Tensor, scale: Tensor) -> None:
        """Set mean and standard deviation ``[C]``; a deviation of 0 counts as 1."""
        usable = torch.isfinite(scale) & (scale > 0)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(usable, scale, 1.0))

    def forward(self, maps: Tensor) -> Tensor:
        """Standardise ``[B, C, H, W]``."""
        return (maps - self.mean[:, None, None]) / self.scale[:, None, None]


class ConvSideNetwork(nn.Module):
    """The ConvNet side network of VSE-infinity (arXiv 2308.14316) for maps of any size.

    Args:
        widths: channels of each target stage, in order.
        anchor_width: channels of the last stage.
        side_width: d.
        out_width: E.
        eps: guards both l1 norms.
        eps_mode: "add" or "clamp".
        projection: P, "none", "linear" or "mlp", followed by BatchNorm.
        projection_width: inner width of the "mlp"; 0 = 2 d.
        up: see `SideNetwork`.
        norm_eps: eps of the BatchNorms.
        input_norm: "standard" = fixed statistics of each channel (`set_statistics`) applied to the
            maps first, at no pass over the targets: see `pool_cells`.

    Raises:
        ValueError: if an option is unknown.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        anchor_width: int,
        side_width: int,
        out_width: int,
        eps: float = 1e-8,
        eps_mode: EpsMode = "add",
        projection: ProjectionKind = "linear",
        projection_width: int = 0,
        up: UpKind = "relu_linear",
        norm_eps: float = 1e-5,
        input_norm: MapNorm = "none",
    ) -> None:
        super().__init__()
        check_choice("input_norm", input_norm, MapNorm)
        self.eps, self.eps_mode = eps, eps_mode
        self.standard = (
            nn.ModuleList(ChannelStandard(width) for width in (*widths, anchor_width))
            if input_norm == "standard"
            else None
        )
        self.guides = nn.ModuleList(nn.Linear(anchor_width, width) for width in widths)
        self.side = SideNetwork(
            widths=widths,
            anchor_width=anchor_width,
            side_width=side_width,
            out_width=out_width,
            down_norm="batch",
            eps=eps,
            eps_mode=eps_mode,
            projection=projection,
            projection_width=projection_width,
            projection_norm="batch",
            up=up,
            norm_eps=norm_eps,
        )
        self.out_width = self.side.out_width

    def set_statistics(self, position: int, mean: Tensor, scale: Tensor) -> None:
        """Set mean and standard deviation ``[C]`` of one stage, the anchor being the last.

        Raises:
            ValueError: if ``input_norm`` is not "standard".
        """
        if self.standard is None:
            raise ValueError("statistics need input_norm='standard'")
        stage = self.standard[position]
        assert isinstance(stage, ChannelStandard)
        stage.set_statistics(mean, scale)

    def forward(self, anchor: Tensor, targets: Sequence[Tensor]) -> SideOutput:
        """Run on the maps of one backbone.

        Args:
            anchor: last stage, ``[B, C, H, W]``.
            targets: N stages ``[B, C_i, H_i, W_i]``, sides multiples of H and W (not necessarily
                the same multiple).

        Returns:
            features ``[B, H W, E]`` (row by row) and confidence ``[B, N]``.

        Raises:
            ValueError: if the number of stages, a width or a side does not fit.
        """
        if len(targets) != len(self.guides):
            raise ValueError(f"{len(targets)} stages were given, expected {len(self.guides)}")
        dtype = self.side.gate.weight.dtype
        anchor = anchor.to(dtype)
        norms: Sequence[ChannelStandard | None] = [None] * len(self.guides)
        if self.standard is not None:
            *norms, last = (cast(ChannelStandard, norm) for norm in self.standard)
            anchor = last(anchor)
        cells = to_cells(anchor)  # [B, H W, C]
        pooled = []
        for guide, stage, norm in zip(self.guides, targets, norms, strict=True):
            coarse = F.relu(guide(cells))  # [B, H W, C_i]
            pooled.append(
                pool_cells(
                    coarse.view(-1, *anchor.shape[2:], coarse.shape[2]),
                    stage,
                    eps=self.eps,
                    eps_mode=self.eps_mode,
                    mean=None if norm is None else norm.mean,
                    scale=None if norm is None else norm.scale,
                )
            )
        output: SideOutput = self.side(cells, pooled)
        return output


def to_cells(maps: Tensor) -> Tensor:
    """``[B, C, H, W] -> [B, H W, C]``."""
    return torch.flatten(maps, 2).transpose(1, 2)
