"""scikit-learn estimators: side networks behind `fit` and `predict`, on the rows of a cache.

X is a `CacheRows`: a cache and some of its samples, which scikit-learn cuts up like an array, so
`cross_val_score`, `GridSearchCV`, `Pipeline` and `clone` work. An array of features [n, F] is taken
too: it is written into a cache in a temporary folder, each row a vector that is layer and anchor.
Cost of a fit: that of a training without dev; the last epoch is kept.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import EllipsisType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from cache import Cache, CacheWriter, Fingerprint, TapSpec
from pipeline.config import ConfigError
from pipeline.data import DataConfig, Dataset, Example
from pipeline.inputs import TextInput
from pipeline.tasks import make_task
from pipeline.train import make_job
from pipeline.training.build import Setup, rescale_outputs
from pipeline.training.config import TrainConfig
from pipeline.training.inference import choose_device, run_model
from pipeline.training.loop import run_loop
from pipeline.training.samples import Located, locate, select_taps

__all__ = ["CacheRows", "UniPTClassifier", "UniPTRegressor"]

Array = NDArray[Any]
NOWHERE = Path("unused")
"""Place of data that an estimator is given as arrays."""


class CacheRows:
    """Samples of a cache, which can be counted, cut up and indexed like an array's rows.

    Args:
        cache: the cache, or its folder.
        rows: numbers of the samples, int64 [n], or [n, 2] for pairs encoded separately; all by
            default.
    """

    def __init__(self, cache: Cache | Path | str, rows: Array | None = None) -> None:
        self.cache = cache if isinstance(cache, Cache) else Cache.open(cache)
        every = np.arange(self.cache.n_samples, dtype=np.int64)
        self.rows = every if rows is None else np.asarray(rows, np.int64)

    @classmethod
    def of_split(
        cls, cache: Cache | Path | str, dataset: Dataset, split: str
    ) -> tuple[Self, Array]:
        """Return the rows of a split's examples with their targets, class names for classes.

        Raises:
            DataError: there is no such split, it is not in the cache, or its labels are hidden.
        """
        opened = cache if isinstance(cache, Cache) else Cache.open(cache)
        located = locate(dataset, opened, split)
        if located.targets is None:
            raise ConfigError(f"the split {split!r} has no targets")
        names = dataset.labels
        targets = located.targets if names is None else np.asarray(names)[located.targets]
        return cls(opened, located.samples), targets

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, and 2 for pairs."""
        return self.rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> "CacheRows":
        if isinstance(key, tuple) and len(key) == 2 and isinstance(key[1], EllipsisType):
            key = key[0]
        chosen = self.rows[key]
        whole = chosen if chosen.ndim == self.rows.ndim else chosen[None]
        return type(self)(self.cache, whole)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self.cache.path), self.rows)

    def __repr__(self) -> str:
        return f"CacheRows({str(self.cache.path)!r}, {len(self)} rows)"


class _SideNetwork(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What both estimators share: their parameters are fields of `TrainConfig`."""

    kind = ""

    def __init__(
        self,
        *,
        taps: tuple[str, ...] | None = None,
        preset: str = "text",
        reduction: float = 2.0,
        side_width: int | None = None,
        out_width: int | None = None,
        input_norm: str | None = None,
        pooling: str = "meanmax",
        dropout: float = 0.2,
        epochs: int = 6,
        batch_size: int = 32,
        lr: float = 5e-4,
        weight_decay: float = 0.05,
        schedule: str = "cosine",
        warmup: float = 0.1,
        clip: float = 1.0,
        ema: float = 0.0,
        noise: float = 0.0,
        token_drop: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: str = "none",
        random_state: Any = None,
        device: str = "auto",
    ) -> None:
        self.taps = taps
        self.preset = preset
        self.reduction = reduction
        self.side_width = side_width
        self.out_width = out_width
        self.input_norm = input_norm
        self.pooling = pooling
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup = warmup
        self.clip = clip
        self.ema = ema
        self.noise = noise
        self.token_drop = token_drop
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.random_state = random_state
        self.device = device

    def _checked(self, x: Any, y: Any, **checks: Any) -> tuple[Any, Array]:
        """Return rows x [n], features as float32, and targets y [n], or raise ValueError."""
        if not isinstance(x, CacheRows):
            checks |= {"dtype": np.float32, "ensure_min_samples": 2}
            x, y = validate_data(self, x, y, **checks)
        elif len(x) != len(y):
            raise ValueError(f"X has {len(x)} rows and y {len(y)} targets; they must be as many")
        return x, column_or_1d(y, warn=True)

    def _fit(self, x: Any, targets: Array, labels: tuple[str, ...] | None) -> Self:
        """Train on rows x [n] and targets [n] (class numbers or scores)."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        own = {
            k: v for k, v in self.get_params(deep=False).items() if k in TrainConfig.model_fields
        }
        data = DataConfig(task=self.kind, train=NOWHERE)
        with tempfile.TemporaryDirectory() as folder, _rows_of(x) as rows:
            config = TrainConfig.build(
                own | {"data": data, "cache": NOWHERE, "out": Path(folder), "seed": seed}
            )
            setup = _setup(config, rows, targets, labels)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model, job = make_job(config, setup)
                now = run_loop(config, job, identity="estimator")
            model.load_state_dict(now.best_weights)
            rescale_outputs(model, *setup.task.unscale)
            self.model_ = model.cpu().eval()
            self.taps_ = setup.tap_names
            self.history_ = now.history
        self.n_features_in_ = setup.taps[-1].shape[0]
        return self

    def _outputs(self, x: Any) -> Array:
        """Return the outputs [n, C] for rows x [n]."""
        check_is_fitted(self)
        given = x if isinstance(x, CacheRows) else validate_data(self, x, reset=False)
        device = choose_device(self.device)
        with _rows_of(given) as rows:
            outputs = run_model(
                self.model_.to(device),
                rows.cache,
                rows.rows,
                taps=self.taps_,
                batch_size=max(64, self.batch_size),
                device=device,
            )
        self.model_.cpu()
        return outputs.logits


