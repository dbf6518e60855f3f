"""Two towers: the published vectors hold through them, packed = padded, frames, options, export."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from test_golden import Golden, close, valid_mask
from torch import Tensor, nn
from torch.nn import functional as F

from unipt import (
    ConvSideNetworkConfig,
    GeneralizedPooling,
    SideNetworkConfig,
    SideTower,
    TwoTowers,
    pack,
    preset,
)
from unipt.bases import KernelRows
from unipt.towers import TowerPooling

TOKENS = SideNetworkConfig(widths=[6] * 3, anchor_width=6, side_width=4, out_width=5)
MAPS = ConvSideNetworkConfig(widths=[3, 4], anchor_width=6, side_width=4, out_width=5)
CLIP = preset("clip4clip_frames", widths=[6] * 3, anchor_width=5, side_width=5, out_width=5)
POOLINGS = [kind for kind in get_args(TowerPooling) if kind != "none"]


def tower(side: Any = TOKENS, **options: Any) -> SideTower:
    torch.manual_seed(0)
    return SideTower(side=side, **options).eval()


def texts(rows: int = 4, length: int = 5, width: int = 6, taps: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    lengths[0] = length
    return torch.randn(taps, rows, length, width, generator=generator), valid_mask(lengths, length)


def stages(rows: int) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(rows)
    sizes = ((3, 8, 4), (4, 4, 4), (6, 2, 2))
    first, second, anchor = (torch.randn(rows, *size, generator=generator) for size in sizes)
    return anchor, [first, second]


def sizes(golden: Golden) -> dict[str, Any]:
    embed = golden.size("embed")
    return {"side_width": embed // golden.size("reduction"), "out_width": embed}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["vse_text", "vse_text_b"])
def test_golden_vse_text(name: str, packed: bool) -> None:
    """Features and their gradient; the vector is the pooled golden features at length 1."""
    golden = Golden(name)
    width = golden.size("hidden")
    widths = [width] * (golden.size("num_layer") - 1)
    module = tower(
        preset("vse_text", widths=widths, anchor_width=width, **sizes(golden)), pooling="gpo"
    )
    golden.load(module.side)
    states = golden.inputs["hidden"]
    mask = valid_mask(golden.inputs["lengths"], states.shape[2])
    given: dict[str, Any] = {"mask": mask}
    if packed:
        states, offsets = pack(states, mask)
        given = {"offsets": offsets}
    vector = module(states[-1], states[:-1], **given).vector
    features = module.features(states[-1], states[:-1], **given).features
    features = features if packed else features[mask]
    close(vector, F.normalize(module.pooling(golden.outputs["features"], mask), dim=-1))
    close(features, golden.outputs["features"][mask])
    golden.check_grads(module.side, features, golden.inputs["cotangent"][mask])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_vse_image(mode: str) -> None:
    golden = Golden(f"vse_image_{mode}")
    *widths, anchor_width = json.loads(golden.meta["hidden"])
    side = preset("vse_image", widths=widths, anchor_width=anchor_width, **sizes(golden))
    module = tower(side, pooling="gpo").train(mode == "train")
    golden.load(module.side)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    *targets, anchor = (golden.inputs[f"stage{i}"] for i in range(len(widths) + 1))
    vector = module(anchor, targets).vector
    close(vector, F.normalize(module.pooling(golden.outputs["features"]), dim=-1))
    module.load_state_dict(before)  # the running statistics of the first call
    features = module.features(anchor, targets).features
    close(features, golden.outputs["features"])
    golden.check_grads(module.side, features, golden.inputs["cotangent"])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["image", "text"])
def test_golden_clip4clip(name: str, packed: bool) -> None:
    """The whole tower, the residual's place found by itself: first of a grid, last of a text."""
    golden = Golden(f"clip4clip_{name}")
    states = golden.inputs["hidden"]
    side = preset(
        "clip4clip_text" if name == "text" else "clip4clip_frames",
        widths=[golden.size("hidden")] * golden.size("num_layer"),
        anchor_width=golden.size("embed"),
        **sizes(golden),
    )
    place = "last" if name == "text" else "first"
    module = tower(side, pooling="none", position=place, normalize=False)
    golden.load(module.side)
    mask = golden.inputs.get("mask", torch.ones(states.shape[1:3])).bool()
    anchor = golden.inputs["anchor"][:, 0]
    given: dict[str, Any] = {"mask": mask if name == "text" else None}
    if packed:
        states, offsets = pack(states, mask)
        given = {"offsets": offsets}
    vector = module(anchor, states, **given).vector
    close(vector, golden.outputs["features"])
    golden.check_grads(module.side, vector, golden.inputs["cotangent"])


