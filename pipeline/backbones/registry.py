"""A typed registry: names to values, registered in one line beside each definition."""

from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to values of one kind.

    A name is registered once; an unknown name is answered with the known ones.

    Args:
        kind: what the values are, in the words of an error message ("backbone family").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._values: dict[str, T] = {}

    def register(self, name: str, value: T) -> T:
        """Add `value` under `name` and return it.

        Raises:
            ValueError: `name` is taken.
        """
        if name in self._values:
            raise ValueError(f"{self.kind} {name!r} is already registered: {self._values[name]!r}")
        self._values[name] = value
        return value

    def get(self, name: str) -> T:
        """Return the value of `name`.

        Raises:
            KeyError: `name` is unknown; the message lists the known names.
        """
        if name not in self._values:
            raise KeyError(f"unknown {self.kind} {name!r}; known: {', '.join(self.names())}")
        return self._values[name]

    def names(self) -> tuple[str, ...]:
        """Return every registered name, sorted."""
        return tuple(sorted(self._values))

    def __contains__(self, name: str) -> bool:
        return name in self._values
