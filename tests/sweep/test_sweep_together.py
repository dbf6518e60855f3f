"""Trainings that share each read of the caches are what each is alone, whatever is beside it."""

from pathlib import Path
from typing import Any

import pairkit
import pytest
import torch
from pairkit import pair_config
from stagekit import cached, settings, train_config, write_pairs, write_rows
from sweepkit import sweep_config

from pipeline.sweep import SweepConfig
from pipeline.sweep.batches import _parts, batches_key, epoch_bytes
from pipeline.sweep.trainer import Trainer
from pipeline.sweep.units import (
    Replicate,
    TrainingHistory,
    Unit,
    replicate_config,
    replicates_of,
    state_path,
)
from pipeline.systems.config import TrainConfig
from pipeline.systems.texts import TextTrainConfig
from pipeline.systems.two_towers import TwoTowersTrainConfig
from pipeline.train import Diverged, train
from pipeline.training.checkpoint import read_checkpoint
from pipeline.training.setup import make_loader, prepare

VARIED: list[dict[str, Any]] = [
    {"lr": 1e-2, "dropout": 0.0, "schedule": "cosine", "ema": 0.9, "clip": 0.1},
    {"side_width": 4, "dropout": 0.4, "weight_decay": 0.5, "schedule": "linear", "noise": 0.3},
    {"preset": "vse_text", "pooling": "max", "token_drop": 0.2, "beta2": 0.95, "patience": 1},
    {"input_norm": "layer", "class_weights": "balanced", "label_smoothing": 0.2, "epochs": 2},
    {"precision": "bfloat16", "warmup": 0.0, "clip": 0.0, "schedule": "step", "out_width": 4},
]
"""Whatever leaves the batches as they are may differ."""
TOWERS: list[dict[str, Any]] = [
    {"lr": 1e-2, "ema": 0.5, "media_noise": 1.0},
    {"loss": "hinge", "text_side_width": 4, "dropout": 0.0, "media_drop": 0.3},
    {"memory_sharpness": 3.0, "epochs": 1, "learn_scale": True},
]


def unit_of(
    points: list[dict[str, Any]], config: SweepConfig, *, start: int = 0, stop: int = 9
) -> Unit:
    each = tuple(r for n in range(len(points)) for r in replicates_of(n, config))
    return Unit(replicates=each, points=dict(enumerate(points)), start=start, stop=stop)


def checkpoint(config: SweepConfig, replicate: Replicate, epoch: int = 9) -> dict[str, Any]:
    return read_checkpoint(state_path(config.out, replicate, epoch))


