"""Texts, images and videos as vectors of one space, whose products are the scores.

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    scores = model.similarity(model.encode_text(["a cat"]), model.encode_image(["cat.png"]))

Its towers are "text" and "media". B texts, images or videos, F frames of all videos, E embedding
width. Needs torch, transformers, numpy and Pillow (and PyAV for mp4, webm, mkv, avi and mov).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.generic import ModelOutput

from pipeline.fused.media_unipt import OneImage, OneVideo, as_images, as_videos, prepare
from pipeline.fused.modeling_unipt import TEXT_AXES, Traced, UniPTModel
from unipt.states import Outputs, States
from unipt.towers import TwoTowers, as_sequences, frame_shares

USE = """from transformers import AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
texts = model.encode_text(["a cat", "a dog"])
media = model.encode_{modality}(["one.{suffix}", "two.{suffix}"])
print(model.similarity(texts, media))
# encode_text, encode_image and encode_video take texts, and paths or Pillow images (a video: a list
# of them), and give one vector each. A video is the normalised mean of its frames, unless the
# model was trained on whole sequences. mp4, webm, mkv, avi and mov need PyAV."""


@dataclass
class RetrievalOutput(ModelOutput):
    """Scores of every text for every image or video, [m, n], and the embeddings, [m | n, E]."""

    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    media_embeds: Tensor | None = None


