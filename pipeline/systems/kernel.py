"""Fits kernel regressions on cached means of all layers: the one place where they are fitted.

Memory: `MAX_ROWS` rows of features twice in float64. Time: one pass over the rows, and a system of
[M, M] for M keys; about 20 s on one core for 4,096. What does not change between trainings (the
features, the distances of rows and keys) is remembered for those that follow.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from pipeline.data import Ints
from pipeline.systems.base import Setup
from pipeline.systems.inference import infer, run_passes
from pipeline.tasks.base import Moment
from unipt import Outputs, SideClassifier, SideTower, States
from unipt.bases import KernelRegression, KernelRows
from unipt.classifier import joined

__all__ = ["MAX_ROWS", "add_kernel", "fit_kernel", "means_of", "samples_key"]

MAX_ROWS = 32_768
"""Rows that a kernel regression is fitted on, at most; of more, a random choice."""
BATCH = 64


def means_of(setup: Setup, side: SideTower, tower: str, samples: Ints) -> Tensor:
    """Return the mean over tokens, cells and frames of all layers of a side tower, [n, F].

    Args:
        setup: caches and taps.
        side: reads the layers.
        tower: whose samples they are.
        samples: [n].
    """

    def make() -> Tensor:
        return _inferred(setup, {tower: samples}, lambda towers: side.layer_means(towers[tower]))

    key = ("means", *place(setup, tower), samples_key(samples))
    return setup.memo.get(key, make, lambda found: found.nbytes)


def place(setup: Setup, tower: str) -> tuple[Any, ...]:
    """Return the cache and the taps of a tower, on which its features depend."""
    return str(setup.caches[tower].path), setup.taps[tower].names


def fit_kernel(
    kernel: KernelRegression,
    setup: Setup,
    features: Callable[[], Tensor],
    keys: Ints,
    wanted: Tensor,
    *,
    key: tuple[Any, ...],
    gamma: float,
    ridge: float,
    weights: Tensor | None = None,
) -> None:
    """Fit a kernel regression, or take what an equal fit gave.

    Args:
        kernel: takes rows and coefficients.
        setup: remembers.
        features: gives those of the rows, [n, F].
        keys: positions of the rows that are kept as keys, [M].
        wanted: what the rows should be mapped to, [n, E].
        key: everything that the features depend on.
        gamma: inverse square of the kernel's width, in units of a feature's deviation.
        ridge: weight of the penalty.
        weights: of the rows, [n]; 1 by default.
    """
    rows = setup.memo.get(
        ("kernel rows", *key, samples_key(keys)),
        lambda: KernelRows.of(features(), torch.from_numpy(keys)),
        lambda found: found.nbytes,
    )
    told = None if weights is None else weights.numpy().tobytes()

    def solve() -> Tensor:
        kernel.fit(rows, wanted, gamma=gamma, ridge=ridge, weights=weights)
        return kernel.values.clone()

    whole = ("kernel", *key, samples_key(keys), wanted.numpy().tobytes(), gamma, ridge, told)
    values = setup.memo.get(whole, solve, lambda found: found.nbytes)
    kernel.load_state_dict(
        {
            "mean": rows.mean,
            "scale": rows.scale,
            "keys": rows.keys,
            "values": values,
            "gamma": torch.tensor(gamma),
        }
    )


def samples_key(samples: Ints) -> bytes:
    """Return what is equal for equal sample numbers of equal shape."""
    return str(samples.shape).encode() + samples.astype("<i8").tobytes()


def add_kernel(
    model: SideClassifier,
    setup: Setup,
    *,
    keys: int,
    weight: float | None,
    gamma: float,
    ridge: float,
    seed: int,
    batch_size: int,
) -> tuple[SideClassifier, float]:
    """Return a trained classifier with a kernel regression added to its outputs, and its weight.

    How much it counts is chosen by the dev loss of both outputs' weighted sum (stacking, Wolpert
    1992). `model` is left as it is.

    Args:
        model: trained.
        setup: data and caches.
        keys: training rows kept, at most.
        weight: of the kernel regression, the network having 1; None lets dev choose.
        gamma: see `fit_kernel`.
        ridge: see `fit_kernel`.
        seed: chooses rows and keys.
        batch_size: examples of a pass.
    """
    train = setup.splits["train"]
    random = np.random.default_rng(seed)
    rows = np.sort(random.permutation(len(train))[:MAX_ROWS])
    count = min(keys, len(rows))
    chosen = np.sort(random.permutation(len(rows))[:count])
    with torch.random.fork_rng():
        whole = SideClassifier.from_config({**model.config, "kernel_keys": count})
    whole.load_state_dict(model.state_dict(), strict=False)
    if whole.kernel is None:
        raise ValueError(f"keys={keys} asks for no kernel regression")
    targets = setup.task.targets(train.examples, train.clean).batch(torch.from_numpy(rows))
    wanted, weights = setup.task.wanted(targets)
    own = tuple((*place(setup, name), samples_key(train.clean[name][rows])) for name in setup.taps)
    fit_kernel(
        whole.kernel,
        setup,
        lambda: _features(model, setup, train.clean, rows),
        chosen,
        wanted,
        key=own,
        gamma=gamma,
        ridge=ridge,
        weights=weights,
    )
    network, kernel = 1.0, weight
    if kernel is None:
        network, kernel = _weights(setup, model, whole.kernel, batch_size)
    whole.kernel.values.mul_(kernel)
    whole.weigh(network)
    return whole, kernel / network


def _weights(
    setup: Setup, model: SideClassifier, kernel: KernelRegression, batch_size: int
) -> tuple[float, float]:
    """Return the weights of the network's and the kernel's outputs that give the least dev loss."""
    dev = setup.splits["dev"]
    (found,) = run_passes(model, setup, dev, batch_size=batch_size)
    scale, shift = (model.scale.cpu(), model.shift.cpu()) if model.units else (1.0, 0.0)
    network = (found.values["logits"] - shift) / scale
    with torch.inference_mode():
        smoothed = kernel(_features(model, setup, dev.clean, np.arange(len(dev))))
    parts = torch.stack((network, smoothed)).double()  # [2, n, C]
    targets = setup.task.targets(dev.examples, dev.clean).batch(torch.arange(len(dev)))

    def loss(logs: Any) -> float:
        weights = torch.from_numpy(np.exp(logs))[:, None, None]
        held = 1e-3 * float(np.square(logs).sum())  # gives an end where one of them is useless
        outputs = Outputs({"logits": (weights * parts).sum(0) * scale + shift})
        return float(setup.task.loss(outputs, targets, Moment(0, 0, 1))) + held

    best = np.exp(minimize(loss, np.zeros(2), method="Nelder-Mead").x)
    return float(best[0]), float(best[1])


def _features(
    model: SideClassifier, setup: Setup, samples: Mapping[str, Ints], rows: Ints
) -> Tensor:
    """Return what a classifier's kernel regression sees of examples, [n, F]."""
    chosen = {tower: samples[tower][rows] for tower in model.segments}
    return _inferred(
        setup,
        chosen,
        lambda towers: joined([model.tower.layer_means(towers[n]) for n in model.segments]),
    )


def _inferred(
    setup: Setup,
    samples: Mapping[str, Ints],
    call: Callable[[Mapping[str, States]], Tensor],
) -> Tensor:
    found = infer(
        lambda towers: Outputs({"features": call(towers)}),
        samples,
        setup.caches,
        setup.taps,
        batch_size=BATCH,
        device=torch.device("cpu"),
    )
    return found.values["features"]
