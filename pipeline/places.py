"""Where a config's caches are: folders of this machine, or URLs of object stores, as one type."""

from typing import Annotated

from pydantic import PlainSerializer, PlainValidator

from cache.storage.location import Location, parse_location

Place = Annotated[Location, PlainValidator(parse_location), PlainSerializer(str, return_type=str)]
"""A folder, or a URL such as s3://bucket/name.zarr; written to files as text."""
