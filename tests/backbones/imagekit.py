"""Tiny random image models, images and transforms: nothing is downloaded."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoModel

from pipeline.backbones import ImageBackbone
from pipeline.backbones.preprocessing import plain_transform
from pipeline.inputs import ImageInput
from pipeline.media.transform import ImageTransform

_VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
_PYRAMID: dict[str, Any] = {
    "hidden_sizes": [4, 8, 8, 16],
    "depths": [1, 2, 1, 1],
    "embedding_size": 4,
    "image_size": 32,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": _VIT | {"mlp_ratio": 2},
    "dinov2_with_registers": _VIT | {"mlp_ratio": 2, "num_register_tokens": 3},
    "clip_vision_model": _VIT | {"projection_dim": 8},
    "siglip_vision_model": _VIT,
    "beit": _VIT,
    "swin": {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 2, 1],
        "num_heads": [1, 2, 2],
        "window_size": 4,
    },
    "convnext": _PYRAMID,
    "convnextv2": _PYRAMID,
    "resnet": _PYRAMID | {"layer_type": "basic"},
    "regnet": _PYRAMID | {"groups_width": 4},
    "efficientnet": {
        "width_coefficient": 0.1,
        "depth_coefficient": 0.1,
        "hidden_dim": 128,
        "image_size": 32,
    },
}
_CLASSES = {
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "siglip_vision_model": "SiglipVisionModel",
}


def shake(model: Any) -> Any:
    """Draw weights and batch statistics large enough that every layer matters."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            fan = weight[0].numel() / 2 if weight.dim() == 4 else 6
            torch.nn.init.normal_(weight, std=fan**-0.5)
        elif "norm" in name.lower() or "bn" in name:
            torch.nn.init.normal_(weight, mean=0.9, std=0.2)
        else:
            torch.nn.init.normal_(weight, std=0.2)
    for name, statistic in model.named_buffers():
        if name.endswith("running_mean"):
            torch.nn.init.normal_(statistic, std=0.2)
        elif name.endswith("running_var"):
            torch.nn.init.uniform_(statistic, 0.5, 1.5)
    return model.eval().requires_grad_(False)


def tiny_vision(model_type: str, *, seed: int = 0, **overrides: Any) -> Any:
    """A random image model of a transformers model type."""
    config = AutoConfig.for_model(model_type, **CONFIGS[model_type] | overrides)
    kind = _CLASSES.get(model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = getattr(transformers, kind)(config) if kind else AutoModel.from_config(config)
        return shake(found)


def transform_of(size: int | tuple[int, int]) -> ImageTransform:
    """The whole image at exactly `size`, to pixels between -1 and 1."""
    return plain_transform(size, (0.5,) * 3, (0.5,) * 3)


def tiny_backbone(model_type: str, size: int | tuple[int, int] = 32, **options: Any) -> Any:
    """An image backbone of a tiny model at `size`."""
    return ImageBackbone(tiny_vision(model_type), transform_of(size), name=model_type, **options)


def save_images(folder: Path, sizes: tuple[tuple[int, int], ...] = ((40, 50), (32, 32), (64, 20))):
    """Save noise images of the `sizes` (height, width); return them as inputs."""
    inputs = []
    for i, (height, width) in enumerate(sizes):
        noise = np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path := folder / f"{i}.png")
        inputs.append(ImageInput(path))
    return inputs


def animation(path: Path, frames: int = 5, side: int = 40) -> Path:
    """Save an animated image of `frames` noise frames, 100 ms each."""
    noise = np.random.default_rng(frames).integers(0, 255, (frames, side, side, 3), dtype=np.uint8)
    first, *rest = [Image.fromarray(frame) for frame in noise]
    first.save(path, save_all=True, append_images=rest, duration=100, loop=0, lossless=True)
    return path
