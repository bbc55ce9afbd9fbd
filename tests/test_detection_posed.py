"""Detection trained upright and tested in other poses: boxes that move with their pixels, detectors whose drop is
known, and intervals of paired differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from equimid.backbones import Encoder
from equimid.errors import UserError
from equimid.evaluation.config import RobustnessConfig
from equimid.evaluation.detection import Scores, detection_splits, measure_detection, score
from equimid.evaluation.detection.measure import measure_posed, posed_canvas, posed_records
from equimid.evaluation.detection.tokens import Canvas, token_batches, turned, turned_boxes, turned_image
from equimid.evaluation.detection.train import detect
from equimid.evaluation.equivariance.transforms import named_poses
from equimid.features import Features
from equimid.poses import Pose
from helpers.boxes import COLOURS, network, study, voc, voc_image, voc_list, voc_object
from helpers.robust import value

ELEMENTS = [(turns, flip) for turns in range(4) for flip in (False, True)]


class PatchColours(Encoder):
    """Tokens that are the mean colour of their patch, 0 to 1."""

    depth, embed_dim, patch_size = 1, 3, 8

    def __init__(self, any_size=True):
        super().__init__()
        self.any_size = any_size
        self.pretrained_cfg = {"input_size": (3, 64, 64), "crop_pct": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
        self.eval()

    def forward_features(self, images, layers=()):
        self.grid(images)
        patches = F.avg_pool2d(images, self.patch_size)
        return Features(patches.mean((2, 3)), dict.fromkeys(layers, patches))


class FindsColours:
    """In place of a detector: a box around the tokens of each colour. A token is 16 wide in its frame."""

    def detect(self, tokens, sizes):
        return [self.of(x) for x in tokens]

    def of(self, x):
        boxes, labels = [], []
        for label, colour in enumerate(torch.tensor([COLOURS[name] for name in sorted(COLOURS)]) / 255):
            rows, columns = torch.where((x - colour[:, None, None]).abs().amax(0) < 0.15)
            if len(rows):
                boxes.append([16.0 * side for side in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)])
                labels.append(label)
        return {
            "boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.full((len(boxes),), 0.9),
        }  # fmt: skip


class SaysUpperLeft(FindsColours):
    """One box of each class at the upper left, whatever is there."""

    def of(self, x):
        box = torch.tensor([[0.0, 0.0, 32.0, 32.0]] * 2)
        return {"boxes": box, "labels": torch.tensor([0, 1]), "scores": torch.tensor([0.9, 0.8])}


def aligned(root, size=(64, 48)):
    """VOC images with a blue box in the left half and a red one in the right, on lines between patches of 8 px."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 5)):
        names = [f"{part}{k}" for k in range(count)]
        for name in names:
            pixels, objects = np.full((size[1], size[0], 3), 128, np.uint8), []
            for number, colour in enumerate(sorted(COLOURS)):
                left = number * size[0] // 16  # patches
                x0 = left + rng.integers(0, size[0] // 16 - 1)
                x1 = rng.integers(x0 + 1, left + size[0] // 16)
                y0 = rng.integers(0, size[1] // 8 - 1)
                y1 = rng.integers(y0 + 1, size[1] // 8)
                box = tuple(int(8 * side) for side in (x0, y0, x1, y1))
                pixels[box[1] : box[3], box[0] : box[2]] = COLOURS[colour]
                objects.append(voc_object(box, colour))
            voc_image(root, name, size, objects, pixels)
        voc_list(root, part, names)
    return str(root)


def measured(folder, data, detector, encoder=None, **robustness):
    """The posed records of a detector that is not trained, and its score upright."""
    about = study(folder, encoder or PatchColours(), image_size=64)
    if robustness:
        about = replace(about, config=replace(about.config, robustness=RobustnessConfig(**robustness)))
    fit, test = detection_splits(data)
    canvas = Canvas.around((fit, test), 64, 8)
    found = detect(about, detector, test, canvas)
    scores = score(test, found, 0)
    return measure_posed(about, detector, fit, test, found, scores), 100 * scores.values["map"]


# --- boxes move with their pixels


@pytest.mark.parametrize(
    ("turns", "flip", "expected"),
    [(0, False, (1, 2, 4, 5)), (1, False, (2, 6, 5, 9)), (2, False, (6, 1, 9, 4)), (3, False, (1, 1, 4, 4)),
     (0, True, (6, 2, 9, 5)), (1, True, (2, 1, 5, 4)), (2, True, (1, 1, 4, 4)), (3, True, (1, 6, 4, 9))],
)  # fmt: skip
def test_boxes_by_hand(turns, flip, expected):
    """An image of 10 x 6 px with the box from (1, 2) to (4, 5)."""
    assert turned_boxes(np.array([[1.0, 2, 4, 5]]), (10, 6), turns, flip).tolist() == [list(expected)]


@pytest.mark.parametrize(("turns", "flip"), ELEMENTS)
def test_boxes_are_where_the_pixels_are(turns, flip):
    pixels = np.zeros((6, 10, 3), np.uint8)
    pixels[2:5, 1:4] = 255
    moved = np.asarray(turned_image(Image.fromarray(pixels), turns, flip))
    rows, columns = np.nonzero(moved[..., 0])
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert turned_boxes(np.array([[1.0, 2, 4, 5]]), (10, 6), turns, flip).tolist() == [box]
    # and the pixels where a pose has them
    pose = Pose(torch.tensor([turns]), torch.tensor([flip]), moved.shape[:2])
    assert torch.equal(pose.act(torch.tensor(pixels).permute(2, 0, 1)[None])[0].permute(1, 2, 0), torch.tensor(moved))


@pytest.mark.parametrize(("turns", "flip"), ELEMENTS)
def test_posed_images_are_as_files_that_hold_them_turned(tmp_path, turns, flip):
    """Of 64 x 48 px on a canvas that is not divided by them: tokens, sizes and boxes."""
    _, test = detection_splits(voc(tmp_path))
    posed = turned(test, turns, flip)
    folder = tmp_path / "turned"
    folder.mkdir()
    files = tuple(folder / file.name for file in test.images)
    for before, after in zip(test.images, files, strict=True):
        turned_image(Image.open(before), turns, flip).save(after)
    as_files = replace(posed, images=files, turns=0, flip=False)
    about = study(tmp_path, network(img_size=40, patch_size=8))
    canvas = Canvas.around((as_files,), 44, 8)  # 44 x 33 px, no multiple of 8
    one, other = (
        torch.cat(list(token_batches(about, images, canvas, [[(i, False) for i in range(len(test))]])))
        for images in (posed, as_files)
    )
    assert torch.equal(one, other)
    assert one.shape[-2:] == ((6, 5) if turns % 2 else (5, 6))


def test_a_file_of_another_size_is_still_named_when_turned(tmp_path):
    fit, _ = detection_splits(voc(tmp_path))
    wrong = turned(replace(fit, sizes=fit.sizes[:, ::-1]), 1, False)
    with pytest.raises(UserError, match="px, but its annotation says"):
        list(token_batches(study(tmp_path), wrong, Canvas.around([wrong], 32, 8), [[(0, False)]]))


def test_canvases_of_poses(tmp_path):
    """64 x 48 px shown at 64: upright 6 rows of 8 patches. At 7/8 of the height 42 px, six rows of which are full but
    for 6 px; at 9/8 of the width 72 px, 9 columns."""
    sets = detection_splits(voc(tmp_path))
    by_name = {pose.name: posed_canvas(sets, pose, 8, 64, 8) for pose in named_poses(8)}
    assert by_name["upright"] == Canvas.around(sets, 64, 8) == Canvas((6, 8), 8, 64)
    assert by_name["90 degrees"] == by_name["270 degrees"] == Canvas((8, 6), 8, 64)
    assert by_name["180 degrees"] == by_name["mirrored left-right"] == Canvas((6, 8), 8, 64)
    scaled = by_name["7 x 9 patches"]
    assert scaled == Canvas((6, 9), 8, 64, (7 / 8, 9 / 8))
    factors, size = scaled.scale(np.array([64, 48]))
    assert size == (84, 144)  # the frame is twice the pixels
    assert (factors * np.array([32, 24, 64, 48])).tolist() == [72, 42, 144, 84]
    assert scaled.place(Image.new("RGB", (64, 48)), False, study(tmp_path).preprocessing).shape == (3, 48, 72)


# --- detectors whose drop is known


@pytest.mark.parametrize("size", [(64, 48), (64, 64), (48, 64)])
def test_a_detector_of_colours_loses_nothing_when_turned(tmp_path, size):
    records, upright = measured(tmp_path, aligned(tmp_path, size), FindsColours())
    assert upright == pytest.approx(100)
    for kind, poses in (("quarter turns", ("90", "180", "270")), ("flip", ("mirrored left-right",))):
        posed = [r for r in records if r.metric == "map_posed" and r.details["kind"] == kind]
        assert [r.details["pose"].removesuffix(" degrees") for r in posed] == list(poses)
        assert [r.value for r in posed] == pytest.approx([100] * len(poses), abs=1e-6)
        (drop,) = [r for r in records if r.metric == "map_drop" and r.details["kind"] == kind]
        assert (drop.value, drop.low, drop.high) == pytest.approx((0, 0, 0), abs=1e-6)
        assert drop.details == {"kind": kind, "poses": len(poses), "upright": pytest.approx(100)}
        assert (drop.evaluation, drop.unit, drop.n, drop.subject) == ("detection", "%", 5, "backbone")
    scales = [r.details["pose"] for r in records if r.details["kind"] == "scale" and r.metric == "map_posed"]
    assert scales == ["0.88 x 0.88", "1.12 x 1.12", "0.88 x 1.12", "1.12 x 0.88"]


def test_a_detector_that_says_a_place_loses_all(tmp_path):
    """The boxes lie at the upper left; turned or mirrored they are at another corner."""
    for part, count in (("train", 1), ("test", 3)):
        names = [f"{part}{k}" for k in range(count)]
        for name in names:
            voc_image(tmp_path, name, (64, 48), [voc_object((0, 0, 16, 16), colour) for colour in COLOURS])
        voc_list(tmp_path, part, names)
    records, upright = measured(tmp_path, str(tmp_path), SaysUpperLeft())
    assert upright == pytest.approx(100)
    for kind in ("quarter turns", "flip"):
        assert value(records, "map_drop", kind=kind) == pytest.approx(100)


def test_a_detector_that_finds_nothing_when_turned_has_an_interval_too(tmp_path):
    class Upright(FindsColours):
        def of(self, x):
            return super().of(x if x.shape[-2] < x.shape[-1] else torch.zeros_like(x))

    records, _ = measured(tmp_path, aligned(tmp_path), Upright())
    found = [value(records, "map_posed", pose=f"{turns} degrees") for turns in (90, 180, 270)]
    assert found == pytest.approx([0, 100, 0])
    (drop,) = [r for r in records if r.metric == "map_drop" and r.details["kind"] == "quarter turns"]
    assert (drop.value, drop.low, drop.high) == pytest.approx([200 / 3] * 3)


# --- which images and poses


def test_network_of_one_size_is_measured_without_scales(tmp_path, caplog):
    records, _ = measured(tmp_path, aligned(tmp_path, (64, 64)), FindsColours(), PatchColours(any_size=False))
    (warning,) = [r.message for r in caplog.records if "one size" in r.message]
    assert warning == "this network takes images of one size: its detection under other scales is not measured"
    assert {r.details["kind"] for r in records} == {"quarter turns", "flip"}


def test_at_most_so_many_images_are_posed(tmp_path):
    data = aligned(tmp_path)
    # an image whose boxes are grey, which are not found
    pixels = np.full((48, 64, 3), 128, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "JPEGImages" / "test0.png")
    every, some = (measured(tmp_path, data, FindsColours(), images=most)[0] for most in (5, 2))
    assert {r.n for r in every} == {5}
    assert {r.n for r in some} == {2}
    assert value(every, "map_drop", kind="flip") == value(some, "map_drop", kind="flip") == pytest.approx(0, abs=1e-6)
    uprights = [value(records, "map_posed", kind="flip") for records in (every, some)]
    assert uprights[0] != pytest.approx(uprights[1])


def test_the_whole_measurement_has_them_for_the_trained_detector_alone(tmp_path):
    records = measure_detection(study(tmp_path / "out", steps=3), voc(tmp_path / "drawn"))
    posed = [r for r in records if r.metric in ("map_posed", "map_drop")]
    assert {r.subject for r in posed} == {"backbone"}
    assert [r.metric for r in posed] == ["map_posed"] * 8 + ["map_drop"] * 3
    # the one value that stands for the evaluation stays one
    assert len([r for r in records if (r.metric, r.subject) == ("map", "backbone") and "class" not in r.details]) == 1


# --- intervals


def test_the_interval_is_that_of_a_paired_difference(tmp_path):
    """Draws that vary widely and lose alike."""
    draws = np.random.default_rng(0).uniform(0.2, 0.8, 200)
    whole, less = (
        Scores({"map": float(x.mean())}, {}, {"map": tuple(np.quantile(x, (0.025, 0.975)))}, {"map": x})
        for x in (draws, draws - 0.1)
    )
    turned_90, turned_180, _, mirrored = named_poses(8)[1:5]
    posed = {turned_90: whole, turned_180: less, mirrored: replace(less, draws={})}
    records = posed_records(study(tmp_path), 9, 8, whole, posed)
    turns, flip = (r for r in records if r.metric == "map_drop")
    assert (turns.value, turns.low, turns.high) == pytest.approx((5, 5, 5))
    assert flip.value == pytest.approx(10)
    assert (flip.low, flip.high) == (None, None)  # it would have taken too long


def test_images_without_a_box_that_counts_say_nothing(tmp_path):
    nothing = Scores({"map": float("nan")}, {})
    assert posed_records(study(tmp_path), 1, 8, nothing, {named_poses(8)[1]: nothing}) == []
