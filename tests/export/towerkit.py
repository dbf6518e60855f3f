"""Two tiny towers, random: backbones, caches, side towers, pictures and clips."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tiny import SENTENCES, tiny_model, tiny_tokenizer

from cache import Cache
from pipeline.backbones import ImageBackbone, TextBackbone
from pipeline.backbones.convnets import build_convnet
from pipeline.backbones.convnets.config import ConvNetConfig
from pipeline.backbones.preprocessing import plain_transform
from pipeline.backbones.video import VideoBackbone
from pipeline.data import Dataset
from pipeline.extract import extract_inputs
from pipeline.fused.job import Facts, Job
from pipeline.reading.captioned.dataset import Captioned
from pipeline.reading.captioned.gather import Caption, MediaItem
from pipeline.reading.config import CaptionData
from pipeline.systems import Setup, system_of
from pipeline.systems.inference import run_passes
from pipeline.systems.locate import locate
from pipeline.systems.memo import Memo
from pipeline.systems.taps import TowerTaps, select, width
from unipt import SideTower, TwoTowers, preset

EMBED = 8
SIDE = 32
"""Pixels of a picture's side."""
LAYERS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")


def shaken(model: Any, seed: int = 0) -> Any:
    """Draw weights large enough that every layer matters, and batch statistics near one."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        fan = weight[0].numel() if weight.dim() > 1 else 25
        torch.nn.init.normal_(weight, 1.0 if "norm" in name or "bn" in name else 0.0, fan**-0.5)
    for name, statistic in model.named_buffers():
        if "running" in name:
            torch.nn.init.uniform_(statistic, 0.5, 1.5)
    return model.eval().requires_grad_(False)


def text_backbone(kind: str) -> TextBackbone:
    """A text model: "bert", or CLIP's or SigLIP's with its projection."""
    words = {"vocab_size": 64, "max_position_embeddings": 12} | LAYERS
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    if kind == "clip":
        config: Any = transformers.CLIPTextConfig(**words, **tokens, projection_dim=EMBED)
        model = shaken(transformers.CLIPTextModelWithProjection(config))
    elif kind == "siglip":
        config = transformers.SiglipTextConfig(**words, **tokens, projection_size=EMBED)
        model = shaken(transformers.SiglipTextModel(config))
    else:
        model = tiny_model(kind)
    return TextBackbone(model, tiny_tokenizer(), name=f"tiny-{kind}", max_length=12)


def image_model(kind: str) -> Any:
    """An image model: a grid (ViT), maps (ResNet, or a shipped ConvNet), or CLIP's."""
    if kind == "convnet":
        small = {"depths": (1, 1, 1, 1), "group_width": 4}
        return shaken(build_convnet(ConvNetConfig(model_type="resnet50", **small)))
    if kind == "resnet":
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
        config: Any = transformers.ResNetConfig(**sizes, layer_type="basic")
        return shaken(transformers.ResNetModel(config))
    pixels = {"image_size": SIDE, "patch_size": 16}
    if kind == "clip":
        config = transformers.CLIPVisionConfig(**LAYERS, **pixels, projection_dim=EMBED)
        return shaken(transformers.CLIPVisionModelWithProjection(config))
    return shaken(transformers.ViTModel(transformers.ViTConfig(**LAYERS, **pixels)))


def media_backbone(kind: str, *, clips: bool = False, size: int = SIDE) -> ImageBackbone:
    """An image backbone, of pictures or of clips (3 frames evenly)."""
    transform = plain_transform(size, (0.5,) * 3, (0.25,) * 3)
    if clips:
        return VideoBackbone(
            image_model(kind), transform, name=f"tiny-{kind}", fps=0.0, max_frames=3
        )
    return ImageBackbone(image_model(kind), transform, name=f"tiny-{kind}")


def drawing(number: int, step: int = 0) -> Image.Image:
    """A coloured square on noise; another place at each step."""
    noise = np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    picture.paste(COLOURS[number % len(COLOURS)], (4 + 6 * step, 8, 24 + 6 * step, 28))
    return picture


