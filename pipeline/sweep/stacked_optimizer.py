"""One AdamW step for all trials of a cohort, each with its own rates, decay, clipping and average.

Weights, gradients and moments are ``[K, P]``, a row a trial. The step goes through them in blocks
that stay in the processor's cache (one block on a GPU), with every trial's factors as a column
``[K, 1]``: one reading of gradient, moments and weights each, however many operations.

K trials, P numbers of one trial's weights, the first ones with weight decay.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.training.config import LoopConfig
from pipeline.training.ema import warm_decay
from pipeline.training.loop import learning_rate

BETA1, EPS = 0.9, 1e-8
"""As `torch.optim.AdamW` has them by default, and so `make_optimizer`."""
BLOCK = 2**17
"""Numbers of each tensor in work at once on a CPU."""


class StackedAdamW:
    """AdamW over the rows of a weight matrix, as `make_optimizer` and `run_loop` do it alone.

    Args:
        configs: of the trials; their rates, decay, clip, schedule and EMA are used.
        flat: the weights, ``[K, P]``.
        decayed: columns with weight decay, the first ones.
        steps_per_epoch: batches of an epoch, for the schedules' lengths.

    Attributes:
        mean, square: first and second moments, ``[K, P]``.
        average: EMA of the weights, ``[K, P]``; None if no trial keeps one.
        alive: ``[K]``, false from the step on at which loss or gradient was not finite; the
            trial's weights and moments stay as they were before that step.
        failure: step, loss and gradient norm of that step, ``[K, 3]``.
    """

    def __init__(
        self, configs: Sequence[LoopConfig], flat: Tensor, *, decayed: int, steps_per_epoch: int
    ) -> None:
        self.configs = list(configs)
        self.decayed, self.steps_per_epoch = decayed, steps_per_epoch
        self.mean, self.square = torch.zeros_like(flat), torch.zeros_like(flat)
        averaged = any(config.ema for config in configs)
        self.average = flat.detach().clone() if averaged else None
        self.alive = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
        self.failure = torch.zeros(len(flat), 3, device=flat.device)

    def rate(self, trial: int, step: int) -> float:
        """Learning rate of a trial at a step, counted from 0."""
        config = self.configs[trial]
        return learning_rate(config, step, config.epochs * self.steps_per_epoch)

    @torch.no_grad()
    def step(self, flat: Tensor, grad: Tensor, losses: Tensor, step: int) -> None:
        """Take step number `step` (from 0) with gradients ``[K, P]``; `losses` are ``[K]``."""
        norms = torch.linalg.vector_norm(grad, dim=1)  # [K]
        finite = torch.isfinite(norms) & torch.isfinite(losses)
        at = torch.stack((torch.full_like(norms, step), losses.detach(), norms), 1)
        self.failure = torch.where((self.alive & ~finite)[:, None], at, self.failure)
        self.alive &= finite
        factors = self._factors(step).to(flat.device)  # [6, K, 1]
        clip = (factors[0] / (norms[:, None] + 1e-6)).clamp_max(1.0)  # as clip_grad_norm_
        factors[0] = torch.where(self.alive[:, None], clip, 0.0)
        trials, numbers = flat.shape
        width = numbers if flat.is_cuda else max(1, BLOCK // trials)
        starts = sorted({*range(0, numbers, width), self.decayed} - {numbers})
        for begin, end in zip(starts, [*starts[1:], numbers], strict=True):
            self._update(flat, grad, slice(begin, end), factors)

    def _factors(self, step: int) -> Tensor:
        """Clip, rate, kept share, 1 - beta2, sqrt of the second correction, EMA share."""
        rows = []
        for trial, config in enumerate(self.configs):
            rate = self.rate(trial, step)
            second = 1 - config.beta2 ** (step + 1)
            follow = 1 - warm_decay(config.ema, step) if config.ema else 1.0
            rows.append(
                (
                    config.clip or math.inf,
                    rate / (1 - BETA1 ** (step + 1)),
                    1 - rate * config.weight_decay,
                    1 - config.beta2,
                    math.sqrt(second),
                    follow,
                )
            )
        return torch.tensor(rows, dtype=torch.float32).T[..., None]

    def _update(self, flat: Tensor, grad: Tensor, columns: slice, factors: Tensor) -> None:
        """Update the weights, moments and averages of one block of columns."""
        clip, rate, kept, new, correction, follow = factors
        alive = self.alive[:, None]
        weights, mean, square = flat[:, columns], self.mean[:, columns], self.square[:, columns]
        gradient = torch.where(alive, grad[:, columns], 0.0).mul_(clip)
        mean.lerp_(gradient, 1 - BETA1)
        square.mul_(1 - new).add_(gradient.square_().mul_(new))
        change = mean / square.sqrt().div_(correction).add_(EPS)
        change = torch.where(alive, change.mul_(rate), 0.0)
        if columns.start < self.decayed:
            weights.mul_(torch.where(alive, kept, 1.0))
        weights.sub_(change)
        if self.average is not None:
            average = self.average[:, columns]
            average.add_((weights - average).mul_(follow))

    def select(self, rows: Sequence[int]) -> None:
        """Keep the trials at `rows`, in this order."""
        chosen = list(rows)
        self.configs = [self.configs[row] for row in chosen]
        self.mean, self.square = self.mean[chosen], self.square[chosen]
        self.average = None if self.average is None else self.average[chosen]
        self.alive, self.failure = self.alive[chosen], self.failure[chosen]