def test_golden_frames_are_normalised_one_by_one_then_averaged() -> None:
    golden = Golden("clip4clip_image")
    states, anchor = golden.inputs["hidden"], golden.inputs["anchor"][:, 0]
    count = states.shape[1]
    side = preset(
        "clip4clip_frames",
        widths=[golden.size("hidden")] * golden.size("num_layer"),
        anchor_width=golden.size("embed"),
        **sizes(golden),
    )
    module = tower(side, pooling="none", frames="mean")
    golden.load(module.side)
    bounds = [0, 1, count]
    output = module(anchor, states, frames=torch.tensor(bounds))
    each = F.normalize(golden.outputs["features"], dim=-1)
    wanted = torch.stack([each[:1].mean(0), each[1:].mean(0)])
    close(output.vector, F.normalize(wanted, dim=-1))
    alone = module(anchor, states)
    close(alone.vector, each)
    close(output.confidence[1], alone.confidence[1:].mean(0))


def test_golden_gpo_and_its_table() -> None:
    golden = Golden("vse_gpo")
    module = GeneralizedPooling(
        position_width=golden.size("d_pe"), hidden_width=golden.size("d_hidden")
    )
    golden.load(module)
    lengths, length = golden.inputs["lengths"], golden.inputs["features"].shape[1]
    mask = valid_mask(lengths, length)
    whole = golden.inputs["features"][lengths == length]
    before = module(whole)
    for _ in range(2):  # the second time from the table
        close(module.weights(lengths, length)[..., None], golden.outputs["weights"])
        close(module(golden.inputs["features"], mask), golden.outputs["pooled"])
        close(module(whole), golden.outputs["pooled"][lengths == length])
        module.freeze(length + 3)
    close(module(whole), before)
    assert "table" not in module.state_dict()


def test_published_parameter_counts() -> None:
    vse = TwoTowers(
        text=SideTower(side=preset("vse_text"), pooling="gpo"),
        media=SideTower(side=preset("vse_image"), pooling="gpo"),
    )
    clip = TwoTowers(
        text=SideTower(side=preset("clip4clip_text"), pooling="none", position="last"),
        media=SideTower(side=preset("clip4clip_frames"), pooling="none", frames="mean"),
    )
    counts = [sum(p.numel() for p in model.parameters()) for model in (vse, clip)]
    assert [round(count / 1e6, 1) for count in counts] == [12.4, 9.6]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_packed_equals_padded(pooling: str) -> None:
    module = tower(pooling=pooling, head_width=7)
    states, mask = texts()
    values, offsets = pack(states, mask)
    results = []
    for given in ({"mask": mask}, {"offsets": offsets}):
        module.zero_grad()
        chosen = values if "offsets" in given else states
        output = module(chosen[-1], chosen[:-1], **given)
        (output.vector * torch.arange(7.0)).sum().backward()
        results.append((output, {n: p.grad.clone() for n, p in module.named_parameters()}))
    (padded, first), (packed, second) = results
    assert padded.vector.shape == (4, 7)
    close(packed.vector.norm(dim=-1), torch.ones(4))
    close(packed.vector, padded.vector)
    close(packed.confidence, padded.confidence)
    for name, grad in first.items():
        close(second[name], grad)


def test_taps_of_own_widths_and_vectors() -> None:
    side = SideNetworkConfig(widths=[3, 6], anchor_width=4, side_width=4, out_width=5)
    module = tower(side, pooling="mean")
    anchor, targets = torch.randn(2, 4), [torch.randn(2, 3), torch.randn(2, 6)]
    output = module(anchor, targets)
    grids = module(anchor[:, None], [target[:, None] for target in targets])
    close(output.vector, grids.vector)
    assert output.confidence.shape == (2, 2)


