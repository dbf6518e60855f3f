"""Conformance of every image family: a cached state is what the named module emits alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from imagekit import animation, save_images, shake, tiny_backbone, tiny_vision, transform_of
from torch import Tensor, nn

from pipeline.backbones import (
    FAMILIES,
    BackboneError,
    ImageBackbone,
    NotFrozen,
    VideoBackbone,
    check_frozen,
)
from pipeline.backbones.convnets import ARCHITECTURES, build_convnet
from pipeline.errors import PipelineError
from pipeline.inputs import VideoInput

GRID = ["embeddings", "encoder.layer.00", "encoder.layer.01"]
STAGES = ["stage.1", "stage.2", "stage.3", "stage.4"]
WIDE, PATCHES = (32, 48), 24  # 4 x 6 patches of 8 pixels
ROWS = [
    # model type, family, taps, module of the last tap, shapes of the first and the last at 32 x 48
    ("vit", "vit", [*GRID, "final_norm"], "layernorm", (PATCHES + 1, 16), (PATCHES + 1, 16)),
    ("deit", "vit", [*GRID, "final_norm"], "layernorm", (PATCHES + 2, 16), (PATCHES + 2, 16)),
    ("dinov2", "dinov2", [*GRID, "final_norm"], "layernorm", (PATCHES + 1, 16), (PATCHES + 1, 16)),
    (
        "dinov2_with_registers",
        "dinov2",
        [*GRID, "final_norm"],
        "layernorm",
        (PATCHES + 4, 16),
        (PATCHES + 4, 16),
    ),
    (
        "clip_vision_model",
        "clip-vision",
        [*GRID, "projection"],
        "visual_projection",
        (PATCHES + 1, 16),
        (8,),
    ),
    (
        "siglip_vision_model",
        "siglip-vision",
        [*GRID, "final_norm", "projection"],
        "head",
        (PATCHES, 16),
        (16,),
    ),
    ("beit", "generic", ["layers.00", "layers.01"], "layers.1", (25, 16), (25, 16)),
    ("resnet", "resnet", STAGES, "encoder.stages.3", (4, 8, 12), (16, 1, 2)),
    ("convnext", "convnext", STAGES, "encoder.stages.3", (4, 8, 12), (16, 1, 1)),
    ("convnextv2", "convnext", STAGES, "encoder.stages.3", (4, 8, 12), (16, 1, 1)),
    (
        "regnet",
        "generic",
        [f"encoder.stages.0{i}" for i in range(4)],
        "encoder.stages.3",
        (4, 8, 12),
        (16, 1, 2),
    ),
    (
        "efficientnet",
        "efficientnet",
        [*STAGES, "stage.5"],
        "encoder.blocks.6",
        (8, 16, 24),
        (32, 1, 1),
    ),
    (
        "swin",
        "swin",
        [*STAGES[:3], "final_norm"],
        "layernorm",
        (8, 16, 24),
        (32, 4, 6),
    ),
    ("resnet50", "resnet-file", STAGES, "layer4", (256, 8, 12), (2048, 1, 2)),
    (
        "efficientnet_lite0",
        "efficientnet-lite",
        [*STAGES, "stage.5"],
        "_blocks.15",
        (16, 16, 24),
        (320, 1, 2),
    ),
]


def make(model_type: str, **options: object) -> ImageBackbone:
    if model_type not in ARCHITECTURES:
        return tiny_backbone(model_type, WIDE, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = shake(build_convnet(replace(ARCHITECTURES[model_type], depths=(1, 2, 1, 1))))
    return ImageBackbone(model, transform_of(WIDE), name=model_type, **options)


def watch(model: nn.Module, paths: list[str], pixels: Tensor) -> dict[str, Tensor]:
    """Run one image; return what each module emitted, and the model's own first output."""
    seen: dict[str, Tensor] = {}
    handles = []
    for path in paths:

        def keep(_m: nn.Module, _i: object, output: object, path: str = path) -> None:
            seen[path] = output[0] if isinstance(output, tuple) else output

        handles.append(model.get_submodule(path).register_forward_hook(keep))
    arguments = {"pixel_values": pixels}
    if pixels.shape[2] != pixels.shape[3] and getattr(model.config, "model_type", "") in (
        *("vit", "deit", "clip_vision_model", "siglip_vision_model"),
    ):
        arguments["interpolate_pos_encoding"] = True
    with torch.no_grad():
        model(**arguments)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(("model_type", "family", "taps", "module", "first", "last"), ROWS)
