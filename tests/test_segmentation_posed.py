"""Segmentation trained upright and tested in other poses: networks whose drop is known, masks that move with their
images, and intervals of paired differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.evaluation import EvaluationConfig
from equimid.evaluation.config import RobustnessConfig, SegmentationConfig
from equimid.evaluation.equivariance.transforms import named_poses
from equimid.evaluation.iou import class_iou, posed_iou_records
from equimid.evaluation.segmentation import measure_segmentation
from equimid.evaluation.study import Scope
from equimid.features import Features
from helpers.probing import PatchColours, study
from helpers.robust import value

CONFIG = EvaluationConfig(segmentation=SegmentationConfig(epochs=20, size=32, pixels=256))
COLOURS = np.array([(60, 60, 70), (210, 60, 50), (60, 190, 70)])
TURNS = {"90 degrees": 1, "180 degrees": 2, "270 degrees": 3}


class Placed(PatchColours):
    """Tokens that say where they are, and nothing of the image."""

    def forward_features(self, images, layers=()):
        found = super().forward_features(torch.zeros_like(images), layers)
        return Features(found.cls, {layer: self.place(m) for layer, m in found.maps.items()}, found.cls_at)

    def place(self, maps):
        rows, columns = (torch.linspace(-1, 1, side) for side in maps.shape[-2:])
        maps = torch.zeros_like(maps)
        maps[:, 0], maps[:, 1] = rows[:, None], columns
        maps[:, 2:4] = -maps[:, :2]  # the norm over channels leaves it as it is, but for its length
        return maps


class ColoursAndPlaces(Placed):
    """Four channels of each, so that each pose has another value."""

    def forward_features(self, images, layers=()):
        colours, places = PatchColours.forward_features(self, images, layers), super().forward_features(images, layers)
        maps = {n: torch.cat([0.4 * 10**n * m[:, 4:], places.maps[n][:, :4]], 1) for n, m in colours.maps.items()}
        return Features(colours.cls, maps, colours.cls_at)


def save(folder, stem, classes, rng, move=lambda x: x):
    """An image in the colours of its classes (H, W), with noise, and its mask; both moved."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pixels = COLOURS[classes] + rng.normal(0, 30, (*classes.shape, 3))
    Image.fromarray(move(pixels.clip(0, 255).astype(np.uint8))).save(folder / "images" / f"{stem}.png")
    Image.fromarray(move(classes.astype(np.uint8))).save(folder / "masks" / f"{stem}.png")


