"""Linear segmentation: counting by hand, the layer against what it should learn, and folders that are not as they
should be."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from equimid.errors import UserError
from equimid.evaluation import EvaluationConfig
from equimid.evaluation.config import SegmentationConfig
from equimid.evaluation.iou import class_iou, pixel_counts
from equimid.evaluation.masks import IGNORED, open_masks
from equimid.evaluation.segmentation import _draw, _loss, measure_segmentation
from helpers.probing import PatchColours, study

COLOURS = np.array([(60, 60, 70), (210, 60, 50), (60, 190, 70)])
SETTINGS = SegmentationConfig(epochs=15, size=32, pixels=256)
CONFIG = EvaluationConfig(segmentation=SETTINGS)


def save(folder, stem, classes, rng, palette=False):
    """An image whose colours tell the classes (H, W), and its mask."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    known = np.where(classes == IGNORED, 0, classes)
    pixels = COLOURS[known] + rng.normal(0, 15, (*classes.shape, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{stem}.jpg", quality=95)
    mask = Image.fromarray(classes.astype(np.uint8))
    if palette:
        mask.putpalette(range(255, 255 - 9, -1))
    mask.save(folder / "masks" / f"{stem}.png")


def scenes(folder, n, seed=0, size=(32, 48)):
    """n images of blocks of 8 x 12 px; every second mask has a palette."""
    rng = np.random.default_rng(seed)
    for k in range(n):
        classes = rng.integers(0, 3, (4, 4)).repeat(size[0] // 4, 0).repeat(size[1] // 4, 1)
        save(folder, f"{k:02}", classes, rng, palette=k % 2 == 0)
    return str(folder)


# --- counting


def test_iou_is_that_of_a_confusion_matrix():
    """Truth 0 0 1 / 1 2 255, prediction 0 1 1 / 1 0 2: of class 0 one pixel of three, of 1 two of three, of 2 none."""
    mask = np.array([[0, 0, 1], [1, 2, IGNORED]], dtype=np.uint8)
    predicted = torch.tensor([[0, 1, 1], [1, 0, 2]])
    counts = pixel_counts(F.one_hot(predicted, 4).permute(2, 0, 1).float(), mask)
    assert counts.tolist() == [[1, 2, 2], [2, 2, 3], [0, 1, 0], [0, 0, 0]]
    assert class_iou(counts)[:3].tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert np.isnan(class_iou(counts)[3])


def test_class_that_is_only_predicted_has_no_iou_of_its_own():
    mask = np.zeros((1, 2), dtype=np.uint8)
    counts = pixel_counts(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), mask)
    assert class_iou(counts)[0] == 0.5
    assert np.isnan(class_iou(counts)[1])


def test_logits_are_interpolated_to_the_mask():
    """Between the two patch centres the difference of the logits falls from 3 to -1 in a line: it crosses 0 at three
    quarters of the way, 2 + 3 = 5 of 8 pixels (centres at 1.5 and 5.5)."""
    mask = np.zeros((8, 8), dtype=np.uint8)
    logits = torch.tensor([[[3.0, -1.0]], [[0.0, 0.0]]])
    assert pixel_counts(logits, mask)[0].tolist() == [8 * 5, 64, 8 * 5]


def test_layer_that_diverged_is_never_right():
    mask = np.array([[0, 1]], dtype=np.uint8)
    assert pixel_counts(torch.full((2, 1, 2), torch.nan), mask).tolist() == [[0, 1, 0], [0, 1, 0]]


# --- training


def test_loss_at_all_pixels_is_that_of_the_interpolated_logits():
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 1, 3, 4, 4), np.random.default_rng(0).integers(0, 3, (9, 14), dtype=np.uint8)
    mask[2] = IGNORED
    rows, columns = (x.ravel() for x in np.mgrid[:9, :14])

    class Every:  # in place of a generator: each row, then each column, once
        calls = 0

        def integers(self, low, high, size):
            self.calls += 1
            return rows if self.calls % 2 else columns

    places, labels = _draw([mask, mask[::-1]], 9 * 14, Every())
    fine = F.interpolate(logits[:, 0], (9, 14), mode="bilinear", align_corners=False)
    truth = torch.from_numpy(np.stack([mask, mask[::-1]]).astype(np.int64))
    expected = F.cross_entropy(fine, truth, ignore_index=IGNORED)
    assert _loss(logits, places, labels) == pytest.approx(float(expected), abs=1e-5)


def test_loss_of_several_rates_is_the_sum_of_each():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 5)
    places, labels = torch.rand(2, 7, 2) * 2 - 1, torch.randint(0, 4, (2, 7))
    one_by_one = sum(_loss(logits[:, g : g + 1], places, labels) for g in range(3))
    assert torch.allclose(_loss(logits, places, labels), one_by_one)


