"""From a batch of a cache to a tower's states: shapes, dropped tokens and patches, noise."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cache import Part, TapSpec
from pipeline.config import ConfigError
from pipeline.systems.augment import add_noise, batch_generator, drop_patches, drop_rows
from pipeline.systems.states import Change, tower_states
from pipeline.systems.taps import TowerTaps, _check, width
from unipt import States, Stream

CPU = torch.device("cpu")


def taps(kind: str, *shapes: tuple[int, ...]) -> TowerTaps:
    axis = {"axis": "frames"} if kind == "frames" else {}
    return TowerTaps(
        tuple(
            TapSpec(name=f"t.{i}", kind=kind, shape=shape, **axis) for i, shape in enumerate(shapes)
        )
    )


def vector(name: str = "p") -> TapSpec:
    return TapSpec(name=name, kind="vector", shape=(3,))


def part(*stacks: Tensor, **offsets: list[int]) -> Part:
    bounds = {axis: torch.tensor(ends) for axis, ends in offsets.items()}
    return Part(states={}, stacks=stacks, offsets=bounds)


def numbered(*shape: int) -> Tensor:
    return torch.arange(float(torch.tensor(shape).prod())).reshape(shape)


def random(seed: int = 0) -> torch.Generator:
    return batch_generator(seed, 0, 0)


def dropped(drop: float, noise: float = 0.0) -> Change:
    return Change(noise, drop, random())


def seen(chosen: TowerTaps, given: States) -> tuple[Tensor, Any, Tensor | None, Tensor | None]:
    """Return what a side tower of these taps reads: anchor, targets, mask, offsets."""
    return Stream(chosen.names, chosen.axis).read(given)


def test_taps_of_one_shape_stay_one_tensor() -> None:
    chosen, states = taps("grid", (5, 8), (5, 8), (5, 8)), numbered(3, 2, 5, 8)
    anchor, targets, mask, offsets = seen(chosen, tower_states(part(states), chosen, CPU))
    assert targets.data_ptr() == states.data_ptr()
    assert torch.equal(targets, states[:2])
    assert torch.equal(anchor, states[2])
    assert (mask, offsets) == (None, None)


def test_taps_of_other_shapes_come_one_by_one_in_their_order() -> None:
    chosen = taps("map", (4, 8, 8), (6, 4, 4), (4, 8, 8), (8, 2, 2))
    stacks = numbered(2, 3, 4, 8, 8), numbered(1, 3, 6, 4, 4), numbered(1, 3, 8, 2, 2)
    anchor, targets, _, _ = seen(chosen, tower_states(part(*stacks), chosen, CPU))
    wanted = [stacks[0][0], stacks[1][0], stacks[0][1]]
    assert all(torch.equal(a, b) for a, b in zip(targets, wanted, strict=True))
    assert torch.equal(anchor, stacks[2][0])
    assert [width(tap) for tap in chosen.taps] == [4, 6, 4, 8]


def test_texts_have_offsets_of_tokens_and_videos_of_frames() -> None:
    chosen = taps("tokens", (8,), (8,))
    given = tower_states(part(numbered(2, 5, 8), tokens=[0, 2, 5]), chosen, CPU)
    assert chosen.axis == "tokens"
    assert seen(chosen, given)[3].tolist() == [0, 2, 5]  # type: ignore[union-attr]
    clip = taps("frames", (5, 8), (5, 8))
    given = tower_states(part(numbered(2, 5, 5, 8), frames=[0, 2, 5]), clip, CPU)
    assert clip.axis == "frames"
    assert seen(clip, given)[3].tolist() == [0, 2, 5]  # type: ignore[union-attr]
    assert (clip.layout, clip.clips, clip.vector_anchor) == ("grid", True, False)


def test_a_single_tap_is_both() -> None:
    chosen, states = taps("grid", (5, 8)), numbered(1, 2, 5, 8)
    anchor, targets, _, _ = seen(chosen, tower_states(part(states), chosen, CPU))
    assert torch.equal(anchor, states[0]) and torch.equal(targets, states)
    assert chosen.targets == chosen.taps and chosen.anchor == chosen.taps[0]


@pytest.mark.parametrize(
    ("chosen", "as_stored"),
    [
        (taps("tokens", (8,), (8,)), True),
        (taps("map", (8, 2, 2), (8, 2, 2)), True),
        (taps("grid", (5, 8), (5, 8)), False),
        (taps("vector", (8,), (8,)), False),
    ],
)
def test_packed_tokens_and_maps_keep_their_type_unless_they_get_noise(
    chosen: TowerTaps, as_stored: bool
) -> None:
    ragged = chosen.axis is not None
    bounds = {"tokens": [0, 4]} if ragged else {}
    given = part(torch.randn(2, 4, *chosen.anchor.shape).half(), **bounds)
    plain = tower_states(given, chosen, CPU).states["t.0"]
    noisy = tower_states(given, chosen, CPU, dropped(0.0, noise=0.1)).states["t.0"]
    assert plain.dtype == (torch.float16 if as_stored else torch.float32)
    assert noisy.dtype == torch.float32


def test_a_projected_text_keeps_its_first_and_last_token() -> None:
    chosen = TowerTaps((*taps("tokens", (2,), (2,)).taps, vector()))
    assert chosen.vector_anchor
    tokens = numbered(2, 60, 2)
    stored = part(tokens, numbered(1, 2, 3), tokens=[0, 20, 60])
    given = tower_states(stored, chosen, CPU, dropped(0.5))
    anchor, (first, second), _, offsets = seen(chosen, given)
    low, middle, high = offsets.tolist()  # type: ignore[union-attr]
    assert (low, high) == (0, len(first)) and 0 < middle < 40
    assert torch.equal(first[[low, middle]], tokens[0, [0, 20]])
    assert torch.equal(first[[middle - 1, high - 1]], tokens[0, [19, 59]])
    assert torch.equal(second - first, torch.full_like(first, 120.0))  # the same tokens of each tap
    assert torch.equal(anchor, numbered(1, 2, 3)[0])


def test_tokens_are_dropped_but_the_first() -> None:
    offsets = torch.tensor([0, 1, 1000, 1002, 4000])
    numbers = torch.arange(4000.0).repeat(2, 1)[..., None]
    (kept,), bounds = drop_rows([numbers], offsets, 0.4, random())
    assert kept.shape[1] == bounds[-1]
    assert kept.shape[1] == pytest.approx(2400, rel=0.05)
    assert (bounds[1:] > bounds[:-1]).all()
    assert torch.equal(kept[0, bounds[:-1], 0], offsets[:-1].float())
    for low, high, begin, end in zip(
        bounds[:-1], bounds[1:], offsets[:-1], offsets[1:], strict=True
    ):
        rows = kept[0, low:high, 0]
        assert ((rows >= begin) & (rows < end)).all()
        assert (rows.diff() > 0).all()
    chosen = taps("tokens", (1,), (1,))
    stored = part(numbers, tokens=offsets.tolist())
    again = tower_states(stored, chosen, CPU, dropped(0.4))
    assert torch.equal(again.states["t.0"], kept[0])
    assert torch.equal(again.offsets["tokens"], bounds)
    assert torch.equal(stored.offsets["tokens"], offsets)  # the batch is as it was


def test_patches_are_dropped_by_sample_but_the_first() -> None:
    states = numbered(3, 6, 10, 1)
    (kept,) = drop_patches([states], 0.4, random())
    assert kept.shape == (3, 6, 6, 1)
    assert torch.equal(kept[:, :, 0], states[:, :, 0])
    assert (kept.diff(dim=2) > 0).all()
    assert torch.equal(kept[1] - kept[0], torch.full((6, 6, 1), 60.0))
    assert len({tuple((row - row[0]).flatten().tolist()) for row in kept[0]}) > 1
    chosen = taps("grid", (10, 1), (10, 1), (10, 1))
    given = tower_states(part(states), chosen, CPU, dropped(0.5))
    assert seen(chosen, given)[0].shape == (6, 5, 1)


def test_frames_of_vectors_are_dropped_whole() -> None:
    chosen = taps("frames", (2,), (3,))
    stacks = numbered(1, 50, 2), numbered(1, 50, 3)
    given = tower_states(part(*stacks, frames=[0, 10, 50]), chosen, CPU, dropped(0.5))
    anchor, targets, _, frames = seen(chosen, given)
    assert len(anchor) == len(targets[0]) == frames[-1] < 50  # type: ignore[index]
    assert torch.equal(targets[0][:, 0] / 2, anchor[:, 0] / 3)
    (_,), bounds = drop_rows([stacks[0]], torch.tensor([0, 1, 50]), 0.9, random(), keep_last=True)
    assert bounds.tolist()[:2] == [0, 1]


def test_noise_is_scaled_by_each_feature_of_tokens_grids_and_maps() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 4000, 4) * torch.tensor([1.0, 1.0, 1.0, 100.0])
    noise = add_noise(tokens, 0.1, random()) - tokens
    assert noise[1, :, 0].std() == pytest.approx(0.1, rel=0.08)
    assert noise[0, :, 3].std() == pytest.approx(10.0, rel=0.08)
    scale = torch.tensor([1.0, 100.0])
    grids = torch.randn(2, 50, 40, 2) * scale
    noise = add_noise(grids, 0.1, random()) - grids
    assert noise[0, ..., 0].std() == pytest.approx(0.1, rel=0.1)
    assert noise[1, ..., 1].std() == pytest.approx(10.0, rel=0.1)
    maps = torch.randn(2, 20, 2, 10, 10) * scale[:, None, None]
    chosen = taps("map", (2, 10, 10), (2, 10, 10))
    given = tower_states(part(maps), chosen, CPU, dropped(0.0, noise=0.1))
    noise = given.states["t.0"] - maps[0]
    assert noise[:, 1].std() == pytest.approx(10.0, rel=0.1)
    same = tower_states(part(maps), chosen, CPU)
    assert same.states["t.0"].data_ptr() == maps.data_ptr()  # without noise, no copy


def test_the_noise_of_a_batch_depends_on_seed_epoch_and_batch_alone() -> None:
    def drawn(*place: int) -> list[float]:
        return torch.rand(4, generator=batch_generator(*place)).tolist()

    torch.manual_seed(5)
    first = drawn(0, 1, 2)
    torch.manual_seed(6)
    assert drawn(0, 1, 2) == first
    others = [drawn(*place) for place in ((1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 2, 1))]
    assert first not in others
    assert len({tuple(each) for each in others}) == 4


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (TowerTaps(()), "text_taps is empty"),
        (taps("grid", (5, 8), (6, 8), (6, 8)), "grids differ in their number of patches"),
        (taps("grid", (5, 8), (6, 8)), "anchor's grid has another number of patches"),
        (TowerTaps((*taps("map", (4, 8, 8), (4, 4, 4)).taps, vector())),
         "cannot be the anchor of maps"),
        (TowerTaps((vector(), *taps("grid", (4, 8), (4, 8)).taps)), "targets differ in kind"),
        (TowerTaps((vector(), *taps("grid", (4, 8)).taps)), "is not of its targets' kind"),
    ],
)  # fmt: skip
def test_taps_that_do_not_go_together_are_refused(chosen: TowerTaps, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _check(chosen, "text_taps")


def test_frames_of_unknown_rank_are_refused() -> None:
    with pytest.raises(ConfigError, match="fit no side network"):
        _ = taps("frames", (2, 3, 4, 5)).layout
