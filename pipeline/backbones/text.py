"""A frozen text model with named taps: text in, packed states of the valid tokens out.

Every batch is padded on the right, whatever the tokenizer prefers, and masked: a causal model's
valid tokens then keep their positions, and the padding is dropped before anything is kept. The
pad token is therefore any id where a tokenizer has none. A family that was trained on full length
(SigLIP) is the exception: its texts are filled up to it, and nothing is masked. B inputs, L
longest, T valid tokens.
"""

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cache import TapSpec
from cache.format.spec import Kind
from pipeline.backbones.base import Modality, Smaller
from pipeline.backbones.corruption import Corruption
from pipeline.backbones.encoding import EncodedTexts, encode, length_batches
from pipeline.backbones.family import BackboneError, Family, select_taps
from pipeline.backbones.fingerprint import tokenizer_digest, weights_digest
from pipeline.backbones.generic import check_padding, known_taps
from pipeline.backbones.pooled_taps import describe_pooling, pooled_taps
from pipeline.backbones.pooling import pool_states
from pipeline.backbones.trace import no_kv_cache, trace
from pipeline.inputs import SPANS, TextInput
from unipt.recorder import TapRecorder

DEFAULT_MAX_LENGTH = 512
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 16384
CPU_PASS_TOKENS, GPU_PASS_TOKENS = 64, 2048
"""Fixed cost of one forward pass, in tokens computed meanwhile."""
LENGTHS = (256, 128, 64, 32, 24, 16)
"""Lengths that are tried where a cache would be too large."""


