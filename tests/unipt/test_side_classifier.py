"""SideClassifier: packed = padded for every pooling, segments, configs, learning, export."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from unipt import SideClassifier, SideNetworkConfig, TapRecorder, pack
from unipt.bases import KernelRows
from unipt.cohort import StackedClassifiers
from unipt.pooling import TokenPoolingKind

SIDE = SideNetworkConfig(widths=[6] * 3, anchor_width=6, side_width=4, out_width=5)


def build(**options: Any) -> SideClassifier:
    torch.manual_seed(0)
    return SideClassifier(side=SIDE, **{"num_outputs": 2, **options}).eval()


def batch(rows: int = 4, length: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    lengths[0] = length
    return torch.randn(4, rows, length, 6, generator=generator), torch.arange(length) < lengths[
        :, None
    ]


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("pooling", get_args(TokenPoolingKind))
def test_packed_equals_padded(pooling: str, segments: int) -> None:
    model = build(pooling=pooling, segments=segments, hidden=7)
    states, mask = batch()
    padded = model(states, mask=mask)
    values, offsets = pack(states, mask)
    packed = model(values, offsets=offsets)
    assert padded.logits.shape == (4 // segments, 2)
    assert padded.confidence.shape == (4 // segments, 3)
    torch.testing.assert_close(packed.logits, padded.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(packed.confidence, padded.confidence)


def test_padding_does_not_change_the_prediction() -> None:
    model = build(pooling="meanmax")
    states, mask = batch()
    wider = nn.functional.pad(states, (0, 0, 0, 3), value=50.0)
    output = model(wider, mask=nn.functional.pad(mask, (0, 3)))
    torch.testing.assert_close(output.logits, model(states, mask=mask).logits)


def test_segments_may_be_pooled_one_by_one() -> None:
    model = build(segments=2)
    states, mask = batch()
    first, second = (model.pool(states[:, rows], mask[rows]) for rows in (slice(2), slice(2, 4)))
    output = model.classify((first[0], second[0]), (first[1], second[1]))
    torch.testing.assert_close(output.logits, model(states, mask=mask).logits)
    with pytest.raises(ValueError, match="1 segments were given, expected 2"):
        model.classify((first[0],), (first[1],))


def test_config_rebuilds_the_model() -> None:
    model = build(pooling="attention", segments=2, norm=False)
    again = SideClassifier.from_config(model.config).eval()
    again.load_state_dict(model.state_dict())
    states, mask = batch()
    assert torch.equal(again(states, mask=mask).logits, model(states, mask=mask).logits)


def test_learns_what_one_layer_holds() -> None:
    torch.manual_seed(1)
    model = build(dropout=0.0).train()
    states, mask = torch.randn(4, 64, 5, 6), torch.ones(64, 5).bool()
    labels = torch.randint(0, 2, (64,))
    states[1, :, :, 0] += 4.0 * labels[:, None]
    values, offsets = pack(states, mask)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(values, offsets=offsets).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(values, offsets=offsets).logits.argmax(1) == labels).float().mean() > 0.95


def test_export_with_dynamic_batch_and_length() -> None:
    model = build()
    states, mask = batch()
    dynamic = torch.export.Dim.DYNAMIC
    axes = ({1: dynamic, 2: dynamic}, {0: dynamic, 1: dynamic})
    program = torch.export.export(model, (states, mask), dynamic_shapes=axes)
    for rows, length in ((1, 1), (1, 4), (6, 9)):
        states, mask = batch(rows, length)
        torch.testing.assert_close(
            program.module()(states, mask).logits, model(states, mask).logits
        )


def test_two_segments_export_for_any_number_of_pairs_one_included() -> None:
    model = build(segments=2)

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, a: Tensor, a_mask: Tensor, b: Tensor, b_mask: Tensor) -> Tensor:
            pooled = [self.model.pool(a, mask=a_mask), self.model.pool(b, mask=b_mask)]
            logits: Tensor = self.model.classify(*zip(*pooled, strict=True)).logits
            return logits

    dynamic = torch.export.Dim.DYNAMIC
    axes = ({1: dynamic, 2: dynamic}, {0: dynamic, 1: dynamic}) * 2
    program = torch.export.export(Pairs(), (*batch(4, 5), *batch(4, 3)), dynamic_shapes=axes)
    for pairs in (1, 3):
        (a, a_mask), (b, b_mask) = batch(pairs, 4), batch(pairs + 5, 4)
        b, b_mask = b[:, :pairs].contiguous(), b_mask[:pairs]
        joined = model(torch.cat((a, b), 1), mask=torch.cat((a_mask, b_mask)))
        torch.testing.assert_close(program.module()(a, a_mask, b, b_mask), joined.logits)


def test_options_and_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="segments=3"):
        build(segments=3)
    with pytest.raises(ValueError, match="pooling='sum' is unknown"):
        build(pooling="sum")
    with pytest.raises(ValueError, match="num_outputs=0"):
        build(num_outputs=0)
    with pytest.raises(ValueError, match=r"states have shape \[4, 7, 6\]"):
        build()(torch.randn(4, 7, 6))


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


@pytest.mark.parametrize("segments", [1, 2])
def test_a_memory_is_added_to_the_head(segments: int) -> None:
    model = build(segments=segments, memory=5)
    plain = build(segments=segments)
    plain.load_state_dict(model.state_dict(), strict=False)
    states, mask = batch()
    memory = model.memory
    assert memory is not None
    means = (states * mask[..., None]).sum(2) / mask.sum(1)[:, None]  # [4 taps, rows, 6]
    seen = means.transpose(0, 1).flatten(1)
    if segments == 2:
        u, v = seen.chunk(2)
        seen = torch.cat((u, v, (u - v).abs(), u * v), 1)
    keys = torch.arange(len(seen)).repeat(5)[:5]
    memory.fit(KernelRows.of(seen, keys), torch.eye(len(seen), 2), ridge=1.0)
    alone, whole = plain(states, mask=mask), model(states, mask=mask)
    torch.testing.assert_close(whole.logits, alone.logits + memory(seen))
    assert not torch.allclose(whole.logits, alone.logits)
    torch.testing.assert_close(whole.confidence, alone.confidence)
    values, offsets = pack(states, mask)
    torch.testing.assert_close(model(values, offsets=offsets).logits, whole.logits)
    halved = model(values.half(), offsets=offsets).logits  # means are taken in float32
    torch.testing.assert_close(halved, model(values.half().float(), offsets=offsets).logits)
    full = model(states).logits
    torch.testing.assert_close(full, model(states, mask=torch.ones_like(mask)).logits)
    again = SideClassifier.from_config(model.config).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(states, mask=mask).logits, whole.logits)


def test_a_finished_classifier_is_not_stacked() -> None:
    with pytest.raises(ValueError, match="memory=0"):
        StackedClassifiers([build(memory=3)])
