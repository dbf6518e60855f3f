"""How large blocks and shards are: the sizes of reading and of writing, chosen by bytes. Pure.

Tokens keep the number a caller gives (640 tokens of width 768 are about 1 MiB a tap). A frame or a
map is anything from a kilobyte to 8 MiB, so rows of those follow from bytes: a chunk of about 1 MiB
or one row, whichever is more, and a shard of at most 256 MiB, so that the two shard buffers of an
overlapped writer stay at half a gigabyte.
"""

from collections.abc import Mapping, Sequence

from .spec import Ints, Stack

BLOCK_TOKENS = 640
"""Tokens of a block where the caller gives no number."""
BLOCKS_PER_SHARD = 16
"""Blocks of a shard, unless that makes it larger than `SHARD_TARGET`."""
CHUNK_TARGET = 2**20
"""Bytes of a chunk of frames or samples."""
FIXED_TARGET = 2**26
"""Bytes of one block's samples in the stacks of fixed shape, beside a ragged axis."""
SHARD_TARGET = 2**28
"""Bytes of a shard, all stacks together, in a cache that does not hold tokens alone."""


def block_rows(
    stacks: Sequence[Stack],
    lengths: Mapping[str, Ints],
    block_tokens: int | Mapping[str, int],
) -> dict[str, int]:
    """Return the rows of a block on each ragged axis.

    Frames are given as many rows as the widest tap of the axis allows in a chunk of `CHUNK_TARGET`
    bytes, rounded so that videos of the longest length fill blocks without a rest: down to a
    multiple of that length, or to an equal part of it where it exceeds a block.

    Args:
        stacks: of the cache.
        lengths: rows of each sample on each axis, int64 [n_samples].
        block_tokens: tokens of a block; a mapping sets single axes, also those of frames.
    """
    given = block_tokens if isinstance(block_tokens, Mapping) else {}
    tokens = block_tokens if isinstance(block_tokens, int) else BLOCK_TOKENS
    ragged = [stack for stack in stacks if stack.ragged]
    rows: dict[str, int] = {}
    for axis in dict.fromkeys(stack.axis for stack in ragged):
        mine = [stack for stack in ragged if stack.axis == axis]
        if axis in given:
            rows[axis] = given[axis]
        elif mine[0].taps[0].kind == "tokens":
            rows[axis] = tokens
        else:
            limit = max(1, CHUNK_TARGET // max(s.width * s.itemsize for s in mine))
            rows[axis] = _frame_rows(lengths[axis], limit)
    return rows


def _frame_rows(lengths: Ints, limit: int) -> int:
    longest, total = int(lengths.max(initial=1)), int(lengths.sum())
    if longest > limit:
        return -(-longest // -(-longest // limit))
    return min(limit, max(1, total)) // longest * longest


def slot_limit(stacks: Sequence[Stack], rows: Mapping[str, int], n_samples: int) -> int:
    """Return the most samples of a block.

    Without a ragged axis: as many as make a chunk of `CHUNK_TARGET` bytes of the widest tap. With
    one: as many as the longest axis has rows, bounded by `FIXED_TARGET`.
    """
    fixed = [stack for stack in stacks if not stack.ragged]
    if not rows:
        widest = max(stack.width * stack.itemsize for stack in fixed)
        return max(1, min(CHUNK_TARGET // widest, n_samples))
    sample = sum(len(stack.taps) * stack.width * stack.itemsize for stack in fixed)
    longest = max(rows.values())
    return max(1, min(longest, FIXED_TARGET // sample) if sample else longest)


def shard_blocks(
    stacks: Sequence[Stack],
    lengths: Mapping[str, Ints],
    rows: Mapping[str, int],
    slots: int,
) -> int:
    """Return the blocks of a shard: 16 of tokens; otherwise at most 16, in `SHARD_TARGET` bytes.

    Where the longest video takes several blocks the number is a multiple of those, since no video
    straddles a shard.
    """
    if all(stack.row_name == "token" for stack in stacks):
        return BLOCKS_PER_SHARD
    block = sum(
        len(s.taps) * (rows[s.axis] if s.ragged else slots) * s.width * s.itemsize for s in stacks
    )
    clip = max([1, *(-(-int(lengths[a].max(initial=1)) // size) for a, size in rows.items())])
    return max(1, min(BLOCKS_PER_SHARD, SHARD_TARGET // block) // clip) * clip
