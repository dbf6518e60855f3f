"""From a folder to a frozen image backbone: preprocessing, size, views, and the refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from imagekit import save_images, tiny_vision
from tiny import save_tiny
from transformers import AutoConfig

from pipeline.backbones import BackboneError, ImageBackbone, load_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 as transformers saves it, with the published processor scaled down."""
    path = tmp_path_factory.mktemp("dinov2")
    tiny_vision("dinov2").save_pretrained(path)
    transformers.BitImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, resample=3
    ).save_pretrained(path)
    return path


def test_a_saved_model_gives_what_transformers_gives(folder: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(folder))
    assert isinstance(backbone, ImageBackbone)
    assert (backbone.modality, backbone.axis, backbone.size) == ("image", None, (32, 32))
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    encoded = backbone.encode(save_images(tmp_path))
    assert (encoded.lengths.tolist(), encoded.truncated.tolist()) == ([1] * 3, [False] * 3)

    from PIL import Image

    processor = transformers.BitImageProcessorPil.from_pretrained(folder)
    pixels = processor([Image.open(path) for path in encoded.paths], return_tensors="pt")
    with torch.no_grad():
        wanted = transformers.AutoModel.from_pretrained(folder).eval()(**pixels).last_hidden_state
    found = backbone.forward(encoded)["final_norm"]
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-4)


def test_a_processor_may_be_part_of_another_file(folder: Path, tmp_path: Path) -> None:
    nested = shutil.copytree(folder, tmp_path / "nested")
    plain = json.loads((nested / "preprocessor_config.json").read_text())
    (nested / "preprocessor_config.json").unlink()
    (nested / "processor_config.json").write_text(json.dumps({"image_processor": plain}))
    original = load_backbone(str(folder)).fingerprint_parts()
    assert load_backbone(str(nested)).fingerprint_parts() == original


def test_a_model_without_a_processor_is_refused_unless_random(folder: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(BackboneError, match=r"no preprocessor_config\.json"):
        load_backbone(str(bare))
    digests = [
        load_backbone(str(bare), random_init=True, seed=seed).fingerprint_parts()["weights"]
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(("size", "patches"), [(40, 25), ((24, 48), 18)])
def test_the_size_can_be_chosen(folder: Path, size: Any, patches: int, tmp_path: Path) -> None:
    backbone = load_backbone(str(folder), image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    prepared = backbone.prepare(backbone.encode(save_images(tmp_path)))
    assert prepared["pixel_values"].shape == (3, 3, height, width)
    assert {tap.shape for tap in backbone.taps} == {(patches + 1, 16)}


def test_the_fingerprint_sees_weights_size_taps_frames_and_modality(folder: Path) -> None:
    original = load_backbone(str(folder)).fingerprint_parts()
    json.dumps(original)
    larger = load_backbone(str(folder), image_size=40).fingerprint_parts()
    assert larger["weights"] == original["weights"]
    assert larger["preprocessing"] != original["preprocessing"]
    fewer = load_backbone(str(folder), taps=["encoder.layer.*"]).fingerprint_parts()
    assert list(fewer["taps"]) == ["encoder.layer.00", "encoder.layer.01"]
    videos = [
        load_backbone(str(folder), tower="video", fps=fps, max_frames=n).fingerprint_parts()
        for fps, n in ((1.0, 12), (2.0, 12), (1.0, 8))
    ]
    seen = [json.dumps(parts["preprocessing"]) for parts in (original, *videos)]
    assert len(set(seen)) == 4


def test_a_view_depends_on_its_content_and_number_alone(folder: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(folder))
    inputs = save_images(tmp_path)
    (tmp_path / "moved").mkdir()
    moved = [type(i)(Path(shutil.copy(i.path, tmp_path / "moved"))) for i in inputs[::-1]]

    def views(items: Any, numbers: list[int]) -> torch.Tensor:
        found: torch.Tensor = backbone.prepare(backbone.encode(items, numbers))["pixel_values"]
        return found

    clean = views(inputs, [0, 0, 0])
    assert torch.equal(clean, backbone.prepare(backbone.encode(inputs))["pixel_values"])
    first = views(inputs, [1, 1, 1])
    assert torch.equal(first, views(moved, [1, 1, 1]).flip(0))
    second = views(inputs, [2, 1, 0])
    assert torch.equal(second[1], first[1])
    assert torch.equal(second[2], clean[2])
    for i in range(3):
        assert not torch.equal(first[i], clean[i])
    assert not torch.equal(second[0], first[0])


def test_an_option_of_another_modality_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="max_length 12 means nothing to the image"):
        load_backbone(str(folder), max_length=12)
    text = str(save_tiny("bert", tmp_path))
    with pytest.raises(BackboneError, match="image_size 32 means nothing to the text"):
        load_backbone(text, image_size=32)
    with pytest.raises(BackboneError, match="reads texts, so it cannot be the video tower"):
        load_backbone(text, tower="video")
    with pytest.raises(BackboneError, match="reads images, so it cannot be the text tower"):
        load_backbone(str(folder), tower="text")
    with pytest.raises(BackboneError, match="image_size 0 is unusable"):
        load_backbone(str(folder), image_size=0)
    with pytest.raises(BackboneError, match="fps -1 and max_frames 12 are unusable"):
        load_backbone(str(folder), tower="video", fps=-1)


def test_a_model_of_sounds_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "wav2vec2", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"reads input_values; texts .* and images"):
        load_backbone(str(tmp_path), random_init=True)


def test_batches_hold_as_many_frames_as_their_bound(folder: Path) -> None:
    import numpy as np

    backbone = load_backbone(str(folder), tower="video")
    lengths = np.array([3, 2, 5, 1, 1, 9, 2], dtype=np.int64)
    found = [b.tolist() for b in backbone.batches(np.arange(7), lengths, 5)]
    assert found == [[0, 1], [2], [3, 4], [5], [6]]
    assert [b.tolist() for b in backbone.batches(np.array([6, 0]), lengths, None)] == [[6, 0]]
    assert list(backbone.batches(np.arange(0), lengths, 5)) == []


def test_a_half_type_is_computed_in_and_its_digest_is_the_same(
    folder: Path, tmp_path: Path
) -> None:
    half = load_backbone(str(folder), dtype="bfloat16")
    assert half.compute_dtype == torch.bfloat16
    states = half.forward(half.encode(save_images(tmp_path)))
    assert states["final_norm"].dtype == torch.bfloat16
    assert half.fingerprint_parts() == load_backbone(str(folder)).fingerprint_parts()


def test_the_python_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    import re

    page = Path(__file__).parents[2] / "docs" / "backbones.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    block = next(block for block in blocks if "efficientnet_lite0" in block)
    exec(compile(block, str(page), "exec"), {})  # the page's own code
    assert "('stage.5', (320, 7, 7), 32)" in capsys.readouterr().out
