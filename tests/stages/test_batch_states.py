"""From a batch of a cache to a tower's arguments: shapes, dropped tokens and patches, noise."""

from typing import Any

import pytest
import torch

from cache import Part, TapSpec
from pipeline.config import ConfigError
from pipeline.retrieval.taps import TowerTaps, _check, width
from pipeline.training.augment import add_grid_noise, drop_patches, drop_rows

CPU = torch.device("cpu")


def taps(kind: str, *shapes: tuple[int, ...], **options: Any) -> TowerTaps:
    axis = {"axis": "frames"} if kind == "frames" else {}
    return TowerTaps(
        tuple(
            TapSpec(name=f"t.{i}", kind=kind, shape=shape, **axis) for i, shape in enumerate(shapes)
        )
    )


def part(*stacks: torch.Tensor, **offsets: list[int]) -> Part:
    bounds = {axis: torch.tensor(ends) for axis, ends in offsets.items()}
    return Part(states={}, stacks=stacks, offsets=bounds)


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(float(torch.tensor(shape).prod())).reshape(shape)


def test_taps_of_one_shape_stay_one_tensor() -> None:
    chosen, states = taps("grid", (5, 8), (5, 8), (5, 8)), numbered(3, 2, 5, 8)
    given = chosen.inputs(part(states), CPU, torch.float32)
    assert given.targets.data_ptr() == states.data_ptr()
    assert torch.equal(given.anchor, states[2])
    assert (given.offsets, given.frames) == (None, None)


def test_taps_of_other_shapes_come_one_by_one_in_their_order() -> None:
    chosen = taps("map", (4, 8, 8), (6, 4, 4), (4, 8, 8), (8, 2, 2))
    stacks = numbered(2, 3, 4, 8, 8), numbered(1, 3, 6, 4, 4), numbered(1, 3, 8, 2, 2)
    given = chosen.inputs(part(*stacks), CPU, torch.float32)
    wanted = [stacks[0][0], stacks[1][0], stacks[0][1]]
    assert all(torch.equal(a, b) for a, b in zip(given.targets, wanted, strict=True))
    assert torch.equal(given.anchor, stacks[2][0])
    assert [width(tap) for tap in chosen.taps] == [4, 6, 4, 8]


def test_texts_have_offsets_and_clips_frames() -> None:
    chosen = taps("tokens", (8,), (8,))
    given = chosen.inputs(part(numbered(2, 5, 8), tokens=[0, 2, 5]), CPU, torch.float32)
    assert given.offsets.tolist() == [0, 2, 5] and given.frames is None
    clip = taps("frames", (5, 8), (5, 8))
    given = clip.inputs(part(numbered(2, 5, 5, 8), frames=[0, 2, 5]), CPU, torch.float32)
    assert given.frames.tolist() == [0, 2, 5] and given.offsets is None
    assert (clip.layout, clip.clips, clip.vector_anchor) == ("grid", True, False)


def test_a_single_tap_is_both() -> None:
    states = numbered(1, 2, 5, 8)
    given = taps("grid", (5, 8)).inputs(part(states), CPU, torch.float32)
    assert torch.equal(given.anchor, states[0]) and torch.equal(given.targets, states)


def test_a_projected_text_keeps_its_first_and_last_token() -> None:
    chosen = TowerTaps(
        (*taps("tokens", (2,), (2,)).taps, TapSpec(name="p", kind="vector", shape=(3,)))
    )
    assert chosen.vector_anchor
    torch.manual_seed(0)
    tokens = numbered(2, 60, 2)
    given = chosen.inputs(
        part(tokens, numbered(1, 2, 3), tokens=[0, 20, 60]), CPU, torch.float32, drop=0.5
    )
    first, second = given.targets
    low, middle, high = given.offsets.tolist()
    assert (low, high) == (0, len(first)) and 0 < middle < 40
    assert torch.equal(first[[low, middle]], tokens[0, [0, 20]])
    assert torch.equal(first[[middle - 1, high - 1]], tokens[0, [19, 59]])
    assert torch.equal(second - first, torch.full_like(first, 120.0))  # the same tokens of each tap
    assert torch.equal(given.anchor, numbered(1, 2, 3)[0])


def test_patches_are_dropped_by_sample_but_the_first() -> None:
    torch.manual_seed(0)
    states = numbered(3, 6, 10, 1)
    (kept,) = drop_patches([states], 0.4)
    assert kept.shape == (3, 6, 6, 1)
    assert torch.equal(kept[:, :, 0], states[:, :, 0])
    assert (kept.diff(dim=2) > 0).all()
    assert torch.equal(kept[1] - kept[0], torch.full((6, 6, 1), 60.0))
    assert len({tuple((row - row[0]).flatten().tolist()) for row in kept[0]}) > 1
    chosen = taps("grid", (10, 1), (10, 1), (10, 1))
    given = chosen.inputs(part(states), CPU, torch.float32, drop=0.5)
    assert given.anchor.shape == (6, 5, 1)


def test_frames_of_vectors_are_dropped_whole() -> None:
    torch.manual_seed(0)
    chosen = taps("frames", (2,), (3,))
    stacks = numbered(1, 50, 2), numbered(1, 50, 3)
    given = chosen.inputs(part(*stacks, frames=[0, 10, 50]), CPU, torch.float32, drop=0.5)
    assert len(given.anchor) == len(given.targets[0]) == given.frames[-1] < 50
    assert torch.equal(given.targets[0][:, 0] / 2, given.anchor[:, 0] / 3)
    (_,), bounds = drop_rows([stacks[0]], torch.tensor([0, 1, 50]), 0.9, keep_last=True)
    assert bounds.tolist()[:2] == [0, 1]


def test_noise_follows_each_feature_of_grids_and_maps() -> None:
    torch.manual_seed(0)
    scale = torch.tensor([1.0, 100.0])
    grids = torch.randn(2, 50, 40, 2) * scale
    noise = add_grid_noise(grids, 0.1) - grids
    assert noise[0, ..., 0].std() == pytest.approx(0.1, rel=0.1)
    assert noise[1, ..., 1].std() == pytest.approx(10.0, rel=0.1)
    maps = torch.randn(2, 20, 2, 10, 10) * scale[:, None, None]
    noise = add_grid_noise(maps, 0.1) - maps
    assert noise[0, :, 1].std() == pytest.approx(10.0, rel=0.1)
    assert add_grid_noise(maps, 0.0) is maps


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (TowerTaps(()), "text_taps is empty"),
        (taps("grid", (5, 8), (6, 8), (6, 8)), "differ in their number of patches"),
        (taps("grid", (5, 8), (6, 8)), "anchor has other patches"),
        (TowerTaps((*taps("map", (4, 8, 8), (4, 4, 4)).taps,
                    TapSpec(name="p", kind="vector", shape=(3,)))), "cannot be the anchor of maps"),
        (TowerTaps((TapSpec(name="p", kind="vector", shape=(3,)),
                    *taps("grid", (4, 8), (4, 8)).taps)), "targets .* differ in kind"),
        (TowerTaps((TapSpec(name="p", kind="vector", shape=(3,)),
                    *taps("grid", (4, 8)).taps)), "anchor is not of its targets' kind"),
    ],
)  # fmt: skip
def test_taps_that_do_not_go_together_are_refused(chosen: TowerTaps, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _check(chosen, "text")


def test_frames_of_unknown_rank_are_refused() -> None:
    with pytest.raises(ConfigError, match="fit no side network"):
        _ = taps("frames", (2, 3, 4, 5)).layout
