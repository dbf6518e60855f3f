"""Taps on one call of a module that is called several times in a forward pass."""

import pytest
import torch
from torch import Tensor, nn

from unipt import TapRecorder


class Shared(nn.Module):
    """Calls one layer `depth` times."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.depth, self.layer = depth, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.depth):
            x = self.layer(x)
        return x


TAPS = {"b": "layer@1", "a": "layer@0", "any": "layer"}


def test_calls_are_counted_within_each_forward_pass() -> None:
    model = Shared()
    with TapRecorder(model, TAPS) as recorder:
        for _ in range(2):
            x = torch.randn(2, 3)
            model(x)
            first = model.layer.forward(x)  # runs no hook
            expected = {"b": model.layer.forward(first), "a": first}
            expected["any"] = model.layer.forward(expected["b"])
            assert list(recorder.states) == list(expected)
            assert all(torch.equal(recorder.states[name], expected[name]) for name in expected)
    assert not model.layer._forward_hooks and not model._forward_pre_hooks


def test_a_call_that_is_not_made_is_named() -> None:
    model = Shared()
    with TapRecorder(model, {"a": "layer@2", "b": "layer@3"}) as recorder:
        model(torch.randn(2, 3))
    with pytest.raises(RuntimeError, match=r"taps \['b'\] did not fire.*not that often"):
        _ = recorder.states


def test_nothing_is_left_of_an_earlier_pass() -> None:
    model = Shared()
    with TapRecorder(model, {"a": "layer@2"}) as recorder:
        model(torch.randn(2, 3))
        model.depth = 2
        model(torch.randn(2, 3))
        with pytest.raises(RuntimeError, match="did not fire"):
            _ = recorder.states


@pytest.mark.parametrize("path", ["layer@", "layer@-1", "layer@x", "layer@1@2"])
def test_a_call_is_a_number(path: str) -> None:
    model = Shared()
    with pytest.raises(ValueError, match="names no call"), TapRecorder(model, {"a": path}):
        pass
    assert not model._forward_pre_hooks


def test_calls_under_export() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Shared()

        def forward(self, x: Tensor) -> Tensor:
            with TapRecorder(self.backbone, TAPS) as recorder:
                self.backbone(x)
            return torch.stack(list(recorder.states.values()))

    model, x = Fused(), torch.randn(2, 3)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    x = torch.randn(5, 3)
    torch.testing.assert_close(program.module()(x), model(x))
    assert len({value.sum().item() for value in model(x)}) == len(TAPS)