def test_colours_are_found(tmp_path):
    """Far above the chance of three classes, and what the records say."""
    scenes(tmp_path / "train", 16)
    scenes(tmp_path / "val", 6, seed=1)
    (tmp_path / "classes.txt").write_text("ground\nred\ngreen\nnever\n")
    records = measure_segmentation(study(CONFIG), str(tmp_path))
    miou, *each = [r for r in records if r.metric in ("miou", "iou")]
    assert (miou.evaluation, miou.metric, miou.unit, miou.n) == ("segmentation", "miou", "%", 6)
    assert miou.value > 60
    assert 0 < miou.low <= miou.value <= miou.high <= 100
    assert miou.high - miou.low < 30
    assert [r.details["class"] for r in each] == ["ground", "red", "green"]
    assert miou.value == pytest.approx(np.mean([r.value for r in each]))
    assert miou.details["training_images"] == 16
    assert miou.details["rate"] in SETTINGS.rates
    assert records == measure_segmentation(study(CONFIG), str(tmp_path))


def test_network_that_sees_no_colour_is_no_better_than_chance(tmp_path):
    class Blind(PatchColours):
        def forward_features(self, images, layers=()):
            return super().forward_features(torch.zeros_like(images), layers)

    data = scenes(tmp_path, 15)
    seeing, blind = (measure_segmentation(study(CONFIG, network()), data)[0] for network in (PatchColours, Blind))
    assert blind.value < 35 < 60 < seeing.value


def test_rate_is_chosen_on_held_out_training_images(tmp_path):
    data = scenes(tmp_path, 15)
    for rates in ((1e-9, 0.1), (0.1, 1e-9), (1e-9, 0.1, 3e38)):
        config = replace(CONFIG, segmentation=replace(SETTINGS, rates=rates))
        details = measure_segmentation(study(config), data)[0].details
        assert details["rate"] == 0.1
        assert ("warning" in details) == (len(rates) == 2)


def test_test_masks_do_not_shape_the_layer(tmp_path):
    """With other test masks the same layer is chosen, and is worse."""
    for data in ("true", "false"):
        scenes(tmp_path / data / "train", 12)
        scenes(tmp_path / data / "test", 5, seed=1)
    for mask in (tmp_path / "false" / "test" / "masks").iterdir():
        Image.fromarray(((np.asarray(Image.open(mask)) + 1) % 3).astype(np.uint8)).save(mask)
    true, false = (measure_segmentation(study(CONFIG), str(tmp_path / data))[0] for data in ("true", "false"))
    assert true.details == false.details
    assert false.value < 20 < true.value


def test_whole_image_is_seen(tmp_path):
    """A strip at the right of a wide image, which a centre crop would not show."""
    rng = np.random.default_rng(0)
    for k in range(12):
        classes = np.zeros((32, 96), dtype=int)
        classes[:, 80:] = 1 + k % 2
        save(tmp_path / ("test" if k < 4 else "train"), f"{k:02}", classes, rng)
    records = {r.details.get("class"): r.value for r in measure_segmentation(study(CONFIG), str(tmp_path))}
    assert min(records["1"], records["2"]) > 50


