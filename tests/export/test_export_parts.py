"""The parts of an export on their own: sources, tokenizers, tolerance, splitting of pairs."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SENTENCES, tiny_tokenizer

from pipeline.backbones.fingerprint import tokenizer_digest
from pipeline.fused.api import apis
from pipeline.fused.package import PackageError, needed_modules, source_files
from pipeline.fused.parity import ExportParityError, Part, check, replay, tolerance
from pipeline.fused.tokenizer import (
    TokenizerError,
    joint_tokenizer,
    separate_tokenizer,
    special_tokens,
)


@pytest.mark.parametrize("api", apis())
def test_sources_are_flat_and_closed(api: str) -> None:
    import unipt

    files = source_files(api)
    assert {"configuration_unipt.py", f"api_{api}.py", "recorder.py"} <= files.keys()
    for name, text in files.items():
        tree = ast.parse(text)
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert {f"{node.module}.py" for node in nodes if node.level} <= files.keys()
        absolute = {str(node.module).split(".")[0] for node in nodes if not node.level}
        assert not absolute & {"unipt", "pipeline", "cache"}
        if (original := Path(unipt.__path__[0]) / name).is_file():
            assert original.read_text(encoding="utf-8") == text


def test_files_of_other_folders_keep_their_folder_in_their_name() -> None:
    files = source_files("retrieval")
    assert {"media_images.py", "convnets_config.py", "config.py"} <= files.keys()
    assert "from .convnets_config import" in files["convnets_build.py"]
    texts = source_files("sequence_classification")
    assert not {"media_images.py", "media_unipt.py", "api_retrieval.py"} & texts.keys()
    assert not any("PIL" in text or "numpy" in text for text in texts.values())


@pytest.mark.parametrize(
    "text", ["from . import layers", "from ..cache import x", "from .a.b import c"]
)
def test_imports_the_loader_does_not_follow_are_refused(text: str) -> None:
    with pytest.raises(PackageError, match="write `from"):
        needed_modules(text, "unipt.layers")


@pytest.mark.parametrize(
    "text",
    ["import cache.reading", "from pipeline.train import train", "from pipeline import run"],
)
def test_imports_of_this_project_are_refused(text: str) -> None:
    with pytest.raises(PackageError, match="cannot need this project"):
        needed_modules(text, "pipeline.media.images")


@pytest.mark.parametrize("special", [True, False])
def test_separate_pairs_are_the_two_texts_with_types(special: bool) -> None:
    original = tiny_tokenizer(special=special)
    before = tokenizer_digest(original)
    found = separate_tokenizer(original, max_length=10)
    first, second = (original(text)["input_ids"] for text in SENTENCES[:2])
    pair = found(*SENTENCES[:2])
    assert pair["input_ids"] == first + second
    assert pair["token_type_ids"] == [0] * len(first) + [1] * len(second)
    assert found(SENTENCES[0])["input_ids"] == first
    assert found.model_max_length == 20
    assert tokenizer_digest(original) == before


def test_joint_tokenizer_pads_on_the_right_and_cuts() -> None:
    found = joint_tokenizer(tiny_tokenizer(special=False, padding_side="left"), max_length=3)
    both = found([SENTENCES[0], "cat"], padding=True, truncation=True)
    assert both["attention_mask"] == [[1, 1, 1], [1, 0, 0]]


def test_special_tokens_inside_a_text_are_refused() -> None:
    class Odd:
        """Puts its separator in the middle, as no template can say."""

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, Any]:
            ids = [5, 6]
            return {"input_ids": [5, 1, 6] if add_special_tokens else ids}

    with pytest.raises(TokenizerError, match="do not enclose"):
        special_tokens(Odd())
    with pytest.raises(TokenizerError, match="needs a fast tokenizer"):
        separate_tokenizer(Odd(), max_length=4)


def test_tolerance_follows_the_coarsest_type() -> None:
    assert tolerance({"stored": "float32"}) == pytest.approx(1e-4)
    assert tolerance({"stored": "float16", "computed": "float32"}) == pytest.approx(4 / 2048)
    assert tolerance({"stored": "bfloat16", "weights": "float32"}) == pytest.approx(4 / 256)
    assert tolerance({"stored": "float16", "computed": "bfloat16"}) == pytest.approx(128 / 256)
    assert tolerance({"stored": "float16", "weights": "float16"}) == pytest.approx(128 / 2048)
    with pytest.raises(ValueError, match="int3"):
        tolerance({"stored": "int3"})


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_wrong_or_missing_number_fails_the_report(value: float) -> None:
    reference = torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    def encode(positions: Any, extra: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[i] + [0] * extra for i in positions])}

    def run(inputs: Any) -> torch.Tensor:
        found = reference[inputs["input_ids"][:, 0]].clone()
        if len(found) > 1:  # wrong in batches only
            found[1, 0] += value
        return found

    part = Part(
        runners={"eager": run},
        encode=encode,
        reference=reference,
        answers=lambda found: found.argmax(1),
        types={"stored": "float16"},
    )
    report = replay([part])
    assert [row.passed for row in report.rows] == [True, False]
    assert [row.length for row in report.rows] == [1, 4]
    with pytest.raises(ExportParityError, match="FAILED"):
        check(report)


def test_each_tower_is_held_to_its_own_tolerance() -> None:
    exact, moved = torch.eye(3), torch.eye(3) + torch.tensor([0.0, 0.0, 0.01])

    def encode(positions: Any, extra: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.tensor(list(positions))}

    def part(name: str, found: torch.Tensor, stored: str) -> Any:
        runners = {"eager": lambda inputs: found[inputs["pixel_values"]]}
        types = {"stored": stored}
        return Part(
            name=name,
            runners=runners,
            encode=encode,
            reference=exact,
            answers=lambda rows: (rows @ exact.flip(0)).argmax(1),
            types=types,
        )

    fine, lax = part("text", exact, "float32"), part("image", moved, "bfloat16")
    report = replay([fine, lax])
    assert report.passed
    assert report.types == {"text stored": "float32", "image stored": "bfloat16"}
    assert [row.max_error for row in report.rows] == pytest.approx([0, 0, 0.01, 0.01])
    report = replay([part("text", moved, "float32"), lax])
    assert not report.passed
    assert report.worst < report.tolerance
    with pytest.raises(ExportParityError, match="cached outputs"):
        check(report)
    turned = replay([part("text", exact.roll(1, 0), "float32")]).rows[0]
    assert turned.changed == 3
