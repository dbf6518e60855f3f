"""One source of a loader: which samples of a cache an example reads, and how a batch is gathered.

A source may hold taps of several shapes; each group of equal shape is one stack, one store of
blocks and one tensor of a batch. Cost of a batch from memory: one copy of its rows.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..format.spec import Ints, Stack
from ..memory import ALIVE, Demand
from ..reading.block_store import BlockStore, Factors, finish, write_numbers
from ..reading.buffers import BatchBuffers
from ..reading.cache import Cache, TapGroup
from .order import Limits, draw_views


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """What one part of every example is read from.

    Args:
        cache: to read.
        samples: int64 [n], one sample for each example; [n, S] for examples of S segments each; or,
            with `views`, [n, V].
        taps: names, in the order wanted, of one shape or several; None for all.
        views: the columns of `samples` are views: each epoch draws one of them for each example. To
            evaluate, give `samples[:, 0]`, the inputs as they are.
    """

    cache: Cache
    samples: Ints
    taps: Sequence[str] | None = None
    views: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One source's share of a batch of b examples, in its storage type (float32 for int8).

    Attributes:
        states: tap -> [T, D] for tokens, [F, *shape] for frames, [b, *shape] otherwise (S*b with S
            segments: all first segments come first); views into the stacks.
        stacks: [n_taps, ...] for each group of taps of equal shape, in order of first appearance;
            in float32 where those are stored in several types.
        offsets: ragged axis -> int64 [b + 1]; example i has the rows `offsets[i] : offsets[i + 1]`.
    """

    states: dict[str, Tensor]
    stacks: tuple[Tensor, ...]
    offsets: dict[str, Tensor]


