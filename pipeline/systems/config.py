"""The configuration that every training shares: data, caches, batches, optimizer, stopping."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from pipeline.config import Config
from pipeline.data import DataConfig
from pipeline.places import Place

Schedule = Literal["cosine", "linear", "step", "constant"]
SAME = "is the same for all trials; leave it out"


class LoopConfig(Config):
    """The training loop: optimizer, schedule, stopping; the same for every task."""

    UNSEARCHED: ClassVar[dict[str, str]] = dict.fromkeys(
        ("out", "patience", "seed", "device", "tier", "checkpoint_steps", "tensorboard"), SAME
    )
    """Field that a sweep does not vary -> why, as what follows "field: "."""

    out: Path
    """Run folder to write; an interrupted training in it is resumed."""
    epochs: int = Field(default=6, ge=1)
    """Passes over the training examples, at most; the best one by dev is kept."""
    batch_size: int = Field(default=32, ge=1)
    """Examples of one optimizer step."""
    lr: float = Field(default=5e-4, gt=0)
    """Peak learning rate of AdamW, per step."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay of the weight matrices (norms and biases have none)."""
    beta2: float = Field(default=0.999, gt=0, lt=1)
    """Decay of AdamW's second moment, per step."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from 0."""
    step_at: float = Field(default=0.6, ge=0, le=1)
    """With schedule step: share of all steps after which the rate falls to a tenth."""
    clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0 leaves it as it is."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the arithmetic; bfloat16 uses autocast, weights stay float32."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the averaged weights per step, which are then the ones kept; 0 keeps none."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better dev metric before training stops; by default it does not."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights, order and noise; the same seed repeats a CPU run bit for bit."""
    device: str = "auto"
    """Torch device; auto takes CUDA, then MPS, then the CPU."""
    tier: Literal["auto", "device", "host", "disk"] = "auto"
    """Where batches come from: the memory of the device or the host, or the disk block by block."""
    checkpoint_steps: int = Field(default=500, ge=0)
    """Optimizer steps between checkpoints within an epoch; 0 saves only after each epoch."""
    tensorboard: bool = False
    """Write TensorBoard curves into the run folder (needs the extra tensorboard)."""


class TowerOptions(NamedTuple):
    """What a training is asked of one tower."""

    cache: Place
    taps: Sequence[str] | None = None
    """Patterns of the taps to train on, the last tap being the anchor; None for all."""
    noise: float = 0.0
    """Gaussian noise on the states, in standard deviations of each feature."""
    drop: float = 0.0
    """Share of the tokens, patches or frames to drop in a training step."""
    prefix: str = ""
    """What stands before the names of these options, for messages."""


class TrainConfig(LoopConfig, ABC):
    """How one side model is trained from the caches of its towers; each system adds its own."""

    UNSEARCHED: ClassVar[dict[str, str]] = LoopConfig.UNSEARCHED | dict.fromkeys(
        ("data", "order_seed"), SAME
    )
    INSTEAD: ClassVar[dict[str, str]] = {}
    """Field -> field that has no effect where the first one is given."""

    data: DataConfig
    """The examples and their targets."""
    views: int | None = Field(default=None, ge=1)
    """Cached views of each training input to draw from; 1 takes the inputs as they are; by default
    all that the caches have."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one optimizer step, at most: a batch ends before it has more, or at batch_size
    examples; a longer example is a batch of its own."""
    order_seed: int | None = Field(default=None, ge=0)
    """Seed of what trainings can share: the order of the examples, noise and dropped tokens; by
    default the seed."""

    def contradictions(self) -> list[str]:
        """Return what the stopping wants and the splits do not give."""
        if self.data.fit_on_dev and self.patience is not None:
            return ["patience needs a dev split, and fit_on_dev leaves none"]
        return []

    @property
    def batch_seed(self) -> int:
        """Seed of the batches: order, noise and dropped tokens."""
        return self.seed if self.order_seed is None else self.order_seed

    @property
    @abstractmethod
    def towers(self) -> dict[str, TowerOptions]:
        """What is asked of each tower, by its name."""

    @classmethod
    def caches(cls) -> tuple[str, ...]:
        """Names of the fields that say where the caches are, in the order of the command line."""
        return tuple(name for name in cls.model_fields if name.split("_")[-1] == "cache")
