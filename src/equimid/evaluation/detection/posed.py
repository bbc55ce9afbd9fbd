"""The detector that was trained upright, on test images in other poses: mAP by pose, and how much of it is lost.

Turned images are treated as files that hold them turned: resized by the same rule (their long side to `image_size`,
the proportions kept), then padded at right and below on the smallest canvas that holds every image of the two sets,
turned alike. The canvas of a landscape set is then one of portraits. Boxes move exactly, and what is found is compared
with the turned boxes. Scales multiply the sides of the resized image, and its boxes with it.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from equimid.evaluation.detection.annotations import DetectionSet
from equimid.evaluation.detection.pyramid import Detector
from equimid.evaluation.detection.scores import Scores, score
from equimid.evaluation.detection.tokens import Canvas
from equimid.evaluation.detection.train import Found, detect
from equimid.evaluation.detection.turned import turned
from equimid.evaluation.posed import UPRIGHT, NamedPose, poses_for
from equimid.evaluation.study import Study
from equimid.randomness import counted_generator
from equimid.records import Record

__all__ = ["measure_posed", "posed_canvas", "posed_records"]


def measure_posed(
    study: Study, detector: Detector, fit: DetectionSet, test: DetectionSet, found: Sequence[Found], scores: Scores
) -> list[Record]:
    """Records of at most `robustness.images` test images, drawn once for a seed, in every pose.

    Args:
        found, scores: of all test images, upright.
    """
    seed, most, sets = study.scope.seed, study.config.robustness.images, (fit, test)
    if len(test) > most:
        chosen = np.sort(counted_generator(seed, "detection in other poses").permutation(len(test))[:most])
        test, found = test.take(chosen), [found[i] for i in chosen]
        scores = score(test, found, seed)
    long, patch_size = study.config.detection.image_size, study.encoder.patch_size
    grid = max(2, round(long / patch_size))
    poses = [pose for pose in poses_for(study.encoder, grid, "detection") if pose.kind != UPRIGHT]
    posed: dict[NamedPose, Scores] = {}
    with study.bar(f"detection in other poses, {study.scope.subject}") as progress:
        for pose in poses:
            canvas = posed_canvas(sets, pose, grid, long, patch_size)
            images = turned(test, pose.turns, pose.flip)
            posed[pose] = score(images, detect(study, detector, images, canvas), seed)
            if progress:
                progress(len(posed), len(poses))
    return posed_records(study, len(test), grid, scores, posed)


def posed_canvas(sets: Sequence[DetectionSet], pose: NamedPose, grid: int, long: int, patch_size: int) -> Canvas:
    """The smallest that holds every image of the upright sets in that pose of `grid` x `grid` patches."""
    stretch = (pose.grid[0] / grid, pose.grid[1] / grid)
    return Canvas.around([turned(images, pose.turns, pose.flip) for images in sets], long, patch_size, stretch)


def posed_records(study: Study, n: int, grid: int, upright: Scores, posed: Mapping[NamedPose, Scores]) -> list[Record]:
    """mAP under each pose, and for each kind of pose the drop: upright less the mean over the kind's poses. Its
    interval is that of a paired difference, since the same n images are drawn for every pose."""
    scope = study.scope

    def record(metric: str, value: float, interval: Sequence[float] | None, details: dict[str, object]) -> Record:
        low, high = (None, None) if interval is None else (100 * interval[0], 100 * interval[1])
        return scope.record("detection", metric, 100 * value, n, unit="%", low=low, high=high, details=details)

    whole = upright.values["map"]
    if not math.isfinite(whole):
        return []  # these few images have no box that counts
    records = []
    kinds: dict[str, list[Scores]] = {}
    for pose, scores in posed.items():
        kinds.setdefault(pose.kind, []).append(scores)
        details: dict[str, object] = {"kind": pose.kind, "pose": _name(pose, grid)}
        records.append(record("map_posed", scores.values["map"], scores.interval.get("map"), details))
    for kind, of in kinds.items():
        drop = whole - float(np.mean([scores.values["map"] for scores in of]))
        draws = [scores.draws["map"] for scores in (upright, *of) if scores.draws]
        interval = None
        if len(draws) == 1 + len(of):
            interval = np.nanquantile(draws[0] - np.mean(draws[1:], axis=0), (0.025, 0.975)).tolist()
        records.append(record("map_drop", drop, interval, {"kind": kind, "poses": len(of), "upright": 100 * whole}))
    return records


def _name(pose: NamedPose, grid: int) -> str:
    """Images of many shapes share a scale: it is named by what multiplies height and width."""
    return f"{pose.grid[0] / grid:.2f} x {pose.grid[1] / grid:.2f}" if pose.kind == "scale" else pose.name
