"""Everything of a cache but its shards, as files in memory, made and read by zarr-python.

Groups, the metadata of all arrays, and the index arrays, each one chunk with a CRC-32C. The files
are then written and read as all files of a cache are: whole, flushed, of a known size. The root
holds a copy of all metadata (Zarr's consolidated metadata), so Zarr readers open it in one read and
do not ask what the ledger is. zarr is imported at first use (0.3 s); about 1 ms an array.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .compression import parse_compression
from .geometry import ACTIVATIONS, INDEX, ROOT, Geometry
from .spec import Bytes, Stack

Array = np.ndarray[Any, Any]


def build_files(
    geometry: Geometry,
    attributes: Mapping[str, Any] | None = None,
    index: Mapping[str, Array] | None = None,
) -> dict[str, bytes]:
    """Return every `zarr.json`, the root's last, and the chunks of the index.

    Args:
        geometry: of the cache.
        attributes: of the root.
        index: the index arrays by name; None for their metadata alone.
    """
    import zarr  # noqa: PLC0415
    from zarr.codecs import Crc32cCodec  # noqa: PLC0415
    from zarr.storage import MemoryStore  # noqa: PLC0415

    made: dict[str, Any] = {}
    store = MemoryStore(made)
    root = zarr.create_group(store, attributes=dict(attributes or {}))
    arrays, group = root.create_group(ACTIVATIONS), root.create_group(INDEX)
    for stack in geometry.stacks:
        arrays.create_array(**_array_of(geometry, stack))
    for name, (shape, data_type) in geometry.index_arrays().items():
        array = group.create_array(
            name=name,
            shape=shape,
            chunks=tuple(max(1, n) for n in shape),
            dtype=data_type,
            filters=None,
            compressors=[Crc32cCodec()],
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        if index is not None and array.size:
            array[...] = index[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(store)
    made[ROOT] = made.pop(ROOT)
    return {name: content.to_bytes() for name, content in made.items()}


def _array_of(geometry: Geometry, stack: Stack) -> dict[str, Any]:
    """Return the arguments of `create_array` for an array of activations."""
    from zarr.codecs import Crc32cCodec, ZstdCodec  # noqa: PLC0415

    shape, level = geometry.array_shape(stack), parse_compression(geometry.compression)
    flat = stack.ragged and len(stack.shape) == 1
    return {
        "name": stack.name,
        "shape": shape,
        "dtype": stack.data_type,
        "shards": (geometry.blocks_per_shard, *shape[1:]),
        "chunks": (1, 1, *shape[2:]),
        "filters": None,
        "compressors": [*([] if level is None else [ZstdCodec(level=level)]), Crc32cCodec()],
        "fill_value": 0,
        "attributes": geometry.attributes(stack),
        "dimension_names": [
            *("block", "tap", stack.row_name),
            *(["width"] if flat else [None] * len(stack.shape)),
        ],
    }


def find_altered(wanted: Mapping[str, bytes], found: Mapping[str, bytes]) -> Iterator[str]:
    """Yield the `zarr.json` files below the root that do not say what they should.

    Compared by value, as zarr-python understands them: more attributes, other spellings and another
    order change nothing.

    Args:
        wanted: what `build_files` gives.
        found: the same files as they are; one that is missing is altered.
    """
    for name, content in wanted.items():
        if not name.endswith(f"/{ROOT}") or found.get(name) == content:
            continue
        ours = _describe(content)
        try:
            theirs = _describe(found[name])
            own = {key: theirs["attributes"][key] for key in ours["attributes"]}
        except Exception:  # whatever zarr says of a file that it did not write
            yield name
            continue
        if ours != theirs | {"attributes": own}:
            yield name


def _describe(content: bytes) -> dict[str, Any]:
    """Return the metadata of a node, given its `zarr.json`."""
    import zarr  # noqa: PLC0415

    node = zarr.open(_store_of({ROOT: content}), mode="r", use_consolidated=False)
    known: dict[str, Any] = node.metadata.to_dict()
    known.pop("consolidated_metadata", None)
    return known


def decode_index(geometry: Geometry, files: Mapping[str, bytes], name: str, chunk: Bytes) -> Array:
    """Return an index array, given the files that `build_files` gives and its chunk file.

    Raises:
        ValueError: the chunk fails its checksum.
    """
    import zarr  # noqa: PLC0415

    key = geometry.index_chunk(name)[0].removeprefix(f"{INDEX}/{name}/")
    array = zarr.open_array(
        _store_of({ROOT: files[f"{INDEX}/{name}/{ROOT}"], key: chunk.data}), mode="r"
    )
    return np.asarray(array[...])


def _store_of(files: Mapping[str, bytes | memoryview]) -> Any:
    from zarr.buffer.cpu import Buffer  # noqa: PLC0415
    from zarr.storage import MemoryStore  # noqa: PLC0415

    made: dict[str, Any] = {n: Buffer.from_bytes(c) for n, c in files.items()}
    return MemoryStore(made, read_only=True)
