"""Mean average precision against pycocotools and by hand."""

import contextlib
import importlib.util
import io
import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from equimid.errors import UserError
from equimid.evaluation.detection import Detections, DetectionSet, score, scores
from equimid.randomness import counted_generator

METRICS = ("map", "map_50", "map_75", "mar_100")


def images_with(boxes, labels, ignored=None, classes=("a", "b", "c"), numbers=None):
    """A set of 100 x 100 px images that exist nowhere."""
    count = len(boxes)
    return DetectionSet(
        "drawn", "test", tuple(Path(f"{i}.png") for i in range(count)), tuple(numbers or range(1, count + 1)),
        np.full((count, 2), 100), tuple(np.array(x, dtype=float).reshape(-1, 4) for x in boxes),
        tuple(np.array(y, dtype=np.int64) for y in labels),
        tuple(np.zeros(len(y), dtype=bool) for y in labels) if ignored is None else ignored,
        classes, tuple(10 * (i + 1) for i in range(len(classes))),
    )  # fmt: skip


def found_in(boxes, labels, confidence):
    return Detections(
        np.array(boxes, dtype=float).reshape(-1, 4), np.array(labels, dtype=np.int64), np.array(confidence)
    )


def random_set(count=12, seed=0):
    """Boxes, some of them ignored, and detections that are moved boxes, wrong classes and boxes at random."""
    rng = np.random.default_rng(seed)
    boxes, labels, ignored, found = [], [], [], []
    for _ in range(count):
        k = int(rng.integers(0, 6))
        corner, side = rng.uniform(0, 60, (k, 2)), rng.uniform(10, 40, (k, 2))
        truth = np.concatenate([corner, corner + side], axis=1)
        label = rng.integers(0, 3, k)
        moved = truth + rng.normal(0, 3, truth.shape)
        noise = rng.uniform(0, 60, (4, 2))
        everything = np.concatenate([moved, moved + 2, np.concatenate([noise, noise + 20], axis=1)])
        guess = np.concatenate([np.where(rng.random(k) < 0.2, (label + 1) % 3, label), label, rng.integers(0, 3, 4)])
        boxes.append(truth)
        labels.append(label)
        ignored.append(rng.random(k) < 0.15)
        found.append(found_in(everything, guess, rng.random(len(everything)).round(2)))
    numbers = rng.permutation(count * 3)[:count].tolist()
    return images_with(boxes, labels, tuple(ignored), numbers=numbers), found


def by_pycocotools(images, found, classes=None):
    """(map, map_50, map_75, mar_100) of the published evaluator."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = scores.coco_truth(images)
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(scores.coco_results(images, found)), "bbox")
        if classes is not None:
            evaluator.params.catIds = [images.categories[i] for i in classes]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [evaluator.stats[i] for i in (0, 1, 2, 8)]


def test_scores_are_those_of_pycocotools():
    images, found = random_set()
    ours = score(images, found, 0)
    assert [ours.values[m] for m in METRICS] == pytest.approx(by_pycocotools(images, found), abs=1e-6)
    assert 0.05 < ours.values["map"] < 0.95
    for i, name in enumerate(images.classes):
        expected = by_pycocotools(images, found, [i])
        assert [ours.classes[name][m] for m in METRICS] == pytest.approx(expected, abs=1e-6)


def test_interval_is_that_of_images_drawn_again(monkeypatch):
    """Three draws, the images really repeated and evaluated by the published evaluator."""
    monkeypatch.setattr(scores, "_RESAMPLED", 3)
    images, found = random_set(7, seed=3)
    ours = score(images, found, 5)
    rng, drawn = counted_generator(5, "detection interval"), []
    order = np.argsort(images.numbers)  # the evaluator knows images by the order of their ids
    for _ in range(3):
        chosen = order[rng.integers(0, 7, 7)]
        again = images_with([images.boxes[i] for i in chosen], [images.labels[i] for i in chosen],
                            tuple(images.ignored[i] for i in chosen))  # fmt: skip
        drawn.append(by_pycocotools(again, [found[i] for i in chosen]))
    for i, metric in enumerate(METRICS):
        expected = np.quantile([draw[i] for draw in drawn], (0.025, 0.975))
        assert ours.interval[metric] == pytest.approx(tuple(expected), abs=1e-6)


def test_interval_holds_the_value_and_is_a_function_of_the_seed():
    images, found = random_set(40)
    ours, again, other = (score(images, found, seed) for seed in (0, 0, 1))
    for metric, (low, high) in ours.interval.items():
        assert low < ours.values[metric] < high
    assert ours.interval == again.interval != other.interval


def test_half_of_the_boxes_found_is_51_of_101_recalls():
    images = images_with([[(0, 0, 20, 20)], [(0, 0, 20, 20)]], [[0], [0]], classes=("a",))
    found = [found_in([(0, 0, 20, 20)], [0], [0.9]), found_in([], [], [])]
    ours = score(images, found, 0)
    assert ours.values == pytest.approx({"map": 51 / 101, "map_50": 51 / 101, "map_75": 51 / 101, "mar_100": 0.5})


def test_a_box_off_by_a_fifth_counts_up_to_its_overlap():
    # 18 of 20 columns shared: 18 / 22 = 0.818, right at 0.50 to 0.80, 7 of the 10 thresholds
    images = images_with([[(0, 0, 20, 20)]], [[0]], classes=("a",))
    ours = score(images, [found_in([(2, 0, 22, 20)], [0], [0.9])], 0)
    assert ours.values == pytest.approx({"map": 0.7, "map_50": 1.0, "map_75": 1.0, "mar_100": 0.7})


def test_what_lies_in_an_ignored_box_is_not_wrong():
    boxes, found = (
        [[(0, 0, 20, 20), (40, 40, 90, 90)]],
        [found_in([(45, 45, 80, 80), (0, 0, 20, 20)], [0, 0], [0.9, 0.8])],
    )
    crowd = images_with(boxes, [[0, 0]], (np.array([False, True]),), classes=("a",))
    assert score(crowd, found, 0).values["map_50"] == 1
    assert score(images_with(boxes, [[0, 0]], classes=("a",)), found, 0).values["map_50"] < 0.5


def test_nothing_found_is_zero():
    images = images_with([[(0, 0, 20, 20)]], [[1]], classes=("a", "b"))
    ours = score(images, [found_in([], [], [])], 0)
    assert set(ours.values.values()) == {0.0}
    assert ours.classes["b"]["map"] == 0
    assert math.isnan(ours.classes["a"]["map"])


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'equimid\[detection\]'"):
        scores.need_evaluator()
