"""The export of a retrieval run: two backbones, two side towers, checked tower by tower."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from cache import Cache
from pipeline.backbones import TextBackbone
from pipeline.backbones.image import ImageBackbone
from pipeline.fused import parity
from pipeline.fused.artefacts import (
    PICTURE_AXES,
    TEXT_AXES,
    Form,
    Runner,
    Traceable,
    eager_runner,
)
from pipeline.fused.build import build_retrieval, build_tokenizer
from pipeline.fused.card import Card, metrics_table, render_card
from pipeline.fused.modeling_unipt_retrieval import UniPTForRetrieval
from pipeline.fused.parity import ParityReport, Part
from pipeline.fused.replay import Row, cached_embeddings, choose_samples
from pipeline.fused.write import Facts, check_backbone, number_types, storage_type
from pipeline.inputs import Input, MediaInput, TextInput
from unipt.towers import TwoTowers

CANDIDATES = 2048
"""Inputs of each tower that are looked up in its cache; a picture's file is read for its key."""
USE = """```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
texts = model.encode_text(["a cat", "a dog"])
media = model.{encode}(["one.{suffix}", "two.{suffix}"])
print(model.similarity(texts, media))
```"""
NOTES = (
    "The model's code stands in this folder and needs torch, transformers, numpy and Pillow only "
    "(and PyAV to read mp4, webm, mkv, avi or mov). `encode_text`, `encode_image` and "
    "`encode_video` take texts, and paths or Pillow pictures, and return one vector each, {width} "
    "numbers. A clip is the normalised mean of its frames' vectors."
)


@dataclass(frozen=True, kw_only=True)
class TrainedTowers:
    """Trained towers with what an exported folder says about them.

    Attributes:
        towers: the trained side towers.
        text_taps: taps of the text tower, in order; the last one is the anchor.
        media_taps: taps of the media tower.
        texts: captions to replay.
        media: pictures or clips to replay.
        facts: for the model card.
    """

    towers: TwoTowers
    text_taps: tuple[str, ...]
    media_taps: tuple[str, ...]
    texts: Sequence[TextInput] = ()
    media: Sequence[MediaInput] = ()
    facts: Facts = field(default_factory=Facts)


@dataclass(frozen=True)
class _Chosen:
    """Samples of one tower to replay, and what training would make of them, [n, E]."""

    rows: list[Row]
    embeddings: Tensor


