"""From a folder or a hub id to a frozen, tapped text model.

Costs reading the weights once and one digest of them. A checkpoint that lacks weights of the
backbone is refused: transformers would fill them with random numbers and go on.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from pipeline.backbones.family import BackboneError
from pipeline.backbones.fingerprint import is_pooler, weights_digest
from pipeline.backbones.quiet import quiet_transformers
from pipeline.backbones.text import TextBackbone

ComputeType = Literal["auto", "float32", "bfloat16", "float16"]
_SHOWN = 5


def load_backbone(
    name_or_path: str,
    *,
    device: str = "auto",
    dtype: ComputeType = "auto",
    taps: Sequence[str] | None = None,
    max_length: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    random_init: bool = False,
    seed: int = 0,
) -> TextBackbone:
    """Load a text model through transformers, frozen and in eval mode.

    Args:
        name_or_path: a local folder, or the id of a model on the hub.
        device: "auto" takes cuda, then mps, then cpu; else any torch device.
        dtype: type of the arithmetic. "auto" is float32, except on CUDA, where it is bfloat16 for
            a bfloat16 checkpoint and float16 otherwise. On CUDA a half type runs under autocast.
        taps: glob patterns of tap names; None records every tap.
        max_length: longest input in tokens; None as in `TextBackbone`.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run model code that comes with the checkpoint.
        random_init: build the model from its configuration with random weights (`seed`); no
            checkpoint is read.
        seed: seed of the random weights.

    Raises:
        BackboneError: the model cannot be read, lacks weights, or cannot be tapped.
    """
    from transformers import AutoConfig, AutoTokenizer  # noqa: PLC0415 - heavy: 2 s to import

    target = pick_device(device)
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name_or_path, **source)
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **source)
        if getattr(config, "is_encoder_decoder", False):
            raise BackboneError(
                f"{name_or_path} is an encoder-decoder ({config.model_type}); text backbones are "
                "encoders or decoder-only models"
            )
        model = _random(config, seed) if random_init else _checkpoint(name_or_path, source)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, BackboneError):
            raise
        raise BackboneError(
            f"cannot load the backbone {name_or_path!r} ({error}). Give a folder with "
            "config.json, the weights and the tokenizer, or the id of a model on the hub"
        ) from error
    model.eval().requires_grad_(False)
    digest = weights_digest(model)
    compute = pick_dtype(dtype, target, model.dtype)
    autocast = compute if target.type == "cuda" and compute != torch.float32 else None
    model.to(device=target, dtype=None if autocast else compute)
    return TextBackbone(
        model,
        tokenizer,
        name=name_or_path,
        taps=taps,
        max_length=max_length,
        autocast=autocast,
        digest=digest,
        revision=revision,
    )


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


def _random(config: Any, seed: int) -> Any:
    from transformers import AutoModel  # noqa: PLC0415

    build: Any = AutoModel.from_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config, dtype=torch.float32)


def _checkpoint(name_or_path: str, source: dict[str, Any]) -> Any:
    from transformers import AutoModel  # noqa: PLC0415

    with quiet_transformers():
        model, report = AutoModel.from_pretrained(
            name_or_path, dtype="auto", output_loading_info=True, **source
        )
    missing = sorted(key for key in report["missing_keys"] if not is_pooler(key))
    if missing:
        raise BackboneError(
            f"the checkpoint {name_or_path!r} lacks {len(missing)} weight(s) of its "
            f"{type(model).__name__}, such as {', '.join(missing[:_SHOWN])}: they would be "
            "random. Use a complete checkpoint, or random_init=True for random weights throughout"
        )
    return model
