"""Trainable parameters and live randomness above a tap are refused, below the taps they are not."""

import pytest
import torch
from tiny import tiny_model
from torch import nn

from pipeline.backbones import NotFrozen, check_frozen
from pipeline.backbones.trace import trace

LAST = {"encoder.layer.01": "encoder.layer.1"}
FIRST = {"embeddings": "embeddings", "encoder.layer.00": "encoder.layer.0"}


def test_a_frozen_model_passes() -> None:
    check_frozen(tiny_model("bert"), LAST)


def test_a_trainable_parameter_upstream_is_named() -> None:
    model = tiny_model("bert")
    model.encoder.layer[1].output.dense.bias.requires_grad_(True)
    with pytest.raises(NotFrozen, match=r"1 trainable.*encoder\.layer\.1\.output\.dense\.bias"):
        check_frozen(model, LAST)
    check_frozen(model, FIRST)  # it comes after these taps


def test_a_shared_layer_is_upstream_of_its_first_call() -> None:
    model = tiny_model("albert")
    group = model.encoder.albert_layer_groups[0]
    first = {"encoder.layer.00": "encoder.albert_layer_groups.0@0"}
    check_frozen(model, first)
    group.albert_layers[0].ffn.weight.requires_grad_(True)
    with pytest.raises(NotFrozen, match=r"1 trainable.*albert_layers\.0\.ffn\.weight"):
        check_frozen(model, first)
    check_frozen(model, {"embeddings": "encoder.embedding_hidden_mapping_in"})


def test_a_trainable_pooler_is_below_every_tap() -> None:
    model = tiny_model("bert")
    model.pooler.requires_grad_(True)
    check_frozen(model, LAST)


@pytest.mark.parametrize(
    "module", ["encoder.layer.1.output.dropout", "encoder.layer.1.attention.self"]
)
def test_live_dropout_upstream_is_named(module: str) -> None:
    model = tiny_model("bert")
    model.get_submodule(module).training = True
    with pytest.raises(NotFrozen, match=f"1 module.*training mode: {module}"):
        check_frozen(model, LAST)
    check_frozen(model, FIRST)


def test_live_batch_norm_is_named_and_its_statistics_stay() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(8, 3)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
            return (self.norm(self.embed(input_ids)[0])[None],)

    model = Normed().eval().requires_grad_(False)
    model.norm.train()
    with pytest.raises(NotFrozen, match="training mode: norm"):
        check_frozen(model, {"norm": "norm"})
    assert model.norm.num_batches_tracked == 0
    assert model.norm.training
    check_frozen(model, {"embed": "embed"})


def test_a_whole_model_in_training_mode_names_the_dropouts_first() -> None:
    with pytest.raises(NotFrozen, match=r"training mode: embeddings\.dropout, .* and \d+ more"):
        check_frozen(tiny_model("bert").train(), LAST)


def test_a_module_that_never_runs_counts_as_upstream() -> None:
    model = tiny_model("bert")
    model.unused = nn.Linear(2, 2)
    with pytest.raises(NotFrozen, match=r"unused\.bias, unused\.weight"):
        check_frozen(model, LAST)


def test_a_trace_leaves_no_hooks_behind_even_after_an_error() -> None:
    model = tiny_model("bert")

    def fail(*_: object) -> None:
        raise RuntimeError("stop")

    handle = model.encoder.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        trace(model)
    handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
