"""Two towers as one folder: agrees with both caches, loads without this project, as ONNX too."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SENTENCES
from towerkit import EMBED, Towers, drawing, make_towers, media_backbone

from cache import FingerprintMismatch
from pipeline.fused.api import retrieval
from pipeline.fused.artefacts import write_artefact
from pipeline.fused.loading import NotAnExport, load_exported, load_fused
from pipeline.fused.parity import ExportParityError
from pipeline.fused.write import export_model

ALONE = """
import json, sys
from transformers import AutoModel
found = []
for folder, texts, paths, encode in json.loads(sys.argv[1]):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    text, media = model.encode_text(texts), getattr(model, encode)(paths)
    scores = model.similarity(text, media)
    found.append([text.tolist(), media.tolist(), scores.tolist()])
foreign = {"unipt", "cache", "pipeline", "zarr", "sklearn", "pydantic", "av"}
print(json.dumps([found, [x for x in sys.modules if x.split(".")[0] in foreign]]))
"""


def test_folders_load_where_the_project_is_not_importable(tmp_path: Path) -> None:
    jobs, wanted = [], []
    for media, clips in (("convnet", False), ("vit", True)):
        folder = tmp_path / media
        made, out = make_towers(folder, media=media, clips=clips), folder / "out"
        export_model(made.job(), out)
        encode = "encode_video" if clips else "encode_image"
        jobs.append([str(out), list(SENTENCES), [str(path) for path in made.paths], encode])
        text, shown = made.cached()
        wanted.append([text, shown, text @ shown.T])
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", ALONE, json.dumps(jobs)],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, foreign = json.loads(done.stdout.splitlines()[-1])
    assert foreign == []
    for job, truth in zip(found, wanted, strict=True):
        for given, value in zip(job, truth, strict=True):
            torch.testing.assert_close(torch.tensor(given), value, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("text", "media", "options"),
    [
        ("bert", "vit", {}),
        ("bert", "resnet", {"store": "float16"}),
        ("bert", "convnet", {"pooling": "mean"}),
        ("clip", "clip", {"clips": True}),
        ("siglip", "clip", {}),
        ("bert", "resnet", {"clips": True}),
        ("bert", "vit", {"clips": True, "frames": "sequence", "pooling": "mean"}),
    ],
    ids=["grid", "maps", "own-convnet", "clip-frames", "filled-texts", "frame-maps", "sequence"],
)
def test_cached_and_fused_agree_for_every_kind_of_tower(
    tmp_path: Path, text: str, media: str, options: dict[str, Any]
) -> None:
    made = make_towers(tmp_path, text, media, **options)
    report = export_model(made.job(), tmp_path / "out")
    rows = report.parity.rows
    assert [row.artefact for row in rows] == [
        *["text transformers"] * 2,
        *["media transformers"] * 2,
    ]
    assert [row.batch for row in rows] == [1, len(SENTENCES), 1, len(made.paths)]
    assert report.parity.worst < (1e-3 if "store" in options else 2e-5)
    assert [row.changed for row in rows] == [0, 0, 0, 0]
    assert "outputs' scale 1 " in report.render()
    assert set(report.parameters) == {
        *("text backbone (frozen)", "media backbone (frozen)", "side model")
    }


def test_each_tower_is_an_onnx_file_of_any_size(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    made = make_towers(tmp_path, "clip", "clip", clips=True)
    report = export_model(made.job(), tmp_path / "out", forms=("onnx",))
    assert {"text.onnx", "image.onnx"} <= report.files.keys()
    rows = [row for row in report.parity.rows if row.artefact.endswith("onnx")]
    assert [row.artefact for row in rows] == ["text onnx"] * 2 + ["media onnx"] * 2
    assert max(row.max_error for row in rows) < 5e-5
    model = load_fused(tmp_path / "out")
    text, image = (ort.InferenceSession(tmp_path / "out" / f"{x}.onnx") for x in ("text", "image"))
    assert text.get_inputs()[0].shape == ["batch", "length"]
    tokens = model.tokenize(SENTENCES[:3])
    found = text.run(None, {name: value.numpy() for name, value in tokens.items()})[0]
    np.testing.assert_allclose(found, model.encode_text(SENTENCES[:3]).numpy(), atol=2e-5)
    pixels = torch.cat([model.prepare_media(drawing(i)) for i in (7, 8, 9)])
    found = image.run(["image_embeds"], {"pixel_values": pixels.numpy()})[0]
    np.testing.assert_allclose(found, model.encode_image(pixels).numpy(), atol=2e-5)


@pytest.mark.parametrize(
    ("media", "options", "name"),
    [
        ("resnet", {}, "image"),
        ("vit", {"clips": True, "frames": "sequence"}, "video"),
    ],
    ids=["maps", "sequence"],
)
def test_maps_and_sequences_are_traced_for_any_number(
    tmp_path: Path, media: str, options: dict[str, Any], name: str
) -> None:
    made = make_towers(tmp_path, media=media, **options)
    export_model(made.job(), tmp_path / "out")
    model = load_fused(tmp_path / "out")
    example = model.inputs({"media": [made.paths[0]] * 2})
    run = write_artefact(model, ("media",), example, "torch_export", tmp_path)
    assert (tmp_path / f"{name}.pt2").is_file()
    for count in (1, 2, 3):
        pixels = torch.cat([model.prepare_media(drawing(i)) for i in range(count)])
        wanted = (
            model.encode_video(pixels, torch.tensor([count])) if options else
            model.encode_image(pixels)
        )  # fmt: skip
        found = run({"pixel_values": pixels})[f"{name}_embeds"]
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Towers, Path]:
    folder = tmp_path_factory.mktemp("exported")
    made = make_towers(folder)
    export_model(made.job(), folder / "out")
    return made, folder / "out"


def test_pictures_are_taken_as_paths_bytes_images_and_pixels(exported: Any) -> None:
    made, out = exported
    model, path = load_fused(out), made.paths[0]
    wanted = model.encode_image([path])
    assert wanted.shape == (1, EMBED)
    torch.testing.assert_close(wanted.norm(dim=1), torch.ones(1))
    grey = Image.new("RGBA", (20, 30), (200, 200, 200, 255))
    with Image.open(path) as picture:
        for given in (path, str(path), path.read_bytes(), picture, [picture.convert("RGB")]):
            torch.testing.assert_close(model.encode_image(given), wanted)
    pixels = torch.cat([model.prepare_media(path), model.prepare_media(grey)])
    torch.testing.assert_close(model.encode_image(pixels)[:1], wanted)
    assert model.encode_image([]).shape == (0, EMBED)
    many = model.encode_image(made.paths, batch_size=4)
    torch.testing.assert_close(many[0], wanted[0], atol=1e-5, rtol=0)


def test_texts_are_taken_alone_listed_and_tokenised(exported: Any) -> None:
    _, out = exported
    model = load_fused(out)
    wanted = model.encode_text(SENTENCES[0])
    torch.testing.assert_close(model.encode_text(list(SENTENCES), batch_size=2)[:1], wanted)
    torch.testing.assert_close(model.encode_text(model.tokenize(SENTENCES[:1])), wanted)


def test_a_picture_model_takes_clips_as_the_mean_of_their_frames(exported: Any) -> None:
    _, out = exported
    model = load_fused(out)
    frames = [drawing(i) for i in range(3)]
    wanted = torch.nn.functional.normalize(model.encode_image(frames).mean(0), dim=0)
    torch.testing.assert_close(model.encode_video([frames, frames[:1]])[0], wanted)
    torch.testing.assert_close(model.encode_video(frames)[0], wanted)
    pixels = torch.cat([model.prepare_media(frame) for frame in frames])
    found = model.encode_video(pixels, torch.tensor([1, 2]))
    torch.testing.assert_close(found[0], model.encode_image(frames[:1])[0])
    with pytest.raises(ValueError, match="give frame_counts"):
        model.encode_video(pixels)


def test_forward_scores_all_pairs_with_the_scale(exported: Any) -> None:
    made, out = exported
    model = load_fused(out)
    pixels = torch.cat([model.prepare_media(path) for path in made.paths])
    with torch.no_grad():
        found = model(**model.tokenize(SENTENCES), pixel_values=pixels)
    wanted = 20 * model.similarity(*made.cached())
    torch.testing.assert_close(found.logits_per_text, wanted, atol=5e-4, rtol=0)


def test_the_card_names_both_towers_and_their_caches(exported: Any) -> None:
    made, out = exported
    card = (out / "README.md").read_text()
    for cache in made.setup.caches.values():
        assert cache.fingerprint.mapping["weights"]["sha256"] in card
    assert 'base_model: ["tiny-bert", "tiny-vit"]' in card
    assert "| test | rsum | 123.4000 |" in card
    assert "Media targets: embeddings, encoder.layer.00" in card
    assert "model.encode_image(" in card


def test_classifiers_and_towers_are_not_mistaken_for_each_other(exported: Any) -> None:
    _, out = exported
    with pytest.raises(NotAnExport, match=r"a model for `index` and `search`, not for `predict`"):
        load_exported(out, "predict")


def test_another_backbone_is_refused_with_the_difference(tmp_path: Path) -> None:
    made = make_towers(tmp_path)
    with pytest.raises(FingerprintMismatch, match=r"preprocessing.image.size"):
        export_model(made.job(media=media_backbone("vit", size=64)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tower_that_disagrees_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    made = make_towers(tmp_path)
    prepare = retrieval.prepare
    monkeypatch.setattr(retrieval, "prepare", lambda *given: prepare(*given).flip(3))
    with pytest.raises(ExportParityError, match=r"cached outputs(.|\n)*media transformers"):
        export_model(made.job(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
