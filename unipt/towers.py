"""SideTower and TwoTowers: side networks that turn a tower's states into one vector a sample.

Legend: B samples (texts, images or videos), L tokens (padded), T valid tokens (packed), P tokens of
a grid, F frames of all videos, N targets, E embedding width. The last state recorded is the anchor,
as in `SideClassifier`.
Price: the side network's GEMMs; pooling and the norms are below a tenth of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bases import KernelDirection, WhitenedMean
from .config import ConvSideNetworkConfig, SideNetworkConfig
from .convnet import ConvSideNetwork, to_cells
from .interaction import masked_mean
from .layers import check_choice
from .network import SideNetwork, SideOutput
from .packed import offsets_to_lengths, segment_mean
from .pooling import GeneralizedPooling, TokenPooling
from .states import Outputs, SideModel, States, Stream

__all__ = [
    "Base",
    "Embedding",
    "FramePooling",
    "Position",
    "SideTower",
    "TowerPooling",
    "TwoTowers",
]

TowerPooling = Literal["gpo", "mean", "first", "last", "max", "meanmax", "attention", "none"]
FramePooling = Literal["none", "mean", "sequence"]
Position = Literal["first", "last"]
Base = Literal["none", "mean", "kernel"]
TowerSide = SideNetworkConfig | ConvSideNetworkConfig


class Embedding(NamedTuple):
    """What a `SideTower` returns."""

    vector: Tensor
    """``[B, E]``, of length 1 if the tower normalises."""
    confidence: Tensor
    """How much each target layer counts for each sample, ``[B, N]``; of a video, the mean over its
    frames."""


class SideTower(nn.Module):
    """One tower's vector: side network, pooling, [head], [mean over frames], [l2 norm].

    VSE-infinity (arXiv 2011.04305) pools with GPO; CLIP4Clip (arXiv 2104.08860) has a vector
    anchor and no pooling, normalises every frame, and averages the frames of a video.

    Args:
        side: options of the side network; a `ConvSideNetworkConfig` for feature maps.
        taps: names of the taps it reads, the anchor last; a single one is anchor and target both.
        axis: ragged axis of the targets (of the frames of videos); None for fixed shapes.
        pooling: over the tokens, cells or patches of one sample, see `TokenPooling`; "gpo" is
            `GeneralizedPooling`; "none" is for a vector anchor, which leaves nothing to pool.
        frames: every row of the states is a frame, and a video is the "mean" of its frames, or the
            "sequence" of the tokens of all of them, which the side network takes at once.
        normalize: l2-normalise the embedding (and every frame before the mean).
        position: which token has the residual of a vector anchor: "first" (CLS) or "last" (EOS).
        head_width: width of a linear map (after a LayerNorm) from the pooled vector to the
            embedding; 0 for none.
        dropout: probability on the pooled vector.
        base: what the side network's vector is added to, see `unipt.bases`: "none"; "mean", for
            token states as wide as the embedding; "kernel", of the means of all layers, which is
            left out in training mode: its keys are the training rows.
        kernel_keys: rows that the kernel regression keeps.
        side_weight: with a base, the factor of the side network's vector, which has length 1.

    Raises:
        ValueError: if an option is unknown or options contradict each other.
    """

    base: WhitenedMean | KernelDirection | None
    side: SideNetwork | ConvSideNetwork
    pooling: GeneralizedPooling | TokenPooling | None

    def __init__(
        self,
        *,
        side: TowerSide,
        taps: Sequence[str] = (),
        axis: str | None = None,
        pooling: TowerPooling = "gpo",
        frames: FramePooling = "none",
        normalize: bool = True,
        position: Position = "first",
        head_width: int = 0,
        dropout: float = 0.0,
        base: Base = "none",
        kernel_keys: int = 0,
        side_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("base", base, Base)
        check_choice("pooling", pooling, TowerPooling)
        check_choice("frames", frames, FramePooling)
        check_choice("position", position, Position)
        vector = isinstance(side, SideNetworkConfig) and side.anchor == "vector"
        if vector != (pooling == "none"):
            raise ValueError(
                f"pooling={pooling!r} does not fit: a vector anchor leaves nothing to pool "
                "(pooling='none'), tokens and maps need a pooling"
            )
        if frames == "sequence" and (vector or isinstance(side, ConvSideNetworkConfig)):
            raise ValueError("frames='sequence' needs a side network with anchor='tokens'")
        self.config: dict[str, Any] = {
            "side": side.to_dict(),
            "taps": list(taps),
            "axis": axis,
            "pooling": pooling,
            "frames": frames,
            "normalize": normalize,
            "position": position,
            "head_width": head_width,
            "dropout": dropout,
            "base": base,
            "kernel_keys": kernel_keys,
            "side_weight": side_weight,
        }
        self.stream = Stream(tuple(taps), axis)
        self.frames, self.normalize, self.position = frames, normalize, position
        self.side = side.build()
        self.layers_width = side.anchor_width + sum(side.widths)
        width = self.side.out_width
        if pooling == "gpo":
            self.pooling = GeneralizedPooling()
        elif pooling == "none":
            self.pooling = None
        else:
            self.pooling = TokenPooling(width, kind=pooling)
            width = self.pooling.out_width
        self.dropout = nn.Dropout(dropout)
        self.head = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, head_width))
            if head_width
            else nn.Identity()
        )
        self.out_width = head_width or width
        self.side_weight = side_weight
        self.base = None
        if base == "kernel":
            self.base = KernelDirection(
                keys=kernel_keys, width=self.layers_width, out_width=self.out_width
            )
        elif base == "mean":
            if vector or isinstance(side, ConvSideNetworkConfig) or frames != "none":
                raise ValueError("base='mean' needs token states of texts or images")
            if side.anchor_width != self.out_width:
                raise ValueError(
                    f"base='mean' needs an embedding as wide as the anchor, {side.anchor_width}; "
                    f"it has {self.out_width} features"
                )
            self.base = WhitenedMean(self.out_width)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from a `config` dict, with freshly initialised parameters."""
        options = dict(config)
        side = options.pop("side")
        maps = side.get("kind") == ConvSideNetworkConfig.kind
        kind: type[TowerSide] = ConvSideNetworkConfig if maps else SideNetworkConfig
        return cls(side=kind.from_dict(side), **options)

    def of(self, given: States) -> Embedding:
        """Embed what the tower's own taps say of a batch; see `forward`.

        Raises:
            ValueError: if a tap is missing, or shapes do not fit the options.
        """
        anchor, targets, mask, offsets = self.stream.read(given)
        if self.frames == "none":
            return cast(Embedding, self(anchor, targets, mask=mask, offsets=offsets))
        frames = mask if offsets is None else offsets
        return cast(Embedding, self(anchor, targets, frames=frames))

    def token_features(self, given: States) -> SideOutput:
        """Return the side network's output before pooling, for tokens, patches or cells."""
        anchor, targets, mask, offsets = self.stream.read(given)
        return self.features(anchor, targets, mask=mask, offsets=offsets)

    def layer_means(self, given: States) -> Tensor:
        """Return the float32 mean of every tap over tokens, cells and frames, ``[B, F]``."""
        anchor, targets, mask, offsets = self.stream.read(given)
        if self.frames == "none":
            return layer_means(anchor, targets, mask, offsets)
        frames = mask if offsets is None else offsets
        means = layer_means(anchor, targets, None, None)
        return means if frames is None else frame_shares(frames, len(means)).to(means) @ means

    def standardizers(self) -> list[Callable[[Tensor, Tensor], None]]:
        """Return what takes mean and deviation of each target and of the anchor; none if unused."""
        side = self.side
        if isinstance(side, ConvSideNetwork):
            return [partial(side.set_statistics, n) for n in range(len(side.standard or ()))]
        targets, anchor = side.target_down.linear, side.anchor_down.linear
        if not targets.standardize:
            return []
        own = [partial(targets.set_statistics, n) for n in range(len(side.widths))]
        return [*own, partial(anchor.set_statistics, 0)]

    def forward(
        self,
        anchor: Tensor,
        targets: Tensor | Sequence[Tensor],
        *,
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
        frames: Tensor | None = None,
    ) -> Embedding:
        """Embed texts, images or videos.

        Args:
            anchor: ``[B, L, D]`` padded tokens or a grid, ``[T, D]`` packed tokens, ``[B, D]`` for
                a vector anchor, ``[B, C, H, W]`` for maps (a token side network gets them as
                tokens, see `to_tokens`). For videos B is F, the frames of all.
            targets: N states like the anchor (beside a vector anchor: tokens or a grid), one
                tensor ``[N, ...]`` or a sequence. If all are vectors ``[B, D]``, each is a sample
                of one token.
            mask: ``[B, L]``, true at valid tokens (padded only; None if all are).
            offsets: ``LongTensor [B + 1]`` (packed only).
            frames: ``LongTensor [B + 1]``, bounds of each video's frames, for a tower of frames;
                for the "mean" also ``[B, F]`` (bool), true where a frame is the video's (trace
                this one: it has no size that depends on another); None if every frame is a video.

        Raises:
            ValueError: if shapes do not fit the options or each other.
        """
        if frames is not None and self.frames == "none":
            raise ValueError("frames were given to a tower of frames='none'; build it with 'mean'")
        if frames is not None and self.frames == "sequence":
            anchor, targets, offsets = as_sequences(anchor, tuple(targets), frames)
            frames = None
        features, confidence = self.features(anchor, targets, mask=mask, offsets=offsets)
        if self.pooling is not None:
            features = self.pooling(features, mask=mask, offsets=offsets)
        vector = self.head(self.dropout(features))
        shares = None
        if frames is not None:
            shares = frame_shares(frames, vector.shape[0]).to(vector.dtype)  # [B, F]
            vector, confidence = shares @ self._normalize(vector), shares @ confidence
        base = self._base(anchor, targets, mask, offsets, shares)
        if base is not None:
            vector = base + self.side_weight * F.normalize(vector, dim=-1)
        vector = self._normalize(vector)
        return Embedding(vector, confidence)

    def features(
        self,
        anchor: Tensor,
        targets: Tensor | Sequence[Tensor],
        *,
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> SideOutput:
        """Return the side network's output, before pooling; arguments as in `forward`."""
        side = self.side
        if isinstance(side, ConvSideNetwork):
            return cast(SideOutput, side(anchor, tuple(targets)))
        if anchor.dim() == 4:
            anchor, targets = to_tokens(anchor, tuple(targets))
        if offsets is None and targets[0].dim() == 2:  # vectors, each a sample of one token
            targets = [target[:, None] for target in targets]
            anchor = anchor if side.anchor_kind == "vector" else anchor[:, None]
        place = None
        if side.residual == "position" and self.position == "last":
            place = last_position(targets[0], mask, offsets)
        return cast(SideOutput, side(anchor, targets, mask=mask, offsets=offsets, position=place))

    def _base(
        self,
        anchor: Tensor,
        targets: Tensor | Sequence[Tensor],
        mask: Tensor | None,
        offsets: Tensor | None,
        shares: Tensor | None,
    ) -> Tensor | None:
        """Return the base ``[B, E]``, None if there is none or it is left out."""
        if isinstance(self.base, WhitenedMean):
            return cast(Tensor, self.base(layer_mean(anchor, mask, offsets)))
        if self.base is None or self.training:
            return None
        means = layer_means(anchor, targets, mask, offsets)
        return cast(Tensor, self.base(means if shares is None else shares @ means))

    def freeze(self, longest: int) -> None:
        """Prepare to be traced: see `GeneralizedPooling.freeze`; other poolings need nothing."""
        if isinstance(self.pooling, GeneralizedPooling):
            self.pooling.freeze(longest)

    def _normalize(self, vector: Tensor) -> Tensor:
        return F.normalize(vector, dim=-1) if self.normalize else vector


class TwoTowers(SideModel):
    """A text tower and a media tower (images or videos) with one embedding space.

    Args:
        text: tower of the texts.
        media: tower of the images or videos; of the same embedding width.
        logit_scale: factor of the cosines in a contrastive loss, the inverse of its temperature.
        learn_scale: train the factor (its logarithm, kept at 100 or less) instead of keeping it.

    Raises:
        ValueError: if the widths differ or the factor is not positive.
    """

    log_scale: Tensor

    def __init__(
        self,
        *,
        text: SideTower,
        media: SideTower,
        logit_scale: float = 100.0,
        learn_scale: bool = False,
    ) -> None:
        super().__init__()
        if text.out_width != media.out_width:
            raise ValueError(
                f"the text tower's embeddings have {text.out_width} features, the media tower's "
                f"{media.out_width}; choose equal out_width (meanmax pooling doubles it) or a head"
            )
        if not logit_scale > 0:
            raise ValueError(f"logit_scale={logit_scale} must be positive")
        self.config: dict[str, Any] = {
            "text": text.config,
            "media": media.config,
            "logit_scale": logit_scale,
            "learn_scale": learn_scale,
        }
        self.text, self.media = text, media
        scale = torch.tensor(math.log(logit_scale))
        if learn_scale:
            self.log_scale = nn.Parameter(scale)
        else:
            self.register_buffer("log_scale", scale)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from a `config` dict, with freshly initialised parameters."""
        options = dict(config)
        text, media = (SideTower.from_config(options.pop(name)) for name in ("text", "media"))
        return cls(text=text, media=media, **options)

    def forward(self, towers: Mapping[str, States]) -> Outputs:
        """Embed the towers given, one or both: values "text" and "media", ``[B, E]``."""
        found = {name: getattr(self, name).of(given) for name, given in towers.items()}
        return Outputs(
            values={name: each.vector.float() for name, each in found.items()},
            confidence={name: each.confidence for name, each in found.items()},
            scalars={"scale": self.scale},
        )

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines in a contrastive loss, a scalar of at most 100 if trained."""
        learnt = isinstance(self.log_scale, nn.Parameter)
        return (self.log_scale.clamp(max=math.log(100.0)) if learnt else self.log_scale).exp()

    @staticmethod
    def similarity(text: Tensor, media: Tensor) -> Tensor:
        """Return the products of all pairs, ``[m, E]`` and ``[n, E]`` to ``[m, n]``.

        They are cosines if the towers normalise.
        """
        return text @ media.T


def layer_mean(state: Tensor, mask: Tensor | None, offsets: Tensor | None) -> Tensor:
    """Return the float32 mean over tokens, patches or cells of each sample: ``[B, D]``.

    Args:
        state: ``[B, L, D]``, ``[T, D]`` packed, a map ``[B, C, H, W]``, or ``[B, D]`` as it is.
        mask: ``[B, L]``, padded tokens only.
        offsets: ``[B + 1]``, packed tokens only.
    """
    if state.dim() == 4:
        return state.mean((2, 3), dtype=torch.float32)
    if state.dim() == 3:
        return masked_mean(state.float(), mask)[:, 0]
    return state.float() if offsets is None else segment_mean(state.float(), offsets)


def layer_means(
    anchor: Tensor,
    targets: Tensor | Sequence[Tensor],
    mask: Tensor | None,
    offsets: Tensor | None,
) -> Tensor:
    """Return `layer_mean` of the targets and the anchor, joined, ``[B, F]``."""
    return torch.cat([layer_mean(state, mask, offsets) for state in (*targets, anchor)], -1)


def to_tokens(anchor: Tensor, targets: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Turn maps into tokens: the means over the parts of the anchor's grid, row by row.

    Args:
        anchor: ``[B, C, H, W]``.
        targets: N maps ``[B, C_i, H_i, W_i]`` of any size.

    Returns:
        ``[B, H W, C]`` and N of ``[B, H W, C_i]``.
    """
    size = (anchor.shape[2], anchor.shape[3])
    maps = (anchor.float(), *(F.adaptive_avg_pool2d(each.float(), size) for each in targets))
    first, *others = (to_cells(each) for each in maps)
    return first, others


def as_sequences(
    anchor: Tensor, targets: Sequence[Tensor], frames: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Pack the tokens of each video's frames, all in a row.

    Args:
        anchor: frames ``[F, D]``, ``[F, P, D]`` or ``[F, C, H, W]``.
        targets: N states like the anchor.
        frames: ``LongTensor [B + 1]``.

    Returns:
        ``[T, D]``, N of ``[T, D_i]`` and the offsets ``[B + 1]`` of the videos' tokens.
    """
    if anchor.dim() == 4:
        anchor, targets = to_tokens(anchor, targets)
    tokens = anchor.shape[1] if anchor.dim() == 3 else 1
    packed = [state.flatten(0, 1) if state.dim() == 3 else state for state in (anchor, *targets)]
    return packed[0], packed[1:], frames * tokens


def last_position(states: Tensor, mask: Tensor | None, offsets: Tensor | None) -> Tensor:
    """Return the place of each sample's last valid token within the sample, ``[B]``.

    Valid tokens must come first in a padded row.
    """
    if offsets is not None:
        return offsets_to_lengths(offsets) - 1
    if mask is not None:
        return mask.to(torch.long).sum(1) - 1
    return torch.full_like(states[:, 0, 0], states.shape[1] - 1, dtype=torch.long)


def frame_shares(frames: Tensor, count: int) -> Tensor:
    """Return what each of `count` frames contributes to each video's mean, ``[B, F]``."""
    if frames.dim() == 2:
        return frames / frames.sum(1, keepdim=True)
    steps = torch.arange(count, device=frames.device)
    inside = (steps >= frames[:-1, None]) & (steps < frames[1:, None])  # [B, F]
    return inside / inside.sum(1, keepdim=True)
