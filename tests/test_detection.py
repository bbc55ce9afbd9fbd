"""The detector on frozen tokens: geometry, training, records."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from equimid.errors import UserError
from equimid.evaluation.config import DetectionConfig
from equimid.evaluation.detection import detection_splits, measure_detection, score, tokens
from equimid.evaluation.detection.pyramid import Detector, SimpleFeaturePyramid
from equimid.evaluation.detection.tokens import Canvas, token_batches
from equimid.evaluation.detection.train import _order, _targets, build_detector, detect, train_detector
from equimid.evaluation.preprocessing import Preprocessing
from helpers.boxes import COLOURS, network, study, voc

PLAIN = Preprocessing(32, 1.0, (0.0,) * 3, (1.0,) * 3)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return voc(tmp_path_factory.mktemp("drawn"))


def trained(place, drawn, long=32):
    fit, test = detection_splits(drawn)
    canvas = Canvas.around((fit, test), long, place.encoder.patch_size)
    detector = build_detector(place, fit, canvas)
    return detector, train_detector(place, detector, fit, canvas), (fit, test, canvas)


# --- geometry


def test_canvas_holds_every_image(drawn):
    fit, _ = detection_splits(drawn)
    assert Canvas.around([fit], 32, 8) == Canvas((3, 4), 8, 32)  # 64 x 48 to 32 x 24
    upright = replace(fit, sizes=fit.sizes[:, ::-1])
    assert Canvas.around([fit, upright], 32, 8).grid == (4, 4)
    assert Canvas.around([fit], 32, 14).grid == (2, 3)  # 24 px and 32 px of patches of 14


def test_scale_into_the_frame():
    # 40 x 20 px to 32 x 16; a token of 8 px is 16 wide in the frame
    factors, size = Canvas((2, 4), 8, 32).scale(np.array([40, 20]))
    assert size == (32, 64)
    assert (np.array([10, 5, 20, 10]) * factors).tolist() == [16, 8, 32, 16]


def test_image_is_placed_at_the_top_left_and_flipped_before_it_is_padded():
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:, :10] = 255  # the left half is white
    canvas = Canvas((2, 4), 8, 16)
    x, flipped = (canvas.place(Image.fromarray(pixels), flip, PLAIN) for flip in (False, True))
    assert x.shape == (3, 16, 32)
    assert x[:, :, :6].min() > 0.99
    assert x[:, :, 10:].max() < 0.01
    assert flipped[:, :, 10:16].min() > 0.99
    assert flipped[:, :, 16:].abs().max() == 0


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_go_where_the_pixels_go(drawn, flip):
    fit, _ = detection_splits(drawn)
    canvas = Canvas.around([fit], 64, 8)  # 64 x 48 as they are: the frame is twice the pixels
    for i in range(len(fit)):
        size, boxes, labels = _targets(fit, canvas, i, flip, torch.device("cpu"))
        assert size == (96, 128)
        x = canvas.place(Image.open(fit.images[i]), flip, PLAIN)
        x0, y0, x1, y1 = (boxes[-1] / 2).int().tolist()
        colour = torch.tensor(COLOURS[fit.classes[labels[-1]]]) / 255
        assert torch.allclose(x[:, y0:y1, x0:x1], colour[:, None, None].expand(-1, y1 - y0, x1 - x0), atol=1e-6)


def test_ignored_boxes_are_no_targets(drawn):
    fit, _ = detection_splits(drawn)
    out = tuple(np.arange(len(y)) == 0 for y in fit.labels)
    canvas = Canvas.around([fit], 32, 8)
    _, boxes, labels = _targets(replace(fit, ignored=out), canvas, 0, False, torch.device("cpu"))
    assert len(boxes) == len(labels) == len(fit.labels[0]) - 1


def test_found_boxes_are_in_pixels_of_the_image(drawn, tmp_path):
    class Says:
        """Finds one box in the frame, and the whole image."""

        def detect(self, x, sizes):
            assert all(size == (96, 128) for size in sizes)
            whole = torch.tensor([[16.0, 8.0, 32.0, 24.0], [0, 0, 128, 96]])
            return [{"boxes": whole, "labels": torch.tensor([1, 0]), "scores": torch.tensor([0.9, 0.5])}] * len(x)

    fit, _ = detection_splits(drawn)
    found = detect(study(tmp_path), Says(), fit, Canvas.around([fit], 64, 8))
    assert len(found) == len(fit)
    assert found[0].boxes.tolist() == [[8, 4, 16, 12], [0, 0, 64, 48]]  # the frame is twice as wide as the image
    halved = replace(fit, sizes=fit.sizes * 2)
    with pytest.raises(UserError, match="64 x 48 px, but its annotation says 128 x 96"):
        detect(study(tmp_path), Says(), halved, Canvas.around([fit], 32, 8))


@pytest.mark.parametrize("patch", [8, 14])
def test_pooling_knows_the_strides(patch):
    """torchvision guesses them from the maps' sizes, as powers of two."""
    detector = Detector(12, 2, width=8, proposals=10, anchor=8)
    canvas = Canvas((3, 5), patch, 5 * patch)
    found = detector.detect(torch.randn(2, 12, *canvas.grid), [(48.0, 80.0), (40.0, 80.0)])
    assert detector.parts.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert all((each["boxes"][:, 3] <= height + 1e-4).all() for each, height in zip(found, (48, 40), strict=True))


