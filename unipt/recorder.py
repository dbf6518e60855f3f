"""TapRecorder: keep what named modules of a frozen model emit during a forward pass.

Price: one forward hook a tap, one for the model, and a reference to each recorded tensor; nothing
is copied.
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
            ``path@k`` is the module's k-th call in one forward pass of the model, counted from 0:
            for layers that share one module (ALBERT, arXiv:1909.11942).

    Raises:
        ValueError: if a path names no module, or its call is no number (on entering).
    """

    def __init__(self, model: nn.Module, taps: Mapping[str, str]) -> None:
        self._model = model
        self._taps = dict(taps)
        self._handles: list[RemovableHandle] = []
        self._recorded: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}

    def __enter__(self) -> Self:
        self.begin()
        try:
            self._handles.append(self._model.register_forward_pre_hook(_begin(self)))
            for name, path in self._taps.items():
                module, call = self._module(name, path)
                self._handles.append(module.register_forward_hook(_keep(self, name, call)))
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
        """What each tap emitted in the last forward pass, in the order of the taps.

        Of a module that is called several times it is the last call, unless its path names one.

        Raises:
            RuntimeError: if a tap's module was not called, or not as often as its path says.
        """
        silent = [name for name in self._taps if name not in self._recorded]
        if silent:
            raise RuntimeError(
                f"taps {silent} did not fire: their modules were not called in this forward pass, "
                "or not that often; choose modules that the forward pass runs"
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

    def called(self, name: str) -> int:
        """Count one call of the module of tap `name`; return how many came before it."""
        before = self._calls.get(name, 0)
        self._calls[name] = before + 1
        return before

    def begin(self) -> None:
        """Forget what was recorded and counted: a forward pass of the model begins."""
        self._recorded.clear()
        self._calls.clear()

    def _module(self, name: str, path: str) -> tuple[nn.Module, int | None]:
        path, at, call = path.partition("@")
        if at and not call.isdecimal():
            raise ValueError(
                f"tap {name!r}: {path}@{call} names no call; give path@k with k = 0, 1, ..."
            )
        try:
            return self._model.get_submodule(path), int(call) if at else None
        except AttributeError as error:
            children = [child for child, _ in self._model.named_children()]
            raise ValueError(
                f"tap {name!r}: the model has no module {path!r} ({error}); "
                f"its children are {children}"
            ) from error

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()


def _begin(recorder: TapRecorder) -> Any:
    def hook(_module: nn.Module, _inputs: Any) -> None:
        recorder.begin()

    return hook


def _keep(recorder: TapRecorder, name: str, call: int | None) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if recorder.called(name) == call or call is None:
            recorder.record(name, output)

    return hook
