"""What a training needs before its first step: data, cache, task, model, optimizer.

Each function builds one thing, so that a search over hyperparameters can share the rest.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cache import Cache, Loader, TapSpec
from pipeline.config import ConfigError
from pipeline.data import Dataset, load_dataset
from pipeline.tasks import Task, make_task
from pipeline.training.config import LoopConfig, TrainConfig
from pipeline.training.inference import Outputs, choose_device, run_model
from pipeline.training.samples import Located, locate, select_taps
from unipt import SideClassifier, SideNetworkConfig, preset

TOKEN_PRESETS = ("text", "vse_text", "clip_vil")
"""Presets of `unipt` that take the states of one text encoder."""


CACHED_ROWS = 256
"""Tokens whose float64 copies stay in the processor's cache."""


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


def prepare(
    config: TrainConfig, *, dataset: Dataset | None = None, cache: Cache | None = None
) -> Setup:
    """Read the data, open the cache and find every example in it.

    Args:
        config: of the training.
        dataset: the data of `config`, where they were read before.
        cache: the cache of `config`, where it was opened before.

    Raises:
        DataError: the data are unusable, or not in the cache.
        CacheError: the cache is missing, incomplete or damaged.
        ValueError: the options do not fit the data or the cache.
    """
    dataset = dataset or load_dataset(config.data)
    cache = cache or Cache.open(config.cache)
    taps = select_taps(cache, config.taps)
    if config.token_drop and not taps[-1].ragged:
        raise ConfigError(
            f"token_drop drops tokens, and {config.cache} holds one vector a text; leave it at 0, "
            "or extract without --pool"
        )
    if config.max_tokens is not None and not taps[-1].ragged:
        raise ConfigError(
            f"max_tokens bounds the tokens of a batch, and {config.cache} holds one vector a text; "
            "leave it out and set batch_size, or extract without --pool"
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
        max_tokens=config.max_tokens,
        seed=config.batch_seed,
        tier=config.tier,
        device=setup.device,
    )


def split_outputs(model: SideClassifier, setup: Setup, split: str, batch_size: int) -> Outputs:
    """Return the model's outputs for the examples of a split, in their order."""
    return run_model(
        model,
        setup.cache,
        setup.splits[split].samples,
        taps=setup.tap_names,
        batch_size=batch_size,
        device=setup.device,
    )


def target_tensor(setup: Setup) -> Tensor:
    """Return the targets of the training examples, [n]."""
    targets = setup.splits["train"].targets
    if targets is None:
        raise ConfigError("the split 'train' has no targets to train on")
    return torch.from_numpy(targets)


def make_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on weight matrices only, see `decayed_names`."""
    parameters, (decayed, plain) = dict(model.named_parameters()), decayed_names(model)
    groups = [
        {"params": [parameters[name] for name in decayed], "weight_decay": config.weight_decay},
        {"params": [parameters[name] for name in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2))


def decayed_names(model: nn.Module) -> tuple[list[str], list[str]]:
    """Name the trained parameters with weight decay, and those without.

    Norms, biases and single numbers have none.
    """
    decayed: list[str] = []
    plain: list[str] = []
    for path, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if parameter.requires_grad:
                spared = is_norm or name.endswith("bias") or not parameter.dim()
                (plain if spared else decayed).append(name)
    return decayed, plain


def set_statistics(model: SideClassifier, loader: Loader) -> None:
    """Give the model the mean and deviation of the training states, one pass over them."""
    apply_statistics(model, *state_statistics(loader))


def state_statistics(loader: Loader) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each feature of the training states, [N + 1, D] each.

    Sums are kept in float64, tap by tap, so the result does not depend on the batch size by more
    than rounding.
    """
    count = 0
    total: Tensor | None = None
    squares: Tensor | None = None
    for batch in loader.epoch(0):
        states = batch.values.cpu()  # [N + 1, T, D]
        count += states.shape[1]
        if total is None or squares is None:
            total = states.new_zeros(len(states), states.shape[2], dtype=torch.float64)
            squares = torch.zeros_like(total)
        for tap, rows in enumerate(states):
            for part in rows.split(CACHED_ROWS):
                values = part.double()
                total[tap] += values.sum(0)
                squares[tap] += values.square().sum(0)
    if total is None or squares is None:
        raise ValueError("there are no training examples to take statistics from")
    mean = total / count  # [N + 1, D]
    return mean, (squares / count - mean.square()).clamp_min(0).sqrt()


def apply_statistics(model: SideClassifier, mean: Tensor, deviation: Tensor) -> None:
    """Give the model the result of `state_statistics`."""
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
        if model.memory is not None:
            model.memory.values.mul_(scale)


def identity(config: TrainConfig, setup: Setup) -> str:
    """Return what must be equal for a training to be continued, as JSON text."""
    unset = {name for name in ("order_seed", "max_tokens") if getattr(config, name) is None}
    settings = config.model_dump(mode="json", exclude={"out", "cache"} | unset)
    if config.data.group_column is None:
        del settings["data"]["group_column"]
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
