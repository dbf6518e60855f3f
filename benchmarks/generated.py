"""Generated pictures and clips with captions, and a full-size CLIP and ResNeXt with random weights.

For what depends on sizes and not on sense: bytes, speed, and whether everything fits together.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from benchmarks.sentences import WORK
from pipeline.backbones.quiet import quiet_transformers
from pipeline.backbones.weights_file import load_convnet
from pipeline.demo.assets import minilm

WORDS = (
    "a the man woman child dog two people young group street water field table red white blue "
    "small large old front standing sitting playing holding wearing walking riding eating looking "
    "on in of with at near and while next to his her shirt ball horse bike food kitchen beach"
)
RATE = 25
"""Frames a second of a clip."""
CLS, SEP, PAD = 101, 102, 0
"""Tokens of MiniLM's tokenizer that begin, end and fill a text."""
CLIP_PIXELS = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
}


def pictures(folder: Path, count: int) -> list[Path]:
    """Save generated pictures of the size that COCO's have: 640 x 480, JPEG."""
    folder.mkdir()
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(next(_frames(number, 480, 640))).save(path, quality=90)
    return paths


def clips(folder: Path, count: int, *, seconds: int = 15) -> list[Path]:
    """Save generated clips like those of MSR-VTT: 25 frames a second, 320 x 240, H.264 in mp4."""
    import av  # noqa: PLC0415 - the extra "video"

    folder.mkdir()
    paths = [folder / f"{number}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        with av.open(str(path), "w") as file:
            stream: Any = file.add_stream("libx264", rate=Fraction(RATE))
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            frames = _frames(number, 240, 320)
            for _ in range(seconds * RATE):
                picture = av.VideoFrame.from_ndarray(next(frames), format="rgb24")
                file.mux(stream.encode(picture))
            file.mux(stream.encode())
    return paths


def captions_file(media: Sequence[Path], words: tuple[float, float], count: int) -> Path:
    """Write different captions for `media` beside them, evenly; return the file.

    Args:
        media: pictures or clips of one folder.
        words: mean and deviation of the words of a caption.
        count: captions, all media together.
    """
    rng, known, path = np.random.default_rng(0), WORDS.split(), media[0].parent / "captions.csv"
    lengths = np.clip(np.rint(rng.normal(*words, count)), 3, 40).astype(int)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "caption"])
        for number, length in enumerate(lengths):
            text = " ".join(rng.choice(known, length))
            table.writerow([media[number % len(media)].name, f"{text} {number}"])
    return path


def random_clip(folder: Path) -> Path:
    """Save a CLIP ViT-B/32 with random weights (151 M) and MiniLM's tokenizer."""
    ends = {"bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD}
    torch.manual_seed(0)
    with quiet_transformers():
        CLIPModel(CLIPConfig(text_config=ends)).save_pretrained(folder)  # its defaults: ViT-B/32
    AutoTokenizer.from_pretrained(minilm(WORK)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(CLIP_PIXELS))
    return folder


def random_resnext(path: Path) -> Path:
    """Save a ResNeXt-101 32x8d with random weights (87 M), under the names of torchvision."""
    torch.save(load_convnet("resnext101_32x8d", None).state_dict(), path)
    return path


def _frames(seed: int, height: int, width: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield pictures of drifting smooth blobs with some grain, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / height
    speed, phase = rng.normal(0, 0.1, (3, 2)), rng.random((3, 2)) * 6
    grain = rng.normal(0, 6, (height, width, 1))
    for frame in range(1 << 30):
        shift = phase + frame * speed
        channels = [np.sin(5 * x + a) * np.cos(4 * y + b) for a, b in shift]
        yield np.clip(128 + 90 * np.stack(channels, -1) + grain, 0, 255).astype(np.uint8)
