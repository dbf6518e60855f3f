"""A run folder: one trained model with its config, metrics, curves and predictions.

    run.json             kind, config, model config, taps, cache fingerprint(s), metrics, history
    model.safetensors    weights of the best epoch
    metrics.jsonl        one record an epoch
    checkpoint.pt        what an interrupted training resumes from
    predictions_*.jsonl  one record an example (a caption, for retrieval)
    items_*.jsonl        one record a picture or clip (retrieval)

The kind is classification, regression (a side classifier) or retrieval (two towers).

run.json is written last: a folder without it holds an unfinished training.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors.torch import load_file

from cache.storage.location import Location, parse_location
from pipeline.data import DataConfig
from pipeline.errors import PipelineError
from unipt import SideClassifier, TwoTowers

INFO = "run.json"
WEIGHTS = "model.safetensors"
CURVES = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
FORMAT = 1


class RunError(PipelineError, RuntimeError):
    """A run folder is missing, unfinished, or holds another training."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: the folder.
        info: the contents of run.json.
    """

    path: Path
    info: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the finished run at `path`.

        Raises:
            RunError: there is none, it is unfinished, or its format is unknown.
        """
        path = Path(path)
        if not path.is_dir():
            raise RunError(f"there is no run folder {path}; `train` writes one")
        if not (path / INFO).is_file():
            started = (path / CHECKPOINT).is_file()
            way = "train again into it to finish" if started else "it holds no training"
            raise RunError(f"{path} has no {INFO}: {way}")
        info = json.loads((path / INFO).read_text(encoding="utf-8"))
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            raise RunError(f"{path / INFO} is not of format {FORMAT}; train the run again")
        return cls(path, info)

    @property
    def kind(self) -> str:
        """The family of its task: "classification", "regression" or "retrieval"."""
        return str(self.info.get("kind") or self.info["task"])

    def model(self) -> SideClassifier | TwoTowers:
        """Return the trained model, of the class of its kind, on the CPU, in evaluation mode."""
        return self.towers() if self.kind == "retrieval" else self.classifier()

    def classifier(self) -> SideClassifier:
        """Return the trained classifier, on the CPU, in evaluation mode.

        Raises:
            RunError: the run is of another kind.
        """
        if self.kind == "retrieval":
            raise RunError(f"{self.path} is a run of kind {self.kind}, which has no classifier")
        model = SideClassifier.from_config(self.info["model"])
        model.load_state_dict(load_file(self.path / WEIGHTS))
        return model.eval()

    def towers(self) -> TwoTowers:
        """Return the trained towers of a retrieval run, on the CPU, in evaluation mode.

        Raises:
            RunError: the run is of another kind.
        """
        if self.kind != "retrieval":
            raise RunError(f"{self.path} is a run of kind {self.kind}, which has no towers")
        model = TwoTowers.from_config(self.info["model"])
        model.load_state_dict(load_file(self.path / WEIGHTS))
        return model.eval()

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps a classifier takes, in order, the anchor last."""
        return tuple(self.info["taps"])

    def tower_taps(self, tower: str) -> tuple[str, ...]:
        """Names of the taps of the tower "text" or "media" of a retrieval run, the anchor last.

        A tower of one tap has it as anchor and as its only target.
        """
        return tuple(self.info["towers"][tower]["taps"])

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names, None for regression."""
        return None if self.info["labels"] is None else tuple(self.info["labels"])

    @property
    def cache_path(self) -> Location:
        """Where the cache of a classifier was when the run was trained."""
        return parse_location(self.info["cache"]["path"])

    @property
    def data(self) -> DataConfig:
        """The data set's configuration of a run with a classifier."""
        return DataConfig.build(self.info["config"]["data"])
