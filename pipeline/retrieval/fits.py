"""What is fitted on the training rows before the first step, kept for trainings that want the same.

Fitted are the statistics of standardised inputs and the closed-form bases: buffers, which no step
changes. Trainings that differ in none of what these depend on share the buffers; those that differ
in whitening, sharpness or penalty alone share the distances between the memory's rows, and those
that differ in its keys the reading of the cache (`Pooled`).
Memory: the buffers of the last `FITS` fits, and features and distances up to a share of what is
free.
"""

import hashlib
import json
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from cache.memory import available_memory
from pipeline.retrieval.bases import fit_bases
from pipeline.retrieval.build import RetrievalSetup, set_tower_statistics
from pipeline.retrieval.config import RetrievalTrainConfig
from pipeline.retrieval.features import Pooled
from unipt import TwoTowers

FITS = 4
"""Fits whose buffers are kept."""
SHARE = 8
"""One in so many bytes of the free memory may hold pooled features and distances."""
FREE = frozenset(
    (
        *("out", "epochs", "lr", "weight_decay", "beta2", "schedule", "warmup", "step_at", "clip"),
        *("precision", "ema", "patience", "tier", "checkpoint_steps", "tensorboard", "recipe"),
        *("text_side_width", "media_side_width", "text_side_weight", "media_side_weight"),
        *("text_pooling", "media_pooling", "head", "dropout", "text_drop", "media_drop"),
        *("text_noise", "media_noise", "loss", "logit_scale", "learn_scale", "margin"),
        *("all_negatives_epochs", "mask_positives"),
    )
)
"""Fields of a configuration that nothing fitted depends on."""


class Fits:
    """Fits towers, each different fit once."""

    def __init__(self) -> None:
        self.known: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self.pooled = Pooled(available_memory() // SHARE)

    def fit(self, model: TwoTowers, config: RetrievalTrainConfig, setup: RetrievalSetup) -> None:
        """Give fresh towers their statistics and bases.

        Args:
            model: on the CPU, with towers as `build_towers` makes them.
            config: of the training.
            setup: splits, caches and taps.
        """
        key = _key(config, setup)
        if key in self.known:
            self.known.move_to_end(key)
            buffers = dict(model.named_buffers())
            for name, fitted in self.known[key].items():
                buffers[name].copy_(fitted)
            return
        fresh = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._fit(model, config, setup)
        self.known[key] = {
            name: buffer.clone()
            for name, buffer in model.named_buffers()
            if not torch.equal(buffer, fresh[name])
        }
        if len(self.known) > FITS:
            self.known.popitem(last=False)

    def _fit(self, model: TwoTowers, config: RetrievalTrainConfig, setup: RetrievalSetup) -> None:
        located = setup.splits["train"]
        for name, tower, samples in (
            ("text", model.text, located.text),
            ("media", model.media, located.media),
        ):
            unique = np.unique(samples[:, 0]).astype(np.int64)
            set_tower_statistics(
                tower, setup.caches[name], setup.taps[name], unique, config.batch_size
            )
        fit_bases(model, config, setup, self.pooled)


def _key(config: RetrievalTrainConfig, setup: RetrievalSetup) -> str:
    """Return text that is equal for trainings whose towers are fitted alike."""
    located, digest = setup.splits["train"], hashlib.blake2b(digest_size=16)
    for rows in (located.text, located.media, located.split.item_of):
        digest.update(str(rows.shape).encode() + rows.astype("<i8").tobytes())
    values = config.model_dump(mode="json", exclude=set(FREE))
    return json.dumps([values, digest.hexdigest()], sort_keys=True)
