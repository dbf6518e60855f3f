"""SideClassifier: packed = padded for every pooling, segments, units, configs, learning, export."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from unipt import SideClassifier, SideNetworkConfig, SideTower, States, TapRecorder, pack
from unipt.bases import KernelRows
from unipt.pooling import TokenPoolingKind

SIDE = SideNetworkConfig(widths=[6] * 3, anchor_width=6, side_width=4, out_width=5)
TAPS = ("a", "b", "c", "d")
NAMES = ("first", "second")


def build(segments: int = 1, pooling: Any = "meanmax", **options: Any) -> SideClassifier:
    torch.manual_seed(0)
    tower = SideTower(side=SIDE, taps=TAPS, axis="tokens", pooling=pooling, normalize=False)
    given = {"num_outputs": 2, "segments": NAMES[:segments], **options}
    return SideClassifier(tower=tower, **given).eval()


def batch(rows: int = 4, length: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    lengths[0] = length
    return torch.randn(4, rows, length, 6, generator=generator), torch.arange(length) < lengths[
        :, None
    ]


def padded(states: Tensor, mask: Tensor | None = None) -> States:
    masks = {} if mask is None else {"tokens": mask}
    return States(dict(zip(TAPS, states, strict=True)), masks=masks)


def packed(states: Tensor, mask: Tensor) -> States:
    values, offsets = pack(states, mask)
    return States(dict(zip(TAPS, values, strict=True)), {"tokens": offsets})


def towers(segments: int, make: Any = padded, rows: int = 4) -> dict[str, States]:
    return {name: make(*batch(rows, 5 - n)) for n, name in enumerate(NAMES[:segments])}


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("pooling", get_args(TokenPoolingKind))
def test_packed_equals_padded(pooling: str, segments: int) -> None:
    model = build(pooling=pooling, segments=segments, hidden=7)
    wide, narrow = (model(towers(segments, make)) for make in (padded, packed))
    assert wide.values["logits"].shape == (4, 2)
    assert wide.confidence["first"].shape == (4, 3)
    torch.testing.assert_close(narrow.values["logits"], wide.values["logits"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(narrow.confidence["first"], wide.confidence["first"])


def test_padding_does_not_change_the_prediction() -> None:
    model = build(pooling="meanmax")
    states, mask = batch()
    wider = nn.functional.pad(states, (0, 0, 0, 3), value=50.0)
    output = model({"first": padded(wider, nn.functional.pad(mask, (0, 3)))})
    alone = model({"first": padded(states, mask)})
    torch.testing.assert_close(output.values["logits"], alone.values["logits"])


def test_segments_may_be_pooled_one_by_one() -> None:
    model, given = build(segments=2), towers(2)
    pooled = [model.pool(given[name]) for name in NAMES]
    output = model.classify(pooled)
    torch.testing.assert_close(output.values["logits"], model(given).values["logits"])
    means = torch.stack([confidence for _, confidence in pooled]).mean(0)
    torch.testing.assert_close(output.confidence["first"], means)
    with pytest.raises(ValueError, match="1 segments were given, expected 2"):
        model.classify(pooled[:1])


def test_the_order_of_the_towers_given_does_not_matter() -> None:
    model, given = build(segments=2), towers(2)
    turned = {name: given[name] for name in reversed(NAMES)}
    assert torch.equal(model(turned).values["logits"], model(given).values["logits"])


def test_a_single_tap_is_anchor_and_target_both() -> None:
    side = SideNetworkConfig(widths=[6], anchor_width=6, side_width=4, out_width=5)
    options = {"axis": "tokens", "pooling": "mean", "normalize": False}
    models = []
    for taps in (("a",), ("a", "a")):
        torch.manual_seed(0)
        tower = SideTower(side=side, taps=taps, **options)
        models.append(SideClassifier(tower=tower, segments=("first",), num_outputs=2).eval())
    given = towers(1)
    one, two = (model(given) for model in models)
    assert torch.equal(one.values["logits"], two.values["logits"])
    assert torch.equal(one.confidence["first"], torch.ones(4, 1))


def test_config_rebuilds_the_model() -> None:
    model = build(pooling="attention", segments=2, norm=False, units=True)
    model.scale.fill_(3.0)
    again = SideClassifier.from_config(model.config).eval()
    again.load_state_dict(model.state_dict())
    given = towers(2)
    assert torch.equal(again(given).values["logits"], model(given).values["logits"])


def test_the_units_of_a_regression_are_part_of_the_model() -> None:
    plain, model = build(num_outputs=1), build(num_outputs=1, units=True)
    given = towers(1)
    assert torch.equal(model(given).values["logits"], plain(given).values["logits"])
    model.scale.fill_(2.5)
    model.shift.fill_(-1.0)
    wanted = 2.5 * plain(given).values["logits"] - 1.0
    torch.testing.assert_close(model(given).values["logits"], wanted)
    assert {"scale", "shift"} <= model.state_dict().keys()
    assert not {"scale", "shift"} & dict(model.named_parameters()).keys()


def test_learns_what_one_layer_holds() -> None:
    torch.manual_seed(1)
    model = build(dropout=0.0).train()
    states, mask = torch.randn(4, 64, 5, 6), torch.ones(64, 5).bool()
    labels = torch.randint(0, 2, (64,))
    states[1, :, :, 0] += 4.0 * labels[:, None]
    given = {"first": packed(states, mask)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(given).values["logits"], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(given).values["logits"].argmax(1) == labels).float().mean() > 0.95


class Live(nn.Module):
    """A classifier as a fused model calls it: one stack and one mask a segment."""

    def __init__(self, model: SideClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, *given: Tensor) -> Tensor:
        parts = zip(self.model.segments, given[::2], given[1::2], strict=True)
        logits: Tensor = self.model({n: padded(s, m) for n, s, m in parts}).values["logits"]
        return logits


@pytest.mark.parametrize("segments", [1, 2])
def test_export_with_dynamic_batch_and_length_one_example_included(segments: int) -> None:
    model = build(segments=segments)

    def arguments(rows: int, lengths: tuple[int, ...]) -> tuple[Tensor, ...]:
        return tuple(each for length in lengths[:segments] for each in batch(rows, length))

    dynamic = torch.export.Dim.DYNAMIC
    axes = (({1: dynamic, 2: dynamic}, {0: dynamic, 1: dynamic}) * segments,)
    live = Live(model)
    program = torch.export.export(live, arguments(4, (5, 3)), dynamic_shapes=axes)
    for rows, lengths in ((1, (1, 4)), (1, (4, 2)), (3, (4, 4)), (6, (9, 1))):
        given = arguments(rows, lengths)
        torch.testing.assert_close(program.module()(*given), live(*given))


def test_options_towers_and_shapes_are_checked() -> None:
    for segments in ((), ("a", "b", "c")):
        with pytest.raises(ValueError, match="name one tower, or two to compare"):
            SideClassifier(tower=build().tower, segments=segments, num_outputs=2)
    with pytest.raises(ValueError, match="pooling='sum' is unknown"):
        build(pooling="sum")
    with pytest.raises(ValueError, match="num_outputs=0"):
        build(num_outputs=0)
    with pytest.raises(ValueError, match="must keep its vectors' lengths: normalize=False"):
        SideClassifier(tower=SideTower(side=SIDE, taps=TAPS), segments=("x",), num_outputs=2)
    with pytest.raises(ValueError, match="no states of first are given, only text"):
        build()({"text": padded(*batch())})
    with pytest.raises(ValueError, match=r"lack the tap\(s\) d; given: a, b, c"):
        states, _ = batch()
        build()({"first": States(dict(zip(TAPS[:3], states[:3], strict=True)))})
    with pytest.raises(ValueError, match=r"widths \[7\] were given, but .* was built for \[6\]"):
        build()({"first": padded(torch.randn(4, 4, 7))})


class Backbone(nn.Module):
    """Two layers; the second returns a tuple."""

    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:  # type: ignore[override]
            return super().forward(x), "more"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = nn.Linear(3, 3), self.Pair(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))[0]


def test_recorder_keeps_what_modules_emit() -> None:
    model, x = Backbone(), torch.randn(2, 3)
    with TapRecorder(model, {"b": "second", "a": "first"}) as recorder:
        output = model(x)
    assert list(recorder.states) == ["b", "a"]
    assert torch.equal(recorder.states["a"], model.first(x))
    assert torch.equal(recorder.states["b"], output)
    assert not model.first._forward_hooks and not model.second._forward_hooks


def test_recorder_reports_silent_and_unknown_taps() -> None:
    model = Backbone()
    with TapRecorder(model, {"x": "idle"}) as recorder:
        model(torch.randn(2, 3))
    with pytest.raises(RuntimeError, match=r"taps \['x'\] did not fire"):
        _ = recorder.states
    with (
        pytest.raises(ValueError, match="no module 'third'"),
        TapRecorder(model, {"a": "first", "x": "third"}),
    ):
        pass
    assert not model.first._forward_hooks


def test_recorder_removes_hooks_after_an_error() -> None:
    model = Backbone()
    with pytest.raises(RuntimeError), TapRecorder(model, {"a": "first"}):
        model(torch.randn(2, 5))
    assert not model.first._forward_hooks


def test_recorder_under_export() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backbone()

        def forward(self, x: Tensor) -> Tensor:
            with TapRecorder(self.backbone, {"a": "first"}) as recorder:
                self.backbone(x)
            return recorder.states["a"]

    model, x = Fused(), torch.randn(2, 3)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    x = torch.randn(5, 3)
    torch.testing.assert_close(program.module()(x), model(x))


def cast_to(dtype: torch.dtype, given: dict[str, States]) -> dict[str, States]:
    return {
        name: each._replace(states={tap: state.to(dtype) for tap, state in each.states.items()})
        for name, each in given.items()
    }


@pytest.mark.parametrize("segments", [1, 2])
def test_a_memory_is_added_to_the_head(segments: int) -> None:
    model = build(segments=segments, kernel_keys=5)
    plain = build(segments=segments)
    plain.load_state_dict(model.state_dict(), strict=False)
    given = towers(segments)
    memory = model.kernel
    assert memory is not None
    means = []
    for n in range(segments):
        states, mask = batch(4, 5 - n)
        mean = (states * mask[..., None]).sum(2) / mask.sum(1)[:, None]  # [4 taps, rows, 6]
        means.append(mean.transpose(0, 1).flatten(1))
    seen = means[0]
    if segments == 2:
        u, v = means
        seen = torch.cat((u, v, (u - v).abs(), u * v), 1)
    keys = torch.arange(len(seen)).repeat(5)[:5]
    memory.fit(KernelRows.of(seen, keys), torch.eye(len(seen), 2), ridge=1.0)
    alone, whole = (each(given).values["logits"] for each in (plain, model))
    torch.testing.assert_close(whole, alone + memory(seen))
    assert not torch.allclose(whole, alone)
    torch.testing.assert_close(model(given).confidence["first"], plain(given).confidence["first"])
    flat = towers(segments, packed)
    torch.testing.assert_close(model(flat).values["logits"], whole)
    low, same = cast_to(torch.half, flat), cast_to(torch.float, cast_to(torch.half, flat))
    # means are taken in float32
    torch.testing.assert_close(model(low).values["logits"], model(same).values["logits"])
    bare = {n: s._replace(masks={}) for n, s in given.items()}
    full = {
        n: s._replace(masks={"tokens": torch.ones_like(s.masks["tokens"])})
        for n, s in given.items()
    }
    torch.testing.assert_close(model(bare).values["logits"], model(full).values["logits"])
    again = SideClassifier.from_config(model.config).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(given).values["logits"], whole)
