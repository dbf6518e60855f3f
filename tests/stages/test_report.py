"""The charts of a run, whatever the system: confidence, learning curve, comparison with probes."""

from pathlib import Path

import pytest
from systemkit import CASES, EACH

from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.probe import probe
from pipeline.report import confidence_panels, read_evaluations, report
from pipeline.run import Run, RunError
from pipeline.train import train

each_system = pytest.mark.parametrize("name", EACH.values())


@each_system
def test_charts_of_a_run_beside_its_probes(tmp_path: Path, name: str) -> None:
    config = CASES[name].config(tmp_path, epochs=2)
    train(config)
    assert [file.name for file in report(config.out)] == ["confidence.png", "learning.png"]
    evaluate(EvaluateConfig(run=config.out, resamples=10))
    for layers in ("all", "last"):
        probe(config, layers, resamples=10)
    names = [row["name"] for row in read_evaluations(config.out, "test")]
    assert names == ["probe, last layer", "probe, all layers", "side network"]
    files = report(config.out, tmp_path / "charts")
    assert [file.name for file in files] == ["confidence.png", "learning.png", "comparison.png"]
    for file in files:
        data = file.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        assert width > height > 300
    with pytest.raises(RunError, match="run `evaluate` with split train"):
        report(config.out, split="train")


def test_a_panel_a_tower_and_a_group_a_class(tmp_path: Path) -> None:
    (tmp_path / "classes").mkdir()
    (tmp_path / "images").mkdir()
    runs = {
        name: Run.open(train(CASES[name].config(tmp_path / name, epochs=1)).path)
        for name in ("classes", "images")
    }
    ((title, layers, groups),) = confidence_panels(runs["classes"], "test")
    assert (title, list(layers)) == ("", ["embeddings", "layer.0"])
    assert {name: values.shape for name, values in groups.items()} == {
        "bad": (12, 2), "good": (12, 2),
    }  # fmt: skip
    text, media = confidence_panels(runs["images"], "test")
    assert (text[0], media[0]) == ("text tower", "media tower")
    assert (list(text[1]), list(media[1])) == (["layer.0", "layer.1"], ["block.0"])
    assert [values.shape for _, _, groups in (text, media) for values in groups.values()] == [
        (24, 2), (12, 1),
    ]  # fmt: skip


def test_the_learning_curve_of_a_last_fit_has_no_dev(tmp_path: Path) -> None:
    case = CASES[EACH["texts.Texts"]]
    data = case.values(tmp_path)["data"] | {"fit_on_dev": True}
    result = train(case.config(tmp_path, data=data, epochs=2))
    assert tmp_path / "charts" / "learning.png" in report(result.path, tmp_path / "charts")
