"""ConvSideNetwork: UniPT over the feature maps of a ConvNet's stages.

Legend: B images, N target stages of [C_i, H_i, W_i], anchor stage [C, H, W], cells k_h x k_w with
H_i = k_h H and W_i = k_w W, L = H W. A 1x1 convolution is a Linear over the cells, so everything
after the pre-step is a `SideNetwork` with BatchNorm.

Pre-step of stage i: ``g = relu(Conv1x1(anchor))`` on the coarse grid, ``s = sum_c g h_i`` at every
pixel of its cell, ``w = l1(relu(s)) + 1 / (k_h k_w)`` within the cell, pooled = sum over the cell
of ``w h_i``. Price: two passes over each map; g is never upsampled. It depends on trained
weights, so it cannot be precomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .interaction import EpsMode, l1_normalize
from .layers import ProjectionKind, UpKind, check_choice
from .network import SideNetwork, SideOutput

__all__ = ["ConvSideNetwork", "MapNorm", "pool_cells"]

MapNorm = Literal["none", "standard"]


def pool_cells(guide: Tensor, stage: Tensor, *, eps: float, eps_mode: EpsMode) -> Tensor:
    """Pool every cell of a map, weighted by its likeness to the guide.

    Args:
        guide: g, ``[B, C, H, W]``.
        stage: ``[B, C, k_h H, k_w W]``.
        eps: see `unipt.interaction.l1_normalize`.
        eps_mode: see `unipt.interaction.l1_normalize`.

    Returns:
        ``[B, C, H, W]``.

    Raises:
        ValueError: if the sides of the map are no multiples of the guide's.
    """
    (rows, columns), (height, width) = guide.shape[2:], stage.shape[2:]
    if height % rows or width % columns:
        raise ValueError(
            f"a stage of {height}x{width} does not divide into the {rows}x{columns} cells of the "
            "last stage; resize or pad the images to a multiple of the backbone's largest stride"
        )
    high, wide = height // rows, width // columns
    cells = stage.reshape(*stage.shape[:2], rows, high, columns, wide)  # [B, C, H, kh, W, kw]
    scores = F.relu((cells * guide[:, :, :, None, :, None]).sum(1))  # [B, H, kh, W, kw]
    scores = scores.transpose(2, 3)  # [B, H, W, kh, kw]
    weights = l1_normalize(scores.flatten(3), eps=eps, eps_mode=eps_mode) + 1.0 / (high * wide)
    weights = weights.view_as(scores).transpose(2, 3)  # [B, H, kh, W, kw]
    return (cells * weights[:, None]).sum((3, 5))  # [B, C, H, W]


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
            maps first, one more pass over them.

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
        if self.standard is not None:
            dtype = self.side.gate.weight.dtype
            *targets, anchor = (
                norm(maps.to(dtype))
                for norm, maps in zip(self.standard, (*targets, anchor), strict=True)
            )
        cells = to_cells(anchor.to(self.side.gate.weight.dtype))  # [B, H W, C]
        pooled = []
        for guide, stage in zip(self.guides, targets, strict=True):
            coarse = F.relu(guide(cells)).transpose(1, 2)  # [B, C_i, H W]
            coarse = coarse.view(*coarse.shape[:2], *anchor.shape[2:])
            cell_means = pool_cells(
                coarse, stage.to(coarse.dtype), eps=self.eps, eps_mode=self.eps_mode
            )
            pooled.append(to_cells(cell_means))
        output: SideOutput = self.side(cells, pooled)
        return output


def to_cells(maps: Tensor) -> Tensor:
    """``[B, C, H, W] -> [B, H W, C]``."""
    return torch.flatten(maps, 2).transpose(1, 2)
