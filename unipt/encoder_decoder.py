"""EncoderDecoderSideNetwork: two side networks with attention between.

Legend: B samples, L encoder tokens, Q decoder tokens, N targets per stack, d side width.

    e   = encoder side network (anchor: last encoder state), no Up           [B, L, d]
    t_i = t_i + LN(Linear(attend(t_i, e)))    under the encoder mask         [B, Q, d]
    y   = Up(decoder side network over the t_i)                              [B, Q, E]

With ``outputs="all"`` y is the stack Up([t_1, .., t_N, o]) for auxiliary losses (MDETR). Price: the
GEMMs of two side networks plus one relu attention a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .interaction import EpsMode, attend
from .layers import InputNorm, ProjectionKind, UpKind, check_choice
from .network import SideNetwork

__all__ = ["EncoderDecoderOutput", "EncoderDecoderSideNetwork", "Outputs"]

Outputs = Literal["last", "all"]


class EncoderDecoderOutput(NamedTuple):
    """What an `EncoderDecoderSideNetwork` returns."""

    features: Tensor
    """``[B, Q, E]``, or ``[N + 1, B, Q, E]`` with ``outputs="all"``."""
    encoder: Tensor
    """The encoder's side output e, ``[B, L, d]``."""
    encoder_confidence: Tensor
    """``[B, N]``."""
    decoder_confidence: Tensor
    """``[B, N]``."""


class EncoderDecoderSideNetwork(nn.Module):
    """UniPT for an encoder-decoder backbone (MDETR's pattern, arXiv 2308.14316).

    Args:
        encoder_layers: number of encoder targets.
        decoder_layers: number of decoder targets.
        width: width of all states.
        side_width: d.
        out_width: E.
        causal: the decoder generates, so its tokens use only earlier ones, see `SideNetwork`.
        outputs: "last", or "all" for the stack of targets and result.
        input_norm: see `SideNetwork`.
        eps: guards the l1 norms.
        eps_mode: "add" or "clamp".
        projection: P of both stacks.
        projection_width: inner width of an "mlp" P; 0 = 2 d.
        cross: Linear + LayerNorm per decoder target on what it read from the encoder; False adds
            the reading itself.
        up: see `SideNetwork`.
        norm_eps: eps of the LayerNorms.
    """

    def __init__(
        self,
        *,
        encoder_layers: int,
        decoder_layers: int,
        width: int,
        side_width: int,
        out_width: int,
        causal: bool = False,
        outputs: Outputs = "last",
        input_norm: InputNorm = "none",
        eps: float = 1e-7,
        eps_mode: EpsMode = "add",
        projection: ProjectionKind = "mlp",
        projection_width: int = 0,
        cross: bool = True,
        up: UpKind = "relu_linear",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_choice("outputs", outputs, Outputs)
        self.outputs, self.eps, self.eps_mode = outputs, eps, eps_mode

        def stack(layers: int, up: UpKind, *, causal: bool) -> SideNetwork:
            return SideNetwork(
                widths=(width,) * layers,
                anchor_width=width,
                side_width=side_width,
                out_width=out_width,
                input_norm=input_norm,
                eps=eps,
                eps_mode=eps_mode,
                causal=causal,
                projection=projection,
                projection_width=projection_width,
                up=up,
                norm_eps=norm_eps,
            )

        self.encoder = stack(encoder_layers, "none", causal=False)
        self.decoder = stack(decoder_layers, up, causal=causal)
        self.cross = nn.ModuleList(
            nn.Sequential(nn.Linear(side_width, side_width), nn.LayerNorm(side_width, eps=norm_eps))
            if cross
            else nn.Identity()
            for _ in range(decoder_layers)
        )
        self.out_width = self.decoder.out_width

    def forward(
        self,
        encoder_anchor: Tensor,
        encoder_targets: Tensor | Sequence[Tensor],
        decoder_anchor: Tensor,
        decoder_targets: Tensor | Sequence[Tensor],
        *,
        encoder_mask: Tensor | None = None,
        decoder_mask: Tensor | None = None,
    ) -> EncoderDecoderOutput:
        """Run on padded states of both stacks.

        Args:
            encoder_anchor: ``[B, L, D]``.
            encoder_targets: ``[N, B, L, D]`` or N tensors.
            decoder_anchor: ``[B, Q, D]``.
            decoder_targets: ``[N, B, Q, D]`` or N tensors.
            encoder_mask: ``[B, L]``, true at valid tokens.
            decoder_mask: ``[B, Q]``, true at valid tokens.

        Raises:
            ValueError: if the number of targets or a width does not fit.
        """
        encoded, encoder_confidence = self.encoder(
            encoder_anchor, encoder_targets, mask=encoder_mask
        )
        anchor, targets = self.decoder.reduce(decoder_anchor, decoder_targets)
        read = attend(targets, encoded, encoder_mask, eps=self.eps, eps_mode=self.eps_mode)
        targets = targets + torch.stack(
            [part(state) for part, state in zip(self.cross, read, strict=True)]
        )  # [N, B, Q, d]
        output, decoder_confidence = self.decoder.mix(anchor, targets, mask=decoder_mask)
        if self.outputs == "all":
            output = torch.cat((targets, output[None]))  # [N + 1, B, Q, d]
        return EncoderDecoderOutput(
            self.decoder.up(output), encoded, encoder_confidence, decoder_confidence
        )