def scenes(folder, n, seed=0, size=(32, 32), move=lambda x: x):
    """n images: blocks of random classes, of which the upper left is most often 1 and the lower left 2."""
    rng = np.random.default_rng(seed)
    for k in range(n):
        blocks = rng.integers(0, 3, (4, 4))
        blocks[0, :3], blocks[2:, 0] = 1, 2
        save(folder, f"{k:02}", blocks.repeat(size[0] // 4, 0).repeat(size[1] // 4, 1), rng, move)
    return folder


def halves(folder, n):
    """Images whose left half is class 0, whose right half is class 1."""
    for k in range(n):
        save(folder, f"{k:02}", (np.arange(32) >= 16).astype(int)[None].repeat(32, 0), np.random.default_rng(k))
    return folder


def measured(root, network=PatchColours, config=CONFIG):
    return measure_segmentation(study(config, network()), str(root / "test"), str(root / "train"))


def names_of(records):
    return {(r.metric, r.details.get("kind"), r.details.get("pose")) for r in records if r.metric != "iou"}


# --- networks whose drop is known


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_equivariant_tokens_lose_nothing_when_turned(tmp_path, size):
    for part, n in (("train", 12), ("test", 6)):
        scenes(tmp_path / part, n, seed=n, size=size)
    records = measured(tmp_path)
    upright = value(records, "miou")
    assert upright > 50
    for kind, poses in (("quarter turns", TURNS), ("flip", ["mirrored left-right"])):
        for pose in poses:
            assert value(records, "miou_posed", kind=kind, pose=pose) == pytest.approx(upright, abs=1e-6)
        (drop,) = [r for r in records if r.metric == "miou_drop" and r.details["kind"] == kind]
        assert (drop.value, drop.low, drop.high) == pytest.approx((0, 0, 0), abs=1e-6)
        assert drop.details == {"kind": kind, "poses": len(poses), "upright": upright}
        assert (drop.unit, drop.n, drop.subject) == ("%", 6, "backbone")
    assert len([r for r in records if r.details.get("kind") == "scale"]) == 4 + 1


def test_tokens_that_say_their_place_lose_what_can_be_computed(tmp_path):
    """The halves are learned by their place. Turned by 90 degrees, what is found are halves one above the other: of
    each class a quarter of the image is right, of three that are it or are taken for it. By 180 degrees, or mirrored,
    nothing is right."""
    for part, n in (("train", 8), ("test", 3)):
        halves(tmp_path / part, n)
    records = measured(tmp_path, Placed)
    assert value(records, "miou") == pytest.approx(100, abs=1)
    for pose, expected in (("90 degrees", 100 / 3), ("180 degrees", 0), ("270 degrees", 100 / 3)):
        assert value(records, "miou_posed", pose=pose) == pytest.approx(expected, abs=2)
    assert value(records, "miou_posed", kind="flip") == pytest.approx(0, abs=2)
    assert value(records, "miou_drop", kind="quarter turns") == pytest.approx(100 - 200 / 9, abs=2)
    assert value(records, "miou_drop", kind="flip") == pytest.approx(100, abs=2)
    assert value(records, "miou_drop", kind="scale") == pytest.approx(0, abs=2)  # the halves stay where they were


# --- masks move with their images


@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
def test_posed_images_are_as_files_that_were_turned_with_their_masks(tmp_path, size):
    scenes(tmp_path / "train", 12, size=size)
    scenes(tmp_path / "test", 5, seed=1, size=size)
    records = measured(tmp_path, ColoursAndPlaces)
    # files of other sizes are resized before, not after they are turned; and resizing rounds
    tolerance = 1e-9 if size == (32, 32) else 0.1
    moves = {name: lambda x, turns=turns: np.rot90(x, turns) for name, turns in TURNS.items()}
    moves["mirrored left-right"] = lambda x: x[:, ::-1]
    found = {}
    for name, move in moves.items():
        scenes(tmp_path / name / "test", 5, seed=1, size=size, move=move)
        (tmp_path / name / "train").symlink_to(tmp_path / "train")
        found[name] = value(measured(tmp_path / name, ColoursAndPlaces), "miou")
        assert value(records, "miou_posed", pose=name) == pytest.approx(found[name], abs=tolerance)
    # else a turn to the wrong side, or none, would not be seen
    values = [value(records, "miou"), *found.values()]
    assert min(abs(a - b) for i, a in enumerate(values) for b in values[:i]) > 0.2


# --- which images and poses


def test_network_of_one_size_is_measured_without_scales(tmp_path, caplog):
    class OneSize(PatchColours):
        any_size = False

    for part, n in (("train", 4), ("test", 2)):
        scenes(tmp_path / part, n)
    own = replace(CONFIG, segmentation=replace(CONFIG.segmentation, size=0))
    every, some = (measured(tmp_path, network, own) for network in (PatchColours, OneSize))
    (warning,) = [r.message for r in caplog.records if "one size" in r.message]
    assert warning == "this network takes images of one size: its segmentation under other scales is not measured"
    assert {kind for _, kind, _ in names_of(every) - names_of(some)} == {"scale"}
    assert names_of(some) < names_of(every)


def test_at_most_so_many_images_are_posed(tmp_path):
    """They are compared with the same images upright, and the score is of all."""
    for part, n in (("train", 8), ("test", 6)):
        scenes(tmp_path / part, n, seed=n)
    every = measured(tmp_path, ColoursAndPlaces)
    some = measured(tmp_path, ColoursAndPlaces, replace(CONFIG, robustness=RobustnessConfig(images=3)))
    assert [r for r in some if r.metric in ("miou", "iou")] == [r for r in every if r.metric in ("miou", "iou")]
    assert {r.n for r in some if "kind" in r.details} == {3}
    assert names_of(some) == names_of(every)
    upright = {r.details["upright"] for r in some if r.metric == "miou_drop"}
    assert len(upright) == 1
    assert upright != {value(every, "miou")}


# --- intervals


def test_the_interval_is_that_of_a_paired_difference():
    """Images of very unlike difficulty, all of which lose alike: the score is uncertain, the drop hardly."""
    rng = np.random.default_rng(0)
    right = rng.integers(20, 100, 40)
    # of two classes with 100 pixels each in every image
    upright = np.stack([np.stack([k, np.full(40, 100), np.full(40, 100)], 1) for k in (right, right)], 1)
    posed = upright.copy()
    posed[..., 0] -= 10
    turned, again, _, mirrored = named_poses(8)[1:5]
    scope = Scope("backbone", "made", 0, "abc")
    records = posed_iou_records(scope, upright, {turned: posed, again: upright, mirrored: upright})
    assert [(r.metric, r.details["kind"]) for r in records] == [
        ("miou_posed", "quarter turns"), ("miou_posed", "quarter turns"), ("miou_posed", "flip"),
        ("miou_drop", "quarter turns"), ("miou_drop", "flip"),
    ]  # fmt: skip
    score, drop, none = records[1], records[3], records[4]
    by_hand = [100 * class_iou(of.sum(0)).mean() for of in (upright, posed)]
    assert drop.value == pytest.approx((by_hand[0] - by_hand[1]) / 2)  # the mean over two poses
    assert (none.value, none.low, none.high) == (0, 0, 0)
    assert drop.low < drop.value < drop.high
    assert drop.high - drop.low < 0.2 * (score.high - score.low)
    assert (score.value, records[0].value) == pytest.approx(by_hand)


def test_images_without_a_class_say_nothing():
    nothing = np.zeros((3, 2, 3), dtype=np.int64)
    assert posed_iou_records(Scope("backbone", "made", 0, "abc"), nothing, {named_poses(8)[1]: nothing}) == []
