"""OpenAI's own CLIP files (arXiv:2103.00020) as transformers models: names, shapes, tokenizer.

A release is one file: a TorchScript archive, or its state dict. The vision transformers (ViT-*) are
read; the weights become float32. W wide, E of the shared space.
"""

import gzip
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.backbones.family import BackboneError
from pipeline.backbones.towers import tower_config
from pipeline.backbones.weights_file import read_state_dict
from pipeline.media.transform import ImageTransform

NAME = "openai_clip"
MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = 3
_SETTINGS = ("input_resolution", "context_length", "vocab_size")  # numbers beside the weights
_HEAD_WIDTH = 64
_PLAIN = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {
    "text_projection": "text_projection.weight",  # [W, E]
    "visual.proj": "visual_projection.weight",
}
_IN_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)")


def read_openai_clip(path: Path) -> dict[str, Tensor]:
    """Return the state dict of an OpenAI CLIP file, under its own names, without its settings.

    Raises:
        BackboneError: the file cannot be read, or is no CLIP with a vision transformer.
    """
    state = _archive(path) if _is_torchscript(path) else read_state_dict(path)
    if "visual.layer1.0.conv1.weight" in state:
        raise BackboneError(f"{path} is a CLIP with a ResNet; those with a ViT are supported")
    if "visual.proj" not in state or "text_projection" not in state:
        raise BackboneError(f"{path} is no CLIP of OpenAI's: it has no visual.proj")
    return {name: value.float() for name, value in state.items() if name not in _SETTINGS}


def load_openai_clip(path: Path, tower: str) -> Any:
    """Return one tower of an OpenAI CLIP file as a transformers model.

    Args:
        path: the file.
        tower: "text", "image" or "video".

    Raises:
        BackboneError: the file is not such a file or lacks weights, or no tower was chosen.
    """
    import transformers  # noqa: PLC0415 - heavy to import

    state = read_openai_clip(path)
    config = transformers.CLIPConfig(**clip_config(state))
    kind, own = tower_config(config, tower, str(path))
    model: Any = getattr(transformers, kind)(own)
    weights = clip_weights(state)
    wanted = model.state_dict()
    if missing := [name for name in wanted if name not in weights]:
        raise BackboneError(f"{path} lacks {len(missing)} weight(s), such as {missing[0]}")
    model.load_state_dict({name: weights[name] for name in wanted})
    return model


def clip_transform(side: int) -> ImageTransform:
    """Return CLIP's published preprocessing: the shorter side to `side`, its middle, bicubic."""
    return ImageTransform(
        size=(side, side), resize="shortest", crop="center", resample=_BICUBIC, mean=_MEAN, std=_STD
    )


def clip_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a transformers `CLIPModel` from a state dict of OpenAI's names.

    Raises:
        BackboneError: a name is unknown.
    """
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        weights |= dict(_renamed(name, value))
    return weights


def clip_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the settings of a transformers `CLIPConfig`, read off the shapes of the weights."""
    patches, width = state["visual.positional_embedding"].shape
    patch = state["visual.conv1.weight"].shape[-1]
    vocabulary, text_width = state["token_embedding.weight"].shape
    shared = state["text_projection"].shape[1]
    vision = {
        "image_size": patch * round((patches - 1) ** 0.5),
        "patch_size": patch,
        **_transformer(state, "visual.transformer", width),
    }
    text = {
        "vocab_size": vocabulary,
        "max_position_embeddings": len(state["positional_embedding"]),
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
        **_transformer(state, "transformer", text_width),
    }
    both = {"hidden_act": "quick_gelu", "projection_dim": shared}
    return {"text_config": text | both, "vision_config": vision | both, "projection_dim": shared}


def clip_tokenizer(folder: Path, vocabulary: int) -> Any:
    """Return CLIP's tokenizer from files in `folder`: transformers' own, or OpenAI's merges.

    Args:
        folder: where the weights lie.
        vocabulary: number of tokens of the model.

    Raises:
        BackboneError: neither is there.
    """
    from transformers import CLIPTokenizer  # noqa: PLC0415 - heavy to import

    if (folder / "tokenizer.json").exists() or (folder / "vocab.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    if not (folder / MERGES_FILE).exists():
        raise BackboneError(
            f"a CLIP file holds no tokenizer: put OpenAI's {MERGES_FILE}, or tokenizer.json of "
            f"transformers' CLIP, beside it in {folder}"
        )
    lines = gzip.decompress((folder / MERGES_FILE).read_bytes()).decode().split("\n")
    merges = lines[1 : 1 + vocabulary - 2 * 256 - 2]  # after a header; each token once more as end
    letters = _letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    pairs: Any = [tuple(merge.split()) for merge in merges]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs)


def _renamed(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name in _PLAIN:
        yield _PLAIN[name], value
    elif name in _TRANSPOSED:
        yield _TRANSPOSED[name], value.T.contiguous()
    elif match := _LAYER.fullmatch(name):
        visual, layer, part, kind = match.groups()
        tower = f"{'vision' if visual else 'text'}_model.encoder.layers.{layer}"
        if part == "attn.in_proj":  # [3 W, W]: query, key, value
            for which, share in zip("qkv", value.chunk(3), strict=True):
                yield f"{tower}.self_attn.{which}_proj.{kind}", share.contiguous()
        elif part in _IN_LAYER:
            yield f"{tower}.{_IN_LAYER[part]}.{kind}", value
        else:
            raise BackboneError(f"unknown weight {name!r} in a layer of a CLIP file")
    else:
        raise BackboneError(f"unknown weight {name!r} in a CLIP file")


def _transformer(state: Mapping[str, Tensor], prefix: str, width: int) -> dict[str, int]:
    layer = re.compile(re.escape(prefix) + r"\.resblocks\.(\d+)\.ln_1\.weight")
    return {
        "hidden_size": width,
        "num_hidden_layers": sum(layer.fullmatch(name) is not None for name in state),
        "num_attention_heads": width // _HEAD_WIDTH,
        "intermediate_size": len(state[f"{prefix}.resblocks.0.mlp.c_fc.bias"]),
    }


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _archive(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a TorchScript archive; its code is loaded, and never called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, which the file is in
        load: Any = torch.jit.load
        state: dict[str, Tensor] = load(str(path), map_location="cpu").state_dict()
    return state


def _letters() -> list[str]:
    """Return the letter that stands for each byte, in the order of CLIP's vocabulary."""
    spans = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = [b for first, last in spans for b in range(ord(first), ord(last) + 1)]
    others = [b for b in range(256) if b not in set(printable)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
