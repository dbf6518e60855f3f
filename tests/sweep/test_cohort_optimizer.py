"""StackedAdamW: each row is torch's AdamW with its own options, block by block."""

from pathlib import Path

import pytest
import torch

from pipeline.sweep import stacked_optimizer
from pipeline.sweep.stacked_optimizer import StackedAdamW
from pipeline.training.config import LoopConfig
from pipeline.training.loop import learning_rate

STEPS, NUMBERS, DECAYED = 12, 97, 40


@pytest.mark.parametrize("block", [10, 2**17])
def test_rows_are_torchs_adamw(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked_optimizer, "BLOCK", block)
    shared = {"out": Path("unused"), "epochs": 4}
    configs = [
        LoopConfig(**shared, lr=1e-2, weight_decay=0.3, clip=0.5),
        LoopConfig(**shared, lr=3e-3, weight_decay=0.0, clip=0.0, beta2=0.9, schedule="linear"),
        LoopConfig(**shared, lr=1e-3, ema=0.8, schedule="step", warmup=0.3),
    ]
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(3, NUMBERS, generator=generator)
    rows = [row.clone() for row in flat]
    stacked = StackedAdamW(configs, flat, decayed=DECAYED, steps_per_epoch=3)
    alone, averages = [], [row.clone() for row in rows]
    for row, config in zip(rows, configs, strict=True):
        groups = [
            {"params": [row[:DECAYED].requires_grad_()], "weight_decay": config.weight_decay},
            {"params": [row[DECAYED:].requires_grad_()], "weight_decay": 0.0},
        ]
        alone.append(torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2)))
    for step in range(STEPS):
        grad = torch.randn(3, NUMBERS, generator=generator)
        for number, (optimizer, config) in enumerate(zip(alone, configs, strict=True)):
            parts = [group["params"][0] for group in optimizer.param_groups]
            for part, own in zip(parts, (slice(0, DECAYED), slice(DECAYED, None)), strict=True):
                part.grad = grad[number, own].clone()
            if config.clip:
                torch.nn.utils.clip_grad_norm_(parts, config.clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, STEPS)
            optimizer.step()
            decay = min(config.ema, (1 + step) / (10 + step))
            averages[number] = torch.lerp(averages[number], torch.cat(parts).detach(), 1 - decay)
        stacked.step(flat, grad, torch.zeros(3), step)
        for number, optimizer in enumerate(alone):
            expected = torch.cat([group["params"][0] for group in optimizer.param_groups])
            torch.testing.assert_close(flat[number], expected.detach(), rtol=1e-5, atol=1e-6)
    assert stacked.average is not None
    torch.testing.assert_close(stacked.average[2], averages[2], rtol=1e-5, atol=1e-6)


def test_a_row_that_is_not_finite_stays_where_it_was() -> None:
    configs = [LoopConfig(out=Path("unused")) for _ in range(3)]
    flat = torch.ones(3, NUMBERS)
    stacked = StackedAdamW(configs, flat, decayed=DECAYED, steps_per_epoch=3)
    grad = torch.ones(3, NUMBERS)
    grad[1, 5] = torch.inf
    stacked.step(flat, grad, torch.tensor([1.0, 2.0, torch.nan]), 0)
    stacked.step(flat, torch.ones(3, NUMBERS), torch.ones(3), 1)
    assert stacked.alive.tolist() == [True, False, False]
    assert torch.equal(flat[1:], torch.ones(2, NUMBERS))
    assert (flat[0] < 1).all()
    assert stacked.failure[1, :2].tolist() == [0.0, 2.0]
    assert stacked.failure[1, 2].isinf()
    assert stacked.failure[2, 1].isnan()
    stacked.select([0])
    assert stacked.mean.shape == (1, NUMBERS)
    assert stacked.mean.isfinite().all()