class TextBackbone:
    """A text model, its tokenizer and its taps.

    Args:
        model: a transformers model that returns `last_hidden_state`.
        tokenizer: its tokenizer.
        name: what to call it in messages.
        taps: glob patterns of the taps to record; None takes all.
        max_length: longest input in tokens, special ones included; None takes the least of what
            the tokenizer and the model's positions allow and `DEFAULT_MAX_LENGTH`.
        autocast: compute type of `torch.autocast`; None runs in the weights' own type.
        digest: the weights' digest, if it was taken before they were cast.
        revision: branch, tag or commit of a hub id, to find the model again.
        pool: pooling of the tokens of a tap, see `pooling.check_pool`; "none" keeps them.

    Attributes:
        taps: the selected taps, in the order of computation; what a module emits once a text
            ([B, D], a projected state) is a vector, what it emits for each token is not, unless
            it is pooled.
        emitted_taps: the same before they are pooled.
        tap_modules: tap name -> module path, of the selected taps.
        all_taps: the names of every tap of the model.
        full_length: every text is filled up to `max_length` with pad tokens that nothing masks.
        arguments: given to every forward pass, beside the inputs.

    Raises:
        BackboneError: the model cannot be tapped, a pattern matches no tap, the pooling does not
            fit, or `max_length` is beyond the model's positions.
    """

    modality: Modality = "text"
    axis: str | None = "tokens"
    unit = "tokens"
    pads = True
    decodes = False
    augmentation = "a fifth of the tokens corrupted: half masked, a tenth random, the rest dropped"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        taps: Sequence[str] | None = None,
        max_length: int | None = None,
        autocast: torch.dtype | None = None,
        digest: str | None = None,
        revision: str | None = None,
        pool: str = "none",
    ) -> None:
        self.model: Any = model
        self.tokenizer, self.name, self.autocast = tokenizer, name, autocast
        self.config: Any = model.config
        self._digest, self.revision = digest, revision
        seen = trace(model)
        family, known = known_taps(model, self.config, seen)
        if family is None:
            check_padding(model, known.values(), seen, self.pad_id)
        self.family = family.name if family else "generic"
        self.all_taps = tuple(known)
        self.tap_modules = {tap: known[tap] for tap in select_taps(self.all_taps, taps)}
        self.emitted_taps = tuple(
            _tap_spec(tap, seen.emitted[path]) for tap, path in self.tap_modules.items()
        )
        self.pool, self.taps = pool, pooled_taps(self.emitted_taps, pool)
        self.max_length = _max_length(max_length, self.config, tokenizer, family, name)
        self.full_length = family is not None and family.full_length
        self.arguments = no_kv_cache(model)
        self.token_types = _takes_token_types(model, self.config, tokenizer)
        self.facts: tuple[str, ...] = ()

    def pooled(self, pool: str) -> Self:
        """Return this backbone with its taps pooled by `pool`; it shares the model."""
        other = copy.copy(self)
        other.pool, other.taps = pool, pooled_taps(self.emitted_taps, pool)
        return other

    def with_facts(self, facts: Sequence[str]) -> Self:
        """Return this backbone recording facts of its inputs too; it shares the model."""
        if not facts:
            return self
        unknown = [fact for fact in facts if fact != SPANS]
        if unknown or self.pool != "none" or not getattr(self.tokenizer, "is_fast", False):
            why = (
                f"{', '.join(unknown)} is nothing that texts have"
                if unknown
                else "--pool keeps no tokens; leave it out"
                if self.pool != "none"
                else f"the tokenizer of {self.name} does not say where its tokens lie in a text "
                "(it is no fast tokenizer); choose another backbone"
            )
            raise BackboneError(f"{', '.join(facts)} cannot be recorded: {why}")
        other = copy.copy(self)
        other.facts = tuple(facts)
        other.taps = (*self.taps, TapSpec(name=SPANS, kind="tokens", shape=(2,)))
        return other

    def smaller(self, longest: int) -> Iterator[Smaller]:
        """Yield this backbone for shorter texts, which are cut."""
        for length in LENGTHS:
            if length < longest:
                change = f"texts of at most {length} tokens"
                yield Smaller(self, f"--max-length {length}", change, length)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of the arithmetic."""
        stored: torch.dtype = next(self.model.parameters()).dtype
        return self.autocast or stored

    @cached_property
    def pad_id(self) -> int:
        """Id that fills a batch; never looked at, but RoBERTa counts positions by it."""
        rows = self.model.get_input_embeddings().num_embeddings
        ids = (self.tokenizer.pad_token_id, getattr(self.config, "pad_token_id", None))
        return next((i for i in ids if i is not None and 0 <= i < rows), 0)

    def batches(
        self, samples: NDArray[np.int64], lengths: NDArray[np.int64], batch_bound: int | None
    ) -> Iterator[NDArray[np.int64]]:
        """Yield `samples` in the batches of the forward passes; see `length_batches`.

        Args:
            samples: sample numbers, int64 [m].
            lengths: tokens of every sample, int64 [n].
            batch_bound: bound of a pass, in tokens with padding; None takes what was fastest:
                small on a CPU, where padding costs most, large on a GPU.
        """
        on_cpu = self.device.type == "cpu"
        bound = batch_bound or (CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS)
        pass_tokens = CPU_PASS_TOKENS if on_cpu else GPU_PASS_TOKENS
        return length_batches(samples, lengths, bound, pass_tokens=pass_tokens)

    def encode(
        self, inputs: Iterable[TextInput], views: Sequence[int] | None = None
    ) -> EncodedTexts:
        """Tokenise `inputs`, at most `max_length` tokens each; cuts are flagged.

        A view above 0 is the text with a fifth of its tokens corrupted; see `Corruption`.

        Raises:
            BackboneError: such a view, and a tokenizer without a mask token.
        """
        listed = inputs if views is None else list(inputs)
        encoded = encode(
            self.tokenizer,
            listed,
            max_length=self.max_length,
            token_types=self.token_types,
            spans=SPANS in self.facts,
        )
        if views is None or not any(views):
            return encoded
        return self._corruption.apply(encoded, list(listed), views)

    @cached_property
    def _corruption(self) -> Corruption:
        rows = self.model.get_input_embeddings().num_embeddings
        return Corruption.of(self.tokenizer, rows, self.name)

    def prepare(self, encoded: EncodedTexts) -> dict[str, Tensor]:
        """Return the padded model arguments of `encoded`, int64 [B, L] each, on the CPU."""
        longest = self.max_length if self.full_length else int(encoded.lengths.max(initial=1))
        valid = np.arange(longest) < encoded.lengths[:, None]  # [B, L]
        ids = np.full(valid.shape, self.pad_id, dtype=np.int64)
        ids[valid] = encoded.tokens
        arrays = {"input_ids": ids, "attention_mask": (valid | self.full_length).astype(np.int64)}
        if encoded.types is not None:
            arrays["token_type_ids"] = np.zeros_like(ids)
            arrays["token_type_ids"][valid] = encoded.types
        return {key: torch.from_numpy(value) for key, value in arrays.items()}

    @torch.inference_mode()
    def run(self, prepared: Mapping[str, Tensor]) -> Any:
        """Run the bare model on `prepared`: what recording is measured against."""
        batch = {key: value.to(self.device) for key, value in prepared.items()}
        half = self.autocast is not None
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=half):
            return self.model(**batch, **self.arguments)

    @torch.inference_mode()
    def forward(
        self,
        encoded: EncodedTexts,
        dtype: torch.dtype | None = None,
        *,
        prepared: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return tap name -> states, inputs one after the other.

        The states of the valid tokens, [T, D], or one a text, [B, D], for a vector or pooled tap.

        Args:
            encoded: the inputs of one batch.
            dtype: type of the result; None keeps the type each module emits. A narrow type here
                halves what is copied afterwards.
            prepared: what `prepare(encoded)` returned, if that is done.
        """
        batch = self.prepare(encoded) if prepared is None else prepared
        with TapRecorder(self.model, self.tap_modules) as recorder:
            self.run(batch)
        states = recorder.states
        valid = np.arange(batch["input_ids"].shape[1]) < encoded.lengths[:, None]  # [B, L]
        if self.pool != "none":
            mask = torch.from_numpy(valid).to(self.device)
            return {name: _pooled(state, self.pool, mask, dtype) for name, state in states.items()}
        index = None if valid.all() else torch.from_numpy(np.flatnonzero(valid)).to(self.device)
        found = {
            tap.name: _packed(states[tap.name].to(dtype), index)
            if tap.kind == "tokens"
            else states[tap.name].to(dtype)
            for tap in self.emitted_taps
        }
        if encoded.spans is not None:
            found[SPANS] = torch.from_numpy(encoded.spans.astype(np.float32))
        return found

    def provenance(self) -> dict[str, Any]:
        """Return where the backbone came from and what ran it; neither identifies it."""
        versions = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
        return {"backbone": self.name, "revision": self.revision, "versions": versions}

    @cached_property
    def _tokenizer_digest(self) -> str:
        return tokenizer_digest(self.tokenizer)

    def fingerprint_parts(self) -> dict[str, Any]:
        """Return what identifies the backbone: weights, preprocessing and taps, as JSON values."""
        if self._digest is None:
            self._digest = weights_digest(self.model)
        return {
            "weights": {"model_type": self.config.model_type, "sha256": self._digest},
            "preprocessing": {
                "tokenizer_sha256": self._tokenizer_digest,
                "max_length": self.max_length,
                "token_types": self.token_types,
            },
            "taps": {
                tap.name: {"module": self.tap_modules[tap.name], "width": tap.shape[0]}
                | describe_pooling(emitted, tap, self.pool)
                for emitted, tap in zip(self.emitted_taps, self.taps, strict=False)
            }
            | {fact: {"fact": "of the input"} for fact in self.facts},
        }


