"""TapRecorder: keep what named modules of a frozen model emit during a forward pass.

Price: one forward hook a tap and a reference to each recorded tensor; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["TapRecorder"]


class TapRecorder:
    """Context manager that records module outputs by tap name.

    ``with TapRecorder(model, {"layer.3": "encoder.layer.3"}) as recorder: model(x)`` leaves
    ``recorder.states["layer.3"]``. States are in the order of ``taps`` and are detached from
    nothing: run the model under `torch.no_grad` to record constants. Traceable by torch.export.

    Args:
        model: the model that holds the modules.
        taps: tap name to module path, as in ``model.get_submodule``; an empty path is the model.

    Raises:
        ValueError: if a path names no module (on entering).
    """

    def __init__(self, model: nn.Module, taps: Mapping[str, str]) -> None:
        self._model = model
        self._taps = dict(taps)
        self._handles: list[RemovableHandle] = []
        self._recorded: dict[str, Tensor] = {}

    def __enter__(self) -> Self:
        self._recorded.clear()
        try:
            for name, path in self._taps.items():
                self._handles.append(
                    self._module(name, path).register_forward_hook(_keep(self, name))
                )
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    @property
    def states(self) -> dict[str, Tensor]:
        """What each tap emitted in its last call, in the order of the taps.

        Raises:
            RuntimeError: if a tap's module was not called.
        """
        silent = [name for name in self._taps if name not in self._recorded]
        if silent:
            raise RuntimeError(
                f"taps {silent} did not fire: their modules were not called in this forward pass; "
                "choose modules that the forward pass runs"
            )
        return {name: self._recorded[name] for name in self._taps}

    def record(self, name: str, output: Any) -> None:
        """Store one module output: a tensor, or the first element of a tuple or ModelOutput.

        Raises:
            TypeError: if no tensor is found there.
        """
        state = output
        while isinstance(state, (Sequence, Mapping)) and len(state):
            state = next(iter(state.values())) if isinstance(state, Mapping) else state[0]
        if not isinstance(state, Tensor):
            raise TypeError(
                f"tap {name!r} emitted a {type(output).__name__} whose first element is no tensor; "
                "tap a module that returns a tensor, a tuple or a ModelOutput"
            )
        self._recorded[name] = state

    def _module(self, name: str, path: str) -> nn.Module:
        try:
            return self._model.get_submodule(path)
        except AttributeError as error:
            children = [child for child, _ in self._model.named_children()]
            raise ValueError(
                f"tap {name!r}: the model has no module {path!r} ({error}); "
                f"its children are {children}"
            ) from error

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()


def _keep(recorder: TapRecorder, name: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        recorder.record(name, output)

    return hook
