"""The side network that benchmarks train: text classification, the same weights each time."""

from collections.abc import Sequence

import torch

from cache import Batch, TapSpec
from pipeline.systems.states import tower_states
from pipeline.systems.taps import TowerTaps
from unipt import SideClassifier, SideNetworkConfig, SideTower, States

TOWER = "text"


def token_classifier(
    taps: Sequence[TapSpec], side_width: int, device: torch.device
) -> SideClassifier:
    """Build a side network of two classes over taps of tokens, without dropout."""
    torch.manual_seed(0)
    *targets, anchor = taps
    side = SideNetworkConfig(
        widths=tuple(tap.shape[0] for tap in targets),
        anchor_width=anchor.shape[0],
        side_width=side_width,
        out_width=anchor.shape[0],
    )
    tower = SideTower(
        side=side,
        taps=[tap.name for tap in taps],
        axis=anchor.axis,
        pooling="meanmax",
        normalize=False,
    )
    net = SideClassifier(tower=tower, segments=(TOWER,), num_outputs=2, dropout=0.0)
    return net.to(device)


def states_of(batch: Batch, taps: Sequence[TapSpec], device: torch.device) -> States:
    """Return the states of a batch of one source, as a training reads them."""
    (part,) = batch.parts.values()
    return tower_states(part, TowerTaps(tuple(taps)), device)
