"""Images in, classes out: `pipeline("image-classification")`.

B images, H x W pixels. Needs torch, transformers, numpy and Pillow.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutput

from pipeline.fused.labels_unipt import LabellingModel
from pipeline.fused.media_unipt import OneImage, as_images, prepare
from pipeline.fused.modeling_unipt import Traced
from pipeline.fused.processing_unipt import UniPTImageProcessor
from unipt.classifier import SideClassifier

USE = """from transformers import AutoModelForImageClassification, pipeline

classify = pipeline("image-classification", "{name}", trust_remote_code=True)
print(classify("one.png"))

model = AutoModelForImageClassification.from_pretrained("{name}", trust_remote_code=True)
print(model.predict(["one.png", "two.png"]))"""


class UniPTForImageClassification(LabellingModel):  # type: ignore[no-untyped-call]
    """A backbone, its recorded taps and a side model: images in, logits out."""

    auto = "AutoModelForImageClassification"
    tag = "image-classification"
    stages = ("predict",)
    side_model = SideClassifier
    main_input_name = "pixel_values"
    compares = False

    @property
    def spec(self) -> Mapping[str, Any]:
        """The tower's mapping, see `UniPTConfig`."""
        found: Mapping[str, Any] = self.config.towers["image"]
        return found

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any
    ) -> ImageClassifierOutput:
        """Classify pixel values [B, 3, H, W]; `labels` [B] also give the loss."""
        logits, _confidence = self.classify(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels.reshape(-1))
        return ImageClassifierOutput(loss=loss, logits=logits)

    def classify(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, labels] and confidences [B, N]."""
        found = self.outputs(pixel_values=pixel_values)
        return found.values["logits"], found.confidence["image"]

    def predict(
        self, images: Sequence[OneImage] | OneImage, pairs: None = None
    ) -> list[dict[str, Any]]:
        """Return a record an image (a path, a Pillow image or a file's bytes), as `predict` writes.

        Raises:
            MediaError: a file is no readable image.
        """
        listed = as_images(images)
        pixels = self.inputs({"image": listed})
        found = self.label_records(self.run(**pixels).values["logits"])
        names = [str(each) if isinstance(each, str | Path) else None for each in listed]
        return [{"image": name, **record} for name, record in zip(names, found, strict=True)]

    @property
    def no_record(self) -> dict[str, Any]:
        """A record of `predict` that says nothing."""
        return {"image": None, **super().no_record}

    def inputs(self, given: Mapping[str, Sequence[Any]], *, extra: int = 0) -> dict[str, Tensor]:
        """Return the pixels of images."""
        return {"pixel_values": torch.cat([prepare(x, "image", self.spec) for x in given["image"]])}

    def processors(self) -> Sequence[Any]:
        """Return the image processor that the pipeline of transformers uses."""
        return (UniPTImageProcessor(transform=self.spec["transform"]),)

    def traced(self, towers: Sequence[str]) -> Traced:
        """Return the whole model."""
        return Traced("model", self.classify, ("logits", "confidence"), {0: "batch"})

    def usage(self, name: str) -> str:
        """Return code that classifies an image."""
        return USE.format(name=name)


API = UniPTForImageClassification
