"""From a folder to a frozen backbone, and the refusals on the way."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import DECODERS, save_tiny, tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModelForMaskedLM

from pipeline.backbones import BackboneError, load_backbone
from pipeline.backbones.loading import pick_device, pick_dtype
from pipeline.inputs import TextInput


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("bert", tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "deberta-v2", "gpt2", "qwen2"])
def test_a_saved_model_loads_frozen(model_type: str, tmp_path: Path) -> None:
    backbone = load_backbone(str(save_tiny(model_type, tmp_path)))
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    encoded = backbone.encode([TextInput("the cat sat")])
    assert encoded.lengths[0] >= (3 if model_type in DECODERS else 5)
    assert len(backbone.forward(encoded)["encoder.layer.01"]) == encoded.lengths[0]


def test_the_fingerprint_ignores_the_path_and_the_pooler(folder: Path, tmp_path: Path) -> None:
    original = load_backbone(str(folder)).fingerprint_parts()
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    weights = load_file(elsewhere / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler")}
    save_file(kept, elsewhere / "model.safetensors", metadata={"format": "pt"})
    assert load_backbone(str(elsewhere)).fingerprint_parts() == original


def test_the_fingerprint_sees_weights_taps_length_and_vocabulary(
    folder: Path, tmp_path: Path
) -> None:
    original = load_backbone(str(folder)).fingerprint_parts()
    other = load_backbone(str(save_tiny("bert", tmp_path, seed=1))).fingerprint_parts()
    assert original["weights"] != other["weights"]
    assert original["preprocessing"] == other["preprocessing"]
    shorter = load_backbone(str(folder), max_length=10, taps=["embeddings"]).fingerprint_parts()
    assert shorter["weights"] == original["weights"]
    assert shorter["preprocessing"] != original["preprocessing"]
    assert list(shorter["taps"]) == ["embeddings"]
    tiny_tokenizer(special=False).save_pretrained(tmp_path)
    changed = load_backbone(str(tmp_path)).fingerprint_parts()
    assert changed["preprocessing"] != other["preprocessing"]


def test_tokenising_leaves_the_fingerprint_alone(folder: Path) -> None:
    backbone = load_backbone(str(folder), max_length=5)
    before = backbone.fingerprint_parts()
    backbone.encode([TextInput("a very good dog sat on the mat"), TextInput("a")])
    backbone.tokenizer(["a", "a dog"], padding=True)
    assert backbone.fingerprint_parts() == before


def test_a_compute_type_does_not_change_the_weights_digest(folder: Path) -> None:
    half = load_backbone(str(folder), dtype="bfloat16")
    assert half.compute_dtype == torch.bfloat16
    assert half.forward(half.encode([TextInput("a")]))["embeddings"].dtype == torch.bfloat16
    assert half.fingerprint_parts() == load_backbone(str(folder)).fingerprint_parts()


def test_a_checkpoint_of_a_task_model_gives_its_backbone(tmp_path: Path) -> None:
    save_tiny("bert", tmp_path)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(tmp_path))
    model.save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path)).model.encoder.state_dict()
    for name, value in model.bert.encoder.state_dict().items():
        assert torch.equal(loaded[name], value)


def test_missing_weights_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"lacks 1 weight.*layer\.1\.output\.dense\.weight"):
        load_backbone(str(broken))


def test_random_weights_only_when_asked_for_and_by_seed(folder: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="cannot load the backbone"):
        load_backbone(str(bare))
    digests = [
        load_backbone(str(bare), random_init=True, seed=seed).fingerprint_parts()["weights"]
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_folder_that_is_not_there_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"Give a folder with config\.json"):
        load_backbone(str(tmp_path / "nothing"))


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("t5", d_model=16, num_layers=1, vocab_size=64).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="encoder-decoder"):
        load_backbone(str(tmp_path))


def test_types_and_devices() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pick_dtype("auto", cpu, torch.bfloat16) == torch.float32
    assert pick_dtype("auto", cuda, torch.float32) == torch.float16
    assert pick_dtype("auto", cuda, torch.bfloat16) == torch.bfloat16
    assert pick_dtype("float32", cuda, torch.float32) == torch.float32
    assert pick_device("cpu") == cpu
    assert pick_device("auto").type in ("cpu", "cuda", "mps")


def test_the_tokenizer_without_a_fast_core_has_a_digest_too() -> None:
    from pipeline.backbones.fingerprint import tokenizer_digest

    class Slow:
        def __init__(self, word: str) -> None:
            self.word, self.special_tokens_map = word, {"pad_token": "<pad>"}

        def get_vocab(self) -> dict[str, int]:
            return {self.word: 0}

    assert tokenizer_digest(Slow("a")) == tokenizer_digest(Slow("a")) != tokenizer_digest(Slow("b"))


def test_the_model_used_in_the_tests_depends_on_every_layer() -> None:
    model = tiny_model("bert")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = model(input_ids=ids).last_hidden_state
        model.encoder.layer[0].output.dense.weight.zero_()
        after = model(input_ids=ids).last_hidden_state
    assert (before - after).abs().max() > 0.01
