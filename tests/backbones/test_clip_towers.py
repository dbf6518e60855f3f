"""Both towers of CLIP and SigLIP: what is cached, against the whole model run as published."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from imagekit import CONFIGS, save_images, shake
from tiny import SENTENCES, tiny_tokenizer
from transformers import AutoConfig

from pipeline.backbones import BackboneError, load_backbone
from pipeline.inputs import TextInput

TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 64,
    "max_position_embeddings": 24,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
    "projection_size": 16,
}
LAYERS = ["embeddings", "encoder.layer.00", "encoder.layer.01", "final_norm", "projection"]


def save_both(model_type: str, folder: Path, **text: Any) -> Any:
    """Save a tiny model of two towers with tokenizer and preprocessor; return the model."""
    vision = CONFIGS["siglip_vision_model"]
    config = AutoConfig.for_model(
        model_type, text_config=TEXT | text, vision_config=vision, projection_dim=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind = {"clip": "CLIPModel", "siglip": "SiglipModel"}[model_type]
        model = shake(getattr(transformers, kind)(config))
    model.save_pretrained(folder)
    tiny_tokenizer(model_max_length=24).save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=["clip", "siglip"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, save_both(request.param, folder)


def test_the_image_tower_projects_as_the_whole_model_does(both: Any, tmp_path: Path) -> None:
    _, folder, model = both
    backbone = load_backbone(str(folder), tower="image")
    encoded = backbone.encode(save_images(tmp_path))
    states = backbone.forward(encoded)
    with torch.no_grad():
        result = model.get_image_features(**backbone.prepare(encoded))
    wanted = getattr(result, "pooler_output", result)
    torch.testing.assert_close(states["projection"], wanted, atol=2e-5, rtol=2e-4)
    assert backbone.taps[-1].kind == "vector"
    assert backbone.taps[0].shape[1] == 16


def test_the_text_tower_projects_as_the_whole_model_does(both: Any) -> None:
    kind, folder, model = both
    backbone = load_backbone(str(folder), tower="text", max_length=24)
    assert list(backbone.tap_modules) == LAYERS
    assert [tap.kind for tap in backbone.taps] == [*["tokens"] * 4, "vector"]
    encoded = backbone.encode([TextInput(text) for text in SENTENCES])
    states = backbone.forward(encoded)
    assert states["final_norm"].shape == (len(encoded.tokens), 16)
    for i, ids in enumerate(encoded.ids):
        row = torch.tensor(ids, dtype=torch.long)[None]
        if kind == "siglip":  # as its processor does: filled up, without a mask
            row = torch.nn.functional.pad(row, (0, 24 - row.shape[1]), value=0)
        with torch.no_grad():
            result = model.get_text_features(input_ids=row)
            alone = model.text_model(input_ids=row).last_hidden_state[0, : len(ids)]
        wanted = getattr(result, "pooler_output", result)[0]
        torch.testing.assert_close(states["projection"][i], wanted, atol=2e-5, rtol=2e-4)
        rows = slice(encoded.offsets[i], encoded.offsets[i + 1])
        torch.testing.assert_close(states["final_norm"][rows], alone, atol=2e-5, rtol=2e-4)


def test_a_clip_text_is_projected_at_its_first_end(tmp_path: Path) -> None:
    save_both("clip", tmp_path)
    backbone = load_backbone(str(tmp_path), tower="text", max_length=6)
    encoded = backbone.encode([TextInput("the cat sat on the mat and ran")])
    assert encoded.truncated.tolist() == [True]
    states = backbone.forward(encoded)
    wanted = backbone.model.text_projection(states["final_norm"][-1])  # the end survives the cut
    torch.testing.assert_close(states["projection"][0], wanted, atol=2e-5, rtol=2e-4)


def test_an_image_tower_takes_another_size(both: Any, tmp_path: Path) -> None:
    _, folder, _ = both
    backbone = load_backbone(str(folder), tower="image", image_size=(40, 56))
    states = backbone.forward(backbone.encode(save_images(tmp_path)))
    assert states["encoder.layer.01"].shape[1] in (5 * 7, 5 * 7 + 1)


def test_a_tower_must_be_named(both: Any) -> None:
    _, folder, _ = both
    with pytest.raises(BackboneError, match=r"holds a text and an image tower.*--tower text"):
        load_backbone(str(folder))
    assert load_backbone(str(folder), tower="video").axis == "frames"


def test_another_model_of_two_towers_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("chinese_clip").save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"chinese_clip.*clip and siglip are supported"):
        load_backbone(str(tmp_path), tower="text")
