"""Adds a closed-form memory to a trained side classifier: kernel regression on the layers' means.

The side network is trained as without it. The memory is fitted on the training rows, and how much
it counts is chosen by the dev loss of both outputs' weighted sum (stacking, Wolpert 1992).
Memory: `MAX_ROWS` rows of features twice in float64. Time: one pass over train and dev, and
a system of [M, M] for M keys; about 20 s on one core for 4,096.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from cache import Loader
from pipeline.training.build import Setup, rescale_outputs, split_outputs, target_tensor
from pipeline.training.config import TrainConfig
from unipt import SideClassifier
from unipt.bases import KernelRegression, KernelRows
from unipt.classifier import combine_segments, halves, layer_means

__all__ = ["MAX_ROWS", "add_memory"]

MAX_ROWS = 16_384
"""Training rows that a memory is fitted on, at most; of more, a random choice."""


def add_memory(
    config: TrainConfig, setup: Setup, model: SideClassifier
) -> tuple[SideClassifier, float]:
    """Return the classifier with a memory, and how much that counts; `model` is left as it is.

    Args:
        config: keys, sharpness, penalty and weight; the seed chooses rows and keys.
        setup: data and cache; dev chooses the weight, where none is given.
        model: trained, with outputs in the task's own units.
    """
    keys = min(config.memory_keys, MAX_ROWS, len(setup.splits["train"].samples))
    with torch.random.fork_rng():
        whole = SideClassifier.from_config({**model.config, "memory": keys})
    whole.load_state_dict(model.state_dict(), strict=False)
    if whole.memory is None:
        raise ValueError(f"memory_keys={config.memory_keys} asks for no memory")
    _fit(config, setup, whole.memory)
    network, remembered = 1.0, config.memory_weight
    if remembered is None:
        network, remembered = _weights(config, setup, model, whole.memory)
    whole.memory.values.mul_(remembered / network)
    rescale_outputs(whole, network, 0.0)
    return whole, remembered / network


def _fit(config: TrainConfig, setup: Setup, memory: KernelRegression) -> None:
    train = setup.splits["train"]
    random = np.random.default_rng(config.seed)
    rows = np.sort(random.permutation(len(train.samples))[:MAX_ROWS])
    keys = np.sort(random.permutation(len(rows))[: len(memory.keys)])
    wanted, weights = setup.task.aims(target_tensor(setup)[torch.from_numpy(rows)])
    memory.fit(
        KernelRows.of(_features(config, setup, train.samples[rows]), torch.from_numpy(keys)),
        wanted,
        sharpness=config.memory_sharpness,
        ridge=config.memory_penalty,
        weights=weights,
    )


def _weights(
    config: TrainConfig, setup: Setup, model: SideClassifier, memory: KernelRegression
) -> tuple[float, float]:
    """Return the weights of the network's and the memory's outputs that give the least dev loss."""
    dev = setup.splits["dev"]
    network = split_outputs(model, setup, "dev", config.batch_size)
    remembered = memory(_features(config, setup, dev.samples))
    parts = torch.stack((torch.from_numpy(network.logits), remembered)).double()  # [2, n, C]
    targets = torch.from_numpy(dev.targets)

    def loss(logs: NDArray[np.float64]) -> float:
        weights = torch.from_numpy(np.exp(logs))[:, None, None]
        held = 1e-3 * float(np.square(logs).sum())  # gives an end where one of them is useless
        return float(setup.task.loss((weights * parts).sum(0), targets)) + held

    found = np.exp(minimize(loss, np.zeros(2), method="Nelder-Mead").x)
    return float(found[0]), float(found[1])


@torch.inference_mode()
def _features(config: TrainConfig, setup: Setup, samples: NDArray[np.int64]) -> Tensor:
    """Return what the memory sees of `samples` [n] or [n, 2], on the CPU, [n, F]."""
    loader = Loader(
        setup.cache,
        samples,
        taps=setup.tap_names,
        batch_size=config.batch_size,
        seed=0,
        shuffle=False,
        device=setup.device,
    )
    found = []
    for batch in loader.epoch(0):
        means = layer_means(batch.values.float(), offsets=batch.offsets)
        found.append((means if samples.ndim == 1 else combine_segments(*halves(means))).cpu())
    return torch.cat(found)
