"""Correspondence of patches against maps whose partners are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.errors import UserError
from equimid.evaluation import MEASUREMENTS
from equimid.evaluation.config import EquivarianceConfig
from equimid.evaluation.equivariance import PatchColours, measure_correspondence, transforms_of
from equimid.evaluation.equivariance import correspondence as module
from equimid.evaluation.equivariance.agreement import normalised_maps
from equimid.evaluation.equivariance.correspondence import correspondence
from helpers.drawing import SCOPE, drawn
from helpers.encoders import Noise, PatchMeans, constant, folder_of, placed, positions, repeated, study_of

LATTICE = ("quarter turns", "flip")


def measured(encoder, folder, count=6, data=None, scope=SCOPE, **settings):
    """{(metric, among, kind, layer): record}, of rotations {(..., layer, angle): record} beside"""
    side, patch = encoder.pretrained_cfg["input_size"][-1], encoder.patch_size
    data = data or folder_of(folder / f"{count} images", count, side=side, cell=patch)
    study = study_of(encoder, folder, scope, equivariance=EquivarianceConfig(**settings))
    records = measure_correspondence(study, data)
    found = {}
    for r in records:
        angle = [r.details["angle"]] if "angle" in r.details else []
        found[r.metric, r.details["among"], r.details["kind"], r.details["layer"], *angle] = r
    assert len(found) == len(records)
    return found


def neighbours(h, w):
    cells = torch.cartesian_prod(torch.arange(h), torch.arange(w))
    return (cells[:, None] - cells[None]).abs().amax(2) <= 1


def moved(maps):
    """By one patch to the right."""
    return maps.roll(1, -1)


@pytest.mark.parametrize("kind", LATTICE)
def test_an_exact_map_finds_every_patch_within_its_image(kind, tmp_path):
    found = measured(PatchMeans(grid=6), tmp_path)
    for layer in (1, 2):
        for metric in ("top1", "near_top1"):
            assert found[metric, "image", kind, layer].value == 100
    assert found["top1", "image", "aligned crops", 1].value == 100


def test_a_map_that_is_one_patch_off_finds_the_patch_beside_it():
    """There, every token is that of the patch to its left: never the partner, always near it, but where it wraps."""
    rng = torch.Generator().manual_seed(0)
    carried = torch.randn(3, 16, 5, 8, generator=rng)
    found = correspondence(moved(carried).flatten(2), carried.flatten(2), torch.zeros(16, 1), neighbours(5, 8))
    assert (found["top1", "image"] == 0).all()
    # of the eight columns the first one holds the last one's tokens
    torch.testing.assert_close(found["near_top1", "image"], torch.full((3,), 100 * 7 / 8))
    off = correspondence(
        moved(carried)[..., 1:].flatten(2), carried[..., 1:].flatten(2), torch.zeros(16, 1), neighbours(5, 7)
    )
    assert off["near_top1", "image"].min() > 85, "but for the first column, whose patch is not there"
    two = carried.roll(2, -1).flatten(2)
    far = correspondence(two, carried.flatten(2), torch.zeros(16, 1), neighbours(5, 8))
    assert (far["near_top1", "image"] == 0).all()


@pytest.mark.parametrize("spoil", [repeated, constant])
def test_a_map_that_is_the_same_everywhere_is_at_chance(spoil, tmp_path):
    """Ties count as they come out on average."""
    found = measured(PatchMeans(spoil, grid=6), tmp_path, angles=())
    for kind in LATTICE:
        for metric in ("top1", "near_top1"):
            record = found[metric, "image", kind, 1]
            assert record.value == pytest.approx(record.details["chance"], abs=1e-3)
        record = found["top1", "images", kind, 1]
        # whoever repeats one vector per image finds the image, and then guesses
        expected = 100 / 36 if spoil is repeated else record.details["chance"]
        assert record.value == pytest.approx(expected, abs=1e-3)


def test_chance_is_a_guess_among_what_is_searched(tmp_path):
    found = measured(PatchMeans(grid=4, depth=1), tmp_path, 5, angles=(5.0, 30.0))
    assert found["top1", "image", "flip", 1].details["chance"] == 100 / 16
    assert found["top1", "images", "flip", 1].details["chance"] == 100 / 16 / 5
    # of the 4 x 4 patches, 4 have 4 within one patch, 8 have 6, and 4 have 9
    around = (4 * 4 + 8 * 6 + 4 * 9) / 16
    assert found["near_top1", "image", "flip", 1].details["chance"] == pytest.approx(100 * around / 16)
    assert found["near_top1", "images", "flip", 1].details["chance"] == pytest.approx(100 * around / 16 / 5)
    scale = found["top1", "image", "isotropic scale", 1].details["chance"]
    assert scale == pytest.approx((100 / 9 + 100 / 25) / 2), "the mean of both sizes"
    config = EquivarianceConfig(angles=(5.0, 30.0))
    inside = {c.angle: int(c.inside.sum()) for c in transforms_of((4, 4), 4, config) if c.kind == "rotation"}
    for angle, patches in inside.items():
        assert found["top1", "image", "rotation", 1, angle].details["chance"] == pytest.approx(100 / patches)
    mean = found["top1", "image", "rotation", 1].details["chance"]
    assert mean == pytest.approx(np.mean([100 / patches for patches in inside.values()]))


def test_noise_is_at_chance(tmp_path):
    found = measured(PatchMeans(Noise(), grid=6, width=32, depth=1), tmp_path, 16, angles=())
    assert found["top1", "image", "flip", 1].value < 3 * 100 / 36
    assert found["top1", "images", "flip", 1].value < 1


def test_what_knows_positions_alone_finds_nothing_that_moves(tmp_path):
    found = measured(PatchMeans(positions, grid=6, width=32, depth=1), tmp_path, angles=())
    assert found["top1", "image", "quarter turns", 1].value < 10


def test_among_all_images_it_is_harder(tmp_path):
    """Images of few colours: another image has the same patch."""
    folder = tmp_path / "few colours"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        cells = 60 * rng.integers(0, 4, (6, 6, 1)) + 20 * rng.integers(0, 2, (6, 6, 3))
        Image.fromarray(cells.astype(np.uint8).repeat(4, 0).repeat(4, 1)).save(folder / f"{number}.png")
    found = measured(PatchMeans(placed, grid=6), tmp_path, data=str(folder))
    for (metric, among, *rest), record in found.items():
        if among == "image":
            other = found[metric, "images", *rest]
            assert other.value <= record.value + 1e-4, (metric, rest)
            assert other.details["chance"] < record.details["chance"]
    assert found["top1", "images", "flip", 1].value < found["top1", "image", "flip", 1].value - 1


def test_by_hand_token_by_token():
    """In float64, with loops, on a small case with ties."""
    rng = torch.Generator().manual_seed(3)
    n, D, h, w = 3, 5, 2, 3
    carried = torch.randn(n, D, h * w, generator=rng)
    carried[..., 1] = carried[..., 0]  # a tie within every image
    carried[1, :, 2] = carried[0, :, 2]  # and one between two
    there = carried + 0.3 * torch.randn(n, D, h * w, generator=rng)
    there[0, :, :3] = carried[0, :, :3]
    mean, near = torch.randn(D, 1, generator=rng), neighbours(h, w)
    found = correspondence(there, carried, mean, near)
    a, b = (x.mT.double() - mean[:, 0].double() for x in (there, carried))
    for image in range(n):
        hits = dict.fromkeys(found, 0.0)
        for t in range(h * w):
            for among, searched in (("image", [image]), ("images", range(n))):
                cosines = {
                    (i, u): float(a[image, t] @ b[i, u] / a[image, t].norm() / b[i, u].norm())
                    for i in searched
                    for u in range(h * w)
                }
                best = [key for key, value in cosines.items() if value >= max(cosines.values()) - 1e-6]
                hits["top1", among] += ((image, t) in best) / len(best)
                hits["near_top1", among] += sum(i == image and bool(near[t, u]) for i, u in best) / len(best)
        for key, value in hits.items():
            assert found[key][image].item() == pytest.approx(100 * value / (h * w), abs=1e-3), key
    assert ((found["top1", "image"] * 12 / 100 - (found["top1", "image"] * 12 / 100).round()).abs() < 1e-3).all()


def test_every_layer_kind_and_angle_is_recorded(tmp_path):
    encoder = PatchMeans(depth=8, grid=6)
    found = measured(encoder, tmp_path, 5, angles=(10.0, -20.0), probe_layers=2)
    kinds = {(k,) for k in (*LATTICE, "isotropic scale", "anisotropic scale", "aligned crops", "unaligned crops")}
    kinds |= {("rotation",), ("rotation", 10.0), ("rotation", -20.0)}
    assert set(found) == {
        (metric, among, kind, layer, *rest)
        for metric in ("top1", "near_top1")
        for among in ("image", "images")
        for layer in (4, 8)
        for kind, *rest in kinds
    }
    for record in found.values():
        assert (record.evaluation, record.subject, record.unit, record.n) == ("correspondence", "backbone", "%", 5)
        assert record.low <= record.value <= record.high
    order = [key[4:] for key in found if key[2] == "rotation"]
    assert order == sorted(order, reverse=True, key=len), "readers that take one value of a kind take the last"
    again = measured(encoder, tmp_path, 5, angles=(10.0, -20.0), probe_layers=2)
    assert list(again) == list(found)
    assert again == found


def test_the_layers_that_ser_acted_on_are_searched_too(tmp_path):
    encoder = PatchMeans(depth=8, grid=4)
    encoder.taps = (3,)
    found = measured(encoder, tmp_path, angles=(), probe_layers=2)
    assert {key[3] for key in found} == {3, 4, 8}


def test_a_network_with_maps_of_one_patch_has_no_records_and_is_told(tmp_path, caplog):
    data = folder_of(tmp_path / "images", 4)
    assert measured(PatchMeans(grid=1, patch=16), tmp_path, data=data) == {}
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "the maps of this network have one patch: there is nothing to search in, no correspondence"
    ]


def test_one_image_is_not_enough(tmp_path):
    with pytest.raises(UserError, match="correspondence needs other images"):
        measured(PatchMeans(), tmp_path, 1)


def test_a_network_of_one_size_is_searched_without_scales_and_crops(tmp_path):
    encoder = PatchMeans(grid=6)
    encoder.any_size = False
    assert {key[2] for key in measured(encoder, tmp_path)} == {*LATTICE, "rotation"}


def test_few_images_where_tokens_are_many_and_it_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "_MOST_TOKENS", 3 * 36)
    found = measured(PatchMeans(grid=6), tmp_path, 6, angles=())
    assert {record.n for record in found.values()} == {3}
    assert "correspondence: 3 of 6 images, for their maps have 6 x 6 patches" in caplog.text
    caplog.clear()
    monkeypatch.setattr(module, "_MOST_TOKENS", 1)
    assert {r.n for r in measured(PatchMeans(grid=6), tmp_path, 6, angles=()).values()} == {2}, "two at least"


def test_no_warning_where_all_that_are_wanted_are_searched(tmp_path, caplog):
    found = measured(PatchMeans(), tmp_path, 6, correspondence_images=4, angles=())
    assert {record.n for record in found.values()} == {4}
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_images_of_one_colour_are_left_out_and_named(tmp_path, caplog):
    data = folder_of(tmp_path / "some", 4)
    for number in range(3):
        Image.new("RGB", (16, 16), (40 * number, 90, 200)).save(tmp_path / "some" / f"plain{number}.png")
    found = measured(PatchMeans(), tmp_path, data=data)
    assert {record.n for record in found.values()} == {4}
    assert caplog.text.count("3 of 7 images are of one colour and are left out of correspondence") == 1


def test_images_that_are_all_of_one_colour_have_no_records(tmp_path, caplog):
    (tmp_path / "plain").mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (40 * number, 90, 200)).save(tmp_path / "plain" / f"{number}.png")
    assert measured(PatchMeans(), tmp_path, data=str(tmp_path / "plain")) == {}
    assert "not measurable: fewer than two images that are not of one colour" in caplog.text


def test_features_that_are_not_finite_are_not_measurable(tmp_path):
    found = measured(PatchMeans(lambda maps: maps * float("nan")), tmp_path, angles=())
    assert found
    for record in found.values():
        assert (record.value, record.n) == (None, 0)
        assert record.details["not_measurable"] == "features that are not finite"


# --- the reference without a network


def test_colours_of_patches_are_their_mean_colours():
    """Laid on a sphere, from which the colour can be read again; layer norm scales all of them alike."""
    images = torch.from_numpy(drawn(2, (12, 8), cell=4).images.copy()).movedim(-1, 1) / 127.5 - 1
    encoder = PatchColours(PatchMeans())
    tokens = encoder.token_maps(images, [1])[1]
    assert tokens.shape == (2, encoder.embed_dim, 2, 3)
    torch.testing.assert_close(tokens[:, :4].square().sum(1), torch.ones(2, 2, 3))
    colours = tokens[:, :3] / (1 - tokens[:, 3:4])
    torch.testing.assert_close(colours[:, :, 1, 2], images[:, :, 4:, 8:].mean((2, 3)), atol=1e-5, rtol=0)
    scale = normalised_maps(encoder, images, [1])[1] / tokens
    torch.testing.assert_close(scale, torch.full_like(scale, 2), atol=1e-3, rtol=0)


@pytest.mark.parametrize("grey", [False, True])
def test_brightness_is_a_part_of_the_colour(grey):
    """Patches of one hue are told apart by how bright they are."""
    light = torch.linspace(-1.5, 1.5, 36)[torch.randperm(36, generator=torch.Generator().manual_seed(0))]
    colours = light[None] * (torch.ones(3, 1) if grey else torch.tensor([[1.0], [0.5], [-0.2]]))
    images = colours.reshape(1, 3, 6, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    m = normalised_maps(PatchColours(PatchMeans()), images, [1])[1].flatten(2)
    found = correspondence(m, m, m.mean((0, 2))[:, None], neighbours(6, 6))
    assert found["top1", "image"].item() == 100


def test_colours_of_patches_find_what_colour_alone_finds(tmp_path):
    """Every patch of the drawn images has a colour of its own, which turns and flips move exactly."""
    encoder = PatchColours(PatchMeans(grid=6))
    assert (encoder.depth, encoder.patch_size) == (1, 4)
    found = measured(encoder, tmp_path, scope=replace(SCOPE, subject="patch_colours"))
    assert {key[3] for key in found} == {1}
    assert {record.subject for record in found.values()} == {"patch_colours"}
    for kind in LATTICE:
        assert found["top1", "image", kind, 1].value > 99
    assert found["top1", "image", "unaligned crops", 1].value < 90


def test_colours_of_patches_stand_beside_every_network():
    assert "patch_colours" in MEASUREMENTS["correspondence"].references