@dataclass(frozen=True)
class RetrievalJob:
    """Two towers, their backbones with the taps of their caches, and the caches.

    `samples` of the texts and as many of the media are replayed; see `pipeline.fused.write.Job`
    for the methods.
    """

    trained: TrainedTowers
    text: TextBackbone
    media: ImageBackbone
    text_cache: Cache
    media_cache: Cache
    samples: int = 64
    model_type: str = "unipt_retrieval"
    outputs: str = "embeddings"

    @cached_property
    def _texts(self) -> _Chosen:
        trained = self.trained
        return self._choose(self.text_cache, trained.texts, trained.towers.text, trained.text_taps)

    @cached_property
    def _media(self) -> _Chosen:
        trained = self.trained
        return self._choose(
            self.media_cache, trained.media, trained.towers.media, trained.media_taps
        )

    def _choose(
        self, cache: Cache, inputs: Sequence[Input], tower: Any, taps: Sequence[str]
    ) -> _Chosen:
        few = np.linspace(0, len(inputs) - 1, min(len(inputs), CANDIDATES)).astype(int)
        rows, samples = choose_samples(cache, [(inputs[i],) for i in few], samples=self.samples)
        found: NDArray[np.int64] = samples[:, 0]
        return _Chosen(rows, cached_embeddings(cache, tower, taps, found))

    def check(self) -> None:
        """Compare the backbones with their caches'; find samples to replay."""
        check_backbone(self.text, self.text_cache)
        check_backbone(self.media, self.media_cache)
        self.trained.towers.eval()
        _ = self._texts, self._media

    def build(self) -> tuple[Any, Any]:
        """Return the fused model and its tokenizer."""
        fused = build_retrieval(
            self.text,
            self.media,
            self.trained.towers,
            text_taps=self.trained.text_taps,
            media_taps=self.trained.media_taps,
            text_storage=storage_type(self.text_cache),
            media_storage=storage_type(self.media_cache),
            text_rms=self.text_cache.rms,
            media_rms=self.media_cache.rms,
        )
        return fused, build_tokenizer(self.text, segments=1)

    def parts(self, model: Any, tokenizer: Any, folder: Path, forms: Sequence[Form]) -> list[Part]:
        """Return the checks of both towers' embeddings."""
        return [
            self._part("text", _text_encoder(model, self._texts.rows), model, folder, forms),
            self._part("media", _media_encoder(model, self._media.rows), model, folder, forms),
        ]

    def _part(
        self, tower: str, encode: parity.Encoder, model: Any, folder: Path, forms: Sequence[Form]
    ) -> Part:
        texts = tower == "text"
        chosen, other = (self._texts, self._media) if texts else (self._media, self._texts)
        traced = traceable(model, tower, encode)
        runners: dict[str, Runner] = {
            "transformers": eager_runner(lambda x: _features(model, tower)(**x))
        }
        for form in forms:
            run = traced.write(form, folder)
            runners[form] = run if texts else _over_frames(model, run)
        return parity.embeddings_part(
            tower if texts else self.media.modality,
            runners,
            encode,
            chosen.embeddings,
            other.embeddings,
            types=number_types(
                self.text_cache if texts else self.media_cache,
                model.text_backbone if texts else model.media_backbone,
            ),
        )

    def modules(self, model: Any) -> dict[str, nn.Module]:
        """Return the backbones and the side towers."""
        return {
            "text backbone (frozen)": model.text_backbone,
            f"{self.media.modality} backbone (frozen)": model.media_backbone,
            "text tower": model.towers.text,
            f"{self.media.modality} tower": model.towers.media,
        }

    def card(self, name: str, parameters: Mapping[str, int], report: ParityReport) -> str:
        """Return the model card."""
        trained, modality = self.trained, self.media.modality
        backbones = [Path(b.name).name for b in (self.text, self.media)]
        what = {"image": "pictures", "video": "clips"}[modality]
        suffix = {"image": "png", "video": "mp4"}[modality]
        return render_card(
            Card(
                name=name,
                task="feature-extraction",
                backbones=backbones,
                summary=f"Texts and {what} in one space, to search one by the other: frozen "
                f"{backbones[0]} and {backbones[1]} with UniPT side towers trained on their cached "
                "activations.",
                use=USE.format(name=name, encode=f"encode_{modality}", suffix=suffix),
                notes=NOTES.format(width=trained.towers.text.out_width),
                metrics=metrics_table(trained.facts.metrics),
                taps={"text": trained.text_taps, modality: trained.media_taps},
                parameters=parameters,
                data=trained.facts.data,
                training=trained.facts.training,
                fingerprints={
                    "text": self.text_cache.fingerprint.mapping,
                    modality: self.media_cache.fingerprint.mapping,
                },
                parity=report.render(),
            )
        )