class UniPTForRetrieval(UniPTModel):  # type: ignore[no-untyped-call]
    """Two backbones and a side model that embeds what either reads."""

    stages = ("index", "search")
    side_model = TwoTowers

    @property
    def spec(self) -> Mapping[str, Any]:
        """The media tower's mapping, see `UniPTConfig`."""
        found: Mapping[str, Any] = self.config.towers["media"]
        return found

    @property
    def modality(self) -> str:
        """What the media tower was trained on, "image" or "video"; it embeds both."""
        return str(self.spec["modality"])

    def encode_text(
        self, texts: str | Sequence[str] | Mapping[str, Tensor], *, batch_size: int = 32
    ) -> Tensor:
        """Return the embeddings of texts, float32 [B, E].

        Args:
            texts: one or several texts, or what `tokenize` returned.
            batch_size: texts of a forward pass.
        """
        if isinstance(texts, Mapping):
            return self.run(**texts).values["text"]
        listed = [texts] if isinstance(texts, str) else list(texts)
        return self._batches(listed, batch_size, lambda part: self.encode_text(self.tokenize(part)))

    def encode_image(
        self, images: OneImage | Sequence[OneImage] | Tensor, *, batch_size: int = 32
    ) -> Tensor:
        """Return the embeddings of images, float32 [B, E].

        Args:
            images: one or several images (Pillow images, paths, or files' bytes), or pixel values
                [B, 3, H, W] as `prepare_media` makes them.
            batch_size: images of a forward pass.

        Raises:
            MediaError: a file is no readable image.
        """
        if isinstance(images, Tensor):
            return self.run(pixel_values=images).values["media"]
        return self._batches(
            as_images(images),
            batch_size,
            lambda part: self.embed_prepared([self.prepare_media(image) for image in part]),
        )

    def encode_video(
        self, videos: OneVideo | Sequence[OneVideo] | Tensor, frame_counts: Tensor | None = None
    ) -> Tensor:
        """Return the embeddings of videos, float32 [B, E]; one forward pass a video.

        Args:
            videos: one or several videos: paths, or lists of Pillow frames (all of them are
                taken); or pixel values [F, 3, H, W] of the frames of all videos.
            frame_counts: frames of each video, [B], with pixel values only.

        Raises:
            MediaError: a file is no readable video.
            ValueError: pixel values without `frame_counts`.
        """
        if isinstance(videos, Tensor):
            if frame_counts is None:
                raise ValueError("give frame_counts, the number of frames of each video")
            return self.run(pixel_values=videos, frame_counts=frame_counts).values["media"]
        return self._batches(
            as_videos(videos),
            1,
            lambda part: self.embed_prepared([self.prepare_media(part[0], "video")]),
        )

    def similarity(self, text: Tensor, media: Tensor) -> Tensor:
        """Return the score of every text for every image or video: [m, E], [n, E] to [m, n]."""
        return text @ media.T

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        frame_counts: Tensor | None = None,
        **_: Any,
    ) -> RetrievalOutput:
        """Embed texts and images (or videos, with `frame_counts`) and score all pairs."""
        found = self.outputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            pixel_values=pixel_values,
            frame_counts=frame_counts,
        )
        text, media = found.values["text"], found.values["media"]
        scale = found.scalars["scale"]
        return RetrievalOutput(
            logits_per_text=scale * self.similarity(text, media),
            text_embeds=text,
            media_embeds=media,
        )

    def outputs(self, **inputs: Tensor | None) -> Outputs:
        """Return the embeddings of texts, of images or of videos, "text" and "media", [B, E].

        A model of images takes a video as the normalised mean of its frames; one trained on
        sequences sees all frames of a video at once.
        """
        counts = inputs.get("frame_counts")
        if counts is None or self.spec["frames"] != "none":
            return super().outputs(**inputs)
        found = super().outputs(**inputs | {"frame_counts": None})
        media = self.mean_of_frames(found.values["media"], counts)
        return found._replace(values={**found.values, "media": media}, confidence={})

    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the embeddings [B, E] of tokens [B, L], valid ones first and masked with 1."""
        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self.outputs(input_ids=input_ids, **given).values["text"]

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Return the embeddings [B, E] of images, or of single frames, [B, 3, H, W]."""
        return self.outputs(pixel_values=pixel_values).values["media"]

    def get_video_features(self, pixel_values: Tensor, frame_counts: Tensor) -> Tensor:
        """Return the embeddings [B, E] of videos from all frames, [F, 3, H, W], and int64 [B]."""
        return self.outputs(pixel_values=pixel_values, frame_counts=frame_counts).values["media"]

    def get_sequence_features(self, pixel_values: Tensor) -> Tensor:
        """Return the embedding [1, E] of one video by a tower of sequences, from its [F, 3, H, W].

        What `get_video_features` gives, without sizes that depend on values: for tracing.
        """
        taps = self.spec["taps"]
        states = self.states(pixel_values=pixel_values)["media"].states
        bounds = torch.zeros(2, dtype=torch.long, device=pixel_values.device)
        targets = taps[:-1] or taps
        anchor, flat, _ = as_sequences(states[taps[-1]], [states[tap] for tap in targets], bounds)
        joined = dict(zip(targets, flat, strict=True)) | {taps[-1]: anchor}
        video = States({tap: state[None] for tap, state in joined.items()})
        embedded: Outputs = self.side({"media": video})
        return embedded.values["media"]

    def mean_of_frames(self, frames: Tensor, frame_counts: Tensor) -> Tensor:
        """Return the embeddings [B, E] of videos from those of all their frames, [F, E]."""
        bounds = F.pad(frame_counts.to(frames.device).cumsum(0), (1, 0))
        vector = frame_shares(bounds, frames.shape[0]).to(frames.dtype) @ frames
        return F.normalize(vector, dim=-1) if self.spec["normalize"] else vector

    def prepare_media(self, media: Any, kind: str = "image") -> Tensor:
        """Return the pixel values of one image or video, float32 [frames, 3, H, W], on the CPU.

        Runs the model not at all and may be called in several threads at a time.

        Args:
            media: a path, an image, or a list of frames.
            kind: "image" (one frame) or "video".

        Raises:
            MediaError: the file cannot be read as that.
        """
        return prepare(media, kind, self.spec)

    def embed_prepared(self, pixels: Sequence[Tensor]) -> Tensor:
        """Return the embeddings, float32 [B, E], of what `prepare_media` gave, in one pass."""
        values, counts = torch.cat(list(pixels)), torch.tensor([len(each) for each in pixels])
        return (
            self.encode_image(values)
            if bool((counts == 1).all())
            else self.encode_video(values, counts)
        )

    def _batches(
        self, items: Sequence[Any], size: int, embed: Callable[[Sequence[Any]], Tensor]
    ) -> Tensor:
        """Return the embeddings of all items, `size` of them in a forward pass."""
        parts = [embed(items[start : start + size]) for start in range(0, len(items), size)]
        return torch.cat(parts) if parts else torch.empty(0, self.config.width, device=self.device)

    def inputs(self, given: Mapping[str, Sequence[Any]], *, extra: int = 0) -> dict[str, Tensor]:
        """Return the tokens of texts, or the pixels of images or videos."""
        found = self.tokenize(given["text"], extra=extra) if "text" in given else {}
        if "media" in given:
            pixels = [self.prepare_media(each, self.modality) for each in given["media"]]
            found["pixel_values"] = torch.cat(pixels)
            if self.spec["axis"]:
                found["frame_counts"] = torch.tensor([len(each) for each in pixels])
        return found

    def answers(self, found: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return the place of the nearest embedding of the other tower."""
        return (found @ torch.cat(list(others)).T).argmax(1)

    def traced(self, towers: Sequence[str]) -> Traced:
        """Return one tower: texts, single images or frames, or the frames of one video."""
        if "text" in towers:
            return Traced("text", self.get_text_features, ("text_embeds",), TEXT_AXES)
        if self.spec["frames"] != "sequence":
            return Traced("image", self.get_image_features, ("image_embeds",), {0: "batch"})
        return Traced(
            *("video", self.get_sequence_features, ("video_embeds",), {0: "frames"}),
            longest=self.spec["max_frames"],
        )

    def from_traced(
        self,
        towers: Sequence[str],
        run: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
        inputs: Mapping[str, Tensor],
    ) -> Outputs:
        """Return the embeddings of a batch by the artefact of one tower."""

        def embed(**given: Tensor) -> Tensor:
            (found,) = run(given).values()
            return found

        (tower,) = towers
        counts = inputs.get("frame_counts")
        if counts is None:
            return Outputs({tower: embed(**inputs)})
        pixels = inputs["pixel_values"]
        if self.spec["frames"] == "sequence":
            videos = torch.split(pixels, counts.tolist())
            return Outputs({tower: torch.cat([embed(pixel_values=each) for each in videos])})
        return Outputs({tower: self.mean_of_frames(embed(pixel_values=pixels), counts)})

    def usage(self, name: str) -> str:
        """Return code that embeds and compares."""
        suffix = "mp4" if self.spec["axis"] else "png"
        return USE.format(name=name, modality=self.modality, suffix=suffix)


API = UniPTForRetrieval
