"""From a folder, a hub id or one weights file to a frozen, tapped backbone.

Costs reading the weights once and one digest of them. A checkpoint that lacks weights of the
backbone is refused: transformers would fill them with random numbers and go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pipeline.backbones.base import Backbone, Modality
from pipeline.backbones.convnets import ARCHITECTURES
from pipeline.backbones.family import BackboneError
from pipeline.backbones.fingerprint import is_pooler, weights_digest
from pipeline.backbones.image import ImageBackbone
from pipeline.backbones.preprocessing import convnet_transform, load_transform
from pipeline.backbones.quiet import quiet_transformers
from pipeline.backbones.text import TextBackbone
from pipeline.backbones.towers import check_tower, is_two_towers, model_class, tower_config
from pipeline.backbones.trace import reads_pixels
from pipeline.backbones.video import VideoBackbone
from pipeline.backbones.weights_file import SUFFIXES, load_convnet
from pipeline.extras import require
from pipeline.media.transform import ImageTransform

ComputeType = Literal["auto", "float32", "bfloat16", "float16"]
Tower = Literal["auto", "text", "image", "video"]
_SHOWN = 5


@dataclass(frozen=True)
class _Loaded:
    """A model and what makes its inputs: a tokenizer, or a transform."""

    model: Any
    modality: Modality
    tokenizer: Any = None
    transform: ImageTransform | None = None


def load_backbone(
    name_or_path: str,
    *,
    tower: Tower = "auto",
    usual: Modality | None = None,
    device: str = "auto",
    dtype: ComputeType = "auto",
    taps: Sequence[str] | None = None,
    max_length: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    fps: float = 1.0,
    max_frames: int = 12,
    architecture: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    random_init: bool = False,
    seed: int = 0,
    pool: str = "none",
) -> Backbone:
    """Load a text or image model, frozen and in eval mode.

    Args:
        name_or_path: a local folder, the id of a model on the hub, or one weights file.
        tower: what the model is to read. "auto" takes what it is made for; "video" shows an image
            model a video frame by frame. CLIP and SigLIP hold two towers: one must be named.
        usual: what "auto" takes of a checkpoint of two towers; None refuses to choose.
        device: "auto" takes cuda, then mps, then cpu; else any torch device.
        dtype: type of the arithmetic. "auto" is float32, except on CUDA, where it is bfloat16 for
            a bfloat16 checkpoint and float16 otherwise. On CUDA a half type runs under autocast.
        taps: glob patterns of tap names; None records every tap (of a ConvNet, every stage).
        max_length: longest text in tokens; None as in `TextBackbone`.
        image_size: side, or height and width, of the pixels; None takes the checkpoint's own.
        fps: frames a second of a video; 0 takes `max_frames` of any video.
        max_frames: most frames of a video.
        architecture: what a weights file holds: a name of `convnets.ARCHITECTURES`. With it and
            `random_init`, `name_or_path` is a mere name.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run model code that comes with the checkpoint.
        random_init: build the model from its configuration with random weights (`seed`); no
            checkpoint is read.
        seed: seed of the random weights.
        pool: pooling of what a tap emits, see `pooling.check_pool`.

    Raises:
        BackboneError: the model cannot be read, lacks weights, or cannot be tapped; or an option
            does not belong to its modality.
    """
    target = pick_device(device)
    if architecture is not None or name_or_path.endswith(SUFFIXES):
        loaded = _from_file(name_or_path, architecture, tower, random_init, seed)
    else:
        source = {"revision": revision, "trust_remote_code": trust_remote_code}
        made = seed if random_init else None
        loaded = _from_transformers(name_or_path, tower, usual, source, made)
    _check_options(loaded.modality, name_or_path, max_length=max_length, image_size=image_size)
    model = loaded.model.eval().requires_grad_(False)
    digest = weights_digest(model)
    stored = next(model.parameters()).dtype
    compute = pick_dtype(dtype, target, stored)
    autocast = compute if target.type == "cuda" and compute != torch.float32 else None
    model.to(device=target, dtype=None if autocast else compute)
    common: dict[str, Any] = {
        "name": name_or_path,
        "taps": taps,
        "autocast": autocast,
        "digest": digest,
        "revision": revision,
        "pool": pool,
    }
    if loaded.transform is None:
        return TextBackbone(model, loaded.tokenizer, max_length=max_length, **common)
    transform = _resized(loaded.transform, image_size)
    if loaded.modality == "image":
        return ImageBackbone(model, transform, **common)
    return VideoBackbone(model, transform, fps=fps, max_frames=max_frames, **common)


def pick_device(device: str) -> torch.device:
    """Return the torch device of `device`; "auto" takes cuda, then mps, then cpu."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(dtype: ComputeType, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """Return the compute type of `dtype` on `device` for a checkpoint kept in `stored`."""
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if stored == torch.bfloat16 else torch.float16


def _from_file(
    name: str, architecture: str | None, tower: Tower, random_init: bool, seed: int
) -> _Loaded:
    if architecture is None:
        raise BackboneError(
            f"{name} is a weights file, which does not say what it holds: name its --architecture, "
            f"one of {', '.join(ARCHITECTURES)}"
        )
    path = None if random_init else Path(name)
    model = load_convnet(architecture, path, seed=seed)
    return _Loaded(
        model, check_tower(tower, "image", name), transform=convnet_transform(architecture)
    )


def _from_transformers(
    name: str,
    tower: Tower,
    usual: Modality | None,
    source: dict[str, Any],
    seed: int | None,
) -> _Loaded:
    """Load the checkpoint, or random weights of its configuration where there is a seed."""
    transformers = require("transformers")  # heavy: 2 s to import
    try:
        config = transformers.AutoConfig.from_pretrained(name, **source)
        if getattr(config, "is_encoder_decoder", False):
            raise BackboneError(
                f"{name} is an encoder-decoder ({config.model_type}); text backbones are "
                "encoders or decoder-only models"
            )
        kind = model_class(config)
        if is_two_towers(config):
            tower = usual if tower == "auto" and usual else tower
            kind, config = tower_config(config, tower, name)
        if seed is None:
            model = _checkpoint(kind, name, config, source)
        else:
            model = _random(kind, config, seed)
        modality = check_tower(tower, _reads(model, name), name)
        if modality == "text":
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, **source)
            return _Loaded(model, modality, tokenizer)
        transform = load_transform(name, source, None if seed is None else config)
        return _Loaded(model, modality, transform=transform)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, BackboneError):
            raise
        raise BackboneError(
            f"cannot load the backbone {name!r} ({error}). Give a folder with config.json, the "
            "weights and the tokenizer or preprocessor_config.json, or the id of a model on the hub"
        ) from error


def _reads(model: nn.Module, name: str) -> Modality:
    if reads_pixels(model):
        return "image"
    main = getattr(model, "main_input_name", "input_ids")
    if main != "input_ids":
        raise BackboneError(
            f"{name} is a {type(model).__name__}, which reads {main}; texts (input_ids) and "
            "images (pixel_values) are supported"
        )
    return "text"


def _resized(transform: ImageTransform, size: int | tuple[int, int] | None) -> ImageTransform:
    if size is None:
        return transform
    height, width = (size, size) if isinstance(size, int) else size
    try:
        return transform.with_size(height, width)
    except ValueError as error:
        raise BackboneError(f"image_size {size} is unusable: {error}") from error


def _check_options(modality: Modality, name: str, **options: Any) -> None:
    """Refuse an option that would be ignored."""
    foreign = "image_size" if modality == "text" else "max_length"
    if options[foreign] is not None:
        raise BackboneError(f"{foreign} {options[foreign]} means nothing to the {modality} {name}")


def _random(kind: str, config: Any, seed: int) -> Any:
    found: Any = getattr(require("transformers"), kind)
    build = found.from_config if kind == "AutoModel" else found._from_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config, dtype=torch.float32)


def _checkpoint(kind: str, name: str, config: Any, source: dict[str, Any]) -> Any:
    own = {} if kind == "AutoModel" else {"config": config}
    with quiet_transformers():
        model, report = getattr(require("transformers"), kind).from_pretrained(
            name, dtype="auto", output_loading_info=True, **own, **source
        )
    missing = sorted(key for key in report["missing_keys"] if not is_pooler(key))
    if missing:
        raise BackboneError(
            f"the checkpoint {name!r} lacks {len(missing)} weight(s) of its "
            f"{type(model).__name__}, such as {', '.join(missing[:_SHOWN])}: they would be "
            "random. Use a complete checkpoint, or random_init=True for random weights throughout"
        )
    return model