def test_states_are_what_each_module_emits_for_the_image_alone(
    model_type: str,
    family: str,
    taps: list[str],
    module: str,
    first: tuple[int, ...],
    last: tuple[int, ...],
    tmp_path: Path,
) -> None:
    backbone = make(model_type)
    assert (backbone.family, [tap.name for tap in backbone.taps]) == (family, taps)
    assert backbone.tap_modules[taps[-1]] == module
    assert (backbone.taps[0].shape, backbone.taps[-1].shape) == (first, last)
    check_frozen(backbone.model, backbone.tap_modules)
    encoded = backbone.encode(save_images(tmp_path))
    states = backbone.forward(encoded)
    pixels = backbone.prepare(encoded)["pixel_values"]
    assert pixels.shape == (3, 3, *WIDE)
    for i in range(3):
        alone = watch(backbone.model, list(backbone.tap_modules.values()), pixels[i : i + 1])
        for tap in backbone.taps:
            assert states[tap.name].shape == (3, *tap.shape)
            wanted = alone[backbone.tap_modules[tap.name]][0]
            if family == "swin":  # cells in rows
                wanted = wanted.T.reshape(tap.shape)
            torch.testing.assert_close(states[tap.name][i], wanted, atol=2e-4, rtol=2e-4)
    for tap in backbone.taps:  # no state is constant over images
        assert (states[tap.name][0] - states[tap.name][1]).abs().max() > 1e-4, tap.name


def test_every_image_model_type_of_a_family_file_has_a_row_or_is_one_class_with_it() -> None:
    claimed = {n for n in FAMILIES.names() if FAMILIES.get(n).modality == "image"}
    rows = {row[0] for row in ROWS}
    same_code = {name for name, config in ARCHITECTURES.items() if config.layout == "resnet"}
    assert claimed - rows <= same_code


@pytest.mark.parametrize("model_type", ["vit", "resnet"])
def test_a_video_is_its_frames_one_after_the_other(model_type: str, tmp_path: Path) -> None:
    options = {"name": "video", "fps": 0, "max_frames": 3}
    backbone = VideoBackbone(tiny_vision(model_type), transform_of(32), **options)
    videos = [VideoInput(animation(tmp_path / f"{n}.webp", n)) for n in (5, 2, 7)]
    encoded = backbone.encode(videos)
    assert encoded.lengths.tolist() == [3, 2, 3]
    assert {(tap.kind, tap.axis) for tap in backbone.taps} == {("frames", "frames")}
    states = backbone.forward(encoded)
    pixels = backbone.prepare(encoded)["pixel_values"]
    for k in range(8):
        alone = watch(backbone.model, list(backbone.tap_modules.values()), pixels[k : k + 1])
        for tap in backbone.taps:
            assert states[tap.name].shape == (8, *tap.shape)
            wanted = alone[backbone.tap_modules[tap.name]][0]
            torch.testing.assert_close(states[tap.name][k], wanted, atol=2e-4, rtol=2e-4)
    second = backbone.forward(encoded.select([1]))
    for tap in backbone.taps:
        torch.testing.assert_close(second[tap.name], states[tap.name][3:5], atol=2e-4, rtol=2e-4)


def test_a_pass_holds_as_many_images_as_its_bound(tmp_path: Path) -> None:
    backbone = tiny_backbone("vit", taps=["final_norm"])
    encoded = backbone.encode(save_images(tmp_path))
    whole = backbone.forward(encoded)["final_norm"]
    type(backbone).pass_images, kept = property(lambda _: 2), type(backbone).pass_images
    try:
        parts = backbone.forward(encoded)["final_norm"]
    finally:
        type(backbone).pass_images = kept
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


