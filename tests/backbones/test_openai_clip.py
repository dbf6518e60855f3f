"""OpenAI's CLIP files: a transformers model written in the release's names comes back as it was."""

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import pictures, shake
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from pipeline.backbones import BackboneError, load_backbone
from pipeline.backbones.openai_clip import MERGES_FILE, clip_config, clip_weights, read_openai_clip
from pipeline.inputs import TextInput

MERGES = ["t h", "th e</w>", "c a", "ca t</w>"]
VOCABULARY = 512 + len(MERGES) + 2
IN_LAYER = {  # OpenAI's name -> transformers', of a layer
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def whole_model() -> Any:
    """A tiny CLIP of the release's proportions: heads of 64, text and vision of unequal width."""
    same: dict[str, Any] = {
        "num_hidden_layers": 2,
        "projection_dim": 24,
        "hidden_act": "quick_gelu",
    }
    text = {
        "hidden_size": 64,
        "num_attention_heads": 1,
        "intermediate_size": 256,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 12,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": VOCABULARY - 1,
    }
    vision = {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "image_size": 32,
        "patch_size": 8,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPConfig(text_config=text | same, vision_config=vision | same, projection_dim=24)
        return shake(CLIPModel(config))


def in_openai_names(model: Any) -> dict[str, Tensor]:
    """Write the weights as the release's `clip.model.CLIP` names them, module by module."""
    mine = model.state_dict()
    state = {
        "logit_scale": mine["logit_scale"],
        "text_projection": mine["text_projection.weight"].T,
        "positional_embedding": mine["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": mine["text_model.embeddings.token_embedding.weight"],
        "visual.proj": mine["visual_projection.weight"].T,
        "visual.class_embedding": mine["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": mine["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": mine["vision_model.embeddings.patch_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        state[f"ln_final.{kind}"] = mine[f"text_model.final_layer_norm.{kind}"]
        state[f"visual.ln_pre.{kind}"] = mine[f"vision_model.pre_layrnorm.{kind}"]
        state[f"visual.ln_post.{kind}"] = mine[f"vision_model.post_layernorm.{kind}"]
        for theirs, ours in (("", "text_model"), ("visual.", "vision_model")):
            for i in range(2):
                block, layer = f"{theirs}transformer.resblocks.{i}", f"{ours}.encoder.layers.{i}"
                for name, own in IN_LAYER.items():
                    state[f"{block}.{name}.{kind}"] = mine[f"{layer}.{own}.{kind}"]
                shares = [mine[f"{layer}.self_attn.{w}_proj.{kind}"] for w in "qkv"]
                state[f"{block}.attn.in_proj_{kind}"] = torch.cat(shares)
    return {name: value.clone() for name, value in state.items()}


class _Node(nn.Module):
    """One module of the release's tree."""


def as_archive(state: dict[str, Tensor], path: Path) -> None:
    """Save `state` as a TorchScript archive with the settings that the release keeps beside it."""
    root = _Node()
    settings = {"input_resolution": 32, "context_length": 12, "vocab_size": VOCABULARY}
    for name, value in (state | {k: torch.tensor(v) for k, v in settings.items()}).items():
        *parents, leaf = name.split(".")
        node: nn.Module = root
        for part in parents:
            if part not in dict(node.named_children()):
                node.add_module(part, _Node())
            node = node.get_submodule(part)
        node.register_buffer(leaf, value)
    torch.jit.save(torch.jit.script(root), str(path))


@pytest.fixture(scope="module", params=["state dict", "archive"])
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, model = tmp_path_factory.mktemp("clip"), whole_model()
    path = folder / "ViT-tiny.pt"
    if request.param == "archive":
        with pytest.warns(DeprecationWarning):
            as_archive(in_openai_names(model), path)
    else:
        torch.save(in_openai_names(model), path)
    text = "\n".join(["#version: 0.2", *MERGES, "more merges", "than are used"])
    (folder / MERGES_FILE).write_bytes(gzip.compress(text.encode()))
    return path, model


def test_every_weight_comes_back_under_its_name(release: Any) -> None:
    path, model = release
    weights = clip_weights(read_openai_clip(path))
    own = model.state_dict()
    assert set(weights) == set(own)
    for name, value in own.items():
        assert torch.equal(weights[name], value), name


def test_the_settings_are_read_off_the_shapes(release: Any) -> None:
    path, model = release
    found = CLIPConfig(**clip_config(read_openai_clip(path)))
    for part in ("text_config", "vision_config"):
        wanted = getattr(model.config, part)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "projection_dim"):
            assert getattr(getattr(found, part), name) == getattr(wanted, name)
    assert (found.vision_config.image_size, found.vision_config.patch_size) == (32, 8)
    assert found.text_config.max_position_embeddings == 12


def test_both_towers_give_the_outputs_of_the_whole_model(release: Any, tmp_path: Path) -> None:
    path, model = release
    image = load_backbone(str(path), architecture="openai_clip", tower="image")
    encoded = image.encode(pictures(tmp_path))
    with torch.no_grad():
        result = model.get_image_features(**image.prepare(encoded))
    wanted = getattr(result, "pooler_output", result)
    torch.testing.assert_close(image.forward(encoded)["projection"], wanted, atol=1e-5, rtol=1e-4)

    text = load_backbone(str(path), architecture="openai_clip", tower="text", max_length=12)
    tokens = text.encode([TextInput("the Cat"), TextInput("a")])
    the, cat = 512 + 1, 512 + 3  # the second and the fourth merge
    start, end = VOCABULARY - 2, VOCABULARY - 1
    assert tokens.ids[0].tolist() == [start, the, cat, end]
    for i, ids in enumerate(tokens.ids):
        with torch.no_grad():
            result = model.get_text_features(input_ids=torch.tensor(ids, dtype=torch.long)[None])
        wanted = getattr(result, "pooler_output", result)
        states = text.forward(tokens)["projection"][i : i + 1]
        torch.testing.assert_close(states, wanted, atol=1e-5, rtol=1e-4)


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    state = in_openai_names(whole_model())
    options: dict[str, Any] = {"architecture": "openai_clip", "tower": "image"}
    path = tmp_path / "clip.pt"
    torch.save(state | {"visual.extra": torch.zeros(1)}, path)
    with pytest.raises(BackboneError, match=r"unknown weight 'visual\.extra'"):
        load_backbone(str(path), **options)
    torch.save(state | {"visual.layer1.0.conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(BackboneError, match="CLIP with a ResNet"):
        load_backbone(str(path), **options)
    torch.save({k: v for k, v in state.items() if k != "visual.ln_pre.bias"}, path)
    with pytest.raises(BackboneError, match=r"lacks 1 weight.*pre_layrnorm\.bias"):
        load_backbone(str(path), **options)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(BackboneError, match=r"no visual\.proj"):
        load_backbone(str(path), **options)
    torch.save(state, path)
    with pytest.raises(BackboneError, match=r"bpe_simple_vocab_16e6\.txt\.gz"):
        load_backbone(str(path), architecture="openai_clip", tower="text")
    with pytest.raises(BackboneError, match="--tower text"):
        load_backbone(str(path), architecture="openai_clip")
