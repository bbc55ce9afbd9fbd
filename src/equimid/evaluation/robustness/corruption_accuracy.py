"""Accuracy on test images that are corrupted as they are read: see `robustness.corruptions`.

The corruption is applied to the network's input while it still is an 8-bit image: after resizing and cropping, before
normalisation. So a severity means what it means in ImageNet-C, whose images are corrupted at 224 px after the crop.
Nothing here is ImageNet-C itself, and there is no mCE, whose references are errors on those very images.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from equimid.data import Source, loaded_batches
from equimid.errors import UserError
from equimid.evaluation.preprocessing import Preprocessing, load_image
from equimid.evaluation.probes.heads import predicted
from equimid.evaluation.probes.linear import Classifier, fit_linear
from equimid.evaluation.robustness.corruptions import KINDS, SMALLEST_SIDE, corrupt
from equimid.evaluation.study import Study, labelled_splits, sample_images
from equimid.randomness import counted_generator
from equimid.records import Record

__all__ = ["CLEAN", "CorruptedImages", "measure_generated"]

CLEAN = ("none", 0)
_EVALUATION = "generated_corruptions"
_BATCH = 64


def measure_generated(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Top-1 of the linear probe on clean test images, under every kind and severity of `robustness`, and its mean over
    those of the 15 test kinds.

    Raises:
        UserError: as `labelled_splits`; or the network takes images that are too small to corrupt.
    """
    size = study.preprocessing.size
    if size < SMALLEST_SIDE:
        raise UserError(
            f"the network takes images of {size} px, and corruptions need {SMALLEST_SIDE} px; measure another one"
        )
    fit, test = labelled_splits(data, train)
    classifier = fit_linear(study, fit)
    config, scope = study.config.robustness, study.scope
    chosen = np.sort(sample_images(test, config.images, scope.seed))  # those of `geometry`
    variants = [CLEAN, *((kind, severity) for kind in config.kinds for severity in config.severities)]
    correct = _correct(classifier, test, chosen, variants)
    records, label = [], {"label": "generated"}
    for column, (kind, severity) in zip(correct.T, variants, strict=True):
        records.append(scope.accuracy(_EVALUATION, column, {"corruption": kind, "severity": severity, **label}))
    tested = [kind in KINDS for kind, _ in variants]
    if any(tested):
        details: dict[str, Any] = {
            "kinds": [kind for kind in config.kinds if kind in KINDS],
            "severities": list(config.severities),
            **label,
        }
        # an image's fraction of right answers is one value: what is done to the same image is not independent
        mean = scope.mean(_EVALUATION, "mean_top1", 100 * correct[:, tested].mean(1), details)
        records.append(replace(mean, unit="%"))
    return records


def _correct(
    classifier: Classifier, test: Source, chosen: npt.NDArray[np.int64], variants: Sequence[tuple[str, int]]
) -> npt.NDArray[np.bool_]:
    """Whether the classifier is right, (images, variants)."""
    study = classifier.study
    images = CorruptedImages(test, chosen, study.preprocessing, variants, study.scope.seed)
    batches = loaded_batches(images, batch_size=_BATCH, workers=study.workers)
    classes = [
        predicted(classifier.logits(batch)) for batch in study.track(batches, "corrupted images", len(images), len)
    ]
    assert test.labels is not None  # of `labelled_splits`
    right: npt.NDArray[np.bool_] = torch.cat(classes).numpy().reshape(len(chosen), -1) == test.labels[chosen][:, None]
    return right


class CorruptedImages(Dataset[Tensor]):
    """Every variant (kind, severity) of an image, then of the next one: (3, S, S), normalised.

    What is drawn is a function of the seed, the variant and the image's place in the source: of no worker and no batch.
    """

    def __init__(
        self,
        source: Source,
        indices: npt.NDArray[np.int64],
        preprocessing: Preprocessing,
        variants: Sequence[tuple[str, int]],
        seed: int,
    ) -> None:
        self.source, self.indices, self.variants, self.seed = source, indices, variants, seed
        self.normalise = replace(preprocessing, crop=1.0)  # at its size already: no pixel changes
        self.cut = replace(preprocessing, mean=(0.0,) * 3, std=(1.0,) * 3)
        self._last: tuple[int, npt.NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self.indices) * len(self.variants)

    def __getitem__(self, number: int) -> Tensor:
        place, variant = divmod(number, len(self.variants))
        image, (kind, severity) = self._image(int(self.indices[place])), self.variants[variant]
        if (kind, severity) != CLEAN:
            rng = counted_generator(self.seed, f"corruption {kind}", severity, int(self.indices[place]))
            image = corrupt(image, kind, severity, rng)
        return self.normalise(Image.fromarray(image))

    def _image(self, index: int) -> npt.NDArray[np.uint8]:
        """(S, S, 3) as the network would see it; the last one is kept for its other variants."""
        if self._last is None or self._last[0] != index:
            levels = self.cut(load_image(self.source, index)) * 255
            self._last = index, levels.round().byte().permute(1, 2, 0).numpy()
        return self._last[1]