def test_single_blocks_and_the_head_are_recorded_when_named() -> None:
    backbone = make("efficientnet_lite0", taps=["block.0[0-2]", "stage.2", "head"])
    assert backbone.tap_modules == {
        "block.00": "_blocks.0",
        "block.01": "_blocks.1",
        "block.02": "_blocks.2",
        "stage.2": "_blocks.2",
        "head": "_head",
    }
    assert [(tap.shape[0], tap.stride) for tap in backbone.taps] == [
        *((16, 2), (24, 4), (24, 4), (24, 4), (1280, 32)),
    ]


def test_a_size_that_a_model_cannot_take_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"takes no images of 4 x 4 pixels.*made for 32"):
        tiny_backbone("vit", 4)


def test_positions_are_interpolated_only_where_the_size_differs() -> None:
    assert tiny_backbone("vit").arguments == {}
    assert tiny_backbone("vit", WIDE).arguments == {"interpolate_pos_encoding": True}
    assert tiny_backbone("dinov2", WIDE).arguments == {}  # does so by itself


def test_a_trainable_weight_and_a_live_batch_norm_are_refused() -> None:
    backbone = tiny_backbone("resnet")
    backbone.model.encoder.stages[0].layers[0].layer[0].convolution.weight.requires_grad_(True)
    with pytest.raises(NotFrozen, match=r"1 trainable parameter.*stages\.0"):
        check_frozen(backbone.model, backbone.tap_modules)
    backbone.model.requires_grad_(False).encoder.stages[3].train()
    with pytest.raises(NotFrozen, match="training mode"):
        check_frozen(backbone.model, backbone.tap_modules)
    check_frozen(backbone.model, {"stage.1": "encoder.stages.0"})


def test_a_trace_of_images_keeps_shapes_only() -> None:
    from pipeline.backbones.trace import trace

    seen = trace(tiny_vision("vit"))
    assert {state.device.type for state in seen.emitted.values()} == {"meta"}
    assert seen.emitted["layernorm"].shape == (1, 17, 16)
    assert seen.gave_result("layernorm")
    assert not seen.gave_result("layers.1")


def test_a_video_that_changed_since_it_was_counted_is_named(tmp_path: Path) -> None:
    backbone = VideoBackbone(tiny_vision("vit"), transform_of(32), name="video", fps=0)
    path = animation(tmp_path / "video.webp", 6)
    encoded = backbone.encode([VideoInput(path)])
    animation(path, 2)
    with pytest.raises(PipelineError, match=r"video\.webp"):
        backbone.prepare(encoded)


def test_all_frames_of_a_view_share_its_crop(tmp_path: Path) -> None:
    from PIL import Image

    backbone = VideoBackbone(tiny_vision("vit"), transform_of(32), name="video", fps=0)
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    shades = [Image.fromarray(noise // k) for k in (1, 2)]  # one image, half as bright
    path = tmp_path / "video.webp"
    shades[0].save(path, save_all=True, append_images=shades[1:], duration=100, lossless=True)
    video = [VideoInput(path)]
    first, second = backbone.prepare(backbone.encode(video, [1]))["pixel_values"]
    assert ((first + 1) / 2 - (second + 1)).abs().max() < 0.05
    clean = backbone.prepare(backbone.encode(video))["pixel_values"][0]
    assert (first - clean).abs().max() > 0.1


def test_checking_a_swin_leaves_its_windows_alone(tmp_path: Path) -> None:
    # made for 32 pixels, where the last map is one window
    swin = tiny_vision("swin", depths=[1, 2], num_heads=[1, 2], window_size=8)
    backbone = ImageBackbone(swin, transform_of(64), name="swin")
    windows = [m.shift_size for m in backbone.model.modules() if hasattr(m, "shift_size")]
    before = backbone.forward(encoded := backbone.encode(save_images(tmp_path)))["stage.2"]
    check_frozen(backbone.model, backbone.tap_modules)
    after = backbone.forward(encoded)["stage.2"]
    assert torch.equal(before, after)
    assert windows == [m.shift_size for m in backbone.model.modules() if hasattr(m, "shift_size")]
    assert any(windows)
