"""The benchmark of zeros: what it counts and that it restores every number."""

import numpy as np
import pytest
import torch
from cachekit import Sample, token_taps

from benchmarks.zeros import CODECS, measure_tap, render
from cache import Cache, TapSpec


class Rectified(Sample):
    """Normal numbers after a ReLU: about half are zero."""

    def values(self, tap, samples):
        parts = [
            torch.randn(tap.shape, generator=torch.Generator().manual_seed(int(sample)))
            for sample in samples
        ]
        return torch.stack(parts).relu()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_zeros_are_counted_and_compressed(tmp_path, dtype):
    tap = TapSpec(name="stage.1", kind="map", shape=(16, 8, 8))
    sample = Rectified(lengths=(1,) * 12, taps=[tap], dtype=dtype)
    cache = Cache.open(sample.write(tmp_path / "cache"))
    found = measure_tap(cache, "stage.1", np.arange(10), repeats=1)
    assert found.zeros == pytest.approx(float((sample.values(tap, range(10)) == 0).float().mean()))
    assert found.nbytes == 10 * 16 * 8 * 8 * 2
    assert 1.0 < found.codecs["none"].share < 1.001  # the checksum
    shares = [found.codecs[name].share for name in CODECS if name != "none"]
    assert 0.3 < min(shares) <= max(shares) < 0.95
    lines = render({"stage.1": found})
    assert len(lines) == 1 + 2 * len(CODECS)
    assert f"{found.zeros:.1%}" in lines[1]


def test_samples_without_rows_are_told(tmp_path):
    sample = Sample(lengths=(0, 3), taps=token_taps(1))
    cache = Cache.open(sample.write(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"no row of tokens\.layer\.0"):
        measure_tap(cache, "tokens.layer.0", np.array([0]), repeats=1)
