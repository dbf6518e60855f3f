"""What goes into a side model: taps of one shape are one tensor, not copied where they lie so."""

import pytest
import torch
from torch import Tensor, nn

from unipt import States, Stream
from unipt.states import stacked


def adjacent(count: int = 3, *shape: int) -> list[Tensor]:
    return list(torch.randn(count, *(shape or (4, 5))).unbind())


@pytest.mark.parametrize("shape", [(4, 5), (7,), (2, 3, 4, 5)])
def test_adjacent_rows_of_one_tensor_are_not_copied(shape: tuple[int, ...]) -> None:
    whole = torch.randn(4, *shape)
    for rows in (slice(0, 4), slice(1, 3), slice(2, 3)):
        found = stacked(list(whole[rows].unbind()))
        assert isinstance(found, Tensor)
        assert found.data_ptr() == whole[rows].data_ptr()
        assert found.is_contiguous()
        assert torch.equal(found, whole[rows])


OTHERS = {
    "other tensors": lambda: [torch.randn(4, 5) for _ in range(3)],
    "another order": lambda: adjacent()[::-1],
    "with a gap": lambda: adjacent(5)[::2],
    "one twice": lambda: [adjacent()[0]] * 3,
    "columns": lambda: list(torch.randn(4, 3, 5).unbind(1)),
    "turned": lambda: list(torch.randn(3, 5, 4).transpose(1, 2).unbind()),
    "broadcast": lambda: [torch.randn(1, 5).expand(4, 5)] * 3,
}


@pytest.mark.parametrize("name", OTHERS)
def test_all_others_of_one_shape_have_equal_values(name: str) -> None:
    given = OTHERS[name]()
    found = stacked(given)
    assert isinstance(found, Tensor)
    assert torch.equal(found, torch.stack(given))


def test_other_shapes_and_types_come_one_by_one() -> None:
    shapes = [torch.randn(4, 5), torch.randn(4, 6)]
    types = [torch.randn(4, 5), torch.randn(4, 5).half()]
    for given in (shapes, types):
        found = stacked(given)
        assert isinstance(found, list)
        assert all(a is b for a, b in zip(found, given, strict=True))


def test_gradients_reach_what_is_stacked() -> None:
    whole = torch.randn(3, 4, requires_grad=True)
    found = stacked(list(whole.unbind()))
    assert isinstance(found, Tensor)
    (found * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert torch.equal(whole.grad, torch.tensor([[1.0] * 4, [2.0] * 4, [3.0] * 4]))


def test_it_is_traced() -> None:
    class Sum(nn.Module):
        def forward(self, whole: Tensor) -> Tensor:
            found = stacked(list(whole.unbind()))
            assert isinstance(found, Tensor)
            return found.mean(0)

    whole = torch.randn(3, 4, 5)
    axes = ({1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(Sum(), (whole,), dynamic_shapes=axes)
    for rows in (1, 4, 9):
        given = torch.randn(3, rows, 5)
        torch.testing.assert_close(program.module()(given), given.mean(0))


def test_a_stream_reads_its_taps_its_axis_and_a_single_tap_twice() -> None:
    whole = torch.randn(3, 6, 5)
    states = dict(zip("abc", whole, strict=True))
    offsets, mask = torch.tensor([0, 2, 6]), torch.ones(2, 4).bool()
    given = States(states, {"tokens": offsets, "other": offsets + 1}, {"tokens": mask})
    anchor, targets, found_mask, found_offsets = Stream(("a", "b", "c"), "tokens").read(given)
    assert torch.equal(anchor, whole[2])
    assert isinstance(targets, Tensor) and targets.data_ptr() == whole.data_ptr()
    assert torch.equal(targets, whole[:2])
    assert found_mask is mask and found_offsets is offsets
    anchor, targets, found_mask, found_offsets = Stream(("b",)).read(given)
    assert torch.equal(anchor, whole[1]) and torch.equal(targets[0], whole[1])
    assert (found_mask, found_offsets) == (None, None)
    with pytest.raises(ValueError, match=r"lack the tap\(s\) x, y; given: a, b, c"):
        Stream(("a", "x", "y")).read(given)
