"""Detection with a frozen network: what is trained on its tokens, neck and heads, says how much place they hold.

The detector is trained upright, then tested upright and in other poses. Turned images are treated as files that hold
them turned: resized by the same rule (their long side to `image_size`, the proportions kept), then padded at right and
below on the smallest canvas that holds every image of the two sets, turned alike. So the canvas of a landscape set
becomes one of portraits. Boxes move exactly, and detections are compared with the turned boxes. Scales multiply the
sides of the resized image, and its boxes with it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from equimid.distributed import rank
from equimid.errors import UserError
from equimid.evaluation.detection.annotations import DetectionSet, detection_splits
from equimid.evaluation.detection.pyramid import Detector
from equimid.evaluation.detection.scores import Scores, coco_results, need_evaluator, score
from equimid.evaluation.detection.tokens import Canvas, turned
from equimid.evaluation.detection.train import Detections, build_detector, detect, train_detector
from equimid.evaluation.equivariance.transforms import UPRIGHT, NamedPose, poses_for
from equimid.evaluation.figures.detections import draw_detections
from equimid.evaluation.study import Details, Scope, Study
from equimid.files import write_text
from equimid.randomness import counted_generator
from equimid.records import Record, Subject

__all__ = ["measure_detection", "measure_posed", "posed_canvas", "posed_records"]

_PICTURED = 4


def measure_detection(study: Study, data: str, train: str | None = None) -> list[Record]:
    """mAP, mAP at 0.5 and at 0.75 and recall of Faster R-CNN over a simple feature pyramid on the frozen tokens, in
    percent, of all classes and of each; beside them the same detector before its training ("untrained neck"). Then
    mAP of the detector, which was trained upright, on test images in other poses, and the drop for each kind of pose.

    Nothing is chosen by how it does on held-out images: the last step's detector is tested, once. What it found is
    written beside the records in COCO's form (detections_*.json), and a picture of some images under `pictures`.

    Raises:
        UserError: data without boxes, faster-coco-eval not installed, a network without token maps, or divergence.
    """
    need_evaluator()
    config = study.config.detection
    fit, test = detection_splits(data, train, config.tested_on)
    canvas = Canvas.around((fit, test), config.image_size, _patch(study))
    detector = build_detector(study, fit, canvas)
    records = []
    if study.scope.subject not in (Subject.RANDOM, Subject.PIXELS):  # one reference is enough
        before = detect(study, detector, test, canvas)
        about = study.about(study.encoder, Subject.UNTRAINED_NECK)
        records += _records(about, fit, test, score(test, before, study.scope.seed))
    losses = train_detector(study, detector, fit, canvas)
    detections = detect(study, detector, test, canvas)
    scores = score(test, detections, study.scope.seed)
    records += _records(study, fit, test, scores, losses)
    records += measure_posed(study, detector, fit, test, detections, scores)
    if rank() == 0:
        _write(study, test, detections)
    return [*records, _picture(study, test, detections)]


def _patch(study: Study) -> int:
    if study.encoder.depth < 1:
        raise UserError("this network has no token maps, and detection needs one; give a vision transformer")
    return study.encoder.patch_size


def _records(
    study: Study, fit: DetectionSet, test: DetectionSet, scores: Scores, losses: Sequence[float] = ()
) -> list[Record]:
    config, scope = study.config.detection, study.scope
    trained = {
        "steps": len(losses), "batch_size": config.batch_size, "image_size": config.image_size,
        "trained_on": fit.parts, "training_images": len(fit), "tested_on": test.parts,
    }  # fmt: skip
    if losses:
        trained["last_loss"] = sum(losses[-20:]) / len(losses[-20:])

    n = len(test)
    records = [
        _record(scope, name, value, n, trained, scores.interval.get(name)) for name, value in scores.values.items()
    ]
    return records + [
        _record(scope, name, value, n, {"class": of})
        for of, values in scores.classes.items()
        for name, value in values.items()
        if math.isfinite(value)  # a class without a box to be found has no precision
    ]


def _record(
    scope: Scope, metric: str, value: float, n: int, details: Details, interval: Sequence[float] | None = None
) -> Record:
    """Value and interval are fractions."""
    low, high = (None, None) if interval is None else (100 * interval[0], 100 * interval[1])
    return scope.record("detection", metric, 100 * value, n, unit="%", low=low, high=high, details=details)


def _write(study: Study, test: DetectionSet, detections: Sequence[Detections]) -> None:
    file = study.folder / f"detections_{study.scope.tag}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(coco_results(test, detections)))
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); make room, or give another folder") from None


def _picture(study: Study, test: DetectionSet, detections: Sequence[Detections]) -> Record:
    scope = study.scope
    order = counted_generator(scope.seed, "detection pictures").permutation(len(test))
    chosen = sorted(order[:_PICTURED].tolist())
    file = Path("pictures") / f"detection_{study.scope.tag}.png"
    if rank() == 0:
        draw_detections(test, detections, chosen, study.folder / file)
    caption = (
        "Images that the detector was not trained on: above as they are labelled, below what it found with a score "
        "above 0.5. The network below it is frozen."
    )
    return scope.record("detection", "picture", None, len(chosen), details={"caption": caption}, picture=str(file))


def measure_posed(
    study: Study,
    detector: Detector,
    fit: DetectionSet,
    test: DetectionSet,
    upright: Sequence[Detections],
    scores: Scores,
) -> list[Record]:
    """Records of at most `robustness.images` test images, drawn once for a seed, in every pose.

    Args:
        upright, scores: of all test images, upright.
    """
    seed, most, sets = study.scope.seed, study.config.robustness.images, (fit, test)
    if len(test) > most:
        chosen = np.sort(counted_generator(seed, "detection in other poses").permutation(len(test))[:most])
        test, upright = test.take(chosen), [upright[i] for i in chosen]
        scores = score(test, upright, seed)
    long, patch_size = study.config.detection.image_size, study.encoder.patch_size
    grid = max(2, round(long / patch_size))
    poses = [pose for pose in poses_for(study.encoder, grid, "detection") if pose.kind != UPRIGHT]
    posed: dict[NamedPose, Scores] = {}
    for pose in study.track(poses, "detection in other poses", len(poses)):
        canvas = posed_canvas(sets, pose, grid, long, patch_size)
        images = turned(test, pose.turns, pose.flip)
        posed[pose] = score(images, detect(study, detector, images, canvas), seed)
    return posed_records(study, len(test), grid, scores, posed)


def posed_canvas(sets: Sequence[DetectionSet], pose: NamedPose, grid: int, long: int, patch_size: int) -> Canvas:
    """The smallest that holds every image of the upright sets in that pose of `grid` x `grid` patches."""
    stretch = (pose.grid[0] / grid, pose.grid[1] / grid)
    return Canvas.around([turned(images, pose.turns, pose.flip) for images in sets], long, patch_size, stretch)


def posed_records(study: Study, n: int, grid: int, upright: Scores, posed: Mapping[NamedPose, Scores]) -> list[Record]:
    """mAP under each pose, and for each kind of pose the drop: upright less the mean over the kind's poses. Its
    interval is that of a paired difference, since the same n images are drawn for every pose."""
    scope = study.scope

    whole = upright.values["map"]
    if not math.isfinite(whole):
        return []  # these few images have no box that counts
    records = []
    kinds: dict[str, list[Scores]] = {}
    for pose, scores in posed.items():
        kinds.setdefault(pose.kind, []).append(scores)
        # images of many shapes share a scale: it is named by what multiplies height and width
        name = f"{pose.grid[0] / grid:.2f} x {pose.grid[1] / grid:.2f}" if pose.kind == "scale" else pose.name
        details: Details = {"kind": pose.kind, "pose": name}
        records.append(_record(scope, "map_posed", scores.values["map"], n, details, scores.interval.get("map")))
    for kind, of in kinds.items():
        drop = whole - float(np.mean([scores.values["map"] for scores in of]))
        draws = [scores.draws["map"] for scores in (upright, *of) if scores.draws]
        interval = None
        if len(draws) == 1 + len(of):
            interval = np.nanquantile(draws[0] - np.mean(draws[1:], axis=0), (0.025, 0.975)).tolist()
        details = {"kind": kind, "poses": len(of), "upright": 100 * whole}
        records.append(_record(scope, "map_drop", drop, n, details, interval))
    return records
