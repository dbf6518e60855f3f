"""How much each field matters: the share of the scores' variance it explains, by fANOVA.

Hutter, Hoos and Leyton-Brown 2014, as Optuna computes it. Scores are those that all trials have,
after the first rung's epochs, since later ones were trained longer than others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.sweep.axis import encode
from pipeline.sweep.space import Space
from pipeline.sweep.study import distribution, joined, optuna, quiet

LEAST = 4
"""Trials below which nothing is said."""


def importances(
    space: Space, trials: Sequence[Mapping[str, Any]], *, lower_is_better: bool = False
) -> dict[str, float]:
    """Return the importance of each field, the greatest first; they sum to 1.

    Args:
        space: of the sweep.
        trials: with params, state and curve.
        lower_is_better: whether scores are errors.

    Empty for a space of several branches, fewer than four trials, or equal scores.
    """
    sound = [t for t in trials if t["state"] != "failed" and t["curve"]]
    common = min((len(t["curve"]) for t in sound), default=0)
    scored = [(t["params"], t["curve"][common - 1]) for t in sound]
    scored = [(params, score) for params, score in scored if score is not None]
    if len(space.branches) > 1 or len(scored) < LEAST or len({s for _, s in scored}) < 2:
        return {}
    package = optuna()
    made = {name: distribution(axis) for name, axis in joined(space).items()}
    direction = "minimize" if lower_is_better else "maximize"
    with quiet(package):
        study = package.create_study(direction=direction)
        for params, score in scored:
            values = {name: encode(value) for name, value in params.items()}
            study.add_trial(
                package.trial.create_trial(params=values, distributions=made, value=score)
            )
        evaluator = package.importance.FanovaImportanceEvaluator(seed=0)
        found = package.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(value) for name, value in found.items()}
