"""What a training needs before its first step: data, cache, task, model, optimizer.

Each function builds one thing, so that a search over hyperparameters can share the rest.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cache import Cache, Loader, TapSpec
from pipeline.config import ConfigError
from pipeline.data import Dataset, load_dataset
from pipeline.tasks import Task, make_task
from pipeline.training.config import LoopConfig, TrainConfig
from pipeline.training.inference import choose_device
from pipeline.training.samples import Located, locate, select_taps
from unipt import SideClassifier, SideNetworkConfig, preset

TOKEN_PRESETS = ("text", "vse_text", "clip_vil")
"""Presets of `unipt` that take the states of one text encoder."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything a training reads; nothing in it changes while it runs."""

    dataset: Dataset
    cache: Cache
    task: Task
    taps: tuple[TapSpec, ...]
    """Targets in the cache's order, then the anchor."""
    splits: dict[str, Located]
    device: torch.device

    @property
    def tap_names(self) -> tuple[str, ...]:
        """Names of the taps, the anchor last."""
        return tuple(tap.name for tap in self.taps)


def prepare(config: TrainConfig) -> Setup:
    """Read the data, open the cache and find every example in it.

    Raises:
        DataError: the data are unusable, or not in the cache.
        CacheError: the cache is missing, incomplete or damaged.
        ValueError: the options do not fit the data or the cache.
    """
    dataset = load_dataset(config.data)
    cache = Cache.open(config.cache)
    taps = select_taps(cache, config.taps)
    if config.token_drop and not taps[-1].ragged:
        raise ConfigError(
            f"token_drop drops tokens, and {config.cache} holds one vector a text; leave it at 0, "
            "or extract without --pool"
        )
    return Setup(
        dataset=dataset,
        cache=cache,
        task=make_task(
            dataset,
            label_smoothing=config.label_smoothing,
            class_weights=config.class_weights,
        ),
        taps=taps,
        splits={split: locate(dataset, cache, split) for split in dataset.splits},
        device=choose_device(config.device),
    )


def build_model(config: TrainConfig, setup: Setup) -> SideClassifier:
    """Build the side classifier with fresh weights from torch's random generator.

    Raises:
        ValueError: the preset is unknown, or is not one for token states.
    """
    width = setup.taps[-1].shape[0]
    sizes = {
        "widths": tuple(tap.shape[0] for tap in setup.taps[:-1]),
        "anchor_width": width,
        "side_width": config.side_width or max(1, round(width / config.reduction)),
        "out_width": config.out_width or width,
    }
    if config.preset not in TOKEN_PRESETS:
        known = ", ".join(TOKEN_PRESETS)
        raise ConfigError(f"preset {config.preset!r} is not one for sentences; choose from {known}")
    side = preset(config.preset, **sizes)
    if not isinstance(side, SideNetworkConfig):
        raise TypeError(f"preset {config.preset!r} does not take token states")
    if config.input_norm is not None:
        side = dataclasses.replace(side, input_norm=config.input_norm)
    return SideClassifier(
        side=side,
        num_outputs=setup.task.num_outputs,
        pooling=config.pooling,
        dropout=config.dropout,
        segments=setup.dataset.segments,
    )


def make_loader(config: TrainConfig, setup: Setup) -> Loader:
    """Return the shuffled loader of the training examples."""
    return Loader(
        setup.cache,
        setup.splits["train"].samples,
        taps=setup.tap_names,
        batch_size=config.batch_size,
        seed=config.seed,
        tier=config.tier,
        device=setup.device,
    )


def make_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on weight matrices only: no norms, biases, single numbers."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module, name, parameter in _own_parameters(model):
        is_norm = "norm" in type(module).__name__.lower()
        spared = is_norm or name.endswith("bias") or not parameter.dim()
        (plain if spared else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2))


def _own_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                yield module, name, parameter


def set_statistics(model: SideClassifier, loader: Loader) -> None:
    """Give the model the mean and deviation of the training states, one pass over them.

    Sums are kept in float64, tap by tap, so the result does not depend on the batch size by more
    than rounding.
    """
    count = 0
    total: Tensor | None = None
    squares: Tensor | None = None
    for batch in loader.epoch(0):
        states = batch.values.cpu().double()  # [N + 1, T, D]
        count += states.shape[1]
        total = states.sum(1) if total is None else total + states.sum(1)
        square = states.square().sum(1)
        squares = square if squares is None else squares + square
    if total is None or squares is None:
        raise ValueError("there are no training examples to take statistics from")
    mean = total / count  # [N + 1, D]
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    reducers = [model.side.target_down.linear] * (len(mean) - 1) + [model.side.anchor_down.linear]
    for number, reducer in enumerate(reducers):
        position = number if number < len(mean) - 1 else 0
        reducer.set_statistics(position, mean[number].float(), deviation[number].float())


def rescale_outputs(model: SideClassifier, scale: float, shift: float) -> None:
    """Fold `outputs * scale + shift` into the output layer, so that it gives the target's units."""
    output = model.head[-1]
    if not isinstance(output, nn.Linear):
        raise TypeError(f"the head must end in a Linear, not {type(output).__name__}")
    with torch.no_grad():
        output.weight.mul_(scale)
        output.bias.mul_(scale).add_(shift)


def identity(config: TrainConfig, setup: Setup) -> str:
    """Return what must be equal for a training to be continued, as JSON text."""
    settings = config.model_dump(mode="json", exclude={"out", "cache"})
    digest = hashlib.blake2b(digest_size=16)
    for name, split in setup.splits.items():
        for example in split.examples:
            digest.update(b"".join(text.key() for text in example.inputs))
            digest.update(f"{name}:{example.target}".encode())
    return json.dumps(
        {
            "config": settings,
            "cache": setup.cache.fingerprint.digest,
            "taps": setup.tap_names,
            "examples": digest.hexdigest(),
        },
        sort_keys=True,
    )