def assert_equal(first: Any, second: Any, *, where: str = "") -> None:
    """Compare checkpoints to the bit, all but times."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first.keys() - {"seconds", "identity"}:
            assert_equal(first[name], second[name], where=f"{where}.{name}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for place, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, where=f"{where}[{place}]")
    else:
        assert first == second, where


def assert_as_alone(
    config: SweepConfig, unit: Unit, histories: dict[Replicate, TrainingHistory]
) -> None:
    """Train each replicate by itself, and compare what both recorded and kept."""
    for replicate in unit.replicates:
        own = replicate_config(config.run, unit.points[replicate.trial], replicate)
        alone = train(own)
        assert len(histories[replicate].history) == alone.epochs
        assert_equal(checkpoint(config, replicate), read_checkpoint(own.out / "checkpoint.pt"))


def text_sweep(tmp_path: Path, **changes: Any) -> SweepConfig:
    return sweep_config(tmp_path, epochs=3, order_seed=5, **changes)


def pair_sweep(tmp_path: Path, **changes: Any) -> SweepConfig:
    run = pairkit.settings(tmp_path, out="sweep", epochs=2, embed_width=None) | changes
    return SweepConfig.build(run | {"space": {"lr": [1]}})


def test_what_shares_its_batches_is_what_it_is_alone(tmp_path):
    config = text_sweep(tmp_path, seeds=2)
    trainer, unit = Trainer(config), unit_of(VARIED, text_sweep(tmp_path, seeds=2))
    keys = {
        trainer.batches((replicate_config(config.run, unit.points[r.trial], r), r.fold))
        for r in unit.replicates
    }
    assert len(keys) == 1
    histories, read = trainer.train(unit)
    assert_as_alone(config, unit, histories)
    once, dev = epoch_bytes(trainer.setup(config.run))
    epochs = [len(each.history) for each in histories.values()]
    assert read == 3 * once + sum(epochs) * dev


def test_two_towers_share_their_batches_too(tmp_path):
    config = pair_sweep(tmp_path)
    unit = unit_of(TOWERS, config)
    histories, _ = Trainer(config).train(unit)
    assert_as_alone(config, unit, histories)


def test_pairs_and_scores(tmp_path):
    data = {"train": str(write_pairs(tmp_path / "pairs.csv")), "text": "a", "text_pair": "b"}
    data |= {"label": "score", "pair": "separate", "task": "regression"}
    write_rows(tmp_path / "rows.tsv")
    cached(tmp_path, data)
    values = settings(tmp_path, "sweep", epochs=2) | {"data": data, "space": {"lr": [1]}}
    config = SweepConfig.build(values)
    unit = unit_of([{"ema": 0.5}, {"lr": 2e-3, "epochs": 1, "noise": 0.1}], config)
    histories, _ = Trainer(config).train(unit)
    assert_as_alone(config, unit, histories)


def test_a_neighbour_that_fails_changes_nothing(tmp_path):
    config = text_sweep(tmp_path)
    wild = {"lr": 1e30, "warmup": 0.0, "clip": 0.0}
    points = [{}, wild, {"dropout": 0.4}, {"reduction": 1e9, "side_width": None, "out_width": 3}]
    unit = unit_of(points, config)
    histories, _ = Trainer(config).train(unit)
    first, failed, last, narrow = histories.values()
    assert (first.failed, last.failed, narrow.failed) == (None, None, None)
    assert failed.history == ()
    with pytest.raises(Diverged) as error:
        train(replicate_config(config.run, wild, unit.replicates[1]))
    assert error.value.reason == failed.failed
    rest = tuple(r for r in unit.replicates if r.trial != 1)
    whole = Unit(replicates=rest, points=unit.points, start=0, stop=9)
    assert_as_alone(config, whole, histories)


def test_stopping_and_regrouping_change_nothing(tmp_path):
    config, other = text_sweep(tmp_path), text_sweep(tmp_path, out="other")
    points = [{**point, "epochs": 3, "patience": None} for point in VARIED]
    whole = unit_of(points, config)
    Trainer(config).train(whole)
    for group, start, stop in (((0, 1), 0, 1), ((2, 4), 0, 1), ((0, 2, 4), 1, 2), ((0, 4), 2, 9)):
        chosen = tuple(whole.replicates[number] for number in group)
        part = Unit(replicates=chosen, points=whole.points, start=start, stop=stop)
        Trainer(other).train(part)  # as another process would
    for number in (0, 4):
        assert_equal(
            checkpoint(config, whole.replicates[number]),
            checkpoint(other, whole.replicates[number]),
        )
    assert checkpoint(other, whole.replicates[2], 2)["progress"]["epoch"] == 2


def test_a_unit_that_was_killed_after_some_states_goes_on(tmp_path):
    config = text_sweep(tmp_path)
    unit = unit_of(VARIED[:3], config)
    Trainer(config).train(unit)
    kept = [checkpoint(config, each) for each in unit.replicates]
    state_path(config.out, unit.replicates[1], unit.stop).unlink()
    histories, _ = Trainer(config).train(unit)
    for each, before in zip(unit.replicates, kept, strict=True):
        assert_equal(checkpoint(config, each), before)
    assert all(history.failed is None for history in histories.values())


OTHER: dict[str, Any] = {
    **{"out": "other", "epochs": 9, "lr": 0.5, "weight_decay": 0.5, "beta2": 0.5, "step_at": 0.5},
    **{"schedule": "step", "warmup": 0.5, "clip": 0.5, "precision": "bfloat16", "ema": 0.5},
    **{"patience": 7, "checkpoint_steps": 7, "tensorboard": True, "dropout": 0.5, "seed": 9},
    **{"batch_size": 5, "max_tokens": 40, "order_seed": 9, "tier": "disk", "device": "meta"},
}
"""Another value of each field that all trainings have."""
TEXTS: dict[str, Any] = {
    **{"preset": "vse_text", "reduction": 4.0, "side_width": 3, "out_width": 3, "noise": 0.5},
    **{"input_norm": "none", "pooling": "mean", "label_smoothing": 0.5, "token_drop": 0.5},
    **{"class_weights": "balanced", "memory_keys": 3, "memory_weight": 1.0},
    **{"memory_sharpness": 3.0, "memory_penalty": 3.0, "taps": ["layer.*"], "views": 1},
}
PAIRS: dict[str, Any] = {
    **{"embed_width": 8, "head": True, "loss": "hinge", "logit_scale": 3.0, "learn_scale": True},
    **{"margin": 0.5, "all_negatives_epochs": 3, "mask_positives": False, "recipe": "clip4clip"},
    **{"text_reduction": 4.0, "text_side_width": 3, "media_reduction": 4.0, "media_side_width": 3},
    **{"text_input_norm": "none", "media_input_norm": "none", "text_pooling": "max"},
    **{"media_pooling": "max", "media_side": "tokens", "media_frames": "sequence"},
    **{"text_base": "none", "text_side_weight": 0.5, "text_whitening": 0.5, "media_base": "none"},
    **{"media_side_weight": 0.7, "memory_keys": 3, "memory_sharpness": 3.0, "memory_penalty": 3.0},
    **{"text_options": {"eps": 1e-3}, "media_options": {"eps": 1e-3}, "text_noise": 0.5},
    **{"media_noise": 0.5, "text_drop": 0.5, "media_drop": 0.5},
    **{"text_taps": ["layer.2"], "media_taps": ["block.1"], "views": 1},
}
OWN_BATCHES = {
    *("batch_size", "max_tokens", "order_seed", "tier", "device", "taps", "text_taps"),
    "media_taps",
}
"""Fields that give a training other batches than the others have (views, where there are some)."""


@pytest.mark.parametrize("cls", [TextTrainConfig, TwoTowersTrainConfig])
def test_every_field_is_known_to_change_the_batches_or_not(tmp_path, cls):
    """A new field fails here until it is said which; one that is forgotten cannot share wrongly."""
    text = cls is TextTrainConfig
    base: TrainConfig = train_config(tmp_path) if text else pair_config(tmp_path)
    values = OTHER | (TEXTS if text else PAIRS)
    assert cls.model_fields.keys() - values.keys() == {"data", *cls.caches()}
    key = batches_key(base, prepare(base))
    for name, value in values.items():
        changes = {name: value} | ({"seed": 9, "order_seed": 0} if name == "seed" else {})
        other = base.model_copy(update=changes)
        same = batches_key(other, prepare(other)) == key
        assert same == (name not in OWN_BATCHES), name
        if same:
            assert_same_batches(base, other)


def assert_same_batches(first: TrainConfig, second: TrainConfig) -> None:
    batches = [next(make_loader(each, prepare(each)).epoch(1)) for each in (first, second)]
    assert torch.equal(batches[0].index, batches[1].index)
    for name, part in batches[0].parts.items():
        assert_equal(list(part.stacks), list(batches[1].parts[name].stacks))


def test_folds_and_what_cannot_be_compared(tmp_path):
    config = text_sweep(tmp_path, folds=3)
    trainer = Trainer(config)
    assert len({trainer.batches((config.run, fold)) for fold in range(3)}) == 3
    with pytest.raises(TypeError, match="made of a object, which cannot be compared"):
        list(_parts({"new": object()}))


def test_the_size_of_a_unit_has_a_reason(tmp_path, monkeypatch):
    config = text_sweep(tmp_path, together=None)
    trainer = Trainer(config)
    group = [(config.run, 0)] * 5
    assert trainer.size_of(group, 1)[0] == 5
    assert trainer.size_of(group, 2) == (3, trainer.size_of(group, 2)[1])
    assert "there are 5 for 2 workers" in trainer.size_of(group, 2)[1]
    one = trainer._bytes(config.run, 0)
    monkeypatch.setattr("pipeline.sweep.trainer.available_memory", lambda: 5 * one)
    count, reason = trainer.size_of(group, 1)
    assert count == 2
    assert "as 3 would need" in reason
    asked = Trainer(text_sweep(tmp_path, together=4))
    assert asked.size_of(group, 2) == (
        4, "4 trainings share each read of the caches, at most, as asked for"
    )  # fmt: skip