class UniPTClassifier(ClassifierMixin, _SideNetwork):  # type: ignore[misc]
    """A side network that classifies rows of a cache.

    Args:
        taps: glob patterns of the taps to train on, the last tap being the anchor.
        label_smoothing: share of a target that is spread over all classes.
        class_weights: "none", or "balanced" for weights inverse to the classes' counts.
        random_state: seed of weights, order and noise.
        settings: all others are fields of `TrainConfig`, and mean the same.

    Attributes:
        classes_: the labels, sorted.
        model_: the trained `SideClassifier`.
        history_: one record an epoch.
    """

    kind = "classification"

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803 (scikit-learn's names)
        """Train on rows X [n] (`CacheRows`, or features [n, F]) and labels y [n].

        Raises:
            ValueError: a parameter or the data are unusable.
            Diverged: the loss is not finite.
        """
        rows, y = self._checked(X, y)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"a classifier needs two classes or more; y has one class, {self.classes_[0]}"
            )
        return self._fit(rows, numbers.astype(np.int64), tuple(map(str, self.classes_)))

    def predict_proba(self, X: Any) -> Array:  # noqa: N803
        """Return the probability of each class, [n, C]."""
        found: Array = softmax(self._outputs(X).astype(np.float64), axis=1)
        return found

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Return the most likely label of each row, [n]."""
        chosen = self._outputs(X).argmax(axis=1)
        labels: Array = self.classes_[chosen]
        return labels


class UniPTRegressor(RegressorMixin, _SideNetwork):  # type: ignore[misc]
    """A side network that scores rows of a cache; parameters as `UniPTClassifier`'s.

    Those of classes (label_smoothing, class_weights) must be left as they are.

    Attributes:
        model_: the trained `SideClassifier`, whose outputs are in the target's units.
        history_: one record an epoch.
    """

    kind = "regression"

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train on rows X [n] (`CacheRows`, or features [n, F]) and scores y [n].

        Raises:
            ValueError: a parameter or the data are unusable.
            Diverged: the loss is not finite.
        """
        rows, scores = self._checked(X, y, y_numeric=True)
        return self._fit(rows, scores.astype(np.float64), None)

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Return the score of each row, [n]."""
        return self._outputs(X)[:, 0].astype(np.float64)


def _setup(
    config: TrainConfig, rows: CacheRows, targets: Array, labels: tuple[str, ...] | None
) -> Setup:
    """Return what a training of these rows reads: no dev, no test."""
    whole = np.issubdtype(targets.dtype, np.integer)
    inputs = (TextInput(""),) * (1 if rows.rows.ndim == 1 else rows.rows.shape[1])
    examples = [
        Example(id=f"train/{place}", inputs=inputs, target=int(value) if whole else float(value))
        for place, value in enumerate(targets)
    ]
    dataset = Dataset(splits={"train": examples}, labels=labels, config=config.data)
    task = make_task(
        dataset, label_smoothing=config.label_smoothing, class_weights=config.class_weights
    )
    located = Located(examples=examples, samples=rows.rows, targets=targets)
    return Setup(
        dataset=dataset,
        cache=rows.cache,
        task=task,
        taps=select_taps(rows.cache, config.taps),
        splits={"train": located},
        device=choose_device(config.device),
    )


@contextmanager
def _rows_of(x: Any) -> Iterator[CacheRows]:
    """Yield X as rows of a cache; features [n, F] are written into a temporary one."""
    if isinstance(x, CacheRows):
        yield x
        return
    values = torch.from_numpy(np.array(x, np.float32, order="C"))  # [n, F]
    count, width = values.shape
    with tempfile.TemporaryDirectory() as folder:
        taps = [TapSpec(name=name, kind="vector", shape=(width,)) for name in ("layer", "anchor")]
        writer = CacheWriter.create(
            Path(folder) / "features",
            taps=taps,
            lengths=None,
            keys=np.arange(2 * count, dtype=np.uint64).view(np.uint8).reshape(count, 16),
            row_to_sample=np.arange(count, dtype=np.int64),
            row_ids=[str(row) for row in range(count)],
            dtype="float32",
            fingerprint=Fingerprint({"features": "of an estimator"}),
        )
        with writer:
            for shard in list(writer.pending):
                samples = writer.samples_of(shard)
                with writer.shard(shard) as buffer:
                    chosen = values[torch.from_numpy(samples)]
                    buffer.put(samples, {tap.name: chosen for tap in taps})
            writer.finish()
        yield CacheRows(Path(folder) / "features")
