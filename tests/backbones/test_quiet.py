"""Reading and writing weights draws no bars and no tables; errors still come with theirs."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_model
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as hf_logging

from pipeline.backbones import BackboneError, load_backbone
from pipeline.backbones.quiet import quiet_transformers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with a weight too many and without its pooler: both are reported."""
    save_tiny("bert", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler")}
    kept["head.weight"] = weights["pooler.dense.weight"]
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What transformers logs, with its progress bars on."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    monkeypatch.setattr(hf_logging, "_tqdm_active", True)
    handler = Keep()
    logging.getLogger("transformers").addHandler(handler)
    yield messages
    logging.getLogger("transformers").removeHandler(handler)


def test_a_backbone_loads_in_silence(
    folder: Path, logged: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    load_backbone(str(folder))
    assert (capsys.readouterr().err, logged) == ("", [])
    AutoModel.from_pretrained(folder)  # everything is as it was before
    assert "Loading weights" in capsys.readouterr().err
    assert any("LOAD REPORT" in message and "head.weight" in message for message in logged)


def test_saving_is_silent_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("bert")
    capsys.readouterr()
    with quiet_transformers():
        model.save_pretrained(tmp_path)
    assert capsys.readouterr().err == ""


def test_an_error_of_transformers_comes_with_its_report(folder: Path, logged: list[str]) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.intermediate_size = 48
    config.save_pretrained(folder)
    with pytest.raises(BackboneError, match="look at the above report"):
        load_backbone(str(folder))
    (report,) = logged
    assert "MISMATCH" in report


def test_other_warnings_pass(logged: list[str]) -> None:
    with quiet_transformers():
        logging.getLogger("transformers.modeling_utils").warning("of substance")
    assert logged == ["of substance"]
    assert not logging.getLogger("transformers.modeling_utils").filters


def test_hooks_of_others_return(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(hf_logging, "_tqdm_hook", own)
    with pytest.raises(KeyError), quiet_transformers():
        raise KeyError
    assert hf_logging._tqdm_hook is own
