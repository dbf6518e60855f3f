"""Cached samples to replay: which ones, and what the trained side model says to them.

Cost: one pass of the side model over the chosen samples, `CHUNK` at a time, as maps are large.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.data import Ints
from pipeline.fused.job import ExportError, Job
from pipeline.inputs import Input, TextInput
from pipeline.systems.inference import infer
from unipt import Outputs

CHUNK = 8
"""Samples whose states are in memory at a time."""


@dataclass(frozen=True)
class Replay:
    """The samples of one inference pass.

    Attributes:
        inputs: tower -> what each sample was made of, n of them: a text, (text, pair), or a path.
        outputs: what the side model gives for the cached states.
    """

    inputs: Mapping[str, Sequence[Any]]
    outputs: Outputs

    @property
    def towers(self) -> tuple[str, ...]:
        """Towers of the pass."""
        return tuple(self.inputs)

    def take(self, positions: Sequence[int]) -> dict[str, list[Any]]:
        """Return the inputs of some samples."""
        return {tower: [found[i] for i in positions] for tower, found in self.inputs.items()}


def choose_replays(job: Job, *, seed: int = 0) -> list[Replay]:
    """Choose up to `job.samples` samples of each inference pass, the longest one among them.

    Args:
        job: whose splits they are taken from.
        seed: of the choice.

    Raises:
        ExportError: there is no sample.
    """
    setup = job.setup
    splits = [setup.system.passes(located) for located in setup.splits.values()]
    return [_replay(job, parts, seed) for parts in zip(*splits, strict=True)]


def _replay(job: Job, parts: Sequence[Mapping[str, Ints]], seed: int) -> Replay:
    setup, towers = job.setup, tuple(parts[0])
    rows = np.stack([np.concatenate([part[name] for part in parts]) for name in towers], 1)
    chosen = _choose(job, np.unique(rows, axis=0), towers, seed)  # [n, towers]
    samples = {name: chosen[:, place] for place, name in enumerate(towers)}
    outputs = infer(
        job.model.eval(),
        samples,
        setup.caches,
        setup.taps,
        batch_size=CHUNK,
        device=torch.device("cpu"),
    )
    return Replay({name: _inputs(job, name, found) for name, found in samples.items()}, outputs)


def _choose(job: Job, rows: Ints, towers: Sequence[str], seed: int) -> Ints:
    if not len(rows):
        raise ExportError(
            "there is no example to replay, so the export could not be checked: point to the data "
            "the run was trained with"
        )
    chosen = np.random.default_rng(seed).permutation(len(rows))[: job.samples]
    lengths = np.zeros(len(rows), np.int64)
    for place, name in enumerate(towers):
        for found in job.setup.caches[name].lengths.values():
            lengths += found[rows[:, place]]
    longest = lengths.argmax()
    if longest not in chosen:
        chosen[-1] = longest
    return rows[chosen]


def _inputs(job: Job, tower: str, samples: Ints) -> list[Any]:
    """Return what cached samples of a tower were made of."""
    known: dict[int, Input] = {}
    for located in job.setup.splits.values():
        given = located.examples.inputs(tower, job.backbones[tower].modality)
        known |= zip(located.clean[tower].tolist(), given, strict=True)
    return [_plain(known[sample]) for sample in samples.tolist()]


def _plain(given: Input) -> Any:
    if not isinstance(given, TextInput):
        return given.path
    return given.text if given.pair is None else tuple(given)
