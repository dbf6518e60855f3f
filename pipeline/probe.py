"""Probes: linear models on mean-pooled cached features, what a side network must beat.

"last" takes each tower's last tap, "all" every tap. What is fitted is the task's own (logistic or
ridge regression on standardised features); its strength is chosen on dev. With `fit_on_dev` the
chosen one is fitted anew on train and dev. Memory: the features, n x taps x width in float32,
pooled batch by batch; the states themselves are never held.
"""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config import ConfigError
from pipeline.inputs import FACTS
from pipeline.systems import Setup
from pipeline.systems.config import TrainConfig
from pipeline.systems.inference import feature_passes
from pipeline.systems.memo import Memo
from pipeline.tasks.base import Probe
from pipeline.tasks.metrics import better
from pipeline.training.files import write_json
from pipeline.training.judge import Evaluation, evaluated
from pipeline.training.setup import prepare
from unipt import Outputs

logger = logging.getLogger(__name__)

Layers = Literal["last", "all"]


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """A fitted probe.

    Attributes:
        layers: "last" or "all".
        chosen: what dev chose: strength, direction.
        features: numbers that an example is described by, by name.
        evaluations: metrics with intervals, by split.
    """

    layers: Layers
    chosen: dict[str, Any]
    features: dict[str, int]
    evaluations: dict[str, Evaluation]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "layers": self.layers,
            "chosen": self.chosen,
            "features": self.features,
            "evaluations": {name: e.to_dict() for name, e in self.evaluations.items()},
        }

    def render(self) -> str:
        """Return a table of each split's metrics."""
        return "\n\n".join(evaluation.render() for evaluation in self.evaluations.values())


def probe(config: TrainConfig, layers: Layers = "all", *, resamples: int = 1000) -> ProbeResult:
    """Fit a probe on the data and caches of `config`; write `probe_<layers>.json` into its out.

    Args:
        config: data, caches, taps, class weights and out are used.
        layers: "last" for the last tap of each tower, "all" for every tap.
        resamples: bootstrap resamples of an interval.

    Raises:
        DataError: the data are unusable or not in the caches.
        CacheError: a cache is missing, incomplete or damaged.
        ConfigError: there is no dev split to choose on, or no targets.
    """
    memo = Memo()
    apart = config.model_copy(update={"data": config.data.model_copy(update={"fit_on_dev": False})})
    setup = prepare(apart, memo)
    if "dev" not in setup.splits:
        raise ConfigError("a probe is chosen on the dev split, and there is none")
    train = _features(setup, "train", layers)
    found = _chosen(setup, train, _features(setup, "dev", layers))
    if config.data.fit_on_dev:
        setup = prepare(config, memo)
        train = _features(setup, "train", layers)
        examples = setup.splits["train"].examples
        (found,) = setup.task.probes(train, examples, found.describe())
    evaluations = {}
    for split in (name for name in setup.splits if name != "train"):
        outputs = found.outputs(_features(setup, split, layers))
        judged = setup.task.judge(outputs, setup.splits[split].examples)
        if judged.metrics():
            name = f"probe, {layers} layer{'s' if layers == 'all' else ''}"
            evaluations[split] = evaluated(judged, name=name, split=split, resamples=resamples)
    result = ProbeResult(
        layers=layers,
        chosen=found.describe(),
        features={
            name: value.shape[1]
            for each in train
            for name, value in each.values.items()
            if name not in FACTS
        },
        evaluations=evaluations,
    )
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / f"probe_{layers}.json", result.to_dict())
    return result


def _chosen(setup: Setup, train: list[Outputs], dev: list[Outputs]) -> Probe:
    """Return the probe that is best on dev."""
    metric = setup.task.metrics[0]
    best: Probe | None = None
    value: float | None = None
    for each in setup.task.probes(train, setup.splits["train"].examples):
        judged = setup.task.judge(each.outputs(dev), setup.splits["dev"].examples)
        score = judged.metrics()[metric]
        logger.info("probe %s: dev %s %.4f", each.describe(), metric, score)
        if best is None or better(metric, score, value):
            best, value = each, score
    if best is None:
        raise ConfigError("this task has no probe")
    return best


def _features(setup: Setup, split: str, layers: Layers) -> list[Outputs]:
    taps = setup.taps
    if layers == "last":
        taps = {n: dataclasses.replace(each, taps=each.taps[-1:]) for n, each in taps.items()}
    chosen = dataclasses.replace(setup, taps=taps)
    return feature_passes(chosen.system, chosen.caches, taps, chosen.splits[split])
