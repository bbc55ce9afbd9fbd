"""ImageNet-V2, -R, -Sketch and -A: top-1 on images of ImageNet's classes from elsewhere.

Sources: V2, Recht et al., arXiv 1902.10811; R (renditions), Hendrycks et al., arXiv 2006.16241; Sketch, Wang et al.,
arXiv 1905.13549; A (natural adversarial examples), Hendrycks et al., arXiv 1907.07174.

Layout: <root>/<wnid>/<image>; V2 as released has <root>/<0 to 999>/<image>, places of the wnids in sorted order. R and
A have 200 of the 1000 classes. For these two `top1` is among their own classes, as in their released code, and
`top1_all` among all classes of the linear head: papers give either, often without saying which.
"""

import logging
from dataclasses import dataclass, replace

import torch

from equimid.errors import UserError
from equimid.evaluation.probes.linear import Classifier, fit_linear
from equimid.evaluation.robustness.folders import (
    ClassFolders,
    first_names,
    predict_among,
    set_folder,
    training_images,
)
from equimid.evaluation.study import Study
from equimid.records import Record

__all__ = ["measure_a", "measure_r", "measure_sketch", "measure_v2"]

logger = logging.getLogger("equimid")


@dataclass(frozen=True)
class Variant:
    """A set of images of ImageNet's classes.

    Attributes:
        evaluation: of its records
        title:      for messages
        classes:    number of them, as released
        restricted: predictions are made among the classes that are there, and once more among all
        numbered:   folders may be places of the wnids
    """

    evaluation: str
    title: str
    classes: int
    restricted: bool = False
    numbered: bool = False


V2 = Variant("imagenet_v2", "ImageNet-V2", 1000, numbered=True)
R = Variant("imagenet_r", "ImageNet-R", 200, restricted=True)
SKETCH = Variant("imagenet_sketch", "ImageNet-Sketch", 1000)
A = Variant("imagenet_a", "ImageNet-A", 200, restricted=True)


def measure_v2(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Top-1 on ImageNet-V2 (one of its three selections). See `measure_variant`."""
    return measure_variant(V2, study, data, train)


def measure_r(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Top-1 on ImageNet-R among its 200 classes, and among all. See `measure_variant`."""
    return measure_variant(R, study, data, train)


def measure_sketch(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Top-1 on ImageNet-Sketch. See `measure_variant`."""
    return measure_variant(SKETCH, study, data, train)


def measure_a(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Top-1 on ImageNet-A among its 200 classes, and among all. See `measure_variant`."""
    return measure_variant(A, study, data, train)


def measure_variant(variant: Variant, study: Study, data: str, train: str | None) -> list[Record]:
    """Top-1; a number of classes other than the released one is measured and named.

    Raises:
        UserError: no training images, no such folder or no image in it, unknown classes, an unreadable image.
    """
    fit = training_images(train, variant.title)
    folders = ClassFolders.find(set_folder(data), fit.classes, variant.numbered)
    if not folders.labels:
        raise UserError(
            f"no class folder in {data}: expected those of {variant.title}, CLASS/IMAGE such as n01440764/1.jpg"
            f"{' or 0/1.jpeg' if variant.numbered else ''}; check the path"
        )
    return variant_records(variant, fit_linear(study, fit), folders, data)


def variant_records(variant: Variant, classifier: Classifier, folders: ClassFolders, data: str) -> list[Record]:
    """The records of `measure_variant`."""
    source = folders.images(data)
    if not len(source):
        raise UserError(f"no image in the class folders of {data}; check the path, or unpack the set again")
    assert source.labels is not None
    present = torch.from_numpy(source.labels).unique()
    details: dict[str, object] = {"classes": len(present)} | classifier.details
    empty = sorted(set(folders.labels.values()) - set(present.tolist()))
    if len(present) != variant.classes:
        warning = f"{variant.title} has {variant.classes} classes, and {len(present)} of them have images here"
        logger.warning("%s: %s%s", data, warning, _named(empty, classifier))
        details["set"] = warning
    scope, preprocessing = classifier.study.scope, classifier.study.preprocessing
    among = [present, None] if variant.restricted else [None]
    columns = predict_among(classifier, source, preprocessing, among).numpy().T
    *own, everything = (scope.accuracy(variant.evaluation, column == source.labels, details) for column in columns)
    if not own:
        return [everything]
    return [
        replace(own[0], details=details | {"restricted_to": len(present)}),
        replace(everything, metric="top1_all", details=details | {"among": len(classifier.classes)}),
    ]


def _named(classes: list[int], classifier: Classifier) -> str:
    return f"; without an image: {first_names(classifier.classes[i] for i in classes)}" if classes else ""
