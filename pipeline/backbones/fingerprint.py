"""Digests of a backbone: equal weights and equal preprocessing give equal digests anywhere.

Neither paths, times nor library versions enter. Cost: one SHA-256 pass over the weights (90 MB:
about 0.1 s) and over the tokenizer's description.
"""

import hashlib
import json
from typing import Any

import torch
from torch import nn


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of every weight: name, type, shape and bytes, sorted by name.

    A pooler is left out: it sits after every tap, and many checkpoints lack it, so that its
    numbers are random.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, torch.Tensor) or is_pooler(name):
            continue
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the SHA-256 of what turns a text into ids.

    Of a fast tokenizer that is its own JSON without the state of its last call (truncation and
    padding); of another one its class, vocabulary and special tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        parts = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    else:
        parts = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    parts["special"] = {name: str(t) for name, t in tokenizer.special_tokens_map.items()}
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_pooler(name: str) -> bool:
    """Whether a weight's `name` belongs to a pooler, which comes after every tap."""
    return name.partition(".")[0] == "pooler"
