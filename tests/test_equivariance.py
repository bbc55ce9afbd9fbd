"""Equivariance of every layer against maps whose equivariance is known."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from drawing import SCOPE
from encoders import PatchMeans, folder_of, placed, shifted, study_of
from equimid.backbones import Features, TimmEncoder, create_backbone
from equimid.errors import UserError
from equimid.evaluation.config import EquivarianceConfig
from equimid.evaluation.equivariance import changes, measure_equivariance
from equimid.evaluation.equivariance.changes import pose_kinds

LATTICE = ("quarter turns", "flip")
SCALES = ("isotropic scale", "anisotropic scale")
CROPS = ("aligned crops", "unaligned crops")
METRICS = ("cosine", "centred_cosine", "relative_error")


def measured(encoder, folder, count=8, scope=SCOPE, images=256, **settings):
    """{(metric, subject, kind, layer): record}, of rotations {(..., layer, angle): record} beside"""
    grid, patch = encoder.pretrained_cfg["input_size"][-1] // encoder.patch, encoder.patch
    data = folder_of(folder / f"{count} images", count, side=grid * patch, cell=patch)
    equivariance = EquivarianceConfig(**settings)
    study = study_of(encoder, folder, scope, equivariance_images=images, equivariance=equivariance)
    records = measure_equivariance(study, data)
    found = {}
    for r in records:
        angle = [r.details["angle"]] if "angle" in r.details else []
        found[r.metric, r.subject, r.details["kind"], r.details["layer"], *angle] = r
    assert len(found) == len(records)
    return found


def exact_vit(**options):
    """A transformer that is exactly equivariant to the eight poses: no positions, a patch embedding that is the mean
    of itself over them."""
    vit = create_backbone(
        "vit_tiny_patch16_224", 1, (1,), img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3, **options
    )
    vit.pretrained_cfg = PatchMeans().pretrained_cfg
    with torch.no_grad():
        kernel = vit.patch_embed.proj.weight
        turned = [kernel.rot90(k, (2, 3)) for k in range(4)]
        kernel.copy_(torch.stack([*turned, *(k.flip(3) for k in turned)]).mean(0))
        vit.pos_embed.zero_()
    return vit


@pytest.mark.parametrize("encoder", [PatchMeans(), TimmEncoder(exact_vit(), "exact")], ids=["patch means", "vit"])
def test_exact_equivariance_is_measured_as_one(encoder, tmp_path):
    found = measured(encoder, tmp_path)
    for layer in range(1, encoder.depth + 1):
        for kind in LATTICE:
            assert found["cosine", "backbone", kind, layer].value == pytest.approx(1, abs=1e-5)
            assert found["centred_cosine", "backbone", kind, layer].value == pytest.approx(1, abs=1e-5)
            assert found["relative_error", "backbone", kind, layer].value == pytest.approx(0, abs=1e-3)
            assert found["centred_cosine", "mismatched", kind, layer].value < 0.5
            assert found["relative_error", "mismatched", kind, layer].value > 0.5


def test_positions_spoil_the_exact_transformer(tmp_path):
    vit = exact_vit()
    torch.nn.init.normal_(vit.pos_embed, std=1.0)
    found = measured(TimmEncoder(vit, "placed"), tmp_path)
    assert all(found["centred_cosine", "backbone", kind, 1].value < 0.9 for kind in LATTICE)


@pytest.mark.parametrize("spoil", [shifted, placed])
@pytest.mark.parametrize("kind", LATTICE)
def test_what_is_not_equivariant_scores_lower(spoil, kind, tmp_path):
    found = measured(PatchMeans(spoil), tmp_path)
    for layer in (1, 2):
        assert found["centred_cosine", "backbone", kind, layer].value < 0.9
        assert found["cosine", "backbone", kind, layer].value < 0.97
        assert found["relative_error", "backbone", kind, layer].value > 0.2


def test_every_layer_kind_and_angle_is_recorded(tmp_path):
    encoder = PatchMeans(depth=3, grid=5)
    found = measured(encoder, tmp_path, 5, angles=(10.0, -20.0))
    kinds = {(k,) for k in (*LATTICE, *SCALES, *CROPS, "rotation")}
    expected = {
        (metric, subject, kind, layer, *rest)
        for metric in METRICS
        for subject in ("backbone", "mismatched")
        for layer in (1, 2, 3)
        for kind, *rest in kinds | {("rotation", 10.0), ("rotation", -20.0)}
    }
    assert set(found) == expected
    for record in found.values():
        assert record.evaluation == "equivariance"
        assert record.n == 5
        assert record.low <= record.value <= record.high
    random = measured(encoder, tmp_path, 5, replace(SCOPE, subject="random"), angles=(10.0, -20.0))
    assert set(random) == {(m, "random", *rest) for m, s, *rest in expected if s == "backbone"}


def test_a_kinds_mean_is_that_of_its_angles_and_follows_them(tmp_path):
    found = measured(PatchMeans(grid=6), tmp_path, angles=(5.0, 40.0))
    angles = [found["cosine", "backbone", "rotation", 1, angle].value for angle in (5.0, 40.0)]
    assert found["cosine", "backbone", "rotation", 1].value == pytest.approx(np.mean(angles), abs=1e-6)
    assert abs(angles[0] - angles[1]) > 1e-3
    order = [key[4:] for key in found if key[2] == "rotation"]
    assert order == sorted(order, reverse=True, key=len), "readers that take one value of a kind take the last"


def test_layers_are_told_apart(tmp_path):
    """Only layer 2 is spoilt."""

    class Half(PatchMeans):
        def look(self, images, layers=()):
            found = super().look(images, layers)
            return Features(found.cls, {n: shifted(m) if n == 2 else m for n, m in found.maps.items()})

    found = measured(Half(), tmp_path)
    assert found["cosine", "backbone", "flip", 1].value == pytest.approx(1, abs=1e-5)
    assert found["cosine", "backbone", "flip", 2].value < 0.97


@pytest.mark.parametrize(
    ("available", "wanted", "used"), [(2, 256, 2), (32, 32, 32), (33, 256, 32), (40, 33, 32), (35, 34, 34)]
)
def test_every_image_has_another_one_to_be_compared_with(available, wanted, used, tmp_path):
    """A last batch of one image is left out."""
    found = measured(PatchMeans(depth=1), tmp_path, available, images=wanted, angles=())
    assert {record.n for record in found.values()} == {used}
    assert found["cosine", "mismatched", "flip", 1].value < 0.95


def test_one_image_is_not_enough(tmp_path):
    with pytest.raises(UserError, match="equivariance needs other images"):
        measured(PatchMeans(), tmp_path, 1)


def test_metrics_are_those_of_their_equations(tmp_path):
    """By hand, image by image, for the flip."""
    encoder = PatchMeans(placed, depth=1)
    found = measured(encoder, tmp_path, 3, angles=())
    study = study_of(encoder, tmp_path)
    from equimid.evaluation.study import images_of

    x = next(study.batches(images_of(str(tmp_path / "3 images"))))

    def tokens(images):
        m = encoder.token_maps(images, [1])[1].double().movedim(1, -1)
        return (m - m.mean(-1, keepdim=True)) / (m.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    base, flipped = tokens(x), tokens(x.flip(3))
    mean = base.mean((0, 1, 2))
    cosine, centred, error = [], [], []
    for there, carried in zip(flipped, base.flip(2), strict=True):
        there, carried = there.reshape(-1, 8), carried.reshape(-1, 8)
        cosine.append(np.mean([float(a @ b / (a.norm() * b.norm())) for a, b in zip(there, carried, strict=True)]))
        a, b = there - mean, carried - mean
        centred.append(float(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean()))
        error.append(float((there - carried).square().sum().sqrt() / a.square().sum().sqrt()))
    assert found["cosine", "backbone", "flip", 1].value == pytest.approx(np.mean(cosine), abs=1e-5)
    assert found["centred_cosine", "backbone", "flip", 1].value == pytest.approx(np.mean(centred), abs=1e-5)
    assert found["relative_error", "backbone", "flip", 1].value == pytest.approx(np.mean(error), abs=1e-5)


def test_centring_takes_a_common_vector_away(tmp_path):
    """A large vector that all tokens share hides that the maps do not correspond."""

    def common(maps):
        return shifted(maps) + 30 * torch.linspace(-1, 1, maps.shape[1])[:, None, None]

    found = measured(PatchMeans(common), tmp_path, 40)
    assert found["cosine", "backbone", "flip", 1].value > 0.97
    assert found["centred_cosine", "backbone", "flip", 1].value < 0.7
    assert found["centred_cosine", "mismatched", "flip", 1].value < 0.5, "the mean token is that of all batches"
    assert found["relative_error", "mismatched", "flip", 1].value > 1.0


def test_a_number_added_to_a_token_changes_nothing(tmp_path):
    """Tokens are normalised before they are compared."""
    plain, raised = (measured(PatchMeans(spoil), tmp_path) for spoil in (None, lambda maps: maps + 100))
    for key, record in plain.items():
        assert raised[key].value == pytest.approx(record.value, abs=2e-2 if key[0] == "relative_error" else 1e-3), key


def test_a_transformer_lies_between_its_references(tmp_path):
    vit = create_backbone(
        "vit_tiny_patch16_224", 1, (1,), img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3
    )
    vit.pretrained_cfg = PatchMeans().pretrained_cfg
    found = measured(TimmEncoder(vit.train(), "vit"), tmp_path, 12)
    values = defaultdict(list)
    for (metric, subject, *_), record in found.items():
        if metric != "relative_error":
            assert -1 <= record.value <= 1
            values[subject].append(record.value)
    assert np.mean(values["mismatched"]) <= np.mean(values["backbone"])


def test_a_network_of_one_size_is_measured_without_scales_and_crops(tmp_path, caplog):
    encoder = PatchMeans(grid=6)
    encoder.any_size = False
    found = measured(encoder, tmp_path)
    assert {key[2] for key in found} == {*LATTICE, "rotation"}
    assert "scales and crops" in caplog.text


# --- changes


@pytest.mark.parametrize("grid", range(2, 21))
def test_scaled_grids_are_others_than_the_upright_one(grid):
    kinds = pose_kinds(grid)
    assert tuple(kinds) == ("quarter turns", "flip", "scale")
    sizes = [size for _, _, size in kinds["scale"]]
    assert (grid, grid) not in sizes
    assert len(set(sizes)) == 4
    assert all(side >= 1 and side != grid for size in sizes for side in size)
    assert any(h != w for h, w in sizes)
    assert kinds["quarter turns"] == [(turns, False, (grid, grid)) for turns in (1, 2, 3)]
    assert kinds["flip"] == [(0, True, (grid, grid))]
    assert all(not turns and not flip for turns, flip, _ in kinds["scale"])


def of_kind(kind, grid=10, patch=4, **settings):
    found = [change for change in changes(grid, patch, EquivarianceConfig(**settings)) if change.kind == kind]
    assert found
    return found


def slope(grid=10, patch=4):
    """(1, 3, S, S), planes: an interpolation that is right gives their values."""
    line = torch.linspace(-1, 1, grid * patch)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([rows, columns, 0.5 * rows - 2 * columns])[None]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", ["rotation", *CROPS])
def test_a_plane_is_carried_as_it_is_changed(kind, interpolation):
    """Patch means of a plane are its values at the centres, so both sides agree but for the kernel's border."""
    x = slope()
    for change in of_kind(kind, interpolation=interpolation):
        there = change.select(F.avg_pool2d(change.after(x), 4))
        carried = change.carry(F.avg_pool2d(change.before(x), 4))
        assert there.shape == carried.shape
        assert there.shape[2] >= 9
        # bicubic reaches two patches far, so that it sees the map's border
        limit = 1e-5 if interpolation == "bilinear" or kind == "aligned crops" else 0.06
        assert (there - carried).abs().amax() < limit
        assert (there - carried.flip(2)).abs().amax() > 0.3, "the plane tells places apart"


