"""Patterns of taps: globs, slices of what they match, and what they leave alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.backbones import BackboneError, select_taps
from pipeline.selection import matches, select_names

LAYERS = [f"encoder.layer.{i:02d}" for i in range(12)]
KNOWN = ["embeddings", *LAYERS, "final_norm"]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("encoder.layer.*[::2]", LAYERS[::2]),
        ("encoder.layer.*[-4:]", LAYERS[-4:]),
        ("encoder.layer.*[1:-1:3]", LAYERS[1:-1:3]),
        ("encoder.layer.*[::-5]", [LAYERS[1], LAYERS[6], LAYERS[11]]),
        ("*[-1]", ["final_norm"]),
        ("encoder.layer.*[-2]", [LAYERS[10]]),
        ("encoder.layer.*[-12]", [LAYERS[0]]),
        ("encoder.layer.*[-13]", []),
        ("encoder.layer.*[20:]", []),
        ("encoder.layer.*[::0]", []),
        ("encoder.layer.0[12]", LAYERS[1:3]),
        ("encoder.layer.1[!0]", [LAYERS[11]]),
        ("[::2]", []),
    ],
)
def test_a_pattern_selects(pattern: str, wanted: list[str]) -> None:
    assert list(matches(KNOWN, pattern)) == wanted


@given(
    start=st.none() | st.integers(-15, 15),
    stop=st.none() | st.integers(-15, 15),
    step=st.none() | st.integers(-4, 4).filter(bool),
)
def test_slices_are_python_s(start: int | None, stop: int | None, step: int | None) -> None:
    shown = ":".join("" if part is None else str(part) for part in (start, stop, step))
    wanted = sorted(LAYERS[slice(start, stop, step)])
    assert list(matches(KNOWN, f"encoder.layer.*[{shown}]")) == wanted


def test_several_patterns_keep_the_order_of_the_names() -> None:
    chosen, lost = select_names(KNOWN, ["*[-1]", "encoder.layer.*[::6]", "no.*", "embeddings"])
    assert chosen == ("embeddings", LAYERS[0], LAYERS[6], "final_norm")
    assert lost == ("no.*",)


def test_extraction_selects_by_the_same_rule() -> None:
    assert select_taps(KNOWN, ["encoder.layer.*[-2:]"]) == tuple(LAYERS[-2:])
    with pytest.raises(BackboneError, match=r"no tap matches 'encoder\.layer\.\*\[99:\]'; known"):
        select_taps(KNOWN, ["encoder.layer.*[99:]"])
