"""Detection with a frozen network: what is trained on its tokens, neck and heads, says how much place they hold."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

from equimid.distributed import rank
from equimid.errors import UserError
from equimid.evaluation.detection.annotations import DetectionSet, detection_splits
from equimid.evaluation.detection.posed import measure_posed
from equimid.evaluation.detection.scores import Scores, coco_results, need_evaluator, score
from equimid.evaluation.detection.tokens import Canvas
from equimid.evaluation.detection.train import Found, build_detector, detect, train_detector
from equimid.evaluation.figures.detections import draw_detections
from equimid.evaluation.study import Study
from equimid.files import write_text
from equimid.randomness import counted_generator
from equimid.records import Record

__all__ = ["UNTRAINED", "measure_detection"]

UNTRAINED = "untrained neck"
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
    if study.scope.subject not in ("random", "pixels"):  # one reference is enough
        before = detect(study, detector, test, canvas)
        about = study.about(study.encoder, UNTRAINED)
        records += _records(about, fit, test, score(test, before, study.scope.seed))
    losses = train_detector(study, detector, fit, canvas)
    found = detect(study, detector, test, canvas)
    scores = score(test, found, study.scope.seed)
    records += _records(study, fit, test, scores, losses)
    records += measure_posed(study, detector, fit, test, found, scores)
    if rank() == 0:
        _write(study, test, found)
    return [*records, _picture(study, test, found)]


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

    def record(metric: str, value: float, details: dict[str, object], interval: tuple[float, float] | None) -> Record:
        low, high = (None, None) if interval is None else (100 * interval[0], 100 * interval[1])
        return scope.record("detection", metric, 100 * value, len(test), unit="%", low=low, high=high, details=details)

    records = [record(name, value, trained, scores.interval.get(name)) for name, value in scores.values.items()]
    return records + [
        record(name, value, {"class": of}, None)
        for of, values in scores.classes.items()
        for name, value in values.items()
        if math.isfinite(value)  # a class without a box to be found has no precision
    ]


def _name(study: Study) -> str:
    """Of this subject and these data, that files of others stay beside."""
    return hashlib.blake2b(repr((study.scope.subject, study.scope.data)).encode(), digest_size=4).hexdigest()


def _write(study: Study, test: DetectionSet, found: Sequence[Found]) -> None:
    file = study.folder / f"detections_{_name(study)}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(coco_results(test, found)))
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); make room, or give another folder") from None


def _picture(study: Study, test: DetectionSet, found: Sequence[Found]) -> Record:
    scope = study.scope
    order = counted_generator(scope.seed, "detection pictures").permutation(len(test))
    chosen = sorted(order[:_PICTURED].tolist())
    file = Path("pictures") / f"detection_{_name(study)}.png"
    if rank() == 0:
        draw_detections(test, found, chosen, study.folder / file)
    caption = (
        "Images that the detector was not trained on: above as they are labelled, below what it found with a score "
        "above 0.5. The network below it is frozen."
    )
    return scope.record("detection", "picture", None, len(chosen), details={"caption": caption}, picture=str(file))
