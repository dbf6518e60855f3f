"""scikit-learn estimators: side networks behind `fit` and `predict`, on the rows of a cache.

X is a `CacheRows`: a cache and some of its samples, which scikit-learn cuts up like an array, so
`cross_val_score`, `GridSearchCV`, `Pipeline` and `clone` work. The cache may be of texts, images or
videos. An array of features [n, F] is taken too: it is written into a cache in a temporary folder,
one vector a row. Cost of a fit: that of a training without dev; the last epoch is kept.
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
from pipeline.data import Dataset, Example, Labelled
from pipeline.inputs import TextInput
from pipeline.run import CHECKPOINT
from pipeline.systems import Setup, system_of
from pipeline.systems.config import TrainConfig
from pipeline.systems.inference import choose_device, infer
from pipeline.systems.locate import Located, locate, modality_of
from pipeline.systems.memo import Memo
from pipeline.systems.taps import select, width
from pipeline.training.job import make_job, make_model
from pipeline.training.loop import Training, train_epochs
from pipeline.training.setup import make_loader

__all__ = ["CacheRows", "UniPTClassifier", "UniPTRegressor"]

Array = NDArray[Any]
NOWHERE = Path("unused")
"""Place of data that an estimator is given as arrays."""
FEATURES = "features"
"""Tap of the rows of an array."""


class CacheRows:
    """Samples of a cache, which can be counted, cut up and indexed like an array's rows.

    Args:
        cache: the cache, or its folder.
        rows: numbers of the samples, int64 [n], or [n, 2] for pairs of inputs that are compared
            with each other; all by default.
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
        towers = system_of(dataset.config.task).towers(dataset)
        reads = {name: modality_of(opened, each.modalities[0]) for name, each in towers.items()}
        located = locate(dataset, split, dict.fromkeys(towers, opened), reads)
        found = located.examples.targets
        if found is None:
            raise ConfigError(f"the split {split!r} has no targets")
        rows = np.stack(list(located.clean.values()), 1)  # [n, towers]
        targets = np.asarray(found if dataset.labels is None else np.asarray(dataset.labels)[found])
        return cls(opened, rows if len(towers) > 1 else rows[:, 0]), targets

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
    """What both estimators share: their parameters are fields of a training of their task."""

    task = ""

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
        with tempfile.TemporaryDirectory() as folder, _rows_of(x) as rows:
            config = self._config(rows, Path(folder), seed)
            setup = _setup(config, rows, targets, labels)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model, loader = make_model(config, setup), make_loader(config, setup)
                job = make_job(config, setup, model)
                file = config.out / CHECKPOINT
                training = Training(config, job, len(loader), file, identity="estimator")
                train_epochs([training], loader, until=config.epochs)
            if training.failed is not None:
                raise training.failed
            model.load_state_dict(training.now.best_weights)
            whole, _ = setup.system.finish(model, config, setup)
        self.model_ = whole.cpu().eval()
        self.history_ = training.now.history
        taps = next(iter(setup.taps.values()))
        self.towers_, self.taps_ = tuple(setup.taps), taps.names
        self.n_features_in_ = width(taps.anchor)
        return self

    def _config(self, rows: CacheRows, out: Path, seed: int) -> TrainConfig:
        """Return the training of these rows; pairs have two columns, encoded on their own."""
        own = self.get_params(deep=False)
        system = system_of(self.task)
        paired = {"text_pair": "b", "pair": "separate"} if rows.rows.ndim > 1 else {}
        data = system.Data.build({"task": self.task, "train": NOWHERE} | paired)
        given = {name: own[name] for name in own.keys() & system.Train.model_fields.keys()}
        places = dict.fromkeys(system.Train.caches(), rows.cache.path)
        return system.Train.build(given | places | {"data": data, "out": out, "seed": seed})

    def _outputs(self, x: Any) -> Array:
        """Return the outputs [n, C] for rows x [n]."""
        check_is_fitted(self)
        given = x if isinstance(x, CacheRows) else validate_data(self, x, reset=False)
        device = choose_device(self.device)
        with _rows_of(given) as rows:
            taps = select(rows.cache, self.taps_, "taps")
            outputs = infer(
                self.model_.to(device),
                _by_tower(rows, self.towers_),
                dict.fromkeys(self.towers_, rows.cache),
                dict.fromkeys(self.towers_, taps),
                batch_size=max(64, self.batch_size),
                device=device,
            )
        self.model_.cpu()
        logits: Array = outputs.values["logits"].numpy()
        return logits


class UniPTClassifier(ClassifierMixin, _SideNetwork):  # type: ignore[misc]
    """A side network that classifies rows of a cache.

    Args:
        taps: glob patterns of the taps to train on, the last tap being the anchor.
        label_smoothing: share of a target that is spread over all classes.
        class_weights: "none", or "balanced" for weights inverse to the classes' counts.
        random_state: seed of weights, order and noise.
        settings: all others are fields of a training of texts, and mean the same.

    Attributes:
        classes_: the labels, sorted.
        model_: the trained `SideClassifier`.
        history_: one record an epoch.
    """

    task = "classification"

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

    task = "regression"

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
    towers = tuple(config.towers)
    inputs = (TextInput(""),) * len(towers)
    values = targets.tolist()
    examples = Labelled([Example(f"train/{n}", inputs, v) for n, v in enumerate(values)], towers)
    dataset = Dataset(splits={"train": examples}, labels=labels, config=config.data)
    system = system_of(config.data.task)
    samples = {name: found[:, None] for name, found in _by_tower(rows, towers).items()}
    return Setup(
        system=system,
        dataset=dataset,
        task=system.task(dataset, config),
        caches=dict.fromkeys(towers, rows.cache),
        taps={name: select(rows.cache, each.taps, "taps") for name, each in config.towers.items()},
        splits={"train": Located(examples=examples, samples=samples, keys={})},
        device=choose_device(config.device),
        memo=Memo(),
    )


def _by_tower(rows: CacheRows, towers: tuple[str, ...]) -> dict[str, Array]:
    """Return the samples of each tower, [n]."""
    columns = rows.rows.reshape(len(rows), -1).T
    if len(columns) != len(towers):
        raise ValueError(f"X has {len(columns)} input(s) a row, and the model reads {len(towers)}")
    return dict(zip(towers, columns, strict=True))


@contextmanager
def _rows_of(x: Any) -> Iterator[CacheRows]:
    """Yield X as rows of a cache; features [n, F] are written into a temporary one."""
    if isinstance(x, CacheRows):
        yield x
        return
    values = torch.from_numpy(np.array(x, np.float32, order="C"))  # [n, F]
    count, features = values.shape
    with tempfile.TemporaryDirectory() as folder:
        writer = CacheWriter.create(
            Path(folder) / "features",
            taps=[TapSpec(name=FEATURES, kind="vector", shape=(features,))],
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
                    buffer.put(samples, {FEATURES: values[torch.from_numpy(samples)]})
            writer.finish()
        yield CacheRows(Path(folder) / "features")
