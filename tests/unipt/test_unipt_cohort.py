"""StackedClassifiers: every trial of a cohort computes what its classifier computes alone."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Generator, Tensor

from unipt import SideClassifier, SideNetworkConfig, StackedClassifiers, preset
from unipt.packed import lengths_to_offsets
from unipt.pooling import TokenPoolingKind

WIDTH = 6
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def build(seed: int, name: str = "text", dropout: float = 0.0, **options: Any) -> SideClassifier:
    sizes = {"widths": (WIDTH,) * 3, "anchor_width": WIDTH, "side_width": 4, "out_width": 5}
    side = preset(name, **sizes, **options.pop("side", {}))
    assert isinstance(side, SideNetworkConfig)
    torch.manual_seed(seed)
    model = SideClassifier(side=side, num_outputs=3, dropout=dropout, **options)
    for parameter in model.parameters():  # norms too must differ between trials
        torch.nn.init.normal_(parameter, std=0.3)
    if side.input_norm == "standard":
        generator = Generator().manual_seed(7)
        for down in (model.side.target_down, model.side.anchor_down):
            for layer in range(len(down.linear.widths)):
                mean, scale = torch.rand(2, WIDTH, generator=generator) + 0.5
                down.linear.set_statistics(layer, mean, scale)
    return model


def batch(lengths: tuple[int, ...] = (3, 1, 5, 3, 2, 5)) -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(1)
    states = torch.randn(4, sum(lengths), WIDTH, generator=generator)
    return states, lengths_to_offsets(torch.tensor(lengths))


def assert_like_alone(models: list[SideClassifier], stacked: StackedClassifiers) -> None:
    """Outputs and gradients of each trial, the generators of dropout as alone."""
    states, offsets = batch()
    outputs = stacked(states, offsets)
    outputs.logits.square().sum().backward()
    assert stacked.flat.grad is not None
    for trial, model in enumerate(models):
        torch.manual_seed(100 + trial)
        alone = model(states, offsets=offsets)
        torch.testing.assert_close(outputs.logits[trial], alone.logits, **CLOSE)
        torch.testing.assert_close(outputs.confidence[trial], alone.confidence, **CLOSE)
        alone.logits.square().sum().backward()
        grads = stacked.named(stacked.flat.grad[trial])
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-4, atol=1e-5)


def stack(models: list[SideClassifier], together: bool = False) -> StackedClassifiers:
    generators = [Generator().manual_seed(100 + trial) for trial in range(len(models))]
    return StackedClassifiers(models, generators=generators, together=together)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("name", ["text", "vse_text", "clip_vil"])
def test_presets_and_segments(name: str, segments: int, together: bool) -> None:
    models = [build(seed, name, segments=segments, dropout=seed / 4) for seed in range(3)]
    assert_like_alone(models, stack(models, together))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("pooling", get_args(TokenPoolingKind))
def test_poolings(pooling: str, together: bool) -> None:
    models = [build(seed, pooling=pooling) for seed in range(3)]
    assert_like_alone(models, stack(models, together))


@pytest.mark.parametrize("input_norm", ["none", "layer", "standard"])
@pytest.mark.parametrize("projection", ["none", "linear", "mlp"])
def test_input_norms_and_projections(input_norm: str, projection: str) -> None:
    side = {"input_norm": input_norm, "projection": projection, "up": "relu_linear_norm"}
    models = [build(seed, side=side, norm=False, hidden=4) for seed in range(2)]
    assert_like_alone(models, stack(models))


def test_dropout_draws_what_each_trial_draws_alone() -> None:
    shares = [0.3, 0.0, 0.6]
    models = [build(seed, dropout=share, hidden=8) for seed, share in enumerate(shares)]
    assert_like_alone(models, stack(models))


@pytest.mark.parametrize("together", [False, True])
def test_a_trial_that_is_not_finite_spoils_no_other(together: bool) -> None:
    models = [build(seed) for seed in range(3)]
    alone = [build(0), build(2)]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.fill_(torch.nan)
    stacked = stack(models, together)
    states, offsets = batch()
    outputs = stacked(states, offsets)
    outputs.logits.sum().backward()
    assert stacked.flat.grad is not None
    assert outputs.logits[1].isnan().all()
    for trial, model in zip((0, 2), alone, strict=True):
        expected = model(states, offsets=offsets).logits
        torch.testing.assert_close(outputs.logits[trial], expected, **CLOSE)
        assert stacked.flat.grad[trial].isfinite().all()


def test_rows_go_out_and_come_in() -> None:
    models = [build(seed, dropout=seed / 10) for seed in range(4)]
    order = sorted(dict(models[0].named_parameters()))
    stacked = StackedClassifiers(models[:3], order=order)
    stacked.select([2, 0])
    stacked.append([models[3]])
    assert stacked.dropout == [0.2, 0.0, 0.3]
    for trial, number in enumerate((2, 0, 3)):
        state = models[number].state_dict()
        extracted = stacked.extract(trial)
        assert list(extracted) == list(state)
        assert all(torch.equal(extracted[name], state[name]) for name in state)
    begin, end = stacked.columns["head.1.bias"]
    assert torch.equal(stacked.flat[2, begin:end], models[3].head[1].bias)


def test_what_cannot_be_stacked_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        StackedClassifiers([])
    with pytest.raises(ValueError, match="one shape"):
        StackedClassifiers([build(0), build(0, pooling="max")])
    with pytest.raises(ValueError, match="causal"):
        StackedClassifiers([build(0, side={"causal": True})])
    other = build(1)
    other.side.target_down.linear.set_statistics(0, torch.ones(WIDTH), torch.ones(WIDTH))
    with pytest.raises(ValueError, match="same rows"):
        StackedClassifiers([build(0), other])
    with pytest.raises(ValueError, match="every parameter once"):
        StackedClassifiers([build(0)], order=["head.1.bias"])
    states, offsets = batch()
    with pytest.raises(ValueError, match="offsets"):
        StackedClassifiers([build(0)])(states, offsets[:-1])
