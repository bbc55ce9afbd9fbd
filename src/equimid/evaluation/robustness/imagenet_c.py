"""ImageNet-C: top-1 under 15 corruptions at five severities, and the mean corruption error.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR
2019, arXiv 1903.12261. With E the top-1 error of corruption c at severity s:

    CE_c = 100 Σ_s E_{s,c} / Σ_s E^AlexNet_{s,c}        mCE = mean of CE_c over the 15 test corruptions

Layout as released: <root>/[group/]<corruption>/<severity 1 to 5>/<wnid>/<image>, cut to 224 px; they are not cropped
again, and resized for a network of another size.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from equimid.data import FileSource
from equimid.errors import UserError
from equimid.evaluation.probes.linear import Classifier, fit_linear
from equimid.evaluation.robustness.folders import (
    ClassFolders,
    full_crop,
    named_folders,
    predict,
    set_folder,
    subfolders,
    summary,
    training_images,
)
from equimid.evaluation.study import Study
from equimid.records import Record

__all__ = ["ALEXNET_ERRORS", "TEST_CORRUPTIONS", "CorruptedFolders", "corruption_error", "mce", "measure_imagenet_c"]

logger = logging.getLogger("equimid")

SEVERITIES = (1, 2, 3, 4, 5)
# AlexNet's top-1 error, mean of the five severities: README of hendrycks/robustness (an earlier version of it)
ALEXNET_ERRORS: Mapping[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
    # for validation: not in mCE
    "speckle_noise": 0.845388,
    "gaussian_blur": 0.787108,
    "spatter": 0.717512,
    "saturate": 0.658248,
}
TEST_CORRUPTIONS = tuple(ALEXNET_ERRORS)[:15]
_IMAGES, _CLASSES = 50_000, 1000  # of each severity, as released


def corruption_error(corruption: str, errors: Sequence[float]) -> float:
    """CE in percent of the top-1 errors in [0, 1] at severities 1 to 5."""
    return 100 * sum(errors) / (len(SEVERITIES) * ALEXNET_ERRORS[corruption])


def mce(errors: Mapping[str, Sequence[float]]) -> float:
    """mCE in percent of the errors in [0, 1] of at least the 15 test corruptions at severities 1 to 5."""
    return float(np.mean([corruption_error(name, errors[name]) for name in TEST_CORRUPTIONS]))


@dataclass(frozen=True)
class CorruptedFolders:
    """What of ImageNet-C lies in a folder.

    Attributes:
        name:    what the user typed
        found:   class folders by (corruption, severity)
        missing: "fog", "fog/3": of the 15 test corruptions, and of the severities of the others that are there
    """

    name: str
    found: Mapping[tuple[str, int], ClassFolders]
    missing: tuple[str, ...]

    @staticmethod
    def find(data: str, classes: tuple[str, ...]) -> "CorruptedFolders":
        """What of ImageNet-C lies in the folder.

        Raises:
            UserError: nothing of it, or class folders that the classifier does not know.
        """
        corruptions = named_folders(set_folder(data), ALEXNET_ERRORS)
        folders: dict[tuple[str, int], ClassFolders] = {}
        missing: list[str] = []
        for corruption in ALEXNET_ERRORS:
            if corruption not in corruptions:
                missing += [corruption] if corruption in TEST_CORRUPTIONS else []
                continue
            for severity in SEVERITIES:
                folder = corruptions[corruption] / str(severity)
                if folder.is_dir() and subfolders(folder):
                    folders[corruption, severity] = ClassFolders.find(folder, classes)
                else:
                    missing.append(f"{corruption}/{severity}")
        if not folders:
            raise UserError(
                f"nothing of ImageNet-C in {data}: expected CORRUPTION/SEVERITY/CLASS/IMAGE with or without a group "
                "above, such as fog/3/n01440764/ILSVRC2012_val_00000293.JPEG; check the path"
            )
        return CorruptedFolders(data, folders, tuple(missing))


def measure_imagenet_c(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Top-1 of every corruption and severity, CE, and of the whole set mCE and the mean top-1.

    Of an incomplete set what is there is measured, what is missing is named, and mCE is left out.

    Raises:
        UserError: no training images, nothing of ImageNet-C in `data`, unknown classes, an unreadable image.
    """
    fit = training_images(train, "ImageNet-C")
    folders = CorruptedFolders.find(data, fit.classes)
    return imagenet_c_records(fit_linear(study, fit), folders)


