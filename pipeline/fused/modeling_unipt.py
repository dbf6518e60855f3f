"""Frozen backbones and their UniPT side model as one transformers model: the part all APIs share.

An API (a file of `api/`) says what users call it with and what it returns; everything between is
here: towers record the backbones' states as the cache would hold them, the side model reads them.

B texts, images or videos. Cost: one forward pass of each backbone, then the side model (about 1/20
of a BERT-base pass).

Written into every exported folder and loaded from there by transformers; the side model's files
stand beside it.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from unipt.pooling import GeneralizedPooling
from unipt.states import Outputs, SideModel, States

from .configuration_unipt import UniPTConfig
from .tower_unipt import TOWERS, FrozenTower, TextTower

TEXT_AXES = {0: "batch", 1: "length"}


class Traced(NamedTuple):
    """What is traced of a model, and how."""

    name: str
    """Of the files, without suffix."""
    call: Callable[..., Any]
    """Tensors in, a tensor or a tuple of them out; an artefact's inputs are named as these are."""
    outputs: tuple[str, ...]
    """Names of its outputs."""
    axes: Mapping[int, str]
    """Dynamic axes of every input, and their names."""
    longest: int | None = None
    """The largest size of axis 0; None for any."""


class UniPTModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Backbones, recorded taps and a side model.

    The side model stays in float32 whatever the type of the backbones' weights.

    Raises:
        ValueError: the configuration names a backbone that does not exist here.
    """

    auto: ClassVar[str] = "AutoModel"
    """Class of transformers that loads it."""
    tag: ClassVar[str] = "feature-extraction"
    """`pipeline_tag` of its card."""
    stages: ClassVar[tuple[str, ...]] = ()
    """Commands of this project that take it."""
    side_model: ClassVar[type[SideModel]]
    """Class of its side model."""

    config_class = UniPTConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _keep_in_fp32_modules_strict = {"side", "cached"}  # noqa: RUF012

    def __init__(self, config: UniPTConfig) -> None:
        super().__init__(config)
        own = {name: spec for name, spec in config.towers.items() if not isinstance(spec, str)}
        self.towers = nn.ModuleDict(
            {name: TOWERS[spec["modality"]](spec) for name, spec in own.items()}
        )
        self.side = self.side_model.from_config(config.side_config).float()
        self._tokenizer: Any = None
        self.post_init()  # type: ignore[no-untyped-call]

    def tower(self, name: str) -> Any:
        """Return the `FrozenTower` of this name, which may belong to several."""
        spec = self.config.towers[name]
        return self.towers[spec if isinstance(spec, str) else name]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of this model's folder, read at first use."""
        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(
                self.config.name_or_path,
                config=self.config,
                revision=getattr(self.config, "_commit_hash", None) or "main",
            )
        return self._tokenizer

    def tokenize(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        cut: bool = True,
        extra: int = 0,
    ) -> dict[str, Tensor]:
        """Return what a text tower takes of some texts, int64 [B, L] each.

        Args:
            texts: first (or only) texts.
            pairs: second texts.
            cut: at the longest that the backbone takes; False leaves that to the model.
            extra: padding beyond the longest row, in tokens, where there is room.
        """
        spec = next(each.spec for each in self.towers.values() if isinstance(each, TextTower))
        found = self.tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            truncation=cut,
            padding=True,
            return_tensors="pt",
            verbose=False,
        )
        names = ["input_ids", "attention_mask"]
        names += ["token_type_ids"] if spec["token_types"] or not cut else []
        length = found["input_ids"].shape[1]
        room = max(0, min(extra, self.tokenizer.model_max_length - length)) if cut else extra
        fill = {"input_ids": self.tokenizer.pad_token_id}
        return {
            name: F.pad(found[name].to(torch.int64), (0, room), value=fill.get(name, 0))
            for name in names
        }

    def states(self, **inputs: Tensor | None) -> dict[str, States]:
        """Return the states of each tower that these tensors are for."""
        given = {name: value for name, value in inputs.items() if value is not None}
        return {
            name: tower(**{key: given[key] for key in tower.takes if key in given})
            for name, tower in self.towers.items()
            if isinstance(tower, FrozenTower) and tower.takes[0] in given
        }

    def outputs(self, **inputs: Tensor | None) -> Outputs:
        """Return what the side model says of a batch; arguments as of its towers."""
        found: Outputs = self.side(self.states(**inputs))
        return found

    @torch.no_grad()
    def run(self, **inputs: Tensor) -> Outputs:
        """Return `outputs` of tensors that lie anywhere, without gradients."""
        return self.outputs(**{name: value.to(self.device) for name, value in inputs.items()})

    def inputs(self, given: Mapping[str, Sequence[Any]], *, extra: int = 0) -> dict[str, Tensor]:
        """Return the tensors of examples.

        Args:
            given: tower -> its input of each example: a text, (text, pair), or a file's path.
            extra: padding beyond the longest row, in tokens, where there is room.
        """
        raise NotImplementedError

    def processors(self) -> Sequence[Any]:
        """Return what else is saved with the model, such as an image processor; not the tokenizer.

        Each has `save_pretrained`.
        """
        return ()

    def usage(self, name: str) -> str:
        """Return code that loads the folder `name` and uses the model."""
        raise NotImplementedError

    def compared(self, outputs: Outputs) -> Tensor:
        """Return what an artefact is held to, [B, K]: all values, side by side."""
        values = [outputs.values[name] for name in sorted(outputs.values)]
        return torch.cat([value.flatten(1).float() for value in values], 1)

    def answers(self, found: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return the answer that each row [B, K] of `compared` stands for, [B].

        Args:
            found: rows.
            others: `compared` of the other passes.
        """
        return found.argmax(1)

    def traced(self, towers: Sequence[str]) -> Traced:
        """Return what is traced of the towers of one inference pass."""
        raise NotImplementedError

    def from_traced(
        self,
        towers: Sequence[str],
        run: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
        inputs: Mapping[str, Tensor],
    ) -> Outputs:
        """Return what `outputs` would, by a traced artefact.

        Args:
            towers: of the pass.
            run: runs the artefact; gives its outputs by name.
            inputs: as `inputs` gives them.
        """
        found = run(inputs)
        return Outputs({name: found[name] for name in found if name != "confidence"})

    def to_trace(self, towers: Sequence[str]) -> Self:
        """Return a copy of these towers and the side model that can be traced with dynamic sizes.

        The backbones' weights are shared; the side model is a copy.
        """
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.side = copy.deepcopy(self.side)
        used = [self.tower(name) for name in towers]
        own = {name: tower for name, tower in self.towers.items() if tower in used}
        other.towers = nn.ModuleDict(own)
        longest = max(tower.longest for tower in used)
        for part in other.side.modules():
            if isinstance(part, GeneralizedPooling):
                part.freeze(longest)
        return other