def _tap_spec(name: str, emitted: Tensor) -> TapSpec:
    kind: Kind = "vector" if emitted.dim() == 2 else "tokens"  # [1, D] or [1, L, D]
    return TapSpec(name=name, kind=kind, shape=(emitted.shape[-1],))


def _pooled(states: Tensor, pool: str, mask: Tensor, dtype: torch.dtype | None) -> Tensor:
    return pool_states(states, pool, mask).to(dtype or states.dtype)  # [B, D]


def _packed(states: Tensor, index: Tensor | None) -> Tensor:
    flat = states.flatten(0, 1)  # [B, L, D] -> [B * L, D]
    return flat if index is None else flat.index_select(0, index)  # [T, D]


def _max_length(
    wanted: int | None, config: Any, tokenizer: Any, family: Family | None, name: str
) -> int:
    positions = getattr(config, "max_position_embeddings", None)
    if positions and positions > 0 and family is not None and family.offset_positions:
        positions -= config.pad_token_id + 1
    positions = positions if positions and positions > 0 else None
    if wanted is None:
        limits = (positions, tokenizer.model_max_length, DEFAULT_MAX_LENGTH)
        return min(limit for limit in limits if limit is not None)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    if wanted <= special or (positions is not None and wanted > positions):
        raise BackboneError(
            f"max_length {wanted} is unusable with {name}: allowed are {special + 1} (special "
            f"tokens and one more) to {positions or 'any number'} (the model's positions)"
        )
    return wanted


def _takes_token_types(model: nn.Module, config: Any, tokenizer: Any) -> bool:
    return (
        "token_type_ids" in inspect.signature(model.forward).parameters
        and "token_type_ids" in tokenizer.model_input_names
        and getattr(config, "type_vocab_size", 0) > 1
    )