def imagenet_c_records(classifier: Classifier, folders: CorruptedFolders) -> list[Record]:
    """The records of `measure_imagenet_c`."""
    study, scope = classifier.study, classifier.study.scope
    preprocessing = full_crop(study.preprocessing)
    records: list[Record] = []
    errors: dict[str, dict[int, float]] = {}
    counts: dict[tuple[str, int], int] = {}
    resized: dict[str, object] = {}
    for (corruption, severity), classes in study.track(folders.found.items(), "ImageNet-C", len(folders.found)):
        source = classes.images(folders.name)
        if not len(source):
            continue
        counts[corruption, severity] = len(source)
        correct = predict(classifier, source, preprocessing).numpy() == source.labels
        resized = resized or _resized(source, preprocessing.size)
        records.append(scope.accuracy("imagenet_c", correct, {"corruption": corruption, "severity": severity}))
        errors.setdefault(corruption, {})[severity] = 1 - float(correct.mean())
    if not counts:
        raise UserError(f"no image in the class folders of {folders.name}; check the path, or unpack the set again")
    missing = sorted([*folders.missing, *_incomplete(folders, counts)], key=lambda name: "/" not in name)
    whole = {c: [of[s] for s in SEVERITIES] for c, of in errors.items() if set(of) == set(SEVERITIES)}
    whole = {c: of for c, of in whole.items() if not any(m.split("/")[0] == c for m in missing)}
    warning = _unlike_released(counts, folders)
    for corruption, five in whole.items():
        n = sum(counts[corruption, s] for s in SEVERITIES)
        details: dict[str, object] = {"corruption": corruption} | warning
        records.append(summary(scope, "imagenet_c", "ce", corruption_error(corruption, five), n, details))
    tested = {c: of for c, of in errors.items() if c in TEST_CORRUPTIONS}
    n = sum(count for (corruption, _), count in counts.items() if corruption in tested)
    about: dict[str, object] = {"corruptions": len(tested)} | resized | classifier.details
    if missing:
        about["missing"] = missing
        logger.warning("%s lacks %s: no mCE", folders.name, ", ".join(missing))
    if tested:
        top1 = 100 * float(np.mean([1 - np.mean(list(of.values())) for of in tested.values()]))
        records.append(summary(scope, "imagenet_c", "mean_top1", top1, n, about))
    if set(TEST_CORRUPTIONS) <= set(whole):
        records.append(summary(scope, "imagenet_c", "mce", mce(whole), n, about | warning))
    return records


def _resized(source: FileSource, size: int) -> dict[str, object]:
    width, height = source.load(0).size
    return {} if (width, height) == (size, size) else {"resized": f"{width} x {height} to {size} x {size} px"}


def _incomplete(folders: CorruptedFolders, counts: Mapping[tuple[str, int], int]) -> list[str]:
    """Severities with fewer images than others: every one is of the same images."""
    most = max(counts.values())
    return [
        f"{corruption}/{severity} ({counts.get((corruption, severity), 0)} of {most} images)"
        for corruption, severity in folders.found
        if counts.get((corruption, severity), 0) < most
    ]


def _unlike_released(counts: Mapping[tuple[str, int], int], folders: CorruptedFolders) -> dict[str, object]:
    """A warning where AlexNet's errors are of other images."""
    images = max(counts.values())
    classes = max(len(each.labels) for each in folders.found.values())
    if (images, classes) == (_IMAGES, _CLASSES):
        return {}
    text = f"AlexNet's errors are of {_IMAGES} images of {_CLASSES} classes, these of {images} of {classes}"
    return {"warning": text}