# --- folders


def test_split_is_fixed_and_disjoint(tmp_path):
    data = scenes(tmp_path, 11)
    fit, test, names = open_masks(data)
    assert (len(fit), len(test), names) == (8, 3, ())
    assert not set(fit.masks) & set(test.masks)
    assert len({*fit.masks, *test.masks}) == 11
    for part in (fit, test):
        assert [m.stem for m in part.masks] == [part.source.path(i).stem for i in range(len(part))]
    assert open_masks(data)[1].masks == test.masks


def test_training_images_may_lie_elsewhere(tmp_path):
    here, there = scenes(tmp_path / "here", 3), scenes(tmp_path / "there", 5)
    fit, test, _ = open_masks(here, there)
    assert (len(fit), len(test)) == (5, 3)


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
def test_at_most_so_many_images_train(tmp_path, seed, same):
    config = replace(CONFIG, segmentation=replace(SETTINGS, images=4, epochs=2))
    data = scenes(tmp_path, 12)
    first, other = measure_segmentation(study(config), data), measure_segmentation(study(config, seed=seed), data)
    assert first[0].details["training_images"] == 4
    assert ([r.value for r in first] == [r.value for r in other]) == same


def test_bad_folders_are_told_by_name(tmp_path):
    data = scenes(tmp_path, 6)

    def refused(message, config=CONFIG):
        with pytest.raises(UserError, match=message) as found:
            measure_segmentation(study(config), data)
        assert "\n" not in str(found.value)

    mask = tmp_path / "masks" / "03.png"
    right = mask.read_bytes()
    Image.new("RGB", (48, 32)).save(mask)
    refused(r"03\.png is a colour image \(RGB\)")
    Image.new("L", (48, 31)).save(mask)
    refused("48 x 31 pixels and its image 48 x 32")
    Image.fromarray(np.full((32, 48), 300, dtype=np.uint16)).save(mask)
    refused("values from 300 to 300")
    mask.write_bytes(right[:40])
    refused(r"03\.png cannot be read")
    mask.unlink()
    refused(r"1 of 6 images .* have no mask: 03\.jpg")
    mask.write_bytes(right)
    (tmp_path / "classes.txt").write_text("sky\nhouse\n")
    refused("has class 2, and classes.txt names 2")
    (tmp_path / "classes.txt").write_text("sky\nsky\n")
    refused("each once")
    (tmp_path / "classes.txt").unlink()
    refused("not a multiple of the 4 px patch; try 32", replace(CONFIG, segmentation=replace(SETTINGS, size=33)))
    image = tmp_path / "images" / "02.jpg"
    image.write_bytes(image.read_bytes()[:50])
    refused(r"02\.jpg cannot be read")


@pytest.mark.parametrize("make", ["nothing", "a file", "images alone", "train alone", "no image"])
def test_other_layouts_are_refused(tmp_path, make):
    data = tmp_path / "data"
    if make == "a file":
        data.write_text("")
    if make == "images alone":
        (data / "images").mkdir(parents=True)
    if make == "train alone":
        scenes(data / "train", 2)
    if make == "no image":
        for name in ("images", "masks"):
            (data / name).mkdir(parents=True)
    with pytest.raises(UserError, match="expected"):
        open_masks(str(data))


def test_one_class_is_refused(tmp_path):
    """As where the object is 255, which says nothing."""
    rng = np.random.default_rng(0)
    for k in range(4):
        save(tmp_path, str(k), np.where(rng.random((32, 32)) < 0.5, 0, IGNORED), rng)
    with pytest.raises(UserError, match="1 classes, 255 being none"):
        measure_segmentation(study(CONFIG), str(tmp_path))


@pytest.mark.parametrize("setting", [{"epochs": 0}, {"images": 0}, {"pixels": 0}, {"size": -1}, {"rates": ()}])
def test_settings_that_cannot_be_are_refused(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        SegmentationConfig(**setting)
