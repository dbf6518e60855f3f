"""SideNetwork: every token variant of UniPT as options of one module, on padded or packed tokens.

Legend: B samples, L tokens (padded), T valid tokens (packed), N targets, D backbone width,
d side width, E output width.

    a = Down_a(anchor)    t_i = Down_i(target_i)    p = softmax_i(gate)    u_i = A_i t_i
    o = [a +] P(sum_i p_i u_i)      y = Up(o) [+ anchor]

Price of a step: N + 1 GEMMs [T, D] x [D, d] forward and as many for the weight gradients: 60
to 70 % of the step on one CPU core in float32 at N = 12, D = 768, d = 192. Packed
batches are worked on in groups of equal length, so padding is never multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .interaction import (
    EpsMode,
    Residual,
    aggregate,
    causal_mask,
    masked_mean,
    residual_rows,
    running_mean,
)
from .interaction_groups import aggregate_groups
from .layers import (
    Activation,
    Down,
    InputNorm,
    Norm,
    Projection,
    ProjectionKind,
    Up,
    UpKind,
    check_choice,
)
from .packed import LengthGroups, check_offsets, group_by_length, invert, permute_rows
from .products import cpu_type

__all__ = ["AnchorKind", "SideNetwork", "SideOutput"]

AnchorKind = Literal["tokens", "vector"]


class SideOutput(NamedTuple):
    """What a side network returns."""

    features: Tensor
    """``[B, L, E]`` padded, ``[T, E]`` packed, ``[B, E]`` with a vector anchor."""
    confidence: Tensor
    """p, how much each target layer counts for each sample, ``[B, N]``; rows sum to 1."""


class SideNetwork(nn.Module):
    """The UniPT side network over token states (arXiv 2308.14316).

    Args:
        widths: width of each target layer, in order.
        anchor_width: width of the anchor.
        side_width: d.
        out_width: E; ignored when ``up="none"``.
        anchor: "tokens" = one state per token, masked like the targets; "vector" = one embedding
            per sample (CLIP4Clip).
        down_activation: "relu" applies a ReLU before every Down.
        down_norm: norm after every Down.
        input_norm: normalisation of the states before Down, see `unipt.layers.Down`.
        eps: guards the l1 norm of the attention.
        eps_mode: "add" = sum + eps, "clamp" = max(sum, eps).
        causal: a token uses only itself and earlier ones, in the attention and in the gate's means
            (generating decoders); the confidence returned is the mean over the tokens.
        residual: added to the attention: "identity", "position" (the row of one token per sample,
            given as ``position`` in the call, the first by default), or "none".
        projection: P, "none", "linear" or "mlp".
        projection_width: inner width of the "mlp"; 0 = 2 d.
        projection_norm: norm after P.
        up: from d to E, "none", "linear", "relu_linear" or "relu_linear_norm".
        anchor_skip: add the reduced anchor a to P's result.
        add_anchor: add the anchor as given to the output (needs E = anchor width).
        norm_eps: eps of every LayerNorm and BatchNorm.

    Raises:
        ValueError: if an option is unknown or options contradict each other.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        anchor_width: int,
        side_width: int,
        out_width: int,
        anchor: AnchorKind = "tokens",
        down_activation: Activation = "none",
        down_norm: Norm = "layer",
        input_norm: InputNorm = "none",
        eps: float = 1e-8,
        eps_mode: EpsMode = "add",
        causal: bool = False,
        residual: Residual = "identity",
        projection: ProjectionKind = "linear",
        projection_width: int = 0,
        projection_norm: Norm = "layer",
        up: UpKind = "relu_linear",
        anchor_skip: bool = True,
        add_anchor: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_choice("anchor", anchor, AnchorKind)
        check_choice("residual", residual, Residual)
        check_choice("eps_mode", eps_mode, EpsMode)
        if not widths:
            raise ValueError("widths is empty; a side network needs at least one target layer")
        if residual == "identity" and anchor == "vector":
            raise ValueError("residual='identity' needs anchor='tokens'; use 'position' or 'none'")
        if causal and anchor == "vector":
            raise ValueError("causal=True needs anchor='tokens'; a vector has no order")
        self.widths = tuple(widths)
        self.anchor_kind, self.residual = anchor, residual
        self.eps, self.eps_mode, self.causal = eps, eps_mode, causal
        self.anchor_skip, self.add_anchor = anchor_skip, add_anchor
        self.side_width = side_width
        self.out_width = side_width if up == "none" else out_width
        if add_anchor and self.out_width != anchor_width:
            raise ValueError(
                f"add_anchor needs out_width == anchor_width, got {self.out_width} and "
                f"{anchor_width}; set out_width={anchor_width} or add_anchor=False"
            )
        self.anchor_down, self.target_down = (
            Down(
                inputs,
                side_width,
                activation=down_activation,
                norm=down_norm,
                norm_eps=norm_eps,
                input_norm=input_norm,
            )
            for inputs in ((anchor_width,), self.widths)
        )
        self.gate = nn.Linear(side_width, 1)
        self.projection = Projection(
            side_width,
            kind=projection,
            hidden=projection_width or 2 * side_width,
            norm=projection_norm,
            norm_eps=norm_eps,
        )
        self.up = Up(side_width, out_width, kind=up, norm_eps=norm_eps)

    def forward(
        self,
        anchor: Tensor,
        targets: Tensor | Sequence[Tensor],
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
        position: Tensor | None = None,
    ) -> SideOutput:
        """Run on padded states, or on packed ones if ``offsets`` is given.

        Args:
            anchor: ``[B, L, Da]`` padded, ``[T, Da]`` packed; ``[B, Da]`` for a vector anchor.
            targets: ``[N, B, L, D]`` padded, ``[N, T, D]`` packed, or N tensors of own widths.
            mask: ``[B, L]``, true (or 1) at valid tokens; None if all are. Padded only.
            offsets: ``LongTensor [B + 1]`` of the packed samples.
            position: ``LongTensor [B]``, token of ``residual="position"`` within each sample.

        Returns:
            features and confidence; features at padded positions are undefined.

        Raises:
            ValueError: if shapes, mask and offsets do not fit each other.
        """
        if mask is not None and offsets is not None:
            raise ValueError("give mask (padded states) or offsets (packed states), not both")
        a, t = self.reduce(anchor, targets)
        mixed, confidence = self.mix(a, t, mask=mask, offsets=offsets, position=position)
        features: Tensor = self.up(mixed)
        if self.add_anchor:
            features = features + anchor.to(features.dtype)
        return SideOutput(features, confidence)

    def reduce(self, anchor: Tensor, targets: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return a ``[..., d]`` and t ``[N, ..., d]``, the Down of anchor and targets."""
        return self.anchor_down(anchor[None])[0], self.target_down(targets)

    def mix(
        self,
        anchor: Tensor,
        targets: Tensor,
        *,
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
        position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return ``o = a + P(sum_i p_i u_i)`` ``[..., d]`` and p ``[B, N]`` from reduced states."""
        if offsets is None:
            mixed, confidence = self._mix_padded(anchor, targets, mask, position)
        else:
            mixed, confidence = self._mix_packed(anchor, targets, offsets, position)
        projected: Tensor = self.projection(mixed)
        return (anchor + projected if self.anchor_skip else projected), confidence

    def _aggregate(
        self, anchor: Tensor, targets: Tensor, mask: Tensor | None, position: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mix anchor ``[G, Q, d]`` and targets ``[G, N, L, d]`` under mask ``[G, L]``."""
        residual = None
        if self.residual != "none":
            if position is None:
                position = torch.zeros(1, dtype=torch.long, device=anchor.device)
            residual = residual_rows(self.residual, anchor, targets.shape[2], position)
        keys = None if mask is None else mask[:, None]  # [G, 1, L]
        if self.anchor_kind == "vector":
            pooled = anchor
        elif self.causal:
            pooled, keys = running_mean(anchor, mask), causal_mask(anchor, mask)
        else:
            pooled = masked_mean(anchor, mask)
        mixed, confidence = aggregate(
            anchor,
            targets,
            pooled * self.gate.weight[0],
            self.gate.bias,
            mask=keys,
            residual=residual,
            eps=self.eps,
            eps_mode=self.eps_mode,
        )
        return mixed, masked_mean(confidence, mask if self.causal else None)[:, 0]

    def _mix_padded(
        self, anchor: Tensor, targets: Tensor, mask: Tensor | None, position: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        vector = self.anchor_kind == "vector"
        query = anchor[:, None] if vector else anchor
        mixed, confidence = self._aggregate(query, targets.transpose(0, 1), mask, position)
        return (mixed[:, 0] if vector else mixed), confidence

    def _mix_packed(
        self, anchor: Tensor, targets: Tensor, offsets: Tensor, position: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        layers, tokens, width = targets.shape
        check_offsets(offsets, tokens)
        groups = group_by_length(offsets)
        by_tokens = self.anchor_kind == "tokens"
        order = groups.tokens if by_tokens else groups.samples
        rows = layer_rows(groups, layers)  # [N T], ordered (group, sample, n, l)
        ordered = permute_rows(targets.reshape(-1, width), rows)
        query = permute_rows(anchor, order)
        simple = by_tokens and not self.causal and self.residual != "position"
        if simple and cpu_type(self.gate.weight) is not None:
            mixed, trust = self._aggregate_groups(query, ordered, groups)
        else:
            mixed, trust = self._aggregate_each(query, ordered, groups, position)
        return permute_rows(mixed, invert(order)), permute_rows(trust, invert(groups.samples))

    def _aggregate_groups(
        self, anchor: Tensor, targets: Tensor, groups: LengthGroups
    ) -> tuple[Tensor, Tensor]:
        return aggregate_groups(
            anchor,
            targets,
            self.gate.weight[0],
            self.gate.bias,
            sizes=groups.sizes,
            layers=len(self.widths),
            identity=self.residual == "identity",
            eps=self.eps,
            eps_mode=self.eps_mode,
        )

    def _aggregate_each(
        self, anchor: Tensor, targets: Tensor, groups: LengthGroups, position: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mix group by group, both ordered by length, ``[T or B, d]`` and ``[N T, d]``."""
        layers, by_tokens, width = len(self.widths), self.anchor_kind == "tokens", anchor.shape[1]
        parts = torch.split(targets, [layers * count * length for count, length in groups.sizes])
        queries = torch.split(anchor, [g * (n if by_tokens else 1) for g, n in groups.sizes])
        counts = [count for count, _ in groups.sizes]
        positions: Sequence[Tensor | None] = [None] * len(counts)
        if position is not None:
            positions = torch.split(position[groups.samples], counts)
        outputs = [
            self._aggregate(
                query.view(count, -1, width), part.view(count, layers, length, width), None, place
            )
            for part, query, place, (count, length) in zip(
                parts, queries, positions, groups.sizes, strict=True
            )
        ]
        mixed, trust = zip(*outputs, strict=True)
        return torch.cat([part.flatten(0, 1) for part in mixed]), torch.cat(trust)


def layer_rows(groups: LengthGroups, layers: int) -> Tensor:
    """Rows of ``[N, T]`` flattened, so that each sample's ``[N, L]`` block lies together."""
    tokens = groups.tokens
    steps = torch.arange(layers, device=tokens.device)[:, None] * tokens.shape[0]  # [N, 1]
    parts = torch.split(tokens, [count * length for count, length in groups.sizes])
    rows = [
        (part.view(count, 1, length) + steps).flatten()
        for part, (count, length) in zip(parts, groups.sizes, strict=True)
    ]
    return torch.cat(rows)
