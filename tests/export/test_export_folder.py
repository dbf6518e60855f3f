"""Exported folders load without this project, and agree with the cache, in every form."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SENTENCES

from cache import FingerprintMismatch
from pipeline.fused.folder import OutputExists
from pipeline.fused.loading import load_fused
from pipeline.fused.modeling_unipt import UniPTModel
from pipeline.fused.parity import ExportParityError
from pipeline.fused.write import export_model
from pipeline.systems.locate import MissingInputs, locate

ALONE = """
import json, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
found = []
for folder, texts in json.loads(sys.argv[1]):
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    classify = pipeline("text-classification", folder, trust_remote_code=True)
    scores = classify(texts, top_k=None, truncation=True, batch_size=2)
    if isinstance(texts[0], str):
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    else:
        sides = [[t[k] for t in texts] for k in ("text", "text_pair")]
        inputs = tokenizer(*sides, padding=True, return_tensors="pt")
    found.append({"scores": scores, "logits": model(**inputs).logits.tolist()})
ours = [name for name in sys.modules if name.split(".")[0] in ("unipt", "cache", "pipeline")]
print(json.dumps({"found": found, "ours": ours}))
"""


def test_folders_load_where_the_project_is_not_importable(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    jobs, made = [], [make(), make(pair="separate")]
    for number, one in enumerate(made):
        out = tmp_path / f"out{number}"
        export_model(one.job(), out)
        texts = [_as_text(row) if len(row) == 2 else row[0].text for row in one.rows]
        jobs.append((str(out), texts))
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", ALONE, json.dumps(jobs)],
        cwd=home,
        env={"HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ours"] == []
    for one, found in zip(made, result["found"], strict=True):
        wanted = one.logits()
        torch.testing.assert_close(torch.tensor(found["logits"]), wanted, atol=1e-5, rtol=0)
        for scores, row in zip(found["scores"], wanted.softmax(-1), strict=True):
            assert {s["label"]: s["score"] for s in scores} == pytest.approx(
                {"bad": row[0].item(), "good": row[1].item()}, abs=1e-5
            )


def _as_text(row: Any) -> dict[str, str]:
    return {"text": row[0].text, "text_pair": row[1].text}


@pytest.mark.parametrize("model_type", ["albert", "bert", "distilbert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("pair", ["none", "joint", "separate"])
def test_cached_and_fused_agree_for_every_family(
    make: Callable[..., Any], tmp_path: Path, model_type: str, pair: str
) -> None:
    made = make(model_type, pair=pair, store="float32")
    report = export_model(made.job(), tmp_path / "out").parity
    assert report.passed
    assert report.tolerance == pytest.approx(1e-4)
    assert report.worst < 2e-5
    assert [row.batch for row in report.rows] == [1, len(SENTENCES)]
    assert report.rows[1].length > report.rows[0].length or pair != "separate"


@pytest.mark.parametrize("pair", ["none", "separate"])
def test_a_memory_is_exported(make: Callable[..., Any], tmp_path: Path, pair: str) -> None:
    made = make(pair=pair, store="float32", kernel_keys=7)
    report = export_model(made.job(), tmp_path / "out", forms=("torch_export",)).parity
    assert report.passed
    assert report.worst < 2e-5
    model = load_fused(tmp_path / "out")
    assert torch.equal(model.side.kernel.values, made.model.kernel.values)


@pytest.mark.parametrize(("model_type", "pair"), [("bert", "separate"), ("gpt2", "none")])
def test_torch_export_takes_any_batch_and_length(
    make: Callable[..., Any], tmp_path: Path, model_type: str, pair: str
) -> None:
    made = make(model_type, pair=pair, store="float32")
    out = tmp_path / "out"
    report = export_model(made.job(), out, forms=("torch_export",))
    rows = [row for row in report.parity.rows if row.artefact == "torch_export"]
    assert [row.batch for row in rows] == [1, len(SENTENCES)]
    assert max(row.max_error for row in rows) < 2e-5
    assert "model.pt2" in report.files
    _check_other_sizes(torch.export.load(out / "model.pt2").module(), out)


def test_a_single_pair_is_traced_for_any_batch(make: Callable[..., Any], tmp_path: Path) -> None:
    made = make(pair="separate", store="float32")
    out = tmp_path / "out"
    report = export_model(made.job(samples=1), out, forms=("torch_export",)).parity
    assert report.passed
    assert [(r.artefact, r.batch) for r in report.rows[2:]] == [("torch_export", 1)] * 2
    _check_other_sizes(torch.export.load(out / "model.pt2").module(), out)


@pytest.mark.parametrize("kernel_keys", [0, 7])
def test_onnx_takes_any_batch_and_length(
    make: Callable[..., Any], tmp_path: Path, kernel_keys: int
) -> None:
    ort = pytest.importorskip("onnxruntime")
    made = make("distilbert", pair="separate", store="float32", kernel_keys=kernel_keys)
    out = tmp_path / "out"
    report = export_model(made.job(), out, forms=("onnx",))
    rows = [row for row in report.parity.rows if row.artefact == "onnx"]
    assert [row.batch for row in rows] == [1, len(SENTENCES)]
    assert max(row.max_error for row in rows) < 5e-5
    session = ort.InferenceSession(out / "model.onnx")
    assert [i.shape for i in session.get_inputs()] == [["batch", "length"]] * 3
    assert [o.name for o in session.get_outputs()] == ["logits", "confidence"]

    def run(**inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    _check_other_sizes(run, out)


def _check_other_sizes(run: Callable[..., Any], out: Path) -> None:
    """Compare with the eager model at sizes no replay used."""
    model = load_fused(out)
    for batch, length in ((3, 9), (7, 4), (1, 11)):
        ids = torch.randint(4, 30, (batch, length))
        types = (torch.arange(length) >= length // 2).long().expand(batch, -1).contiguous()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if model.compares or model.tower(model.config.segments[0]).spec["token_types"]:
            inputs["token_type_ids"] = types
        with torch.no_grad():
            wanted = model(**inputs, output_confidence=True)
            logits, confidence = run(**inputs)
        torch.testing.assert_close(logits, wanted.logits, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(confidence, wanted.confidence, atol=2e-5, rtol=1e-4)


def test_regression_gives_the_units_of_the_target(make: Callable[..., Any], tmp_path: Path) -> None:
    made = make(labels=None, unscale=(20.0, 300.0))
    report = export_model(made.job(), tmp_path / "out")
    assert report.parity.scale < 10  # standardised, not 300
    from transformers import pipeline

    found = pipeline("text-classification", tmp_path / "out", trust_remote_code=True)("the cat")
    assert found[0]["label"] == "score"
    assert 200 < found[0]["score"] < 400
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "regression"


def test_half_precision_weights_stay_half_and_the_side_stays_float(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    made = make()
    made.backbone.fingerprint_parts()  # the digest is of the checkpoint, before it is cast
    made.backbone.model.half()
    report = export_model(made.job(), tmp_path / "out")
    model = load_fused(tmp_path / "out")
    assert {p.dtype for p in model.tower("text").backbone.parameters()} == {torch.float16}
    assert {p.dtype for p in model.side.parameters()} == {torch.float32}
    assert report.parity.types["weights"] == "float16"


def test_a_wrong_model_is_refused_and_nothing_is_left(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make()
    run = UniPTModel.run

    def perturbed(self: Any, **inputs: torch.Tensor) -> Any:
        found = run(self, **inputs)
        return found._replace(values={name: value * 1.5 for name, value in found.values.items()})

    monkeypatch.setattr(UniPTModel, "run", perturbed)
    folder = tmp_path / "exports"
    with pytest.raises(ExportParityError, match="FAILED"):
        export_model(made.job(), folder / "out")
    assert list(folder.iterdir()) == []


def test_another_backbone_is_refused_with_the_difference(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    made = make()
    other = make("bert", max_length=11, pair="joint")
    with pytest.raises(FingerprintMismatch, match=r"max_length: cached 12, now 11"):
        export_model(made.job(backbone=other.backbone), tmp_path / "out")


def test_examples_outside_the_cache_are_refused(make: Callable[..., Any]) -> None:
    made, other = make(), make("bert", pair="joint")
    with pytest.raises(MissingInputs, match="5 of 5 inputs of the split 'train' are not in"):
        locate(other.setup.dataset, "train", made.setup.caches, {"text": "text"})


def test_existing_folders_are_kept(make: Callable[..., Any], tmp_path: Path) -> None:
    made = make()
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for force in (False, True):  # force replaces exported models, nothing else
        with pytest.raises(OutputExists, match="no exported model"):
            export_model(made.job(), out, force=force)
    assert (out / "thesis.txt").read_text() == "years of work"
    (out / "thesis.txt").unlink()
    export_model(made.job(), out)
    (out / "stale.bin").write_text("old")
    with pytest.raises(OutputExists, match="force"):
        export_model(made.job(), out)
    report = export_model(made.job(), out, force=True)
    assert sorted(report.files) == sorted(path.name for path in out.iterdir())
    assert "stale.bin" not in report.files


def test_the_card_and_the_report_say_what_was_measured(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    made = make()
    report = export_model(made.job(), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| test | accuracy | 0.9000 (0.8000 to 0.9500) |" in card
    assert made.cache.fingerprint.mapping["weights"]["sha256"] in card
    assert report.parity.render() in card
    stored = json.loads((tmp_path / "out" / "parity_report.json").read_text())
    assert stored == json.loads(json.dumps(report.parity.to_dict()))
    assert f"{sum(report.files.values()):,} bytes" in report.render()