def test_maps_beside_a_token_side_network_are_averaged_over_the_anchor_grid() -> None:
    side = SideNetworkConfig(widths=[3, 4], anchor_width=6, side_width=4, out_width=5)
    module = tower(side, pooling="mean")
    anchor, (first, second) = stages(2)
    means = first.reshape(2, 3, 2, 4, 2, 2).mean((3, 5))  # [b, C, 2, 2] of [b, C, 8, 4]
    halves = second.reshape(2, 4, 2, 2, 2, 2).mean((3, 5))
    tokens = [each.flatten(2).transpose(1, 2) for each in (anchor, means, halves)]
    close(module(anchor, [first, second]).vector, module(tokens[0], tokens[1:]).vector)


def test_standardised_maps_are_those_of_scaled_inputs() -> None:
    plain, scaled = (
        tower(MAPS, pooling="mean"),
        tower(replace(MAPS, input_norm="standard"), pooling="mean"),
    )
    scaled.load_state_dict(plain.state_dict(), strict=False)
    anchor, (first, second) = stages(2)
    for number, channels in enumerate((3, 4, 6)):
        scaled.side.set_statistics(
            number, torch.full((channels,), 2.0), torch.full((channels,), 4.0)
        )
    maps = [4.0 * each + 2.0 for each in (anchor, first, second)]
    close(scaled(maps[0], maps[1:]).vector, plain(anchor, [first, second]).vector)
    scaled.side.set_statistics(0, torch.zeros(3), torch.tensor([0.0, 1.0, float("nan")]))
    assert torch.equal(scaled.side.standard[0].scale, torch.ones(3))
    with pytest.raises(ValueError, match="statistics need input_norm='standard'"):
        plain.side.set_statistics(0, torch.zeros(3), torch.ones(3))


def test_a_clip_of_vectors_is_the_mean_of_its_frames_or_a_sequence() -> None:
    states = torch.randn(4, 5, 6)  # [taps, F, D]
    bounds = torch.tensor([0, 2, 5])
    mean = tower(pooling="mean", frames="mean")(states[-1], states[:-1], frames=bounds)
    alone = tower(pooling="mean")(states[-1], states[:-1])
    close(mean.vector[0], F.normalize(alone.vector[:2].mean(0), dim=-1))
    assert mean.vector.shape == (2, 5)
    wanted = tower(pooling="gpo")(states[-1], states[:-1], offsets=bounds)
    sequence = tower(pooling="gpo", frames="sequence")(states[-1], states[:-1], frames=bounds)
    close(sequence.vector, wanted.vector)


def test_a_clip_as_a_sequence_of_patches() -> None:
    module = tower(pooling="mean", frames="sequence")
    states, bounds = torch.randn(4, 5, 3, 6), torch.tensor([0, 2, 5])  # [taps, F, P, D]
    first = module(states[-1], states[:-1], frames=bounds).vector[0]
    joined = states[:, :2].flatten(1, 2)[:, None]  # [taps, 1, 2 P, D]
    close(first, module(joined[-1], joined[:-1]).vector[0])
    maps = torch.randn(4, 5, 6, 2, 2)
    tokens = maps.flatten(3).transpose(2, 3)
    close(
        module(maps[-1], maps[:-1], frames=bounds).vector,
        module(tokens[-1], tokens[:-1], frames=bounds).vector,
    )


@pytest.mark.parametrize("side", [TOKENS, MAPS, CLIP])
def test_config_rebuilds_the_towers(side: Any) -> None:
    pooling = "none" if side is CLIP else "attention"
    text = tower(pooling="max", head_width=5)
    model = TwoTowers(text=text, media=tower(side, pooling=pooling), logit_scale=20.0)
    again = TwoTowers.from_config(json.loads(json.dumps(model.config))).eval()
    again.load_state_dict(model.state_dict())
    states, mask = texts()
    given = stages(2) if side is MAPS else (states[-1], states[:-1])
    if side is CLIP:
        given = (states[-1, :, 0, :5], states[:-1])
    assert torch.equal(again.media(*given).vector, model.media(*given).vector)
    first = model.text(states[-1], states[:-1], mask=mask).vector
    assert torch.equal(again.text(states[-1], states[:-1], mask=mask).vector, first)
    assert again.scale.item() == pytest.approx(20.0)
    close(model.similarity(first, first).diagonal(), torch.ones(4))