class Feed:
    """A source, checked, on its way to being read; `open` gives it its memory.

    Args:
        source: what to read.
        name: for messages; empty for the only one.

    Raises:
        InvalidTap: unknown taps.
        IndexError: samples that the cache does not have.
        ValueError: samples of another shape.
    """

    def __init__(self, source: Source, name: str) -> None:
        self.name, self.cache, self.views = name, source.cache, source.views
        samples = self.cache.check_samples(np.asarray(source.samples))
        if samples.ndim not in (1, 2) or (samples.ndim == 2 and not samples.shape[1]):
            of = f" of {name}" if name else ""
            raise ValueError(f"samples{of} must be [n], [n, S] or [n, V], given {[*samples.shape]}")
        if self.views and samples.ndim != 2:
            raise ValueError(f"samples of {name or 'views'} with views=True must be [n, V]")
        self.samples = samples if samples.ndim == 2 else samples[:, None]  # [n, S] or [n, V]
        taps = [tap.name for tap in self.cache.taps] if source.taps is None else source.taps
        self.groups: list[TapGroup] = self.cache.group_taps(taps)
        self.shapes = self.cache.shapes(taps)
        self.taps = tuple(taps)
        self._stores: list[BlockStore] = []
        self._most: list[int] = []  # rows of the largest batch, for each stack

    @property
    def segments(self) -> int:
        """Samples that each example has in a batch."""
        return 1 if self.views else self.samples.shape[1]

    @property
    def block_bytes(self) -> int:
        """Bytes of the chosen taps of a block, all stacks together."""
        geometry = self.cache.geometry
        return sum(geometry.held_bytes(g.stack) * len(g.taps) for g in self.groups)

    def drawn(self, seed: int, epoch: int, number: int) -> Ints:
        """Samples of every example in an epoch, int64 [n, S]; `number` is that of the source."""
        return draw_views(self.samples, seed, epoch, number) if self.views else self.samples

    def rows(self, drawn: Ints) -> Ints:
        """Tokens and frames of each example given its samples [n, S], int64 [n]; all axes."""
        lengths = self.cache.lengths
        axes = {group.stack.axis for group in self.groups if group.stack.ragged}
        return sum((lengths[axis][drawn].sum(1) for axis in axes), np.zeros(len(drawn), np.int64))

    @property
    def ragged(self) -> bool:
        """Whether some tap has a length of its own in each sample."""
        return any(group.stack.ragged for group in self.groups)

    def demands(self, limits: Limits) -> list[Demand]:
        """Return what the stacks ask for."""
        geometry, demands = self.cache.geometry, []
        self._most = [self._most_rows(group, limits) for group in self.groups]
        for group, needed, rows in zip(self.groups, self._needed, self._most, strict=True):
            stack = group.stack
            row = geometry.row_bytes(stack) * len(group.taps)
            if len(self.shapes) < len(self.groups):  # some are put together in float32
                row += 4 * stack.width * len(group.taps)
            demands.append(
                Demand(
                    name=self.name,
                    block=geometry.held_bytes(stack) * len(group.taps),
                    needed=len(needed),
                    window=len(needed),
                    batch=rows * row,
                )
            )
        return demands

    @cached_property
    def _needed(self) -> list[Ints]:
        """Blocks of each stack that the samples lie in."""
        samples, table = self.samples.reshape(-1), self.cache.table
        sizes = self.cache.geometry.block_tokens
        return [
            table.blocks(samples, group.stack.axis, sizes[group.stack.axis])
            if group.stack.ragged
            else np.flatnonzero(np.bincount(table.block[samples]))
            for group in self.groups
        ]

    @cached_property
    def _factors(self) -> list[Factors | None]:
        """What turns the codes of each stack into numbers."""
        return [self.cache.factors(group.taps) for group in self.groups]

    def _most_rows(self, group: TapGroup, limits: Limits) -> int:
        """Rows of the largest batch there can be."""
        counts = self.cache.row_counts(group.stack, self.samples.reshape(-1))
        if self.views:
            counts = counts.reshape(self.samples.shape).max(1)
        most = int(np.sort(counts)[-limits.examples * self.segments :].sum())
        if limits.rows is None or not group.stack.ragged or not len(counts):
            return most
        longest = counts if self.views else counts.reshape(-1, self.segments).sum(1)
        return min(most, max(limits.rows, int(longest.max())))

    def open(
        self, capacities: Sequence[int], *, shared: bool, home: torch.device | None = None
    ) -> None:
        """Take memory for so many blocks of each stack; `shared`: for all, used by all loaders."""
        self._stores = [
            self.cache.shared_store(group.taps, home)
            if shared
            else self.cache.store(group.taps, capacity, home)
            for group, capacity in zip(self.groups, capacities, strict=True)
        ]

    @property
    def held_bytes(self) -> int:
        """Bytes of the blocks held from epoch to epoch."""
        return sum(store.nbytes for store in self._stores)

    def resident(self) -> bool:
        """Whether all blocks that an epoch can touch are in memory."""
        return all(map(BlockStore.holds, self._stores, self._needed))

    def batch_buffers(
        self, device: torch.device | None, readers: Executor | None
    ) -> list[BatchBuffers]:
        """Return what the batches of an epoch are made with, one for each stack."""
        return [
            BatchBuffers(most_rows=rows, keep=ALIVE, device=device, readers=readers)
            for rows in self._most
        ]

    def gather(
        self,
        samples: Ints,
        buffers: Sequence[BatchBuffers],
    ) -> Part:
        """Read samples [b, S] into a part; all first segments come first.

        Args:
            samples: to read.
            buffers: what the stacks are made with.
        """
        flat = samples.T.reshape(-1)  # [S * b]
        states: dict[str, Tensor] = {}
        stacks: list[Tensor] = []
        offsets: dict[str, Tensor] = {}
        for stack in self.shapes:
            values = self._gather(stack, flat, buffers)
            stacks.append(values)
            states |= dict(zip(stack.tap_names, values, strict=True))
            if stack.ragged and stack.axis not in offsets:
                ends = np.zeros(len(flat) + 1, np.int64)
                np.cumsum(self.cache.row_counts(stack, flat), out=ends[1:])
                offsets[stack.axis] = torch.from_numpy(ends)
        ordered = {tap: states[tap] for tap in self.taps}
        return Part(states=ordered, stacks=tuple(stacks), offsets=offsets)

    def _gather(
        self,
        stack: Stack,
        samples: Ints,
        buffers: Sequence[BatchBuffers],
    ) -> Tensor:
        """Read taps of one shape, [n_taps, T, *shape]; float32 where they lie in several types."""
        mine = [n for n, group in enumerate(self.groups) if group.taps[0] in stack.tap_names]
        places, first = self.cache.places(stack, samples), mine[0]
        parts = {n: self._stores[n].parts(*places, buffers[n]) for n in mine}
        if len(mine) == 1:
            return finish(parts[first], self._factors[first], buffers[first])
        shape = (len(stack.taps), *parts[first][0].shape[1:])
        values = buffers[first].floats(shape)
        by_tap = dict(zip(stack.tap_names, values, strict=True))
        for n in mine:
            write_numbers([by_tap[tap] for tap in self.groups[n].taps], parts[n], self._factors[n])
        return values
