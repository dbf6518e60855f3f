"""The documentation tells the truth: its commands and its Python run, its links lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny import save_tiny
from transformers import ViTConfig, ViTModel

import cli
from pipeline.systems import tasks

ROOT = Path(cli.__file__).parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def command_lines(page: Path) -> list[str]:
    """Return the lines of a page that call `unipt`, without comments."""
    lines = [line.strip() for line in page.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if re.match(r"(echo .* \| )?unipt [a-z]", line)]
    return [line.split("  #")[0].strip() for line in found]


def words(line: str) -> list[str]:
    """Return the arguments of a documented call; brackets mark what is optional."""
    call = line[line.index("unipt ") :]
    return shlex.split(re.sub(r"[\[\]]", " ", call))[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page):
    for line in command_lines(page):
        name, *arguments = words(line)
        assert name in cli.commands.summaries, line
        command = cli.commands.build(name, arguments)
        known = {
            option
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        unknown = {word for word in arguments if word.startswith("--")} - known
        assert not unknown, f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """A working folder as the README assumes it: models, reviews, captioned images."""
    save_tiny("bert", tmp_path / "MODEL")
    nouns = ["cat", "dog", "mat", "tree", "film"]
    rows = [
        f"the {a} was {word} on the {b}\t{word}"
        for a in nouns
        for b in nouns
        for word in ("good", "bad")
    ]
    (tmp_path / "reviews.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    save_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_images(folder):
    """Write IMAGE-MODEL, captions.jsonl with its images, and the images of holidays."""
    config = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    ViTModel(config).save_pretrained(folder / "IMAGE-MODEL")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "IMAGE-MODEL" / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "holidays").mkdir()
    lines = []
    for number in range(24):
        image = Image.new("RGB", (20, 16), (10 * number, 255 - 10 * number, 7 * number))
        image.save(folder / f"{number}.png")
        image.save(folder / "holidays" / f"{number}.jpg")
        caption = " ".join(("cat", "dog", "mat", "tree")[number // 4**k % 4] for k in range(3))
        lines.append(json.dumps({"image": f"{number}.png", "caption": caption}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def test_the_readme_runs_from_top_to_bottom(reviews):
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    for line in command_lines(ROOT / "README.md"):
        result = CliRunner().invoke(
            cli.commands, words(line), input="the film was good\n", catch_exceptions=False
        )
        assert result.exit_code == 0, f"{line}\n{result.output}"
    assert (reviews / "reviews-model" / "model.onnx").is_file()
    assert (reviews / "found.png").is_file()


def test_the_readme_python_runs(reviews, capsys):
    run_python("README.md", "extract(")
    assert "accuracy" in capsys.readouterr().out


def test_plain_values_become_the_right_classes_as_the_page_says(reviews):
    names = run_python("docs/tasks.md", "train_config(")
    assert names["dataset"].config == names["training"].data == names["data"]


def run_python(page, part):
    """Run the first block of a page that holds `part`; return its names."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    whole = next(block for block in blocks if part in block)
    names = {}
    exec(compile(whole, page, "exec"), names)  # the page's own code
    return names


def test_every_task_is_documented():
    page = (ROOT / "docs/tasks.md").read_text()
    assert not [name for name in tasks() if f"`{name}`" not in page]


def test_the_files_and_folders_that_pages_name_are_there():
    found = r"`((?!\S*NAME)(?:pipeline|tests|unipt|cache|docs|benchmarks)/[\w./-]*)`"
    for page in PAGES:
        for name in re.findall(found, page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
