"""What exported models answer to: a file for each API, written into the folders that have it.

An API is a subclass of `UniPTModel` with a forward pass of its own, in a file here that calls it
`API`; a system names the file as its `api`.
"""

from functools import cache
from pathlib import Path


@cache
def apis() -> tuple[str, ...]:
    """Return the names of the files here."""
    files = Path(__file__).parent.glob("*.py")
    return tuple(sorted(file.stem for file in files if file.stem != "__init__"))