def test_a_rotation_by_a_right_angle_is_the_quarter_turn():
    x = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    (turn,) = of_kind("rotation", angles=(90.0,))
    assert turn.inside.all()
    torch.testing.assert_close(turn.after(x), x.rot90(1, (2, 3)), atol=1e-4, rtol=0)
    m = F.avg_pool2d(x, 4)
    torch.testing.assert_close(turn.carry(m).unflatten(2, (10, 10)), m.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_a_rotation_compares_patches_that_see_no_border():
    """By drawing: the changed patch shows nothing from beyond the image."""
    for change in of_kind("rotation", angles=(5.0, 15.0, 30.0, -45.0), interpolation="nearest"):
        fine = 8
        side = 10 * fine
        angle = np.radians(change.angle)
        y, x = (np.mgrid[:side, :side] + 0.5) / side * 2 - 1
        beyond = np.maximum(abs(np.cos(angle) * x - np.sin(angle) * y), abs(np.sin(angle) * x + np.cos(angle) * y)) > 1
        whole = ~beyond.reshape(10, fine, 10, fine).any((1, 3)).flatten()
        inside = change.inside.numpy()
        assert not (inside & ~whole).any()
        assert inside.sum() >= whole.sum() - 12, "what is left out only touches the border"


def test_aligned_crops_are_of_the_same_pixels():
    x = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    for change in of_kind("aligned crops"):
        m0, m1 = (F.avg_pool2d(y, 4) for y in (change.before(x), change.after(x)))
        torch.testing.assert_close(change.select(m1), change.carry(m0), atol=1e-5, rtol=0)
        assert change.offset[0] % 4 == 0
        assert change.offset[0] != 0
    assert all(change.offset[0] % 4 == 2 for change in of_kind("unaligned crops"))


@pytest.mark.parametrize("grid", range(5, 30))
def test_crops_fit_into_the_image_and_overlap(grid):
    for kind in CROPS:
        for change in of_kind(kind, grid=grid, angles=()):
            x = torch.zeros(1, 1, grid * 4, grid * 4)
            side = change.grid * 4
            assert change.before(x).shape[-2:] == change.after(x).shape[-2:] == (side, side)
            assert change.inside.any()
            assert not change.inside.all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_the_interpolation_that_is_set_resamples_image_and_map(interpolation):
    x = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    mode = "nearest-exact" if interpolation == "nearest" else interpolation
    for change in of_kind("isotropic scale", interpolation=interpolation):
        size = change.size[0]
        torch.testing.assert_close(change.after(x), F.interpolate(x, (size * 4, size * 4), mode=mode))
        m = F.avg_pool2d(x, 4)
        torch.testing.assert_close(change.carry(m), F.interpolate(m, (size, size), mode=mode).flatten(2))
    (turn,) = of_kind("rotation", interpolation=interpolation, angles=(20.0,))
    others = {"bilinear", "bicubic", "nearest"} - {interpolation}
    for other in others:
        (another,) = of_kind("rotation", interpolation=other, angles=(20.0,))
        assert (turn.after(x) - another.after(x)).abs().max() > 0.05
        assert (turn.carry(F.avg_pool2d(x, 4)) - another.carry(F.avg_pool2d(x, 4))).abs().max() > 0.01


@pytest.mark.parametrize("angles", [(0.0,), (200.0,), (5.0, 5.0), (float("nan"),)])
def test_angles_that_mean_nothing_are_refused(angles):
    with pytest.raises(UserError, match="angles"):
        EquivarianceConfig(angles=angles)
