"""What a writer finds before the first shard: other things, or an unfinished cache."""

import torch
from torch import Tensor

from ..errors import CacheDamaged, CacheError
from ..format.geometry import ACTIVATIONS, COMPLETE, INDEX, LEDGER, LOCK, ROOT, Geometry
from ..storage.files import PARTIAL
from ..storage.location import Location, ObjectPath
from ..storage.records import Manifest, read_index

_OURS = {ROOT, LEDGER, COMPLETE, LOCK, ACTIVATIONS, INDEX}


def refuse_foreign(root: Location) -> None:
    """Raise `CacheError` if there are other things than a cache in `root`."""
    if isinstance(root, ObjectPath):
        names = {name.partition("/")[0] for name in root.below()}
    elif not root.exists():
        return
    elif not root.is_dir():
        raise CacheError(f"{root} is a file; give the path of a folder")
    else:
        names = {path.name for path in root.iterdir()}
    foreign = sorted(name for name in names - _OURS if not name.endswith(PARTIAL))
    if foreign:
        raise CacheError(
            f"{root} holds other things ({', '.join(foreign[:5])}); give an empty or a new folder"
        )


def saved_rms(found: Manifest) -> dict[str, Tensor]:
    """Return the size of each channel of int8 that an existing cache has."""
    rms: dict[str, Tensor] = {}
    for stack in found.geometry.quantized_stacks:
        try:
            table = torch.from_numpy(read_index(found, found.geometry.rms_name(stack)))
        except CacheDamaged as error:
            raise CacheDamaged(
                f"{error}: not this time, as it holds a measurement. Delete the folder"
            ) from error
        rms |= dict(zip(stack.tap_names, table, strict=True))
    return rms


def unit_rms(geometry: Geometry) -> dict[str, Tensor]:
    """Return a size of 1 for every channel of int8."""
    return {name: torch.ones(s.channels) for s in geometry.quantized_stacks for name in s.tap_names}
