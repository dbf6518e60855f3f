"""A frozen backbone and its UniPT side classifier as one transformers model.

B texts (or pairs), L tokens, N + 1 taps, D backbone width. Cost: one forward pass of the backbone
with (N + 1) * B * L * D recorded values, then the side classifier (about 1/20 of a BERT-base pass).

Written into every exported folder and loaded from there by transformers; the side network's files
stand beside it.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from unipt.classifier import SideClassifier

from .backbone_unipt import CachedStates, accepted_arguments, build_backbone, record
from .configuration_unipt import UniPTConfig


@dataclass
class UniPTOutput(SequenceClassifierOutput):
    """Logits [B, labels], the loss if labels were given, and the confidences [B, N] on request."""

    confidence: Tensor | None = None


class UniPTForSequenceClassification(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Backbone, recorded taps and side classifier: text in, logits out.

    The side classifier stays in float32 whatever the type of the backbone's weights.

    Raises:
        ValueError: the configuration names a backbone class that transformers does not have.
    """

    config_class = UniPTConfig
    base_model_prefix = "backbone"
    _keep_in_fp32_modules_strict = {"side_classifier", "cached_states"}  # noqa: RUF012

    def __init__(self, config: UniPTConfig) -> None:
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_class, config.backbone_config)
        self.side_classifier = SideClassifier.from_config(config.side_config).float()
        self.cached_states = CachedStates(
            {name: getattr(config, name) for name in ("taps", "storage_type", "pool", "channels")}
        )
        self._backbone_arguments = accepted_arguments(self.backbone)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(  # noqa: PLR0917 (the order of arguments is that of transformers)
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_confidence: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> UniPTOutput | tuple[Tensor, ...]:
        """Classify a batch.

        Args:
            input_ids: [B, L] tokens.
            attention_mask: [B, L], 1 on tokens, 0 on padding; everything is a token if absent.
            token_type_ids: [B, L]; with `segments` = 2 they tell the two sentences apart.
            labels: [B] class numbers, or targets of a regression.
            output_confidence: also return the confidence of each target tap.
            return_dict: False for a plain tuple.

        Returns:
            Logits [B, labels] (in the units of the target for a regression), loss, confidences.

        Raises:
            ValueError: `segments` is 2 and there are no `token_type_ids`.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if self.config.segments == 2:
            if token_type_ids is None:
                raise ValueError(
                    "this model compares two sentences: give token_type_ids, 0 on the first and 1 "
                    "on the second, as its tokenizer does for (text, text_pair)"
                )
            input_ids, mask = self._split(input_ids, mask, token_type_ids)  # [2B, W]
        if self.config.segments == 2 or not self.config.token_types:
            token_type_ids = None
        states = self._record(input_ids, mask, token_type_ids)
        valid = mask.bool() if states.dim() == 4 else None
        if valid is None:  # pooled: each text is a sample of one token
            states = states[:, :, None]
        logits, confidence = self.side_classifier(states, mask=valid)
        wanted = self.config.output_confidence if output_confidence is None else output_confidence
        output = UniPTOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            confidence=confidence if wanted else None,
        )
        return tuple(output.values()) if return_dict is False else output

    def _record(self, input_ids: Tensor, mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Run the backbone; return its taps, [N + 1, B, L, D], as the cache holds them.

        Pooled taps are [N + 1, B, D].
        """
        given = {"attention_mask": mask, "token_type_ids": token_type_ids, "use_cache": False}
        options = {
            k: v for k, v in given.items() if v is not None and k in self._backbone_arguments
        }
        states = record(
            self.backbone,
            self.config.tap_modules,
            input_ids=input_ids,
            **options,
        )
        cached = [self.cached_states(name, states[name], mask) for name in self.config.taps]
        stacked = torch.stack(cached)
        return stacked.to(next(self.side_classifier.parameters()).dtype)

    def _split(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Turn joint rows [B, L] into rows [2B, W]: all first sentences, then all second ones.

        Each sentence is moved to the row's start; one longer than `segment_length` loses tokens
        before its closing special tokens, as truncation by the tokenizer does.
        """
        limit = self.config.segment_length
        width = ids.shape[1]
        if limit is not None:
            width = torch.sym_min(width, limit)  # type: ignore[no-untyped-call]
        place = torch.arange(width, device=ids.device)[None]  # [1, W]
        rows, masks = [], []
        for segment in (0, 1):
            member = (mask.bool() & (types == segment)).long()  # [B, L]
            length = member.sum(1, keepdim=True)  # [B, 1]
            kept = length.clamp(max=limit)
            closing = place >= kept - self.config.segment_suffix
            source = member.argmax(1, keepdim=True) + place + closing * (length - kept)
            rows.append(ids.gather(1, source.clamp(max=ids.shape[1] - 1)))
            masks.append((place < kept).to(mask.dtype))
        valid = torch.cat(masks)  # [2B, W]
        return torch.cat(rows).masked_fill(valid == 0, self.config.pad_token_id or 0), valid

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.problem_type == "regression":
            return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).reshape(-1))
        return F.cross_entropy(logits, labels.reshape(-1))
