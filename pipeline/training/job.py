"""One training of whatever system: its model, optimizer and loss, as the loop takes them."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.systems import Setup
from pipeline.systems.augment import batch_generator
from pipeline.systems.config import LoopConfig, TrainConfig
from pipeline.systems.states import Change, tower_states
from pipeline.tasks.base import Moment
from pipeline.training.judge import judge_split
from pipeline.training.loop import Job
from pipeline.training.statistics import set_statistics
from unipt import SideModel, States

__all__ = ["decayed_names", "make_job", "make_model", "make_optimizer", "training_states"]


def make_model(config: TrainConfig, setup: Setup) -> SideModel:
    """Return the fresh side model, with its input statistics and what is fitted in closed form.

    Its weights come from torch's random generator.

    Raises:
        ConfigError: options do not fit each other, the data or the caches.
    """
    model = setup.system.build(config, setup)
    set_statistics(model, setup)
    setup.system.fit(model, config, setup)
    return model


def make_job(config: TrainConfig, setup: Setup, model: SideModel) -> Job:
    """Return what trains `model`, which goes to the setup's device."""
    model = model.to(setup.device)
    train = setup.splits["train"]
    targets = setup.task.targets(train.examples, train.clean)
    low = config.precision == "bfloat16"

    def loss_of(batch: Any, now: Moment) -> Tensor:
        states = training_states(config, setup, batch, now)
        with torch.autocast(setup.device.type, torch.bfloat16, enabled=low):
            outputs = model(states)
        loss: Tensor = setup.task.loss(outputs, targets.batch(batch.index), now)
        return loss

    def score_dev() -> dict[str, float]:
        if "dev" not in setup.splits:
            return {}
        return judge_split(setup, model, "dev", batch_size=config.batch_size).metrics()

    return Job(
        model=model,
        optimizer=make_optimizer(model, config),
        loss_of=loss_of,
        score_dev=score_dev,
        metric=setup.task.metrics[0],
    )


def training_states(
    config: TrainConfig, setup: Setup, batch: Any, now: Moment
) -> dict[str, States]:
    """Return a batch's states of each tower, augmented; the noise depends on the batch alone."""
    options = config.towers
    changed = any(each.noise or each.drop for each in options.values())
    generator = None
    if changed:
        generator = batch_generator(config.batch_seed, now.epoch, now.batch, setup.device)
    found = {}
    for name, part in batch.parts.items():
        own, change = options[name], None
        if generator is not None and (own.noise or own.drop):
            change = Change(own.noise, own.drop, generator)
        found[name] = tower_states(part, setup.taps[name], setup.device, change)
    return found


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