def test_tokens_are_standardised():
    detector = Detector(12, 2, width=8, proposals=10, anchor=8)
    x = torch.randn(6, 12, 5, 5) * torch.arange(1, 13)[:, None, None]
    detector.standardise(x + 100)
    heard = []
    detector.parts.backbone.register_forward_hook(lambda _, inputs, out: heard.append(inputs[0]))
    detector.detect(x + 100, [(80.0, 80.0)] * 6)
    assert heard[0].mean((0, 2, 3)) == pytest.approx(np.zeros(12), abs=1e-4)
    assert heard[0].std((0, 2, 3)) == pytest.approx(np.ones(12), abs=1e-4)


def test_pyramid_has_five_levels():
    maps = SimpleFeaturePyramid(12, 8)(torch.randn(2, 12, 3, 4))
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "0": (2, 8, 12, 16), "1": (2, 8, 6, 8), "2": (2, 8, 3, 4), "3": (2, 8, 2, 2), "pool": (2, 8, 1, 1)
    }  # fmt: skip


# --- tokens


def test_tokens_are_those_of_the_last_block_after_the_final_norm(drawn, tmp_path):
    place = study(tmp_path)
    fit, _ = detection_splits(drawn)
    canvas = Canvas.around([fit], 32, 8)
    (found,) = token_batches(place, fit, canvas, [[(2, True)]])
    x = canvas.place(Image.open(fit.images[2]), True, place.preprocessing)[None]
    with torch.no_grad():
        every = place.encoder.model.forward_features(x)[:, 1:]
    assert torch.allclose(found.flatten(2).transpose(1, 2), every, atol=1e-5)
    assert not found.requires_grad


def test_kept_tokens_are_the_computed_ones(drawn, tmp_path, monkeypatch):
    fit, _ = detection_splits(drawn)
    canvas, place = Canvas.around([fit], 32, 8), study(tmp_path)
    batches = [[(0, False), (1, True)], [(1, True), (0, True)]] * 4
    shown = []

    def computed(*args):
        shown.append(sum(map(len, args[-1])))
        return original(*args)

    original = tokens._computed
    monkeypatch.setattr(tokens, "_computed", computed)
    kept = list(token_batches(place, fit, canvas, batches))
    monkeypatch.setattr(tokens, "_CACHE_GIB", 0.0)
    anew = list(token_batches(replace(place, workers=1), fit, canvas, batches))
    assert shown == [3, 16]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(kept, anew, strict=True))
    assert not torch.allclose(kept[0][1], kept[1][1])


def test_a_network_of_one_size_is_named(drawn, tmp_path):
    fit, _ = detection_splits(drawn)
    place = study(tmp_path, network(dynamic_img_size=False))
    with pytest.raises(UserError, match=r"takes images of .* alone"):
        list(token_batches(place, fit, Canvas.around([fit], 32, 8), [[(0, False)]]))


# --- training