def traceable(model: UniPTForRetrieval, tower: str, encode: parity.Encoder) -> Traceable:
    """Return what is traced of one tower; its weights are shared, its side tower is a copy.

    Pictures and frames are one artefact, `image`, as a clip is the normalised mean of its frames;
    a tower of whole sequences is traced as `video`, for one clip at a time.
    """
    fused = copy.copy(model)
    fused._modules = dict(model._modules)
    fused.towers = copy.deepcopy(model.towers)
    example = encode((0, 0), 0)
    if tower == "text":
        fused.towers.text.freeze(fused.config.text_tower["max_length"])
        return Traceable(
            name="text",
            module=_Text(fused),
            example=example,
            outputs=("text_embeds",),
            axes=TEXT_AXES,
        )
    spec = fused.config.media_tower
    shape = spec["tap_shapes"][spec["taps"][-1]]
    cells = {3: math.prod(shape[1:]), 2: shape[0], 1: 1}[len(shape)]
    sequences = fused.towers.media.frames == "sequence"
    name = "video" if sequences else "image"
    longest = spec["max_frames"] if sequences else 1
    fused.towers.media.freeze(cells * longest)
    clip_axes = {0: Dim("frames", max=longest)} if longest > 1 else {}
    return Traceable(
        name=name,
        module=_Clip(fused) if sequences else _Image(fused),
        example={"pixel_values": example["pixel_values"][: longest if sequences else None]},
        outputs=(f"{name}_embeds",),
        axes=clip_axes if sequences else PICTURE_AXES,
    )


class _Clip(nn.Module):
    """The signature of a traced tower of whole clips: the frames of one clip in, [1, E] out."""

    def __init__(self, model: UniPTForRetrieval) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (self.model.get_clip_features(pixel_values),)


class _Text(nn.Module):
    """Tensors in, a tuple of tensors out: the signature of the traced text tower."""

    def __init__(self, model: UniPTForRetrieval) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor]:
        return (self.model.get_text_features(input_ids, attention_mask, token_type_ids),)


class _Image(nn.Module):
    """The signature of the traced image tower."""

    def __init__(self, model: UniPTForRetrieval) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (self.model.get_image_features(pixel_values),)


def _features(model: Any, tower: str) -> Callable[..., Tensor]:
    """Return the method that embeds what a tower's encoder gives."""
    if tower == "text":
        found: Callable[..., Tensor] = model.get_text_features
    elif model.modality == "image":
        found = model.get_image_features
    else:
        found = model.get_video_features
    return found


def _over_frames(model: Any, run: Runner) -> Runner:
    """Return the runner of clips (or pictures) made of a runner of pictures, or of one clip."""

    def embed(inputs: Mapping[str, Tensor]) -> Tensor:
        pixels, counts = inputs["pixel_values"], inputs.get("frame_counts")
        if counts is not None and model.towers.media.frames == "sequence":
            clips = torch.split(pixels, counts.tolist())
            return torch.cat([run({"pixel_values": clip}) for clip in clips])
        found = run({"pixel_values": pixels})
        return found if counts is None else model.mean_of_frames(found, counts)

    return embed


def _text_encoder(model: Any, rows: list[Row]) -> parity.Encoder:
    """Return what tokenises replayed texts, padded by some more tokens where there is room."""

    def encode(positions: Sequence[int], extra: int) -> dict[str, Tensor]:
        texts = [
            row[0].text for row in (rows[i] for i in positions) if isinstance(row[0], TextInput)
        ]
        tensors: dict[str, Tensor] = model.tokenize(texts)
        length = tensors["input_ids"].shape[1]
        room = max(0, min(extra, model.config.text_tower["max_length"] - length))
        fill = {"input_ids": model.tokenizer.pad_token_id}
        return {
            name: nn.functional.pad(value, (0, room), value=fill.get(name, 0))
            for name, value in tensors.items()
        }

    return encode


def _media_encoder(model: Any, rows: list[Row]) -> parity.Encoder:
    """Return what decodes replayed pictures or clips."""

    def encode(positions: Sequence[int], extra: int) -> dict[str, Tensor]:
        chosen = [rows[i][0] for i in positions]
        found = [
            model.prepare_media(item.path, model.modality)
            for item in chosen
            if not isinstance(item, TextInput)
        ]
        inputs = {"pixel_values": torch.cat(found)}
        if model.modality == "video":
            inputs["frame_counts"] = torch.tensor([len(x) for x in found])
        return inputs

    return encode
