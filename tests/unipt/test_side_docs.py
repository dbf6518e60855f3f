"""The example of docs/side-networks.md runs, and every preset is in the page."""

import re
from pathlib import Path

from unipt import preset_names

PAGE = (Path(__file__).parents[2] / "docs" / "side-networks.md").read_text(encoding="utf-8")


def test_examples_run() -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "docs/side-networks.md", "exec"), {})


def test_every_preset_is_documented() -> None:
    assert not [name for name in preset_names() if f"`{name}`" not in PAGE]
