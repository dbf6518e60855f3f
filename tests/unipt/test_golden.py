"""Outputs and gradients of the published modules, reproduced from their own parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from unipt import (
    GeneralizedPooling,
    hinge_loss,
    import_reference,
    pack,
    preset,
    reference_views,
)

GOLDEN = Path(__file__).parents[1] / "golden"


class Golden:
    """One golden file: ``inputs``, ``outputs``, ``params``, ``grads`` by name, and its sizes."""

    def __init__(self, name: str) -> None:
        with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
            self.meta = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.inputs = self._part(tensors, "input.")
        self.outputs = self._part(tensors, "output.")
        self.params = self._part(tensors, "param.")
        self.grads = self._part(tensors, "grad.")

    @staticmethod
    def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    def size(self, name: str) -> int:
        return int(self.meta[name])

    def load(self, module: nn.Module) -> None:
        assert import_reference(module, self.params) == []

    def check_grads(self, module: nn.Module, features: Tensor, cotangent: Tensor) -> None:
        """Gradients of sum(features * cotangent), compared under the reference's names."""
        (features * cotangent).sum().backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(parameter.grad)
        ours = reference_views(module, set(self.params))
        assert self.grads
        for name, expected in self.grads.items():
            close(ours[name].reshape(expected.shape), expected)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def valid_mask(lengths: Tensor, length: int) -> Tensor:
    return torch.arange(length) < lengths[:, None]


def run_tokens(module: nn.Module, golden: Golden, mask: Tensor, packed: bool) -> None:
    """Check a token-wise variant: last state the anchor, valid tokens compared."""
    golden.load(module)
    states, expected = golden.inputs["hidden"], golden.outputs["features"][mask]
    if packed:
        values, offsets = pack(states, mask)
        features = module(values[-1], values[:-1], offsets=offsets).features
    else:
        features = module(states[-1], states[:-1], mask=mask).features[mask]
    close(features, expected)
    golden.check_grads(module, features, golden.inputs["cotangent"][mask])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["vse_text", "vse_text_b"])
def test_vse_text(name: str, packed: bool) -> None:
    golden = Golden(name)
    width, embed = golden.size("hidden"), golden.size("embed")
    module = preset(
        "vse_text",
        widths=[width] * (golden.size("num_layer") - 1),
        anchor_width=width,
        side_width=embed // golden.size("reduction"),
        out_width=embed,
    ).build()
    mask = valid_mask(golden.inputs["lengths"], golden.inputs["hidden"].shape[2])
    run_tokens(module, golden, mask, packed)


@pytest.mark.parametrize("packed", [False, True])
def test_clip_vil(packed: bool) -> None:
    golden = Golden("clipvil_joint")
    width = golden.size("hidden")
    module = preset(
        "clip_vil",
        widths=[width] * (golden.size("num_layer") - 1),
        anchor_width=width,
        side_width=width // golden.size("reduction"),
        out_width=width,
        norm_eps=float(golden.meta["layernorm_eps"]),
    ).build()
    run_tokens(module, golden, golden.inputs["mask"].bool(), packed)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["image", "text"])
def test_clip4clip(name: str, packed: bool) -> None:
    golden = Golden(f"clip4clip_{name}")
    embed, states = golden.size("embed"), golden.inputs["hidden"]
    module = preset(
        "clip4clip_text" if name == "text" else "clip4clip_frames",
        widths=[golden.size("hidden")] * golden.size("num_layer"),
        anchor_width=embed,
        side_width=embed // golden.size("reduction"),
        out_width=embed,
    ).build()
    golden.load(module)
    mask = golden.inputs.get("mask", torch.ones(states.shape[1:3])).bool()
    anchor, position = golden.inputs["anchor"][:, 0], golden.inputs.get("eos_position")
    if packed:
        values, offsets = pack(states, mask)
        output = module(anchor, values, offsets=offsets, position=position)
    else:
        output = module(anchor, states, mask=mask, position=position)
    close(output.features, golden.outputs["features"])
    golden.check_grads(module, output.features, golden.inputs["cotangent"])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_vse_image(mode: str) -> None:
    golden = Golden(f"vse_image_{mode}")
    *widths, anchor_width = json.loads(golden.meta["hidden"])
    embed = golden.size("embed")
    module = preset(
        "vse_image",
        widths=widths,
        anchor_width=anchor_width,
        side_width=embed // golden.size("reduction"),
        out_width=embed,
    ).build()
    golden.load(module)
    module.train(mode == "train")
    *stages, anchor = (golden.inputs[f"stage{i}"] for i in range(len(widths) + 1))
    features = module(anchor, stages).features
    close(features, golden.outputs["features"])
    golden.check_grads(module, features, golden.inputs["cotangent"])


def test_mdetr() -> None:
    golden = Golden("mdetr")
    width = golden.size("hidden")
    kept = json.loads(golden.meta["select_layers"])
    module = preset(
        "mdetr",
        encoder_layers=len(kept),
        decoder_layers=len(kept),
        width=width,
        side_width=width // golden.size("reduction"),
        out_width=width,
    ).build()
    golden.load(module)
    encoder, decoder = golden.inputs["encoder_hidden"], golden.inputs["decoder_hidden"]
    mask = golden.inputs["encoder_mask"].bool()
    output = module(encoder[-1], encoder[kept], decoder[-1], decoder[kept], encoder_mask=mask)
    close(output.encoder[mask], golden.outputs["side_encoder"][mask])
    close(output.features, golden.outputs["features"])
    golden.check_grads(module, output.features, golden.inputs["cotangent"])


@pytest.mark.parametrize("packed", [False, True])
def test_generalized_pooling(packed: bool) -> None:
    golden = Golden("vse_gpo")
    module = GeneralizedPooling(
        position_width=golden.size("d_pe"), hidden_width=golden.size("d_hidden")
    )
    golden.load(module)
    features, lengths = golden.inputs["features"], golden.inputs["lengths"]
    mask = valid_mask(lengths, features.shape[1])
    if packed:
        values, offsets = pack(features, mask)
        pooled = module(values, offsets=offsets)
    else:
        pooled = module(features, mask)
    weights = module.weights(lengths, features.shape[1])
    close(weights[..., None], golden.outputs["weights"])
    close(pooled, golden.outputs["pooled"])
    golden.check_grads(module, pooled, golden.inputs["cotangent"])


def test_hinge_loss() -> None:
    golden = Golden("vse_loss")
    images = golden.inputs["images"].requires_grad_()
    captions = golden.inputs["captions"].requires_grad_()
    margin = float(golden.meta["margin"])
    losses = {
        kind: hinge_loss(images, captions, margin=margin, negatives=kind)
        for kind in ("hardest", "all")
    }
    close(losses["hardest"], golden.outputs["loss_hardest"])
    close(losses["all"], golden.outputs["loss_all"])
    losses["hardest"].backward()
    close(images.grad, golden.grads["images"])
    close(captions.grad, golden.grads["captions"])
