"""CRC-32C, of bytes and of arrays."""

import google_crc32c
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.format.checksum import crc32c, with_crc

CHECK = 0xE3069283
"""CRC-32C of "123456789", the check value of every catalogue of CRCs."""


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=5000), st.integers(0, 70))
def test_bytes_and_arrays_give_the_reference_value(data, start):
    part = np.frombuffer(data, np.uint8)[start:]
    expected = google_crc32c.value(data[start:])
    assert crc32c(data[start:]) == crc32c(part) == crc32c(part.copy()) == expected
    assert with_crc(data)[len(data) :] == google_crc32c.value(data).to_bytes(4, "little")


def test_the_check_value():
    assert crc32c(b"123456789") == CHECK
