"""The configuration of one training: data, cache, side network, optimizer, stopping."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.data import DataConfig
from pipeline.places import Place
from pipeline.training.schedule import Schedule


class LoopConfig(Config):
    """The training loop: optimizer, schedule, stopping; the same for every task."""

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
    """Course of the learning rate after the warm-up."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from 0."""
    step_at: float = Field(default=0.6, ge=0, le=1)
    """With schedule step: share of all steps after which the rate falls to a tenth."""
    clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""
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


class TrainConfig(LoopConfig):
    """How one side network is trained from a cache."""

    data: DataConfig
    """The examples and their targets."""
    cache: Place
    """Folder of the cache that holds the inputs' activations, or its URL (s3://bucket/name)."""
    taps: tuple[str, ...] | None = None
    """Glob patterns of the taps to train on, the last tap being the anchor; all by default."""
    preset: str = "text"
    """Variant of the side network: text, vse_text or clip_vil."""
    reduction: float = Field(default=2.0, gt=0)
    """Backbone width divided by side width, where side_width is not given."""
    side_width: int | None = Field(default=None, ge=1)
    """Width d of the side network, in features; by default from reduction."""
    out_width: int | None = Field(default=None, ge=1)
    """Width of the side network's output, in features; by default the backbone's."""
    input_norm: Literal["none", "layer", "standard"] | None = None
    """Scaling of the states: none, per token, or by the training rows' statistics; by default the
    preset's."""
    pooling: Literal["mean", "first", "last", "max", "meanmax", "attention"] = "meanmax"
    """How token features become one vector."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout before the output layer, as a probability."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a class target that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weight of each class in the loss; balanced is inverse to its count."""
    noise: float = Field(default=0.0, ge=0)
    """Gaussian noise on the cached states, in standard deviations of each feature."""
    token_drop: float = Field(default=0.0, ge=0, lt=1)
    """Probability of each token to be dropped in a training step."""
    memory_keys: int = Field(default=0, ge=0)
    """Training rows that a kernel regression keeps, whose outputs are added to the trained side
    network's; 0 for none."""
    memory_weight: float | None = Field(default=None, ge=0)
    """Weight of the memory's outputs, the network's having 1; by default dev's loss decides."""
    memory_sharpness: float = Field(default=0.25, gt=0)
    """Inverse square of the width of the memory's kernel, in units of a feature's deviation."""
    memory_penalty: float = Field(default=0.1, gt=0)
    """Weight of the memory's ridge penalty; larger is smoother."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one optimizer step, at most: a batch ends before it has more, or at batch_size
    examples; a longer example is a batch of its own."""
    order_seed: int | None = Field(default=None, ge=0)
    """Seed of what trainings can share: the order of the examples, noise and dropped tokens; by
    default the seed."""

    @property
    def batch_seed(self) -> int:
        """Seed of the batches: order, noise and dropped tokens."""
        return self.seed if self.order_seed is None else self.order_seed

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.data.kind == "regression" and (
            self.label_smoothing or self.class_weights != "none"
        ):
            raise ValueError("label_smoothing and class_weights are options of classification")
        if self.data.fit_on_dev and self.patience is not None:
            raise ValueError("patience needs a dev split, and fit_on_dev leaves none")
        if self.data.fit_on_dev and self.memory_keys and self.memory_weight is None:
            raise ValueError(
                "fit_on_dev leaves no dev split to weigh the memory by; give memory_weight, for "
                "example what run.json says of a run that had one"
            )
        return self
