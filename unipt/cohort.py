"""StackedClassifiers: K side classifiers of one shape as one module, for searches.

Legend: K trials, B examples, S segments, T valid tokens (packed), N targets, D backbone width,
d side width, P numbers of one classifier.

All trials read the same states, once. Their weights lie in one tensor ``[K, P]``, a row a trial,
so that optimizer, clipping, averages and bookkeeping are a few passes over it. Price: the GEMMs of
K classifiers, one reading of the states, and a few times (N + 1) T K d numbers of activations.

No operation mixes trials: a trial whose weights are not finite spoils its own row only.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor, nn

from .classifier import Prediction, SideClassifier, combine_segments
from .cohort_down import SharedStates, reduce_trials
from .cohort_parts import TrialWeights, mix_trials, pool_trials, run_part

__all__ = ["StackedClassifiers"]

WIDE = 96
"""Columns of a CPU's product with the states: narrower trials share one, a wider one is alone."""


class StackedClassifiers(nn.Module):
    """K side classifiers of equal configuration, dropout apart, on packed states.

    Args:
        models: the classifiers; their weights are copied. The buffers (statistics of
            ``input_norm="standard"``) must be the same in all of them.
        order: names of the parameters in the order of their columns; by default the model's.
        generators: one a trial, for dropout; by default all draw from torch's own.
        together: work on all trials at once, instead of one after another behind Down; by default
            so on accelerators, while a CPU's cache holds one trial better.

    Attributes:
        flat: all weights, ``[K, P]``.
        columns: first column and end of each parameter, by name.
        dropout: probability of each trial.

    Raises:
        ValueError: if there are no classifiers, their configurations or buffers differ, or it is
            a configuration that cannot be stacked (layers of several widths, BatchNorm, causal).
    """

    def __init__(
        self,
        models: Sequence[SideClassifier],
        *,
        order: Sequence[str] | None = None,
        generators: Sequence[Generator] | None = None,
        together: bool | None = None,
    ) -> None:
        super().__init__()
        if not models:
            raise ValueError("no classifiers were given; a cohort needs at least one")
        first = models[0]
        _check_stackable(first)
        parameters = dict(first.named_parameters())
        names = tuple(parameters if order is None else order)
        if sorted(names) != sorted(parameters):
            raise ValueError(f"order must name every parameter once: {', '.join(parameters)}")
        self.shapes = {name: parameters[name].shape for name in names}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        ends = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        self.columns = {
            name: (ends[place], ends[place + 1]) for place, name in enumerate(self.shapes)
        }
        self._shared = {name: f"shared_{n}" for n, (name, _) in enumerate(first.named_buffers())}
        for name, buffer in first.named_buffers():
            self.register_buffer(self._shared[name], buffer.detach().clone())
        self._template = (copy.deepcopy(first).to("meta"),)  # in a tuple: its weights are not ours
        self.together = together
        self.dropout: list[float] = []
        self.generators = None if generators is None else list(generators)
        self.flat = nn.Parameter(torch.empty(0, sum(self.sizes)))
        self.append(models)

    def __len__(self) -> int:
        """Trials, K."""
        return self.flat.shape[0]

    @property
    def template(self) -> SideClassifier:
        """Structure and options of each trial: a classifier without weights (meta device)."""
        return self._template[0]

    def append(self, models: Sequence[SideClassifier]) -> None:
        """Add trials behind the others.

        Raises:
            ValueError: if one of them is of another shape, or its buffers differ.
        """
        for model in models:
            self._check_alike(model)
            self.dropout.append(float(model.config["dropout"]))
        rows = [self.row(dict(model.named_parameters())) for model in models]
        self.flat = nn.Parameter(torch.cat((self.flat.detach(), torch.stack(rows).to(self.flat))))

    def select(self, rows: Sequence[int]) -> None:
        """Keep the trials at `rows`, in this order, and drop the others."""
        self.flat = nn.Parameter(self.flat.detach()[list(rows)])
        self.dropout = [self.dropout[row] for row in rows]
        if self.generators is not None:
            self.generators = [self.generators[row] for row in rows]

    def row(self, values: Mapping[str, Tensor]) -> Tensor:
        """Join one tensor for each parameter to a row, ``[P]``."""
        return torch.cat([values[name].detach().reshape(-1) for name in self.shapes])

    def named(self, row: Tensor) -> dict[str, Tensor]:
        """Split a row ``[P]`` into one tensor for each parameter: the inverse of `row`."""
        parts = torch.split(row, self.sizes)
        shapes = self.shapes.items()
        return {name: part.view(shape) for part, (name, shape) in zip(parts, shapes, strict=True)}

    def extract(self, trial: int) -> dict[str, Tensor]:
        """Return a copy of a trial's weights as `SideClassifier.load_state_dict` takes them."""
        return self.state_of(self.flat[trial])

    def state_of(self, row: Tensor) -> dict[str, Tensor]:
        """Return the state dict of a classifier with the weights of a row ``[P]``, copied."""
        values = self.named(row.detach()) | {
            name: self.get_buffer(own) for name, own in self._shared.items()
        }
        return {name: values[name].clone() for name in self.template.state_dict()}

    def forward(self, states: Tensor, offsets: Tensor) -> Prediction:
        """Predict with every trial from the same packed states.

        Args:
            states: ``[N + 1, T, D]``, the last is the anchor.
            offsets: ``LongTensor [S B + 1]``; first segments before all second ones.

        Returns:
            logits ``[K, B, num_outputs]`` and confidence ``[K, B, N]``.

        Raises:
            ValueError: if offsets and states do not fit each other or the classifiers.
        """
        shared = self.share(states, offsets)
        parts = [self.predict(self.flat[rows], shared, rows) for rows in self.portions()]
        logits, confidence = (torch.cat(values) for values in zip(*parts, strict=True))
        return Prediction(logits, confidence)

    def share(
        self, states: Tensor, offsets: Tensor, dtype: torch.dtype | None = None
    ) -> SharedStates:
        """Do once for all trials what a batch needs, arguments as in `forward`.

        The products with the states are of `dtype`; by default bfloat16 or float32, as the states.
        """
        low = states.dtype == torch.bfloat16
        kept = dtype or (torch.bfloat16 if low else torch.float32)
        side, together = self.template.side, self._all_at_once()
        return SharedStates(side, states, offsets, dtype=kept, together=together)

    def portions(self) -> list[slice]:
        """Rows of the trials to work on at a time: all on an accelerator, `WIDE` columns else."""
        together, width = self._all_at_once(), self.template.side.side_width
        count = len(self) if together else max(1, WIDE // width)
        return [slice(row, row + count) for row in range(0, len(self), count)]

    def _all_at_once(self) -> bool:
        return self.flat.device.type != "cpu" if self.together is None else self.together

    def predict(self, flat: Tensor, shared: SharedStates, rows: slice) -> Prediction:
        """Predict with weights ``[k, P]``, which stand for those of the trials at `rows`.

        Returns:
            logits ``[k, B, num_outputs]`` and confidence ``[k, B, N]``.
        """
        weights = self._weights(flat)
        anchor, targets = reduce_trials(self.template.side, shared, weights)
        if shared.together or len(flat) == 1:
            return self._predict_reduced(anchor, targets, shared, weights, rows)
        each = zip(*(torch.split(values, 1) for values in (flat, anchor, targets)), strict=True)
        parts = [
            self._predict_reduced(a, t, shared, self._weights(own), slice(row, row + 1))
            for row, (own, a, t) in enumerate(each, rows.start)
        ]
        return Prediction(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _predict_reduced(
        self,
        anchor: Tensor,
        targets: Tensor,
        shared: SharedStates,
        weights: TrialWeights,
        rows: slice,
    ) -> Prediction:
        """Predict from a ``[k, T, d]`` and t ``[k, N, T, d]``; on a CPU k is 1."""
        model = self.template
        mixed, confidence = mix_trials(model.side, anchor, targets, shared, weights)
        features = run_part(model.side.up, "side.up", mixed, weights)
        pooled = pool_trials(model.pooling, features, shared, weights)
        vector = run_part(model.norm, "norm", pooled, weights)[:, shared.samples]
        confidence = confidence[:, shared.samples]
        if model.segments == 2:
            vector = combine_segments(*vector.chunk(2, 1))
            confidence = torch.stack(confidence.chunk(2, 1)).mean(0)

        def drop(values: Tensor) -> Tensor:
            return self._drop(values, rows)

        return Prediction(run_part(model.head, "head", vector, weights, drop), confidence)

    def _weights(self, flat: Tensor) -> TrialWeights:
        """Every parameter ``[K, *shape]`` and every shared buffer, by name."""
        parts = torch.split(flat, self.sizes, 1)
        shapes = self.shapes.items()
        values = {
            name: part.view(-1, *shape) for part, (name, shape) in zip(parts, shapes, strict=True)
        }
        return values | {name: self.get_buffer(own) for name, own in self._shared.items()}

    def _drop(self, values: Tensor, rows: slice) -> Tensor:
        """Dropout on ``[k, B, P]`` with each trial's probability, drawn as nn.Dropout does."""
        if not self.training or not any(self.dropout[rows]):
            return values
        masks = []
        for trial in range(len(self))[rows]:
            share, mask = self.dropout[trial], torch.ones_like(values[0], dtype=torch.float32)
            if share:  # a trial without dropout draws nothing, as alone
                generator = None if self.generators is None else self.generators[trial]
                mask.bernoulli_(1 - share, generator=generator).div_(1 - share)
            masks.append(mask)
        return values * torch.stack(masks)

    def _check_alike(self, model: SideClassifier) -> None:
        ignored = {"dropout": None}
        if model.config | ignored != self.template.config | ignored:
            raise ValueError(
                f"classifiers of one cohort must have one shape; given {model.config}, the others "
                f"have {self.template.config}"
            )
        for name, buffer in model.named_buffers():
            if not torch.equal(buffer, self.get_buffer(self._shared[name]).to(buffer)):
                raise ValueError(
                    f"{name} differs between classifiers of one cohort; train them on the same "
                    "rows of one cache, or apart"
                )


def _check_stackable(model: SideClassifier) -> None:
    if model.memory is not None:
        raise ValueError("a classifier with a memory is finished; stack it without, memory=0")
    side = model.config["side"]
    widths = {*side["widths"], side["anchor_width"]}
    norms = {side["down_norm"], side["projection_norm"]}
    if len(widths) > 1 or "batch" in norms or side["causal"] or side["residual"] == "position":
        raise ValueError(
            f"classifiers with layers of one width, LayerNorm and no causal attention can be "
            f"stacked; given widths {sorted(widths)}, norms {sorted(norms)}, causal="
            f"{side['causal']}, residual={side['residual']!r}; train such classifiers one by one"
        )
