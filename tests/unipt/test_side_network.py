"""Side networks: packed = padded, nothing but valid tokens multiplied, options, export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from unipt import (
    ConvSideNetwork,
    ConvSideNetworkConfig,
    EncoderDecoderConfig,
    SideNetwork,
    SideNetworkConfig,
    import_reference,
    lengths_to_offsets,
    pack,
    preset,
    preset_names,
    unpack,
)

SIZES: dict[str, Any] = {"widths": [6] * 3, "anchor_width": 6, "side_width": 4, "out_width": 5}


def build(**options: Any) -> SideNetwork:
    torch.manual_seed(0)
    return SideNetwork(**{**SIZES, **options})


def batch(lengths: list[int], widths: list[int]) -> tuple[list[Tensor], Tensor]:
    offsets = lengths_to_offsets(torch.tensor(lengths))
    generator = torch.Generator().manual_seed(len(lengths))
    return [torch.randn(int(offsets[-1]), w, generator=generator) for w in widths], offsets


def both(net: SideNetwork, lengths: list[int], widths: list[int]) -> None:
    """Compare features, confidence and all gradients of the packed and the padded path."""
    (*targets, anchor), offsets = batch(lengths, widths)
    packed = net(anchor, targets, offsets=offsets)
    packed.features.square().sum().backward()
    grads = [p.grad for p in net.parameters()]
    net.zero_grad()
    padded = [unpack(state, offsets, fill=9.0) for state in (*targets, anchor)]
    mask = padded[0][1]
    output = net(padded[-1][0], [state for state, _ in padded[:-1]], mask=mask)
    output.features[mask].square().sum().backward()
    torch.testing.assert_close(packed.features, output.features[mask], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(packed.confidence, output.confidence)
    torch.testing.assert_close(packed.confidence.sum(1), torch.ones(len(lengths)))
    for ours, other in zip(grads, (p.grad for p in net.parameters()), strict=True):
        torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-3)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_packed_equals_padded(lengths: list[int]) -> None:
    both(build(), lengths, [6] * 4)


@pytest.mark.parametrize(
    "options",
    [
        {"causal": True},
        {"residual": "none", "eps_mode": "clamp"},
        {"residual": "position"},
        {"projection": "mlp", "up": "linear"},
        {"projection": "none", "up": "none", "down_norm": "none", "anchor_skip": False},
        {"down_activation": "relu", "up": "relu_linear_norm"},
        {"input_norm": "layer"},
        {"input_norm": "standard", "add_anchor": True, "out_width": 6},
        {"widths": [6, 3, 6]},
    ],
)
def test_packed_equals_padded_for_every_option(options: dict[str, Any]) -> None:
    net = build(**options)
    both(net, [3, 1, 5, 3], [*net.widths, 6])


def test_packed_multiplies_valid_tokens_only() -> None:
    net, lengths, (n, d, wide) = build(), [2, 9, 4, 2], (3, 4, 6)
    (*targets, anchor), offsets = batch(lengths, [6] * 4)
    with FlopCounterMode(display=False) as counter:
        net(anchor, torch.stack(targets), offsets=offsets)
    tokens = sum(lengths)
    linear = tokens * ((n + 1) * wide * d + d * d + d * 5)  # Down, P, Up
    attention = sum(n * d * (2 * length**2 + 1) for length in lengths)
    assert counter.get_total_flops() == 2 * (linear + attention)


def test_causal_tokens_do_not_see_later_ones() -> None:
    net = build(causal=True)
    states = torch.randn(4, 2, 6, 6)
    changed = states.clone()
    changed[:, :, 4:] = torch.randn(4, 2, 2, 6)
    before, after = (net(s[-1], s[:-1]).features for s in (states, changed))
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])
    open_net = build()
    before, after = (open_net(s[-1], s[:-1]).features for s in (states, changed))
    assert not torch.allclose(before[:, :4], after[:, :4])


def test_half_precision_inputs_and_autocast() -> None:
    net = build()
    (*targets, anchor), offsets = batch([3, 5], [6] * 4)
    exact = net(anchor, targets, offsets=offsets).features
    stacked = torch.stack(targets).half()
    half = net(anchor.half(), stacked, offsets=offsets).features
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=5e-3, rtol=5e-3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(anchor.half(), stacked, offsets=offsets)
    mixed.features.float().sum().backward()
    torch.testing.assert_close(mixed.features.float(), exact, atol=0.1, rtol=0.1)


def test_standardised_inputs() -> None:
    plain, net = build(), build(input_norm="standard")
    net.load_state_dict(plain.state_dict(), strict=False)
    (*targets, anchor), offsets = batch([3, 5], [6] * 4)
    mean, scale = torch.randn(6), torch.rand(6) + 0.5
    for position in range(3):
        net.target_down.linear.set_statistics(position, mean, scale)
    net.anchor_down.linear.set_statistics(0, mean, scale)
    shifted = [state * scale + mean for state in targets]
    output = net(anchor * scale + mean, shifted, offsets=offsets)
    expected = plain(anchor, targets, offsets=offsets)
    torch.testing.assert_close(output.features, expected.features, atol=1e-5, rtol=1e-4)


def test_dead_feature_keeps_its_scale() -> None:
    net = build(input_norm="standard")
    net.anchor_down.linear.set_statistics(0, torch.zeros(6), torch.tensor([0.0, 2, 2, 2, 2, 2]))
    assert net.anchor_down.linear.get_buffer("scale_6")[0, 0] == 1.0


@pytest.mark.parametrize("size", [(4, 4), (6, 2)])
def test_maps_of_any_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = ConvSideNetwork(widths=[3, 5], anchor_width=7, side_width=4, out_width=6).eval()
    high, wide = size
    stages = [torch.randn(2, 3, 4 * high, 3 * wide), torch.randn(2, 5, 2 * high, wide)]
    output = net(torch.randn(2, 7, high, wide), stages)
    assert output.features.shape == (2, high * wide, 6)
    assert output.confidence.shape == (2, 2)


def test_maps_that_do_not_divide() -> None:
    net = ConvSideNetwork(widths=[3], anchor_width=7, side_width=4, out_width=6)
    with pytest.raises(ValueError, match="9x8 does not divide into the 4x4 cells"):
        net(torch.randn(1, 7, 4, 4), [torch.randn(1, 3, 9, 8)])


def test_export_with_dynamic_batch_and_length() -> None:
    net = build(input_norm="standard").eval()
    dynamic = torch.export.Dim.DYNAMIC
    axes = ({0: dynamic, 1: dynamic}, {1: dynamic, 2: dynamic}, {0: dynamic, 1: dynamic})
    states, mask = torch.randn(4, 3, 5, 6), torch.arange(5) < torch.tensor([[5], [2], [4]])
    program = torch.export.export(net, (states[-1], states[:-1], mask), dynamic_shapes=axes)
    for rows, length in ((1, 1), (1, 7), (8, 3)):
        states, mask = torch.randn(4, rows, length, 6), torch.ones(rows, length).bool()
        ours = net(states[-1], states[:-1], mask)
        theirs = program.module()(states[-1], states[:-1], mask)
        torch.testing.assert_close(theirs.features, ours.features)


@pytest.mark.parametrize("name", preset_names())
def test_presets_survive_json(name: str) -> None:
    kinds = {c.kind: c for c in (SideNetworkConfig, ConvSideNetworkConfig, EncoderDecoderConfig)}
    config = preset(name, side_width=8)
    stored = config.to_dict()
    assert kinds[stored["kind"]].from_dict(stored) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"up": "down"}, "up='down' is unknown; choose one of none, linear"),
        ({"widths": []}, "at least one target"),
        ({"anchor": "vector"}, "residual='identity' needs anchor='tokens'"),
        ({"anchor": "vector", "residual": "none", "causal": True}, "causal=True needs"),
        ({"add_anchor": True}, "out_width == anchor_width, got 5 and 6"),
        ({"input_norm": "standard", "down_activation": "relu"}, "input_norm='layer'"),
    ],
)
def test_contradicting_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_unfitting_inputs() -> None:
    net = build()
    (*targets, anchor), offsets = batch([3, 5], [6] * 4)
    with pytest.raises(ValueError, match=r"widths \[6, 6\] were given.*\[6, 6, 6\]"):
        net(anchor, targets[:2], offsets=offsets)
    with pytest.raises(ValueError, match="not both"):
        net(anchor, targets, mask=torch.ones(2, 5), offsets=offsets)
    with pytest.raises(ValueError, match="8 packed tokens"):
        net(anchor, targets, offsets=offsets[:-1])
    with pytest.raises(ValueError, match="empty sample"):
        net(anchor, targets, offsets=torch.tensor([0, 3, 3, 8]))
    with pytest.raises(ValueError, match="preset 'bert' is unknown; choose one of text"):
        preset("bert")
    with pytest.raises(ValueError, match=r"unknown options \['depth'\]"):
        SideNetworkConfig.from_dict({**SIZES, "depth": 3})


def test_reference_checkpoint_that_does_not_fit() -> None:
    net = build()
    with pytest.raises(KeyError, match=r"downsample_layers\.0\.0\.bias"):
        import_reference(net, {}, prefix="txt_enc.")


def test_pack_and_unpack_are_inverse() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    padded = torch.randn(2, 2, 3, 4)
    values, offsets = pack(padded, mask)
    assert offsets.tolist() == [0, 2, 3]
    again, again_mask = unpack(values, offsets)
    assert torch.equal(again_mask, mask[:, :2])
    assert torch.equal(again, (padded * mask[..., None])[:, :, :2])
