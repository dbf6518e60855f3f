"""Two frozen backbones and their UniPT side towers as one transformers model for retrieval.

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    scores = model.similarity(model.encode_text(["a cat"]), model.encode_image(["cat.png"]))

B texts, pictures or clips, F frames of all clips, L tokens, E embedding width. Cost: one forward
pass of a backbone a text, picture or frame, then the side tower.

Written into every exported folder and loaded from there by transformers; needs torch, transformers,
numpy and Pillow (and PyAV for mp4, webm, mkv, avi and mov).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils.generic import ModelOutput

from pipeline.backbones.convnets.build import build_convnet
from pipeline.backbones.convnets.config import ConvNetConfig
from pipeline.backbones.shaping import as_tap
from pipeline.media.images import open_image, to_rgb
from pipeline.media.transform import ImageTransform
from pipeline.media.video import read_frames
from unipt.towers import TwoTowers, as_sequences, frame_shares

from .backbone_unipt import CachedStates, accepted_arguments, build_backbone, record
from .configuration_unipt_retrieval import UniPTRetrievalConfig

CONVNETS = ("ResNet", "EfficientNetLite")
"""Backbones whose files stand beside this one; all others are classes of transformers."""
Picture = Image.Image | Path | str | bytes
Clip = Path | str | Sequence[Image.Image]


@dataclass
class RetrievalOutput(ModelOutput):
    """Scores of every text for every picture or clip, [m, n], and the embeddings, [m | n, E]."""

    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    media_embeds: Tensor | None = None


class UniPTForRetrieval(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Texts, pictures and clips as vectors of one space; their products are the scores.

    The side towers stay in float32 whatever the type of the backbones' weights.

    Raises:
        ValueError: the configuration names a backbone that does not exist here.
    """

    config_class = UniPTRetrievalConfig
    main_input_name = "input_ids"
    _keep_in_fp32_modules_strict = {"towers", "text_states", "media_states"}  # noqa: RUF012

    def __init__(self, config: UniPTRetrievalConfig) -> None:
        super().__init__(config)
        text, media = config.text_tower, config.media_tower
        self.text_backbone = _build(text)
        self.media_backbone = _build(media)
        self.towers = TwoTowers.from_config(config.towers).float()
        self.text_states, self.media_states = CachedStates(text), CachedStates(media)
        self.transform = ImageTransform.from_dict(media["transform"])
        self._text_arguments = accepted_arguments(self.text_backbone)
        self._tokenizer: Any = None
        self.post_init()  # type: ignore[no-untyped-call]

    @property
    def modality(self) -> str:
        """What the media tower was trained on, "image" or "video"; it embeds both."""
        return str(self.config.media_tower["modality"])

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of this model's folder, read at first use."""
        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(
                self.config.name_or_path,
                config=self.config,
                revision=getattr(self.config, "_commit_hash", None) or "main",
            )
        return self._tokenizer

    def encode_text(
        self, texts: str | Sequence[str] | Mapping[str, Tensor], *, batch_size: int = 32
    ) -> Tensor:
        """Return the embeddings of texts, float32 [B, E].

        Args:
            texts: one or several texts, or what `tokenize` returned.
            batch_size: texts of a forward pass.
        """
        if isinstance(texts, Mapping):
            return self._run(self.get_text_features, **texts)
        listed = [texts] if isinstance(texts, str) else list(texts)
        parts = [
            self._run(self.get_text_features, **self.tokenize(listed[i : i + batch_size]))
            for i in range(0, len(listed), batch_size)
        ]
        return self._joined(parts)

    def encode_image(
        self, images: Picture | Sequence[Picture] | Tensor, *, batch_size: int = 32
    ) -> Tensor:
        """Return the embeddings of pictures, float32 [B, E].

        Args:
            images: one or several pictures (Pillow images, paths, or files' bytes), or pixel
                values [B, 3, H, W] as `prepare_media` makes them.
            batch_size: pictures of a forward pass.

        Raises:
            MediaError: a file is no readable picture.
        """
        if isinstance(images, Tensor):
            return self._run(self.get_image_features, pixel_values=images)
        listed = [images] if isinstance(images, _ONE_PICTURE) else list(images)
        parts = [
            self.embed_prepared([self.prepare_media(x) for x in listed[i : i + batch_size]])
            for i in range(0, len(listed), batch_size)
        ]
        return self._joined(parts)

    def encode_video(
        self, videos: Clip | Sequence[Clip] | Tensor, frame_counts: Tensor | None = None
    ) -> Tensor:
        """Return the embeddings of clips, float32 [B, E]; one forward pass a clip.

        Args:
            videos: one or several clips: paths, or lists of Pillow frames (all of them are taken);
                or pixel values [F, 3, H, W] of the frames of all clips.
            frame_counts: frames of each clip, [B], with pixel values only.

        Raises:
            MediaError: a file is no readable clip.
            ValueError: pixel values without `frame_counts`.
        """
        if isinstance(videos, Tensor):
            if frame_counts is None:
                raise ValueError("give frame_counts, the number of frames of each clip")
            inputs = {"pixel_values": videos, "frame_counts": frame_counts}
            return self._run(self.get_video_features, **inputs)
        listed: list[Any] = [videos] if _is_one_clip(videos) else [*videos]  # type: ignore[misc]
        return self._joined([self.embed_prepared([self.prepare_media(x, "video")]) for x in listed])

    def similarity(self, text: Tensor, media: Tensor) -> Tensor:
        """Return the score of every text for every picture or clip: [m, E], [n, E] to [m, n]."""
        return self.towers.similarity(text, media)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        frame_counts: Tensor | None = None,
        **_: Any,
    ) -> RetrievalOutput:
        """Embed texts and pictures (or clips, with `frame_counts`) and score all pairs."""
        text = self.get_text_features(input_ids, attention_mask, token_type_ids)
        media = (
            self.get_image_features(pixel_values)
            if frame_counts is None
            else self.get_video_features(pixel_values, frame_counts)
        )
        return RetrievalOutput(
            logits_per_text=self.towers.scale * self.similarity(text, media),
            text_embeds=text,
            media_embeds=media,
        )

    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the embeddings [B, E] of tokens [B, L], valid ones first and masked with 1."""
        spec = self.config.text_tower
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = token_type_ids if spec["token_types"] else None
        seen = mask
        if spec["full_length"]:
            room = spec["max_length"] - input_ids.shape[1]
            input_ids = F.pad(input_ids, (0, room), value=self.config.pad_token_id)
            mask = F.pad(mask, (0, room))
            types = None if types is None else F.pad(types, (0, room))
            seen = torch.ones_like(mask)  # by the backbone; the side tower still sees the mask
        given = {"attention_mask": seen, "token_type_ids": types, "use_cache": False}
        options = {k: v for k, v in given.items() if v is not None and k in self._text_arguments}
        states = record(
            self.text_backbone,
            spec["tap_modules"],
            input_ids=input_ids,
            **options,
        )
        *targets, anchor = (self.text_states(name, states[name], mask) for name in spec["taps"])
        tokens = any(state.dim() == 3 for state in (*targets, anchor))
        given_mask = mask.bool() if tokens else None
        found = self.towers.text(anchor, targets or [anchor], mask=given_mask)
        vector: Tensor = found.vector
        return vector

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Return the embeddings [B, E] of pictures, or of single frames, [B, 3, H, W]."""
        anchor, targets = self._media_states(pixel_values)
        vector: Tensor = self.towers.media(anchor, targets).vector
        return vector

    def get_video_features(self, pixel_values: Tensor, frame_counts: Tensor) -> Tensor:
        """Return the embeddings [B, E] of clips.

        By default that is the normalised mean of the frames' embeddings; a tower trained on
        sequences sees all frames of a clip at once.

        Args:
            pixel_values: frames of all clips, [F, 3, H, W].
            frame_counts: frames of each clip, int64 [B].
        """
        if self.towers.media.frames == "none":  # trained on pictures
            return self.mean_of_frames(self.get_image_features(pixel_values), frame_counts)
        anchor, targets = self._media_states(pixel_values)
        bounds = F.pad(frame_counts.to(anchor.device).cumsum(0), (1, 0))
        vector: Tensor = self.towers.media(anchor, targets, frames=bounds).vector
        return vector

    def get_clip_features(self, pixel_values: Tensor) -> Tensor:
        """Return the embedding [1, E] of one clip by a tower of sequences, from its [F, 3, H, W].

        What `get_video_features` gives, without sizes that depend on values: for tracing.
        """
        anchor, targets = self._media_states(pixel_values)
        bounds = torch.zeros(2, dtype=torch.long, device=pixel_values.device)
        anchor, targets, _ = as_sequences(anchor, targets, bounds)
        vector: Tensor = self.towers.media(anchor[None], [x[None] for x in targets]).vector
        return vector

    def _media_states(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the anchor and the targets of pictures or frames."""
        spec = self.config.media_tower
        dtype = next(self.media_backbone.parameters()).dtype
        states = record(
            self.media_backbone,
            spec["tap_modules"],
            pixel_values=pixel_values.to(dtype),
            **spec["arguments"],
        )
        shapes = spec["tap_shapes"]
        shaped = [
            self.media_states(name, as_tap(states[name], shapes[name])) for name in spec["taps"]
        ]
        return shaped[-1], shaped[:-1] or shaped

    def mean_of_frames(self, frames: Tensor, frame_counts: Tensor) -> Tensor:
        """Return the embeddings [B, E] of clips from those of all their frames, [F, E]."""
        bounds = F.pad(frame_counts.to(frames.device).cumsum(0), (1, 0))
        vector = frame_shares(bounds, frames.shape[0]).to(frames.dtype) @ frames
        return F.normalize(vector, dim=-1) if self.towers.media.normalize else vector

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the arguments of `get_text_features` for some texts, int64 [B, L] each."""
        spec = self.config.text_tower
        found = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=spec["max_length"],
            padding=True,
            return_tensors="pt",
        )
        names = ["input_ids", "attention_mask", *(["token_type_ids"] * spec["token_types"])]
        return {name: found[name].to(torch.int64) for name in names}

    def prepare_media(self, media: Any, kind: str = "image") -> Tensor:
        """Return the pixel values of one picture or clip, float32 [frames, 3, H, W], on the CPU.

        Runs the model not at all and may be called in several threads at a time.

        Args:
            media: a path, a picture, or a list of frames.
            kind: "image" (one frame) or "video".

        Raises:
            MediaError: the file cannot be read as that.
        """
        if kind == "image":
            frames = [to_rgb(media)[0] if isinstance(media, Image.Image) else open_image(media)]
        elif isinstance(media, str | Path):
            spec = self.config.media_tower
            frames = read_frames(Path(media), fps=spec["fps"], max_frames=spec["max_frames"])
        else:
            frames = [to_rgb(frame)[0] for frame in media]
        return torch.stack([self.transform(frame) for frame in frames])

    def embed_prepared(self, pixels: Sequence[Tensor], kind: str = "image") -> Tensor:
        """Return the embeddings, float32 [B, E], of what `prepare_media` gave, in one pass."""
        if all(len(x) == 1 for x in pixels):
            return self._run(self.get_image_features, pixel_values=torch.cat(list(pixels)))
        counts = torch.tensor([len(x) for x in pixels])
        values = torch.cat(list(pixels))
        return self._run(self.get_video_features, pixel_values=values, frame_counts=counts)

    @torch.no_grad()
    def _run(self, function: Any, **inputs: Tensor) -> Tensor:
        moved = {name: value.to(self.device) for name, value in inputs.items()}
        found: Tensor = function(**moved)
        return found.float()

    def _joined(self, parts: list[Tensor]) -> Tensor:
        width = self.towers.text.out_width
        return torch.cat(parts) if parts else torch.empty(0, width, device=self.device)


_ONE_PICTURE = (Image.Image, Path, str, bytes)


def _is_one_clip(videos: Any) -> bool:
    if isinstance(videos, str | Path):
        return True
    return bool(videos) and isinstance(videos[0], Image.Image)


def _build(spec: Mapping[str, Any]) -> nn.Module:
    if spec["backbone_class"] not in CONVNETS:
        return build_backbone(spec["backbone_class"], spec["backbone_config"])
    given = spec["backbone_config"].items()
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given}
    return build_convnet(ConvNetConfig(**options))
