"""Mean average precision as COCO counts it, by faster-coco-eval, with an interval over images.

AP: precision at 101 recalls, mean over them and over intersections over union of 0.50, 0.55, .. 0.95; mAP: its mean
over the classes that have boxes. AR: the recall reached with at most 100 boxes an image. (Lin et al. 2014, cocoapi.)
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from equimid.errors import UserError
from equimid.evaluation.detection.annotations import DetectionSet
from equimid.evaluation.detection.train import Detections
from equimid.randomness import counted_generator

__all__ = ["Scores", "coco_results", "coco_truth", "need_evaluator", "score"]

_RESAMPLED = 200  # times
_AFFORDABLE = 100_000  # images times classes: COCO's 400,000 would take minutes


@dataclass(frozen=True)
class Scores:
    """Shares in [0, 1]; NaN where no box says anything.

    Attributes:
        values:   map, map_50, map_75, mar_100
        classes:  {class: {map, map_50, map_75, mar_100}}
        interval: {metric: (low, high)}, 95 %, images drawn with replacement; {} where it would take too long
        draws:    {metric: (R,)}, the values of each draw of images. The drawn images depend on the seed and on their
                  number alone, so that two scores of the same images are paired; {} where it would take too long
    """

    values: Mapping[str, float]
    classes: Mapping[str, Mapping[str, float]]
    interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    draws: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)


def need_evaluator() -> None:
    """
    Raises:
        UserError: faster-coco-eval is not installed.
    """
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise UserError("detection needs the package faster-coco-eval; install it: pip install 'equimid[detection]'")


def score(images: DetectionSet, detections: Sequence[Detections], seed: int) -> Scores:
    """
    Args:
        detections: one for each image.
        seed:  of the interval's draws.

    Raises:
        UserError: faster-coco-eval is not installed.
    """
    need_evaluator()
    from faster_coco_eval import COCO, COCOeval_faster

    results = coco_results(images, detections)
    if not results:  # the evaluator takes no empty list: nothing found is found wrongly nowhere
        return _nothing_found(images)
    truth = COCO(coco_truth(images))
    evaluator = COCOeval_faster(truth, truth.loadRes(results), "bbox", print_function=_silent, separate_eval=True)
    evaluator.params.maxDets, evaluator.params.areaRng, evaluator.params.areaRngLbl = [100], [[0, 1e10]], ["all"]
    evaluator.evaluate()
    evaluator.accumulate()
    whole = evaluator.eval["precision"][:, :, :, 0, 0], evaluator.eval["recall"][:, :, 0, 0]
    classes = {name: _summary(whole[0][:, :, [i]], whole[1][:, [i]]) for i, name in enumerate(images.classes)}
    draws = _draws(evaluator, images, seed) if _affordable(images) else {}
    low_high = {name: np.nanquantile(values, (0.025, 0.975)).tolist() for name, values in draws.items()}
    interval = {name: (low, high) for name, (low, high) in low_high.items()}
    return Scores(_summary(*whole), classes, interval, draws)


def coco_truth(images: DetectionSet) -> dict[str, Any]:
    """The annotations in COCO's form."""
    entries = [
        {"id": number, "width": int(width), "height": int(height), "file_name": image.name}
        for number, image, (width, height) in zip(images.numbers, images.images, images.sizes.tolist(), strict=True)
    ]
    annotations: list[dict[str, Any]] = []
    for number, boxes, labels, out in zip(images.numbers, images.boxes, images.labels, images.ignored, strict=True):
        for (x0, y0, x1, y1), label, ignored in zip(boxes.tolist(), labels.tolist(), out.tolist(), strict=True):
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": images.categories[label],
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": int(ignored),
            })  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in zip(images.categories, images.classes, strict=True)]
    return {"info": {}, "images": entries, "annotations": annotations, "categories": categories}


def coco_results(images: DetectionSet, detections: Sequence[Detections]) -> list[dict[str, Any]]:
    """Detections in COCO's form, with the file's name beside its id."""
    return [
        {
            "image_id": number, "file_name": image.name, "category_id": images.categories[label],
            "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score,
        }
        for number, image, each in zip(images.numbers, images.images, detections, strict=True)
        for (x0, y0, x1, y1), label, score in zip(
            each.boxes.tolist(), each.labels.tolist(), each.scores.tolist(), strict=True
        )
    ]  # fmt: skip


def _summary(precision: npt.NDArray[np.float64], recall: npt.NDArray[np.float64]) -> dict[str, float]:
    """Of precision (T, 101, C) and recall (T, C) at the T intersections over union; -1 where a class has no box."""
    values = {"map": precision, "map_50": precision[0], "map_75": precision[5], "mar_100": recall}
    return {name: float(x[x > -1].mean()) if (x > -1).any() else float("nan") for name, x in values.items()}


def _affordable(images: DetectionSet) -> bool:
    return len(images) * len(images.classes) <= _AFFORDABLE


def _draws(evaluator: Any, images: DetectionSet, seed: int) -> dict[str, npt.NDArray[np.float64]]:
    """What images drawn with replacement give, time after time. Each image is matched once; only the curves are
    made anew, from the evaluator's own matches, which it holds by class, then image."""
    matches, count = evaluator._evalImgs_cpp, len(images)
    rng = counted_generator(seed, "detection interval")
    draws = []
    for _ in range(_RESAMPLED):
        # the evaluator's images are in the order of their ids; a draw has no order
        chosen = rng.integers(0, count, count)
        evaluator._evalImgs_cpp = [matches[c * count + i] for c in range(len(images.classes)) for i in chosen.tolist()]
        evaluator.accumulate()
        draws.append(_summary(evaluator.eval["precision"][:, :, :, 0, 0], evaluator.eval["recall"][:, :, 0, 0]))
    evaluator._evalImgs_cpp = matches
    return {name: np.array([draw[name] for draw in draws]) for name in draws[0]}


def _nothing_found(images: DetectionSet) -> Scores:
    present = images.present()
    names = ("map", "map_50", "map_75", "mar_100")
    classes = {c: dict.fromkeys(names, 0.0 if c in present else float("nan")) for c in images.classes}
    draws = {name: np.zeros(_RESAMPLED) for name in names} if _affordable(images) else {}
    return Scores(dict.fromkeys(names, 0.0), classes, draws=draws)


def _silent(*_: object) -> None:
    """The evaluator reports its times to whom it is given."""
