"""Geometric robustness: turning against other libraries, the disc, and accuracy of classifiers that know the pose."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from equimid.data import ArraySource
from equimid.errors import UserError
from equimid.evaluation import EvaluationConfig
from equimid.evaluation.config import EquivarianceConfig, RobustnessConfig
from equimid.evaluation.preprocessing import Pixels
from equimid.evaluation.probes.linear import Classifier
from equimid.evaluation.robustness import measure_geometry
from equimid.evaluation.robustness.geometry import geometry_records, inscribed_disc, rotate
from equimid.features import Features
from helpers.robust import draw_class, draw_training, study, value


def smooth(n=2, size=32, seed=0):
    noise = np.random.default_rng(seed).normal(size=(n, 3, size, size))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, 3, 3)) * 10)


# --- turning


@pytest.mark.parametrize("degrees", [15, 30, 75, 100, 165, -20, 300])
def test_turning_is_that_of_scipy(degrees):
    images = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 2, 17, 17)))
    peer = ndimage.rotate(images.numpy(), degrees, axes=(3, 2), reshape=False, order=1, mode="nearest")
    disc = inscribed_disc(17).numpy()
    assert np.abs(rotate(images, degrees, "bilinear").numpy() - peer)[..., disc].max() < 1e-9


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, 360, -90])
def test_quarter_turns_move_pixels_and_change_none(degrees):
    images = smooth()
    assert torch.equal(rotate(images, degrees), torch.rot90(images, degrees // 90, (-2, -1)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_turning_composes(interpolation):
    images, disc = smooth(), inscribed_disc(32)
    thrice = images
    for _ in range(3):
        thrice = rotate(thrice, 30, interpolation)
    inner = torch.zeros_like(disc)
    inner[6:-6, 6:-6] = disc[6:-6, 6:-6]
    error = (thrice - torch.rot90(images, 1, (-2, -1)))[..., inner].abs().max() / images.std()
    assert error < (0.1 if interpolation == "bicubic" else 0.2)


def test_the_disc_is_that_of_any_turn():
    disc = inscribed_disc(8)
    # by hand, offsets 3.5, 2.5, 1.5, 0.5 within a radius of 3.5: half a row holds 0, 2, 3, 3 pixels
    assert disc.sum(1).tolist() == [0, 4, 6, 6, 6, 6, 4, 0]
    for turns in range(4):
        assert torch.equal(torch.rot90(disc, turns), disc)
    assert not disc[0, 0]
    assert inscribed_disc(9)[0].sum() == 1  # of an odd side only the middle of an edge touches


# --- accuracy


@dataclass(frozen=True)
class Corner(Classifier):
    """The class is the brightest quarter of the image, 0 to 3 row by row."""

    def logits(self, images):
        half = images.shape[-2] // 2, images.shape[-1] // 2
        top, bottom = images[:, 0, : half[0]], images[:, 0, half[0] :]
        parts = [part[..., columns].mean((1, 2)) for part in (top, bottom) for columns in
                 (slice(None, half[1]), slice(half[1], None))]  # fmt: skip
        return torch.stack(parts, 1).cpu()


def quarters(labels=(0, 1, 2, 3)):
    """Black images with one white quarter."""
    images = np.zeros((len(labels), 32, 32, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(label, 2)
        image[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 255
    return ArraySource(name="quarters", split="test", labels=np.array(labels), classes=("a", "b", "c", "d"),
                       images=images, numbers=np.arange(len(labels)))  # fmt: skip


def corner(folder, **robustness):
    about = study(folder, robustness=RobustnessConfig(**robustness))
    return Corner(about, torch.zeros(0), torch.zeros(0), ("a", "b", "c", "d"), {})


def test_poses_by_hand(tmp_path):
    records = geometry_records(corner(tmp_path), quarters((0, 1, 2, 3)))
    assert value(records, "top1", kind="none") == 100
    # every quarter turn and the mirror move the bright quarter away; a resize leaves it
    for degrees in (90, 180, 270):
        assert value(records, "top1", kind="quarter turns", pose=f"{degrees} degrees") == 0
    assert value(records, "top1", kind="flip") == 0
    scales = [r.value for r in records if r.details["kind"] == "scale"]
    assert scales == [100] * 4
    # counter-clockwise by less than 45 degrees most of it stays; by more it lies in the next quarter
    for angle, found in ((0, 100), (15, 100), (30, 100), (60, 0), (75, 0), (90, 0), (180, 0)):
        assert value(records, "top1", kind="angle", angle=angle) == found
    assert all(r.evaluation == "geometry" and r.unit == "%" and r.n == 4 for r in records)
    assert all(r.low < r.value or r.value == 0 for r in records)
    assert len([r for r in records if r.details["kind"] == "angle"]) == 13


def test_turns_are_counter_clockwise(tmp_path):
    # top right to top left
    sees = {1: 0, 0: 2, 2: 3, 3: 1}
    images = torch.from_numpy(quarters((0, 1, 2, 3)).images).permute(0, 3, 1, 2).double()
    found = corner(tmp_path).logits(rotate(images, 75)).argmax(1).tolist()
    assert found == [sees[k] for k in range(4)]


def test_only_the_disc_is_seen_at_every_angle(tmp_path):
    seen = []

    @dataclass(frozen=True)
    class Watcher(Corner):
        def logits(self, images):
            seen.append(images.clone())
            return super().logits(images)

    plain = corner(tmp_path, angles=(0, 20, 45, 90))
    geometry_records(Watcher(plain.study, plain.weight, plain.bias, plain.classes, {}), quarters())
    turned, outside = seen[-4:], ~inscribed_disc(32)
    assert all((images[..., outside] == 0).all() for images in turned)
    assert not (seen[0][..., outside] == 0).all()


@pytest.mark.parametrize("interpolation", ["nearest", "bicubic"])
def test_the_interpolation_is_that_of_the_settings(tmp_path, interpolation):
    seen = []

    @dataclass(frozen=True)
    class Watcher(Corner):
        def logits(self, images):
            seen.append(images.clone())
            return super().logits(images)

    config = {"equivariance": EquivarianceConfig(interpolation=interpolation)}
    about = study(tmp_path, robustness=RobustnessConfig(angles=(20,)), **config)
    geometry_records(Watcher(about, torch.zeros(0), torch.zeros(0), ("a", "b", "c", "d"), {}), quarters())
    scaled, turned = seen[5:9], seen[-1]  # after upright, three turns and the flip
    # of black, white and the disc's grey, nearest makes no other value
    assert all((len(images.unique()) == 2) == (interpolation == "nearest") for images in scaled)
    assert (len(turned.unique()) == 3) == (interpolation == "nearest")


class MeanColour(Pixels):
    width = 3

    def forward_features(self, images, layers=()):
        return Features(images.mean((2, 3)))


def test_from_folders_to_records(tmp_path):
    about = replace(study(tmp_path, linear_epochs=60), encoder=MeanColour())
    records = measure_geometry(about, draw_training(tmp_path / "images", each=10))
    # the mean colour is that of every pose
    assert {r.value for r in records if r.details["kind"] != "angle"} == {100}
    assert all(r.n == 6 for r in records)


def test_at_most_so_many_images(tmp_path):
    records = geometry_records(corner(tmp_path, images=2, angles=(0,)), quarters())
    assert {r.n for r in records} == {2}


def test_labels_are_of_the_images_that_were_drawn(tmp_path):
    source = quarters([0, 1, 2, 3] * 5)
    records = geometry_records(corner(tmp_path, images=7, angles=()), source)
    assert value(records, "top1", kind="none") == 100


@pytest.mark.parametrize("angles", [(400,), (15, 15)])
def test_angles_that_are_none(angles):
    with pytest.raises(UserError, match="angles"):
        EvaluationConfig(robustness=RobustnessConfig(angles=angles))


def test_images_without_labels(tmp_path):
    (tmp_path / "flat").mkdir()
    draw_class(tmp_path / "flat" / "a.png", 0)
    draw_class(tmp_path / "flat" / "b.png", 0)
    with pytest.raises(UserError, match="labels"):
        measure_geometry(study(tmp_path), str(tmp_path / "flat"))
