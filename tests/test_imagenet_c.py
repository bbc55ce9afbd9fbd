"""ImageNet-C: CE and mCE by hand, layouts, what is missing."""

import logging

import pytest
from PIL import Image

from equimid.errors import UserError
from equimid.evaluation.preprocessing import Preprocessing
from equimid.evaluation.robustness import measure_imagenet_c
from equimid.evaluation.robustness.folders import full_crop
from equimid.evaluation.robustness.imagenet_c import (
    ALEXNET_ERRORS,
    TEST_CORRUPTIONS,
    CorruptedFolders,
    corruption_error,
    imagenet_c_records,
    mce,
)
from helpers.robust import draw_class, draw_training, reader, study, value

CLASSES = ("n1", "n2", "n3")


def draw_set(
    root, corruptions=TEST_CORRUPTIONS, severities=range(1, 6), wrong=lambda corruption, severity: 0, group=""
):
    """Two images of n1 and two of n3 for each severity, `wrong` of which are seen as n2."""
    for corruption in corruptions:
        for severity in severities:
            for k, (name, seen) in enumerate((("n1", 0), ("n1", 0), ("n3", 2), ("n3", 2))):
                path = root / group / corruption / str(severity) / name / f"{k}.png"
                draw_class(path, 1 if k < wrong(corruption, severity) else seen)
    return str(root)


def records_of(tmp_path, data):
    return imagenet_c_records(reader(tmp_path), CorruptedFolders.find(data, CLASSES))


def test_with_alexnets_errors_mce_is_100():
    errors = {name: [error] * 5 for name, error in ALEXNET_ERRORS.items()}
    assert mce(errors) == pytest.approx(100, abs=1e-9)
    # half the errors at the same mean: severities are summed before dividing
    spread = {name: [0, error / 2, error, 3 * error / 2, 2 * error] for name, error in ALEXNET_ERRORS.items()}
    assert mce(spread) == pytest.approx(100, abs=1e-9)