def test_the_scale_is_trained_only_if_asked_and_at_most_100() -> None:
    parts = {"text": tower(pooling="mean"), "media": tower(pooling="mean")}
    assert "log_scale" not in dict(TwoTowers(**parts).named_parameters())
    model = TwoTowers(**parts, logit_scale=99.0, learn_scale=True)
    assert "log_scale" in dict(model.named_parameters())
    with torch.no_grad():
        model.log_scale += 1.0
    assert model.scale.item() == pytest.approx(100.0)


class Whole(nn.Module):
    """A tower over one stacked tensor of states, as an exported model runs it."""

    def __init__(self, tower: SideTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        vector: Tensor = self.tower(states[-1], states[:-1], mask=mask).vector
        return vector


@pytest.mark.parametrize("pooling", ["gpo", "meanmax", "attention", "last"])
def test_export_of_a_text_tower_with_dynamic_batch_and_length(pooling: str) -> None:
    module = tower(pooling=pooling)
    states, mask = texts(4, 5)
    wanted = Whole(module)(states, mask)
    module.freeze(16)
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length", min=2, max=16)
    program = torch.export.export(
        Whole(module),
        (states, mask),
        dynamic_shapes=({1: rows, 2: length}, {0: rows, 1: length}),
        strict=False,
    )
    close(program.module()(states, mask), wanted)
    states, mask = texts(7, 11)
    close(program.module()(states, mask), Whole(module)(states, mask))


@pytest.mark.parametrize("pooling", ["gpo", "mean"])
def test_export_of_an_image_tower_with_dynamic_batch(pooling: str) -> None:
    module = tower(pooling=pooling)
    states = torch.randn(4, 3, 10, 6)
    wanted = Whole(module)(states)
    module.freeze(10)
    program = torch.export.export(
        Whole(module), (states,), dynamic_shapes=({1: torch.export.Dim("rows")},), strict=False
    )
    close(program.module()(states), wanted)
    assert program.module()(torch.randn(4, 5, 10, 6)).shape == (5, 5)


def test_export_of_towers_of_maps_and_of_clips() -> None:
    rows = torch.export.Dim("rows")
    module = tower(MAPS, pooling="gpo")
    anchor, targets = stages(3)
    module.freeze(4)
    program = torch.export.export(
        module,
        (anchor, targets),
        dynamic_shapes={"anchor": {0: rows}, "targets": [{0: rows}] * 2},
        strict=False,
    )
    anchor, targets = stages(5)
    close(program.module()(anchor, targets).vector, module(anchor, targets).vector)
    clip = tower(CLIP, pooling="none", frames="mean")
    states, anchor = torch.randn(3, 6, 10, 6), torch.randn(6, 5)
    bounds = [torch.tensor(ends) for ends in ([0, 2, 6], [0, 3], [0, 1, 2, 5])]
    clips = torch.export.Dim("clips")
    program = torch.export.export(
        clip,
        (anchor, states),
        {"frames": belonging(bounds[0])},
        dynamic_shapes={"anchor": {0: rows}, "targets": {1: rows}, "frames": {0: clips, 1: rows}},
        strict=False,
    )
    for frames in bounds:
        given = (anchor[: frames[-1]], states[:, : frames[-1]])
        traced = program.module()(*given, frames=belonging(frames))
        close(traced.vector, clip(*given, frames=frames).vector)
        close(traced.confidence, clip(*given, frames=frames).confidence)


def belonging(bounds: Tensor) -> Tensor:
    """Which frames are each clip's, ``[B, F]``."""
    clip = torch.repeat_interleave(torch.arange(len(bounds) - 1), bounds.diff())
    return torch.arange(len(bounds) - 1)[:, None] == clip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "none"}, "does not fit"),
        ({"pooling": "sum"}, "pooling='sum' is unknown"),
        ({"side": CLIP, "pooling": "mean"}, "a vector anchor leaves nothing to pool"),
        ({"frames": "max"}, "frames='max' is unknown"),
        ({"side": MAPS, "frames": "sequence"}, "needs a side network with anchor='tokens'"),
        ({"position": "eos"}, "position='eos' is unknown"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SideTower(**{"side": TOKENS, **options})


def test_towers_that_do_not_meet_are_refused() -> None:
    with pytest.raises(ValueError, match="have 10 features, the media tower's 5"):
        TwoTowers(text=tower(pooling="meanmax"), media=tower(pooling="mean"))
    with pytest.raises(ValueError, match="must be positive"):
        TwoTowers(text=tower(), media=tower(), logit_scale=0.0)
    states, _ = texts()
    with pytest.raises(ValueError, match="frames='none'"):
        tower()(states[-1], states[:-1], frames=torch.tensor([0, 4]))


@pytest.mark.parametrize("packed", [False, True])
def test_an_anchor_base_is_the_centred_mean_of_the_anchor(packed: bool) -> None:
    states, mask = texts()
    net = tower(
        replace(TOKENS, out_width=6), pooling="mean", normalize=False, base="mean",
        side_weight=0.5,
    )  # fmt: skip
    center = torch.arange(6.0)
    net.base.center.copy_(center)
    net.base.transform.mul_(0.5)
    given: dict[str, Any] = {"mask": mask}
    anchor, targets = states[-1], states[:-1]
    if packed:
        (anchor, offsets), targets = (
            pack(anchor, mask),
            torch.stack([pack(t, mask)[0] for t in targets]),
        )
        given = {"offsets": offsets}
    valid = mask[..., None].float()
    mean = (states[-1] * valid).sum(1) / valid.sum(1)  # [B, D]
    base, net.base = net.base, None
    learnt = net(anchor, targets, **given).vector
    net.base = base
    close(
        net(anchor, targets, **given).vector,
        (mean - center) / 2.0 + 0.5 * F.normalize(learnt, dim=-1),
    )


@pytest.mark.parametrize("side", [MAPS, CLIP, TOKENS])
def test_an_anchor_base_needs_tokens_as_wide_as_the_embedding(side: Any) -> None:
    with pytest.raises(ValueError, match="base='mean' needs"):
        SideTower(side=side, pooling="none" if side is CLIP else "mean", base="mean")


def test_a_memory_base_is_added_in_evaluation_only() -> None:
    torch.manual_seed(0)
    maps, wanted = small_maps(), F.normalize(torch.randn(5, MAPS.out_width), dim=1)
    net = tower(MAPS, pooling="mean", base="kernel", kernel_keys=5, side_weight=0.25)
    features = torch.cat([each.mean((2, 3)) for each in maps], 1)  # [5, F]
    net.base.fit(KernelRows.of(features, torch.arange(5)), wanted, gamma=8.0, ridge=1e-6)
    *targets, anchor = maps
    with_memory = net.eval()(anchor, targets).vector
    base, net.base = net.base, None
    learnt = net(anchor, targets).vector
    close(with_memory, F.normalize(wanted + 0.25 * learnt, dim=1))
    close(without(net.train(), base, maps), without(net, None, maps))


def test_a_memory_of_clips_sees_the_mean_of_their_frames() -> None:
    torch.manual_seed(0)
    maps, wanted = small_maps(), F.normalize(torch.randn(2, MAPS.out_width), dim=1)
    net = tower(
        MAPS, pooling="mean", frames="mean", base="kernel", kernel_keys=2, side_weight=0.0
    ).eval()
    features = torch.cat([each.mean((2, 3)) for each in maps], 1)  # [5, F]
    clips = torch.stack([features[:3].mean(0), features[3:].mean(0)])
    net.base.fit(KernelRows.of(clips, torch.arange(2)), wanted, gamma=8.0, ridge=1e-6)
    *targets, anchor = maps
    close(net(anchor, targets, frames=torch.tensor([0, 3, 5])).vector, wanted)


def without(net: SideTower, base: Any, maps: list[torch.Tensor]) -> torch.Tensor:
    """What the tower gives in training mode beside this base."""
    net.base = base
    *targets, anchor = maps
    vector: torch.Tensor = net(anchor, targets).vector
    return vector


def small_maps() -> list[torch.Tensor]:
    """Maps of five pictures, as `MAPS` wants them, the anchor last."""
    return [torch.randn(5, width, 4, 6) for width in (*MAPS.widths, MAPS.anchor_width)]
