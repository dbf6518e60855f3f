"""ConvNets from published files: names, arithmetic, any input size, and the refusals."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from imagekit import save_images, shake
from safetensors.torch import save_file
from torch import Tensor

from pipeline.backbones import BackboneError, load_backbone
from pipeline.backbones.convnets import ARCHITECTURES, build_convnet
from pipeline.backbones.weights_file import read_state_dict

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
PUBLISHED = [
    # name, blocks a stage, groups, channels a group, parameters with classifier
    ("resnet50", (3, 4, 6, 3), 1, 64, 25_557_032),
    ("resnet101", (3, 4, 23, 3), 1, 64, 44_549_160),
    ("resnext50_32x4d", (3, 4, 6, 3), 32, 4, 25_028_904),
    ("resnext101_32x8d", (3, 4, 23, 3), 32, 8, 88_791_336),
]


def torchvision_layout(
    depths: tuple[int, ...], groups: int, group_width: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a torchvision checkpoint with bottlenecks, in its order.

    The rules: conv1, bn1; layerN.B.conv1..3, bn1..3; the first block of a layer has downsample.0
    (a convolution) and downsample.1 (a norm); fc. No convolution has a bias.
    """

    def norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in NORM:
            yield f"{name}.{part}", () if part == "num_batches_tracked" else (channels,)

    yield "conv1.weight", (64, 3, 7, 7)
    yield from norm("bn1", 64)
    inputs = 64
    for stage, depth in enumerate(depths):
        planes = 64 * 2**stage
        width, outputs = int(planes * group_width / 64) * groups, planes * 4
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            yield f"{name}.conv1.weight", (width, inputs, 1, 1)
            yield from norm(f"{name}.bn1", width)
            yield f"{name}.conv2.weight", (width, width // groups, 3, 3)
            yield from norm(f"{name}.bn2", width)
            yield f"{name}.conv3.weight", (outputs, width, 1, 1)
            yield from norm(f"{name}.bn3", outputs)
            if block == 0:
                yield f"{name}.downsample.0.weight", (outputs, inputs, 1, 1)
                yield from norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    yield "fc.weight", (1000, inputs)
    yield "fc.bias", (1000,)


@pytest.mark.parametrize(("name", "depths", "groups", "width", "parameters"), PUBLISHED)
def test_every_name_and_shape_is_torchvisions(
    name: str, depths: tuple[int, ...], groups: int, width: int, parameters: int
) -> None:
    with torch.device("meta"):
        model = build_convnet(name, classes=1000)
    found = [(key, tuple(value.shape)) for key, value in model.state_dict().items()]
    assert found == list(torchvision_layout(depths, groups, width))
    assert sum(p.numel() for p in model.parameters()) == parameters


def efficientnet_layout() -> set[str]:
    """Every tensor's name of the published EfficientNet-Lite0 checkpoint."""
    names = {"_conv_stem.weight", "_conv_head.weight", "_fc.weight", "_fc.bias"}
    names |= {f"{norm}.{part}" for norm in ("_bn0", "_bn1") for part in NORM}
    for block in range(16):
        path = f"_blocks.{block}"
        convs = ["_depthwise_conv", "_project_conv"]
        norms = ["_bn1", "_bn2"]
        if block:  # the first block does not expand
            convs.append("_expand_conv")
            norms.append("_bn0")
        names |= {f"{path}.{conv}.weight" for conv in convs}
        names |= {f"{path}.{norm}.{part}" for norm in norms for part in NORM}
    return names


def test_every_name_of_efficientnet_lite0_is_the_packages() -> None:
    with torch.device("meta"):
        model = build_convnet("efficientnet_lite0", classes=1000)
    assert set(model.state_dict()) == efficientnet_layout()
    assert sum(p.numel() for p in model.parameters()) == 4_652_008


def reference_bottleneck(x: Tensor, block: Any, groups: int, stride: int) -> Tensor:
    """One bottleneck from the paper's equations (arXiv:1611.05431, figure 3c), op by op."""

    def norm(y: Tensor, bn: Any) -> Tensor:
        scale = bn.weight / (bn.running_var + 1e-5).sqrt()
        return (y - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]

    y = norm(F.conv2d(x, block.conv1.weight), block.bn1).clamp(min=0)
    y = F.conv2d(y, block.conv2.weight, stride=stride, padding=1, groups=groups)
    y = norm(y, block.bn2).clamp(min=0)
    y = norm(F.conv2d(y, block.conv3.weight), block.bn3)
    if block.downsample is not None:
        x = norm(F.conv2d(x, block.downsample[0].weight, stride=stride), block.downsample[1])
    return (x + y).clamp(min=0)


@pytest.mark.parametrize("size", [(64, 64), (33, 71)])
def test_a_resnext_computes_the_papers_blocks(size: tuple[int, int]) -> None:
    config = replace(ARCHITECTURES["resnext50_32x4d"], depths=(1, 2, 1, 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = shake(build_convnet(config, classes=7))
        x = torch.randn(2, 3, *size)
    with torch.no_grad():
        y = model.bn1(F.conv2d(x, model.conv1.weight, stride=2, padding=3)).clamp(min=0)
        y = F.max_pool2d(y, 3, 2, 1)
        for i in range(4):
            for k, block in enumerate(model.get_submodule(f"layer{i + 1}")):
                y = reference_bottleneck(y, block, 32, 2 if i and not k else 1)
        torch.testing.assert_close(model(x)["last_hidden_state"], y, atol=1e-4, rtol=1e-3)
        logits = y.mean((2, 3)) @ model.fc.weight.T + model.fc.bias
        torch.testing.assert_close(model.classify(x), logits, atol=1e-4, rtol=1e-3)
    assert y.shape[2:] == tuple(-(-side // 32) for side in size)


@pytest.mark.parametrize("size", [(64, 64), (75, 33)])
def test_an_efficientnet_pads_as_tensorflow_does(size: tuple[int, int]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = shake(build_convnet("efficientnet_lite0"))
        x = torch.randn(1, 3, *size)
    stem = model._conv_stem
    height, width = (-(-side // 2) for side in size)
    down = (height - 1) * 2 + 3 - size[0]  # rows of padding in all: 0 or 1, the odd one last
    right = (width - 1) * 2 + 3 - size[1]
    padded = torch.zeros(1, 3, size[0] + down, size[1] + right)
    top, left = down // 2, right // 2
    padded[:, :, top : top + size[0], left : left + size[1]] = x
    with torch.no_grad():
        wanted = F.conv2d(padded, stem.weight, stride=2)
        assert wanted.shape[2:] == (height, width)
        torch.testing.assert_close(stem(x), wanted)
        assert model(x)["last_hidden_state"].shape[2:] == tuple(-(-side // 32) for side in size)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A file as EfficientNet-Lite0 is published: classifier and all."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        state = shake(build_convnet("efficientnet_lite0", classes=1000)).state_dict()
    path = tmp_path_factory.mktemp("lite") / "weights.pth"
    torch.save(state, path)
    return path, state


def test_a_published_file_loads_unchanged(published: Any, tmp_path: Path) -> None:
    path, state = published
    backbone = load_backbone(str(path), architecture="efficientnet_lite0", image_size=64)
    own = backbone.model.state_dict()
    assert set(state) - set(own) == {"_fc.weight", "_fc.bias"}
    for name, value in own.items():
        assert torch.equal(value, state[name]), name
    encoded = backbone.encode(save_images(tmp_path))
    assert [tap.shape[0] for tap in backbone.taps] == [16, 24, 40, 112, 320]
    assert backbone.forward(encoded, torch.float16)["stage.5"].shape == (3, 320, 2, 2)


def test_bytes_become_x_minus_127_by_128(published: Any, tmp_path: Path) -> None:
    path, _ = published
    backbone = load_backbone(str(path), architecture="efficientnet_lite0", image_size=32)
    inputs = save_images(tmp_path, ((32, 32),))
    from PIL import Image

    raw = torch.tensor(list(Image.open(inputs[0].path).tobytes()), dtype=torch.float32)
    wanted = ((raw - 127) / 128).reshape(32, 32, 3).permute(2, 0, 1)
    found = backbone.prepare(backbone.encode(inputs))["pixel_values"][0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_other_wrappings_of_the_same_weights_are_the_same(published: Any, tmp_path: Path) -> None:
    path, state = published
    wrapped, parallel, safe = (tmp_path / n for n in ("a.pth", "b.pt", "c.safetensors"))
    torch.save({"state_dict": state, "epoch": 3}, wrapped)
    torch.save({f"module.{name}": value for name, value in state.items()}, parallel)
    old = {name: v for name, v in state.items() if "num_batches" not in name}
    save_file(old, safe)
    digests = {
        load_backbone(str(p), architecture="efficientnet_lite0", image_size=32).fingerprint_parts()[
            "weights"
        ]["sha256"]
        for p in (path, wrapped, parallel, safe)
    }
    assert len(digests) == 1


def test_files_that_do_not_fit_are_refused(published: Any, tmp_path: Path) -> None:
    path, state = published
    with pytest.raises(BackboneError, match=r"name its --architecture.*efficientnet_lite0"):
        load_backbone(str(path))
    with pytest.raises(BackboneError, match=r"unknown architecture 'vgg'; known: resnet50"):
        load_backbone(str(path), architecture="vgg")
    with pytest.raises(BackboneError, match=r"does not hold a resnet50: \d+ .*conv1\.weight"):
        load_backbone(str(path), architecture="resnet50")
    broken = tmp_path / "broken.pth"
    torch.save({k: v for k, v in state.items() if k != "_blocks.3._bn1.bias"}, broken)
    with pytest.raises(BackboneError, match=r"1 weight.*_blocks\.3\._bn1\.bias"):
        load_backbone(str(broken), architecture="efficientnet_lite0")
    broken.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="cannot read weights"):
        load_backbone(str(broken), architecture="efficientnet_lite0")
    with pytest.raises(BackboneError, match="cannot read weights"):
        load_backbone(str(tmp_path / "none.pth"), architecture="efficientnet_lite0")
    with pytest.raises(BackboneError, match="cannot be the text tower"):
        load_backbone(str(path), architecture="efficientnet_lite0", tower="text")


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "code.pth"
    torch.save({"weight": print}, path)
    with pytest.raises(BackboneError, match="cannot read weights"):
        read_state_dict(path)


def test_random_weights_by_seed_stay_within_float16(tmp_path: Path) -> None:
    inputs = save_images(tmp_path)
    options: dict[str, Any] = {"architecture": "resnext50_32x4d", "random_init": True}
    one = load_backbone("random", image_size=64, seed=1, **options)
    two = load_backbone("random", image_size=64, seed=2, **options)
    states = one.forward(one.encode(inputs))
    for state in states.values():
        assert 0.05 < state.abs().mean() < 50
        assert torch.isfinite(state.half()).all()
    other = two.forward(two.encode(inputs))["stage.4"]
    assert (states["stage.4"] - other).abs().max() > 0.01