def save_pictures(folder: Path, count: int = 6) -> list[Path]:
    """Save pictures of several colours, one in a sub-folder."""
    (folder / "more").mkdir(parents=True, exist_ok=True)
    paths = [folder / ("more" if i == 5 else ".") / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        drawing(i).save(path)
    return paths


def save_clips(folder: Path, count: int = 4) -> list[Path]:
    """Save animated pictures of 2, 3, ... frames."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.gif" for i in range(count)]
    for i, path in enumerate(paths):
        first, *rest = [drawing(i, step) for step in range(i + 2)]
        first.save(path, save_all=True, append_images=rest, duration=100)
    return paths


def side_tower(taps: TowerTaps, *, text: bool, frames: str = "mean", pooling: str = "gpo") -> Any:
    """A random side tower that fits these taps."""
    sizes = {
        "widths": tuple(width(tap) for tap in taps.targets),
        "anchor_width": width(taps.anchor),
        "side_width": EMBED,
        "out_width": EMBED,
    }
    maps = taps.layout == "map"
    name = "clip4clip_text" if taps.vector_anchor else "vse_image" if maps else "vse_text"
    tower = SideTower(
        side=preset(name, **sizes),
        taps=taps.names,
        axis=taps.axis,
        pooling="none" if taps.vector_anchor else pooling,
        frames=frames if taps.clips else "none",
        position="last" if text else "first",
    )
    for weight in tower.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=2 * weight[0].numel() ** -0.5)
    return tower


@dataclass
class Towers:
    """What a `Job` of two towers takes, and the media files."""

    setup: Setup
    model: TwoTowers
    backbones: dict[str, Any]
    paths: list[Path]

    def job(self, **changes: Any) -> Job:
        """What `export_model` takes."""
        return Job(
            setup=self.setup,
            model=self.model,
            backbones=self.backbones | changes,
            facts=Facts(metrics={"test": {"rsum": 123.4}}, data={"task": "retrieval"}),
        )

    def cached(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the sentences and all media, from the caches."""
        texts, media = run_passes(self.model, self.setup, self.setup.splits["train"], batch_size=3)
        return texts.values["text"][: len(SENTENCES)], media.values["media"]


def make_towers(
    folder: Path,
    text: str = "bert",
    media: str = "vit",
    *,
    clips: bool = False,
    frames: str = "mean",
    pooling: str = "gpo",
    store: Any = "float32",
    pools: tuple[str, str] = ("none", "none"),
) -> Towers:
    """Extract tiny texts and images (or videos) and put random side towers on top."""
    torch.manual_seed(1)
    words, seer = text_backbone(text), media_backbone(media, clips=clips)
    backbones = {"text": words.pooled(pools[0]), "media": seer.pooled(pools[1])}
    paths = save_clips(folder / "media") if clips else save_pictures(folder / "media")
    count = max(len(paths), len(SENTENCES))
    examples = Captioned(
        items=tuple(MediaItem(path.stem, path) for path in paths),
        captions=tuple(Caption(str(i), SENTENCES[i % len(SENTENCES)]) for i in range(count)),
        item_of=np.arange(count) * len(paths) // count,
        item_groups=tuple(path.stem for path in paths),
        split="train",
    )
    dataset = Dataset(
        splits={"train": examples}, config=CaptionData(train=folder / "none.csv", media=folder)
    )
    caches, modalities = {}, {}
    for name, backbone in backbones.items():
        path = folder / f"{name}.zarr"
        rows = examples.rows(name, backbone.modality)
        extract_inputs(backbone, rows, path, store_dtype=store, block_tokens=64, force=True)
        caches[name], modalities[name] = Cache.open(path), backbone.modality
    taps = {name: select(cache, None, "taps") for name, cache in caches.items()}
    model = TwoTowers(
        text=side_tower(taps["text"], text=True, pooling=pooling),
        media=side_tower(taps["media"], text=False, frames=frames, pooling=pooling),
        logit_scale=20.0,
    )
    system = system_of("retrieval")
    setup = Setup(
        system=system,
        dataset=dataset,
        task=system.task(dataset),
        caches=caches,
        taps=taps,
        splits={"train": locate(dataset, "train", caches, modalities)},
        device=torch.device("cpu"),
        memo=Memo(),
    )
    return Towers(setup, model.eval(), backbones, paths)
