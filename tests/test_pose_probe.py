"""Poses read back from features: exact where theory says what a probe can know."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from equimid.backbones import TimmEncoder, create_backbone
from equimid.errors import UserError
from equimid.evaluation.config import EquivarianceConfig
from equimid.evaluation.equivariance import measure_pose_probe, pose_probe
from equimid.evaluation.equivariance.pose_probe import some_layers
from equimid.features import Features
from helpers.encoders import PatchMeans, folder_of, study_of


def skies(path, count=24, side=16):
    """Images that are light at the top left and darker to the right and downwards, each with a colour of its own."""
    path.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    for number in range(count):
        light = (1.0 - 0.6 * y - 0.3 * x)[..., None] * rng.uniform(0.5, 1, 3) + rng.normal(0, 0.02, (side, side, 3))
        Image.fromarray((255 * light.clip(0, 1)).astype(np.uint8)).save(path / f"{number:02}.png")
    return str(path)


def read(encoder, data, tmp_path, images=256, layers=4, train=None):
    study = study_of(
        encoder, tmp_path, equivariance_images=images, equivariance=EquivarianceConfig(probe_layers=layers)
    )
    records = measure_pose_probe(study, data, train)
    found = {(r.details["layer"], r.details["target"], r.details["from"]): r for r in records}
    assert len(found) == len(records)
    return found


def test_an_equivariant_map_tells_the_pose_and_its_mean_does_not(tmp_path):
    found = read(PatchMeans(), skies(tmp_path / "skies"), tmp_path)
    for layer in (1, 2):
        assert found[layer, "turn", "map"].value == 100
        assert found[layer, "flip", "map"].value == 100
        # the mean is the same for all poses of an image, so that the probe is right for exactly one of them
        assert found[layer, "turn", "mean"].value == pytest.approx(25)
        assert found[layer, "flip", "mean"].value == pytest.approx(50)
    assert found[2, "turn", "embedding"].value == pytest.approx(25)


def test_the_flip_is_of_left_and_right(tmp_path):
    """Images that a half turn leaves as they are, and a flip does not."""
    y, x = (np.mgrid[:16, :16] + 0.5) / 8 - 1
    for number, colour in enumerate(np.random.default_rng(0).uniform(60, 120, (12, 3))):
        saddle = 128 + (x * y)[..., None] * colour
        Image.fromarray(saddle.astype(np.uint8)).save(tmp_path / f"{number}.png")
    found = read(PatchMeans(depth=1), str(tmp_path), tmp_path)
    assert found[1, "flip", "map"].value == 100
    assert found[1, "turn", "map"].value <= 50


def test_what_the_pose_does_not_change_cannot_be_read(tmp_path):
    """Images of one colour."""
    for number in range(12):
        colour = tuple(np.random.default_rng(number).integers(0, 256, 3).tolist())
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{number}.png")
    found = read(PatchMeans(depth=1), str(tmp_path), tmp_path)
    assert {k: round(r.value, 6) for k, r in found.items() if k[1] == "turn"} == dict.fromkeys(
        [(1, "turn", place) for place in ("map", "mean", "embedding")], 25
    )


def test_records_say_what_was_read(tmp_path):
    vit = create_backbone(
        "vit_tiny_patch16_224", 1, (1,), img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3
    )
    vit.pretrained_cfg = PatchMeans().pretrained_cfg
    found = read(TimmEncoder(vit, "vit"), folder_of(tmp_path / "images", 9), tmp_path, images=8)
    places = [(n, place) for n in (1, 2, 3) for place in ("map", "mean", "cls")] + [(3, "embedding")]
    places.remove((1, "cls"))  # CLS enters after block 1
    assert set(found) == {(n, target, place) for n, place in places for target in ("turn", "flip")}
    for (_, target, _), record in found.items():
        assert (record.evaluation, record.metric, record.unit) == ("pose_probe", "top1", "%")
        assert record.details["chance"] == {"turn": 25, "flip": 50}[target]
        assert record.n == 4, "half of the eight images, the other half fits the probe"
        assert 0 <= record.low <= record.value <= record.high <= 100
        assert record.high - record.low > 40, "four images say little, however many poses they have"


def test_an_image_lies_in_one_part_alone(tmp_path, monkeypatch):
    from equimid.evaluation.equivariance import pose_probe

    parts = []
    given = pose_probe._read

    def watched(study, source, indices):
        parts.append(indices)
        return given(study, source, indices)

    monkeypatch.setattr(pose_probe, "_read", watched)
    read(PatchMeans(), folder_of(tmp_path / "images", 11), tmp_path)
    fit, test = map(set, parts)
    assert not fit & test
    assert len(fit) == len(test) == 5


def test_the_probe_is_fitted_on_the_training_images_that_are_named(tmp_path):
    """Fitted on images that are light at the bottom, the light at the top is a half turn."""
    data = skies(tmp_path / "skies")
    (tmp_path / "turned").mkdir()
    for number in range(24):
        image = Image.open(f"{data}/{number:02}.png").rotate(180)
        image.save(tmp_path / "turned" / f"{number:02}.png")
    found = read(PatchMeans(depth=1), data, tmp_path, train=str(tmp_path / "turned"))
    assert found[1, "turn", "map"].value == 0


def test_wilsons_interval(tmp_path):
    found = read(PatchMeans(depth=1), skies(tmp_path / "skies"), tmp_path)
    for place, right in (("map", 12), ("mean", 3)):
        record = found[1, "turn", place]
        interval = binomtest(right, 12).proportion_ci(method="wilson")
        assert (record.low, record.high) == pytest.approx((100 * interval.low, 100 * interval.high), abs=0.02)


def test_too_few_images_are_an_error_of_one_line(tmp_path):
    with pytest.raises(UserError, match="pose probes") as error:
        read(PatchMeans(), folder_of(tmp_path / "images", 3), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("depth", "count", "layers"), [(12, 4, [3, 6, 9, 12]), (3, 4, [1, 2, 3]), (12, 1, [12])])
def test_layers_are_evenly_spaced_to_the_last(depth, count, layers):
    assert some_layers(depth, count) == layers


def test_reading_is_a_function_of_the_seed(tmp_path):
    class Noisy(PatchMeans):
        def forward_features(self, images, layers=()):
            found = super().forward_features(images, layers)
            return Features(found.cls, {n: m + torch.sin(1e3 * m) for n, m in found.maps.items()})

    data = folder_of(tmp_path / "images", 20)
    once, again = (read(Noisy(), data, tmp_path) for _ in range(2))
    assert once == again


def test_probes_are_never_tested_on_what_they_were_fitted_on(tmp_path, monkeypatch):
    """Given the same folder twice, and given a folder with a part to train on."""
    seen = []
    whole = pose_probe._read

    def watched(study, source, indices):
        seen.append({source.describe(i) for i in indices})
        return whole(study, source, indices)

    monkeypatch.setattr(pose_probe, "_read", watched)
    data = skies(tmp_path / "skies")
    read(PatchMeans(), data, tmp_path, train=data + "/")
    (tmp_path / "both").mkdir()
    for part in ("train", "test"):
        skies(tmp_path / "both" / part)
    read(PatchMeans(), data, tmp_path, train=str(tmp_path / "both"))
    for fitted, tested in (seen[:2], seen[2:]):
        assert not fitted & tested
    assert all("/both/train/" in name for name in seen[2])