def test_training_lowers_the_loss_and_leaves_the_network_alone(drawn, tmp_path):
    place = study(tmp_path, steps=30)
    before = {name: value.clone() for name, value in place.encoder.state_dict().items()}
    detector, losses, _ = trained(place, drawn)
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert all(torch.equal(value, before[name]) for name, value in place.encoder.state_dict().items())
    assert all(p.grad is None for p in place.encoder.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in detector.parameters())


def test_it_finds_what_it_was_trained_on(drawn, tmp_path):
    """The whole way: a class taken for another, or a box scaled or flipped wrongly, would be found nowhere."""
    place = study(tmp_path, steps=120, image_size=64, rate=1e-2, anchor=16)
    detector, _, (fit, _, canvas) = trained(place, drawn, long=64)
    assert score(fit, detect(place, detector, fit, canvas), 0).values["map_50"] > 0.5
    untrained = build_detector(place, fit, canvas)
    assert score(fit, detect(place, untrained, fit, canvas), 0).values["map_50"] < 0.1


def test_training_is_a_function_of_the_seed(drawn, tmp_path):
    def weights(**settings):
        torch.rand(1)  # what others draw is of no matter
        detector, losses, _ = trained(study(tmp_path, steps=3, **settings), drawn)
        return losses, torch.cat([p.detach().flatten() for p in detector.parameters()])

    (losses, first), (_, again), (others, other) = weights(), weights(workers=1), weights(seed=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert losses != others


def test_order_shows_every_image_in_every_epoch_and_flips_half():
    config = DetectionConfig(steps=100, batch_size=4)
    batches = _order(10, config, 0)
    assert [len(batch) for batch in batches] == [4] * 100
    seen = [each for batch in batches for each in batch]
    assert all(sorted(i for i, _ in seen[at : at + 10]) == list(range(10)) for at in range(0, 400, 10))
    assert 160 < sum(flip for _, flip in seen) < 240


def test_divergence_is_an_error(drawn, tmp_path):
    with pytest.raises(UserError, match=r"diverged at step \d+: its loss is (nan|inf)"):
        trained(study(tmp_path, steps=20, rate=1e18), drawn)


# --- the measurement


def test_measurement_writes_records_detections_and_a_picture(drawn, tmp_path):
    records = measure_detection(study(tmp_path, steps=12), drawn)
    assert {r.evaluation for r in records} == {"detection"}
    whole = [r for r in records if r.value is not None and not {"class", "kind"} & set(r.details)]
    for subject, steps in (("untrained neck", 0), ("backbone", 12)):
        of = {r.metric: r for r in whole if r.subject == subject}
        assert set(of) == {"map", "map_50", "map_75", "mar_100"}
        assert all(r.low <= r.value + 1e-9 and r.value <= r.high + 1e-9 and r.unit == "%" for r in of.values())
        assert of["map"].n == 4
        assert of["map"].details["steps"] == steps
        assert of["map"].checkpoint == ("abc" if steps else "")
        classes = [r for r in records if r.subject == subject and r.metric == "map" and "class" in r.details]
        assert sorted(r.details["class"] for r in classes) == ["blue", "red"]
        assert np.mean([r.value for r in classes]) == pytest.approx(of["map"].value)
    (picture,) = [r for r in records if r.metric == "picture"]
    assert Image.open(tmp_path / picture.picture).size[0] > 500
    assert picture.details["caption"]
    (file,) = tmp_path.glob("detections_*.json")
    entries = json.loads(file.read_text())
    assert {e["file_name"] for e in entries} <= {f"test{i}.png" for i in range(4)}
    assert {e["category_id"] for e in entries} <= {1, 2}
    assert not list(tmp_path.rglob("*.tmp"))
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in range(1, 5)],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": [],
    }
    truth.createIndex()
    assert len(truth.loadRes(entries).anns) == len(entries)


def test_a_reference_has_no_reference(drawn, tmp_path):
    records = measure_detection(study(tmp_path, steps=1, subject="random"), drawn)
    assert {r.subject for r in records} == {"random"}


@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", 0), ("batch_size", 0), ("image_size", 16), ("width", 0), ("proposals", 0), ("anchor", 0), ("rate", 0.0),
     ("weight_decay", -1.0)],
)  # fmt: skip
def test_settings_are_checked(setting, value):
    with pytest.raises(UserError, match=rf"evaluation\.detection\.{setting} is {value}"):
        DetectionConfig(**{setting: value})
