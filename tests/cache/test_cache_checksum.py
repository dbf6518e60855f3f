"""CRC-32C, whichever library computes it."""

import subprocess
import sys

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


def test_without_the_faster_library_the_numbers_are_the_same():
    code = (
        "import sys; sys.modules['awscrt'] = None\n"
        "from cache.format.checksum import crc32c\n"
        "import numpy as np\n"
        "print(crc32c(b'123456789'), crc32c(np.frombuffer(b'123456789', np.uint8)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(CHECK)] * 2
    assert crc32c(b"123456789") == CHECK
