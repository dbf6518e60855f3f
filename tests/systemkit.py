"""Small trainings of every registered system, for tests of what all of them share.

A new system joins with a row in `CASES`; `test_contract` fails until it has one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import colourkit
import pairkit
import stagekit
import taggedkit
import torch
from safetensors.torch import load_file

from pipeline.systems import train_config
from pipeline.systems.config import TrainConfig


class Case(NamedTuple):
    """A small training; `make` writes its data and caches on first use."""

    system: str
    """Its place in `pipeline.systems.SYSTEMS`."""
    make: Callable[..., dict[str, Any]]
    """(folder, out, **changes) -> a training as plain values."""
    noisy: dict[str, Any]
    """Options that draw random numbers in a training step."""
    learns: str
    """Metric of the test split that a training of the case's own options raises."""
    above: float
    """What it raises it to, at least."""
    below: bool = True
    """Whether a linear model of the last layer alone misses it, and one of all layers does not."""

    def values(self, folder: Path, out: str = "run", **changes: Any) -> dict[str, Any]:
        """Return the training as plain values."""
        return self.make(folder, out=out, **changes)

    def config(self, folder: Path, out: str = "run", **changes: Any) -> TrainConfig:
        """Return the training."""
        return train_config(self.values(folder, out, **changes))


def classes(folder: Path, out: str = "run", **changes: Any) -> dict[str, Any]:
    """Return a training on sentences of two classes."""
    return stagekit.settings(folder, out, **{"epochs": 8, **changes})


def scored_pairs(pair: str) -> Callable[..., dict[str, Any]]:
    """Return what makes trainings on pairs of sentences with a score."""

    def make(folder: Path, out: str = "run", **changes: Any) -> dict[str, Any]:
        file = folder / "pairs.csv"
        data = {
            "task": "regression", "train": str(file), "pair": pair,
            "text": "a", "text_pair": "b", "label": "score",
        }  # fmt: skip
        if not file.exists():
            stagekit.write_pairs(file)
            stagekit.cached(folder, data)
        return stagekit.settings(folder, out, **{"data": data, "epochs": 15, **changes})

    return make


def captioned(layout: str, text: str = "tokens") -> Callable[..., dict[str, Any]]:
    """Return what makes trainings on captions of images or videos of a layout."""

    def make(folder: Path, out: str = "run", **changes: Any) -> dict[str, Any]:
        return pairkit.settings(folder, layout, out, text=text, **changes)

    return make


TEXT_NOISE = {"noise": 0.1, "token_drop": 0.2, "dropout": 0.3, "ema": 0.9}
PAIR_NOISE = {
    "text_noise": 0.1, "media_noise": 0.1, "text_drop": 0.2, "media_drop": 0.2, "dropout": 0.3,
    "ema": 0.9, "learn_scale": True,
}  # fmt: skip
IMAGE_NOISE = {"noise": 0.1, "patch_drop": 0.2, "dropout": 0.3, "ema": 0.9}
TEXTS, TOWERS = "texts.Texts", "two_towers.TwoTowersSystem"
CASES = {
    "classes": Case(TEXTS, classes, TEXT_NOISE, "accuracy", 0.9),
    "scores": Case(TEXTS, scored_pairs("joint"), TEXT_NOISE, "pearson", 0.7),
    "compared": Case(TEXTS, scored_pairs("separate"), TEXT_NOISE, "pearson", 0.7),
    "images": Case(TOWERS, captioned("grid"), PAIR_NOISE, "rsum", 400.0),
    "videos": Case(TOWERS, captioned("clip", "clip"), PAIR_NOISE, "rsum", 300.0),
    "words": Case(
        "tagging.TaggingSystem", taggedkit.settings, TEXT_NOISE, "entity_f1", 0.7, below=False
    ),
    "colours": Case(
        "images.ImagesSystem", colourkit.settings, IMAGE_NOISE, "accuracy", 0.9, below=False
    ),
}
"""Name -> a small training."""
EACH = {case.system: name for name, case in reversed(CASES.items())}
"""One case of each system, the first: what is shared is tested with these."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights in a run folder."""
    return load_file(folder / "model.safetensors")


def same_weights(first: Path, second: Path) -> bool:
    """Whether two run folders hold the same weights, bit for bit."""
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