def test_corruption_error_by_hand():
    # fog: 100 (0.1 + 0.2 + 0.3 + 0.4 + 0.5) / (5 x 0.819324)
    assert corruption_error("fog", [0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(100 * 1.5 / 4.09662)


def test_mce_leaves_validation_corruptions_out():
    errors = {name: [0.5] * 5 for name in ALEXNET_ERRORS}
    by_hand = sum(50 / ALEXNET_ERRORS[name] for name in TEST_CORRUPTIONS) / 15
    assert mce(errors) == pytest.approx(by_hand)
    errors["spatter"] = [1.0] * 5
    assert mce(errors) == pytest.approx(by_hand)
    assert not {"speckle_noise", "gaussian_blur", "spatter", "saturate"} & set(TEST_CORRUPTIONS)
    assert (len(TEST_CORRUPTIONS), len(ALEXNET_ERRORS)) == (15, 19)


@pytest.mark.parametrize("group", ["", "weather"])
def test_values_by_hand(tmp_path, group):
    # fog: severities 1 to 5 have 0, 1, 2, 3, 4 wrong of 4; the others none
    data = draw_set(tmp_path / "c", wrong=lambda c, s: s - 1 if c == "fog" else 0, group=group)
    records = records_of(tmp_path, data)
    found = [value(records, "top1", corruption="fog", severity=s) for s in range(1, 6)]
    assert found == [100, 75, 50, 25, 0]
    assert value(records, "top1", corruption="snow", severity=5) == 100
    assert value(records, "ce", corruption="fog") == pytest.approx(100 * 0.5 / 0.819324)
    assert value(records, "ce", corruption="snow") == 0
    assert value(records, "mce") == pytest.approx(100 * 0.5 / 0.819324 / 15)
    assert value(records, "mean_top1") == pytest.approx((14 * 100 + 50) / 15)
    assert all(r.unit == "%" and r.evaluation == "imagenet_c" for r in records)
    assert all(r.n == 4 for r in records if r.metric == "top1")


def test_a_small_set_is_not_alexnets(tmp_path):
    records = records_of(tmp_path, draw_set(tmp_path / "c", ["fog"]))
    assert "of 4 of 2" in next(r for r in records if r.metric == "ce").details["warning"]


def test_what_is_missing_is_named_and_there_is_no_mce(tmp_path, caplog):
    draw_set(tmp_path / "c", ["fog", "snow", "spatter"])
    for severity in (2, 4):
        for file in sorted((tmp_path / "c" / "snow" / str(severity)).rglob("*.png")):
            file.unlink()
    with caplog.at_level(logging.WARNING, "equimid"):
        records = records_of(tmp_path, str(tmp_path / "c"))
    assert not [r for r in records if r.metric == "mce"]
    assert {r.details["corruption"] for r in records if r.metric == "ce"} == {"fog", "spatter"}
    missing = next(r for r in records if r.metric == "mean_top1").details["missing"]
    assert {"frost", "snow/2 (0 of 4 images)", "snow/4 (0 of 4 images)"} <= set(missing)
    assert "no mCE" in caplog.text
    assert "gaussian_noise" in caplog.text


def test_a_severity_with_fewer_images_gives_no_mce(tmp_path):
    data = draw_set(tmp_path / "c")
    (tmp_path / "c" / "fog" / "3" / "n3" / "3.png").unlink()
    records = records_of(tmp_path, data)
    assert not [r for r in records if r.metric == "mce"]
    missing = next(r for r in records if r.metric == "mean_top1").details["missing"]
    assert missing == ["fog/3 (3 of 4 images)"]


def test_another_size_is_said(tmp_path):
    data = draw_set(tmp_path / "c", ["fog"])
    details = next(r for r in records_of(tmp_path, data) if r.metric == "mean_top1").details
    assert "resized" not in details  # 32 px, as the network takes them
    large = tmp_path / "large"
    draw_class(large / "fog" / "1" / "n1" / "a.png", 0, size=40)
    details = next(r for r in records_of(tmp_path, str(large)) if r.metric == "mean_top1").details
    assert details["resized"] == "40 x 40 to 32 x 32 px"


def test_pixels_reach_the_classifier_as_they_are(tmp_path):
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    seen = full_crop(Preprocessing(32, 0.875, (0.5,) * 3, (0.5,) * 3))(image)
    assert (seen[0] * 127.5 + 127.5).round().byte().numpy().tobytes() == image.getchannel(0).tobytes()


def refused(tmp_path, data, train="train"):
    if train:
        train = draw_training(tmp_path / train)
    with pytest.raises(UserError) as caught:
        measure_imagenet_c(study(tmp_path), data, train)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_input_is_named(tmp_path):
    data = draw_set(tmp_path / "c", ["fog"])
    assert "--train" in refused(tmp_path, data, None)
    assert "not there" in refused(tmp_path, str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "CORRUPTION/SEVERITY" in refused(tmp_path, str(tmp_path / "empty"))
    draw_class(tmp_path / "c" / "fog" / "2" / "n9" / "a.png", 0)
    assert "n9" in refused(tmp_path, data)


def test_the_same_corruption_twice(tmp_path):
    draw_set(tmp_path / "c", ["fog"])
    data = draw_set(tmp_path / "c", ["fog"], group="weather")
    assert "both there" in refused(tmp_path, data)


def test_an_unreadable_image_is_named(tmp_path):
    data = draw_set(tmp_path / "c", ["fog"])
    (tmp_path / "c" / "fog" / "2" / "n1" / "bad.png").write_bytes(b"no image")
    assert "bad.png" in refused(tmp_path, data)


def test_from_folders_to_records(tmp_path):
    data, train = draw_set(tmp_path / "c", ["fog", "snow"]), draw_training(tmp_path / "train")
    records = measure_imagenet_c(study(tmp_path, linear_epochs=30), data, train)
    assert len([r for r in records if r.metric == "top1"]) == 10
    assert value(records, "mean_top1") == 100
