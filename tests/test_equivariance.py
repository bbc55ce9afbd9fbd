"""Equivariance of every layer against maps whose equivariance is known."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from equimid.backbones import TimmEncoder, create_backbone
from equimid.errors import UserError
from equimid.evaluation.config import EquivarianceConfig
from equimid.evaluation.equivariance import measure_equivariance, transforms_of
from equimid.evaluation.equivariance.agreement import Tokens, agreement, map_statistics, retrieval
from equimid.evaluation.equivariance.maps import compare
from equimid.evaluation.equivariance.transforms import pose_kinds
from equimid.features import Features
from helpers.drawing import SCOPE, drawn
from helpers.encoders import Noise, PatchMeans, constant, folder_of, placed, positions, repeated, shifted, study_of

LATTICE = ("quarter turns", "flip")
SCALES = ("isotropic scale", "anisotropic scale")
CROPS = ("aligned crops", "unaligned crops")
METRICS = ("place", "centred_cosine", "relative_error")
RETRIEVAL = ("retrieval", "retrieval_near")
SHARES = ("between_images", "between_positions", "inside_images")


def measured(encoder, folder, count=8, scope=SCOPE, images=256, data=None, **settings):
    """{(metric, subject, kind, layer): record}, of rotations {(..., layer, angle): record} beside; the kind of the
    shares of variance is None"""
    grid, patch = encoder.pretrained_cfg["input_size"][-1] // encoder.patch_size, encoder.patch_size
    data = data or folder_of(folder / f"{count} images", count, side=grid * patch, cell=patch)
    equivariance = EquivarianceConfig(**settings)
    study = study_of(encoder, folder, scope, equivariance_images=images, equivariance=equivariance)
    records = measure_equivariance(study, data)
    found = {}
    for r in records:
        angle = [r.details["angle"]] if "angle" in r.details else []
        found[r.metric, r.subject, r.details.get("kind"), r.details["layer"], *angle] = r
    assert len(found) == len(records)
    return found


def drawn_images(n, grid, patch=4):
    """(n, 3, H, W), a colour for each patch"""
    h, w = (side * patch for side in grid)
    images = torch.from_numpy(drawn(n, (w, h), cell=patch).images.copy())
    return images.movedim(-1, 1) / 127.5 - 1


def compared(encoder, grid, n=6, kinds=LATTICE, **settings):
    """{(metric, subject, kind): (n,)} of layer 1, for images of any grid."""
    images = drawn_images(n, grid)
    statistics = map_statistics(encoder, [images], [1])
    todo = [change for change in transforms_of(grid, 4, EquivarianceConfig(**settings)) if change.kind in kinds]
    assert {change.kind for change in todo} == set(kinds)
    found = compare(encoder, images, [1], statistics, todo)
    return {key[:3]: values for key, values in found.items() if key[3] is None}


# --- networks whose equivariance is known

GRIDS = pytest.mark.parametrize("grid", [(6, 6), (6, 9), (9, 6)], ids=["square", "lying", "standing"])
ON_LATTICE = pytest.mark.parametrize("kind", LATTICE)


@GRIDS
@ON_LATTICE
def test_an_equivariant_local_map_has_place_one(grid, kind):
    found = compared(PatchMeans(), grid)
    torch.testing.assert_close(found["place", "same", kind], torch.ones(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(found["centred_cosine", "same", kind], torch.ones(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(found["relative_error", "same", kind], torch.zeros(6), atol=1e-3, rtol=0)
    assert (found["retrieval", "same", kind] == 100).all()
    assert (found["retrieval_near", "same", kind] == 100).all()
    for reference in ("not_carried", "mismatched"):
        assert abs(found["place", reference, kind].mean()) < 0.2


@GRIDS
@ON_LATTICE
def test_one_vector_repeated_over_the_image_has_no_place(grid, kind):
    """Its centred cosine is 1: the figure that place corrects."""
    found = compared(PatchMeans(repeated), grid)
    for subject in ("same", "not_carried", "mismatched"):
        assert found["place", subject, kind].isnan().all()
    torch.testing.assert_close(found["centred_cosine", "same", kind], torch.ones(6), atol=1e-4, rtol=0)
    T = grid[0] * grid[1]
    torch.testing.assert_close(found["retrieval", "same", kind], torch.full((6,), 100 / T), atol=1e-4, rtol=0)


@GRIDS
@ON_LATTICE
def test_one_constant_for_all_images_is_not_measurable(grid, kind):
    found = compared(PatchMeans(constant), grid)
    for metric in METRICS:
        for subject in ("same", "not_carried", "mismatched"):
            assert found[metric, subject, kind].isnan().all(), (metric, subject)
    T = grid[0] * grid[1]
    torch.testing.assert_close(found["retrieval", "same", kind], torch.full((6,), 100 / T), atol=1e-4, rtol=0)


@GRIDS
@ON_LATTICE
def test_what_knows_positions_alone_has_no_more_place_than_other_images(grid, kind):
    found = compared(PatchMeans(positions, width=64), grid)
    torch.testing.assert_close(found["place", "same", kind], found["place", "mismatched", kind], atol=1e-5, rtol=0)
    assert found["place", "same", kind].abs().max() < 0.1
    assert found["retrieval", "same", kind].max() < 20
    if kind == "flip" or grid[0] == grid[1]:
        # the map that stays where it was is the better prediction
        torch.testing.assert_close(found["place", "not_carried", kind], torch.ones(6), atol=1e-5, rtol=0)


@GRIDS
@ON_LATTICE
def test_noise_has_no_place(grid, kind):
    found = compared(PatchMeans(Noise(), width=64), grid)
    for subject in ("same", "not_carried", "mismatched"):
        assert found["place", subject, kind].abs().mean() < 0.05
    assert found["retrieval", "same", kind].mean() < 10


@pytest.mark.parametrize("grid", [(10, 10), (8, 12)])
def test_what_is_resampled_is_below_one_and_above_its_references(grid):
    kinds = ("rotation", *SCALES, *CROPS)
    found = compared(PatchMeans(), grid, kinds=kinds, interpolation="bilinear")
    for kind in kinds:
        same, not_carried, other = (found["place", s, kind].mean() for s in ("same", "not_carried", "mismatched"))
        assert same > max(not_carried, other) + 0.2, kind
        assert abs(other) < 0.2, kind
    torch.testing.assert_close(found["place", "same", "aligned crops"], torch.ones(6), atol=1e-5, rtol=0)
    assert all((found["place", "same", kind] < 0.999).all() for kind in kinds if kind != "aligned crops")


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
            assert found["place", "backbone", kind, layer].value == pytest.approx(1, abs=1e-5)
            assert found["centred_cosine", "backbone", kind, layer].value == pytest.approx(1, abs=1e-5)
            assert found["relative_error", "backbone", kind, layer].value == pytest.approx(0, abs=1e-3)
            assert found["retrieval", "backbone", kind, layer].value == 100
            for reference in ("not_carried", "mismatched"):
                assert found["place", reference, kind, layer].value < 0.5
            assert found["relative_error", "mismatched", kind, layer].value > 0.5


def test_positions_spoil_the_exact_transformer(tmp_path):
    vit = exact_vit()
    torch.nn.init.normal_(vit.pos_embed, std=1.0)
    found = measured(TimmEncoder(vit, "placed"), tmp_path)
    for kind in LATTICE:
        assert found["place", "backbone", kind, 1].value < 0.9
        assert found["place", "not_carried", kind, 1].value > found["place", "backbone", kind, 1].value


@pytest.mark.parametrize("spoil", [shifted, placed])
@ON_LATTICE
def test_what_is_not_equivariant_scores_lower(spoil, kind, tmp_path):
    found = measured(PatchMeans(spoil), tmp_path)
    for layer in (1, 2):
        assert found["place", "backbone", kind, layer].value < 0.9
        assert found["centred_cosine", "backbone", kind, layer].value < 0.9
        assert found["relative_error", "backbone", kind, layer].value > 0.2
        assert found["retrieval", "backbone", kind, layer].value < 90


# --- what cannot be measured


def not_measurable(record, reason):
    assert (record.value, record.n, record.low, record.high) == (None, 0, None, None)
    assert record.details["not_measurable"] == reason


def test_a_map_that_is_the_same_everywhere_is_said_to_be_not_measurable(tmp_path):
    found = measured(PatchMeans(repeated, grid=6), tmp_path, angles=(5.0,))
    for key, record in found.items():
        metric, _, kind, *_ = key
        if metric == "place":
            not_measurable(record, "maps that are constant within an image")
        elif metric == "retrieval" and kind is not None:
            assert record.value == pytest.approx(record.details["chance"], abs=1e-3)
            assert record.unit == "%"
    assert found["centred_cosine", "backbone", "flip", 1].value == pytest.approx(1, abs=1e-4)


def test_a_constant_is_not_measurable_in_any_of_its_measures(tmp_path):
    found = measured(PatchMeans(constant, grid=6), tmp_path)
    for (metric, *_), record in found.items():
        if metric in METRICS:
            not_measurable(record, "maps that are constant within an image")
        elif metric in SHARES:
            not_measurable(record, "maps that do not vary")


def test_maps_of_one_patch_are_not_measurable(tmp_path):
    found = measured(PatchMeans(grid=1, patch=16), tmp_path, data=folder_of(tmp_path / "images", 8))
    places = [record for (metric, *_), record in found.items() if metric == "place"]
    assert {record.subject for record in places} == {"backbone", "not_carried", "mismatched"}
    for record in places:
        if record.details["kind"] in LATTICE:
            not_measurable(record, "maps of one patch")


def test_features_that_are_not_finite_are_not_measurable(tmp_path):
    found = measured(PatchMeans(lambda maps: maps * float("nan")), tmp_path)
    for (metric, *_), record in found.items():
        assert metric in (*METRICS, *RETRIEVAL, *SHARES)
        not_measurable(record, "features that are not finite")


def test_images_whose_features_are_not_finite_are_left_out(tmp_path):
    def first(maps):
        maps = maps.clone()
        maps[0] = float("inf")
        return maps

    found = measured(PatchMeans(first), tmp_path)
    record = found["place", "backbone", "flip", 1]
    assert (record.n, record.details["left_out"]) == (7, 1)
    assert record.value == pytest.approx(1, abs=1e-5)
    assert found["place", "mismatched", "flip", 1].details["left_out"] == 2


def folder_with_plain_images(path, drawn_, plain):
    folder = folder_of(path, drawn_)
    for number in range(plain):
        Image.new("RGB", (16, 16), (40 * number, 90, 200)).save(path / f"plain{number}.png")
    return folder


def test_images_of_one_colour_are_left_out_and_named_once(tmp_path, caplog):
    found = measured(PatchMeans(depth=1), tmp_path, data=folder_with_plain_images(tmp_path / "some", 6, 3))
    assert {record.n for record in found.values()} == {6}
    assert [r.getMessage() for r in caplog.records if "one colour" in r.getMessage()] == [
        "3 of 9 images are of one colour and are left out of equivariance"
    ]
    alone = measured(PatchMeans(depth=1), tmp_path, data=folder_of(tmp_path / "others", 6))
    for key, record in alone.items():
        if key[1] == "backbone":
            assert found[key].value == pytest.approx(record.value, abs=1e-5), key


@pytest.mark.parametrize("with_content", [0, 1])
def test_images_that_are_all_of_one_colour_are_not_measurable(tmp_path, with_content):
    found = measured(PatchMeans(depth=2), tmp_path, data=folder_with_plain_images(tmp_path / "all", with_content, 4))
    places = {key: record for key, record in found.items() if key[0] == "place"}
    assert {key[3] for key in places} == {1, 2}
    assert {key[2] for key in places} == {*LATTICE, *SCALES, "rotation"}
    for record in places.values():
        not_measurable(record, "fewer than two images that are not of one colour")


# --- records


def test_every_layer_kind_and_angle_is_recorded(tmp_path):
    encoder = PatchMeans(depth=3, grid=6)
    found = measured(encoder, tmp_path, 5, angles=(10.0, -20.0))
    kinds = {(k,) for k in (*LATTICE, *SCALES, *CROPS, "rotation")}
    of_kinds = {
        (metric, subject, kind, layer, *rest)
        for metric in (*METRICS, *RETRIEVAL)
        for subject in (("backbone",) if metric in RETRIEVAL else ("backbone", "not_carried", "mismatched"))
        for layer in (1, 2, 3)
        for kind, *rest in kinds | {("rotation", 10.0), ("rotation", -20.0)}
    }
    fractions = {(fraction, "backbone", None, layer) for fraction in SHARES for layer in (1, 2, 3)}
    assert set(found) == of_kinds | fractions
    for record in found.values():
        assert record.evaluation == "equivariance"
        assert record.n == 5
        if record.metric not in SHARES:
            assert record.low <= record.value <= record.high
        assert record.unit == ("" if record.metric in METRICS else "%")
    random = measured(encoder, tmp_path, 5, replace(SCOPE, subject="random"), angles=(10.0, -20.0))
    assert set(random) == {(m, "random", *rest) for m, s, *rest in of_kinds | fractions if s == "backbone"}


def test_a_kinds_mean_is_that_of_its_angles_and_follows_them(tmp_path):
    found = measured(PatchMeans(grid=10), tmp_path, angles=(5.0, 40.0))
    for metric in ("place", "retrieval"):
        angles = [found[metric, "backbone", "rotation", 1, angle] for angle in (5.0, 40.0)]
        mean = found[metric, "backbone", "rotation", 1]
        assert mean.value == pytest.approx(np.mean([r.value for r in angles]), abs=1e-4)
        assert abs(angles[0].value - angles[1].value) > 1e-3
    chances = [record.details["chance"] for record in angles]
    assert chances[0] < chances[1], "fewer patches stay inside"
    assert mean.details["chance"] == pytest.approx(np.mean(chances))
    order = [key[4:] for key in found if key[2] == "rotation"]
    assert order == sorted(order, reverse=True, key=len), "readers that take one value of a kind take the last"


def test_chance_is_that_of_the_patches_that_are_searched(tmp_path):
    found = measured(PatchMeans(grid=4, depth=1), tmp_path, angles=())
    chances = {key[2]: r.details["chance"] for key, r in found.items() if key[0] == "retrieval"}
    assert chances["flip"] == 100 / 16
    assert chances["isotropic scale"] == pytest.approx((100 / 9 + 100 / 25) / 2), "the mean of both sizes"
    assert chances["anisotropic scale"] == pytest.approx(100 / 15)
    near = found["retrieval_near", "backbone", "flip", 1].details["chance"]
    # of the 4 x 4 patches, 4 have 4 within one patch, 8 have 6, and 4 have 9
    assert near == pytest.approx(100 * (4 * 4 + 8 * 6 + 4 * 9) / 16 / 16)


def test_layers_are_told_apart(tmp_path):
    """Only layer 2 is spoilt."""

    class Half(PatchMeans):
        def forward_features(self, images, layers=()):
            found = super().forward_features(images, layers)
            return Features(found.cls, {n: shifted(m) if n == 2 else m for n, m in found.maps.items()})

    found = measured(Half(), tmp_path)
    assert found["place", "backbone", "flip", 1].value == pytest.approx(1, abs=1e-5)
    assert found["place", "backbone", "flip", 2].value < 0.8


@pytest.mark.parametrize(
    ("available", "wanted", "used"), [(2, 256, 2), (32, 32, 32), (33, 256, 32), (40, 33, 32), (35, 34, 34)]
)
def test_every_image_has_another_one_to_be_compared_with(available, wanted, used, tmp_path):
    """A last batch of one image is left out."""
    found = measured(PatchMeans(depth=1), tmp_path, available, images=wanted, angles=())
    assert {record.n for key, record in found.items() if key[0] not in SHARES} == {used}
    assert found["place", "mismatched", "flip", 1].value < 0.9


def test_one_image_is_not_enough(tmp_path):
    with pytest.raises(UserError, match="equivariance needs other images"):
        measured(PatchMeans(), tmp_path, 1)


# --- equations


def by_hand(there, carried, mean):
    """Tokens (T, D) and the mean token (D,) in float64: one token after the other."""
    a, b = there - there.mean(0), carried - carried.mean(0)
    inner = sum(float(x @ y) for x, y in zip(a, b, strict=True))
    sizes = sum(float(x.norm() * y.norm()) for x, y in zip(a, b, strict=True))
    p, q = there - mean, carried - mean

    def cosine(x, y):
        return float(x @ y / (x.norm() * y.norm()))

    found = 0.0
    for t, token in enumerate(p):
        found_at = [cosine(token, other) for other in q]
        equals = [u for u, value in enumerate(found_at) if value >= max(found_at) - 1e-6]
        found += (t in equals) / len(equals)
    return {
        "place": inner / sizes,
        "centred_cosine": np.mean([cosine(x, y) for x, y in zip(p, q, strict=True)]),
        "relative_error": float((there - carried).square().sum().sqrt() / p.square().sum().sqrt()),
        "retrieval": 100 * found / len(p),
    }


def half_constant(maps):
    """Left of the middle one token: it ties with itself."""
    maps = maps.clone()
    half = maps.shape[-1] // 2
    maps[..., :half] = maps[..., :half].mean((2, 3), keepdim=True)
    return maps


def tokens_of(encoder, images):
    """(n, h, w, D) in float64, layer-normed"""
    m = encoder.token_maps(images, [1])[1].double().movedim(1, -1)
    return (m - m.mean(-1, keepdim=True)) / (m.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("spoil", [placed, shifted, half_constant])
def test_metrics_are_those_of_their_equations(spoil):
    """By hand, image by image, for the flip."""
    encoder = PatchMeans(spoil, depth=1)
    found = compared(encoder, (4, 6), n=3)
    x = drawn_images(3, (4, 6))
    base, flipped = tokens_of(encoder, x), tokens_of(encoder, x.flip(3))
    mean = base.mean((0, 1, 2))
    pairs = {
        "same": zip(flipped, base.flip(2), strict=True),
        "not_carried": zip(flipped, base, strict=True),
        "mismatched": zip(flipped, base.flip(2).roll(1, 0), strict=True),
    }
    for subject, of_images in pairs.items():
        expected = [by_hand(there.reshape(-1, 8), carried.reshape(-1, 8), mean) for there, carried in of_images]
        for metric in (*METRICS, *(["retrieval"] if subject == "same" else [])):
            values = torch.tensor([one[metric] for one in expected], dtype=torch.float32)
            torch.testing.assert_close(
                found[metric, subject, "flip"], values, atol=1e-3 if metric == "retrieval" else 2e-5, rtol=0
            )
    if spoil is half_constant:
        retrieved = found["retrieval", "same", "flip"] / 100 * 24
        assert ((retrieved - retrieved.round()).abs() > 1e-3).any(), "some are ties"


def test_ties_count_as_they_come_out_on_average():
    """Four tokens, two of them equal: the equal ones are found every other time."""
    x = torch.tensor([[[1.0, 1.0, 0.0, -1.0], [0.0, 0.0, 1.0, -1.0]]])
    near = torch.eye(4, dtype=torch.bool)
    tokens = Tokens.of(x)
    found = retrieval(tokens, tokens, torch.zeros(2, 1), near)
    assert found["retrieval"].item() == pytest.approx(100 * (0.5 + 0.5 + 1 + 1) / 4)
    near[0, 1] = near[1, 0] = True
    assert retrieval(tokens, tokens, torch.zeros(2, 1), near)["retrieval_near"].item() == pytest.approx(100)


def test_a_patch_without_content_does_not_change_place():
    """A token that is the image's mean token: as many of them as one likes."""
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(2, 8, 20, generator=rng)
    b = a + torch.randn(2, 8, 20, generator=rng)
    mean = torch.randn(8, 1, generator=rng)
    plain = agreement(Tokens.of(a), Tokens.of(b), mean)
    more = [torch.cat([x, x.mean(2, keepdim=True).expand(-1, -1, 30)], dim=2) for x in (a, b)]
    padded = agreement(*map(Tokens.of, more), mean)
    torch.testing.assert_close(padded["place"], plain["place"], atol=1e-5, rtol=0)
    assert (padded["centred_cosine"] - plain["centred_cosine"]).abs().min() > 0.02, "the mean over patches does"
    one = torch.cat([a, a.mean(2, keepdim=True)], dim=2), torch.cat([b, b[..., :1]], dim=2)
    weighted = by_hand(one[0][0].T.double(), one[1][0].T.double(), mean[:, 0].double())["place"]
    assert agreement(*map(Tokens.of, one), mean)["place"][0].item() == pytest.approx(weighted, abs=1e-5)


def test_the_length_of_a_token_is_its_weight():
    """Two large tokens that agree, many small ones that do not."""
    rng = torch.Generator().manual_seed(0)
    a, b = (1e-2 * torch.randn(1, 8, 40, generator=rng) for _ in range(2))
    for x in (a, b):
        x[..., 0], x[..., 1] = 1.0, -1.0
    found = agreement(Tokens.of(a), Tokens.of(b), torch.zeros(8, 1))
    assert found["place"].item() > 0.95
    assert abs(found["centred_cosine"].item()) < 0.3


def test_centring_takes_a_common_vector_away(tmp_path):
    """A large vector that all tokens share hides nothing."""

    def common(maps):
        return shifted(maps) + 30 * torch.linspace(-1, 1, maps.shape[1])[:, None, None]

    found = measured(PatchMeans(common), tmp_path, 40)
    assert found["place", "backbone", "flip", 1].value < 0.7
    assert found["centred_cosine", "backbone", "flip", 1].value < 0.7
    assert found["centred_cosine", "mismatched", "flip", 1].value < 0.5, "the mean token is that of all batches"
    assert found["relative_error", "mismatched", "flip", 1].value > 1.0


def test_a_vector_that_an_image_s_tokens_share_is_no_place(tmp_path):
    """It raises the centred cosine of maps that do not correspond."""

    def of_image(maps):
        return shifted(maps) + 8 * maps.mean((2, 3), keepdim=True)

    found, without = (measured(PatchMeans(spoil, depth=1), tmp_path, 16) for spoil in (of_image, shifted))
    assert found["centred_cosine", "backbone", "flip", 1].value > 0.6
    assert without["centred_cosine", "backbone", "flip", 1].value < 0.3
    assert found["place", "backbone", "flip", 1].value < 0.35


def test_a_number_added_to_a_token_changes_nothing(tmp_path):
    """Tokens are normalised before they are compared."""
    plain, raised = (measured(PatchMeans(spoil), tmp_path) for spoil in (None, lambda maps: maps + 100))
    for key, record in plain.items():
        tolerance = 2e-2 if key[0] == "relative_error" else 1e-3 if key[0] in METRICS else 1.0
        assert raised[key].value == pytest.approx(record.value, abs=tolerance), key


def test_a_transformer_lies_between_its_references(tmp_path):
    vit = create_backbone(
        "vit_tiny_patch16_224", 1, (1,), img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3
    )
    vit.pretrained_cfg = PatchMeans().pretrained_cfg
    found = measured(TimmEncoder(vit.train(), "vit"), tmp_path, 12)
    values = defaultdict(list)
    for (metric, subject, *_), record in found.items():
        if metric in ("place", "centred_cosine"):
            assert -1 <= record.value <= 1
            values[subject].append(record.value)
    assert np.mean(values["mismatched"]) <= np.mean(values["backbone"])


# --- where the variance lies


def test_shares_of_the_variance_are_the_two_way_sums():
    """By hand in float64, over batches of unequal size."""
    encoder, images = PatchMeans(placed, depth=2), drawn_images(7, (3, 5))
    found = map_statistics(encoder, images.split([4, 2, 1]), [1, 2])[1]
    f = tokens_of(encoder, images).flatten(1, 2).numpy()  # (n, T, D)
    total = ((f - f.mean((0, 1))) ** 2).sum()
    of_images = 15 * ((f.mean(1) - f.mean((0, 1))) ** 2).sum()
    of_positions = 7 * ((f.mean(0) - f.mean((0, 1))) ** 2).sum()
    rest = ((f - f.mean(1, keepdims=True) - f.mean(0, keepdims=True) + f.mean((0, 1))) ** 2).sum()
    for fraction, expected in zip(SHARES, (of_images, of_positions, rest), strict=True):
        assert expected / total > 0.03, "each of the three is tested"
        assert found.fractions[fraction] == pytest.approx(expected / total, abs=1e-5)
    assert (found.images, found.patches) == (7, 15)
    torch.testing.assert_close(found.mean[:, 0].double(), torch.from_numpy(f.mean((0, 1))), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("spoil", "expected"), [(repeated, (100, 0, 0)), (positions, (0, 100, 0)), (None, None), (placed, None)]
)
def test_shares_add_up_to_one_hundred(spoil, expected, tmp_path):
    found = measured(PatchMeans(spoil, depth=1), tmp_path, 12, angles=())
    fractions = [found[fraction, "backbone", None, 1] for fraction in SHARES]
    assert sum(record.value for record in fractions) == pytest.approx(100, abs=1e-3)
    assert all(record.value >= 0 and record.unit == "%" and record.n == 12 for record in fractions)
    if expected:
        assert [record.value for record in fractions] == pytest.approx(expected, abs=1e-2)


def test_a_network_of_one_size_is_measured_without_scales_and_crops(tmp_path, caplog):
    encoder = PatchMeans(grid=6)
    encoder.any_size = False
    found = measured(encoder, tmp_path)
    assert {key[2] for key in found} - {None} == {*LATTICE, "rotation"}
    assert "scales and crops" in caplog.text


# --- changes


@pytest.mark.parametrize("grid", [*((side, side) for side in range(2, 21)), (2, 3), (6, 9), (14, 5)])
def test_scaled_grids_are_others_than_the_upright_one(grid):
    kinds = pose_kinds(grid)
    assert tuple(kinds) == ("quarter turns", "flip", "scale")
    sizes = [size for _, _, size in kinds["scale"]]
    assert grid not in sizes
    assert len(set(sizes)) == 4
    assert all(h >= 1 and w >= 1 and h != grid[0] and w != grid[1] for h, w in sizes)
    if grid[0] == grid[1]:
        assert any(h != w for h, w in sizes)
    lying = grid[::-1]
    assert kinds["quarter turns"] == [(1, False, lying), (2, False, grid), (3, False, lying)]
    assert kinds["flip"] == [(0, True, grid)]
    assert all(not turns and not flip for turns, flip, _ in kinds["scale"])


def of_kind(kind, grid=(10, 10), patch=4, **settings):
    found = [change for change in transforms_of(grid, patch, EquivarianceConfig(**settings)) if change.kind == kind]
    assert found
    return found


def slope(grid=(10, 10), patch=4):
    """(1, 3, H, W), planes: an interpolation that is right gives their values."""
    rows, columns = (torch.linspace(-1, 1, side * patch) for side in grid)
    rows, columns = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([rows, columns, 0.5 * rows - 2 * columns])[None]


@pytest.mark.parametrize("grid", [(10, 10), (10, 14), (15, 9)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", ["rotation", *CROPS])
def test_a_plane_is_carried_as_it_is_changed(kind, interpolation, grid):
    """Patch means of a plane are its values at the centres, so both sides agree but for the kernel's border."""
    x = slope(grid)
    for change in of_kind(kind, grid, interpolation=interpolation):
        there = change.select(F.avg_pool2d(change.after(x), 4))
        carried = change.transport(F.avg_pool2d(change.before(x), 4))
        assert there.shape == carried.shape
        assert there.shape[2] == len(change.cells(grid)) >= 9
        # bicubic reaches two patches far, so that it sees the map's border
        limit = 1e-5 if interpolation == "bilinear" or kind == "aligned crops" else 0.06
        assert (there - carried).abs().amax() < limit
        assert (there - carried.flip(2)).abs().amax() > 0.3, "the plane tells places apart"


@pytest.mark.parametrize("grid", [(6, 6), (6, 9)])
def test_a_map_that_is_left_stays_where_it_was(grid):
    """Of what keeps the grid, at the same patches."""
    for change in transforms_of(grid, 4, EquivarianceConfig()):
        m = F.avg_pool2d(change.before(slope(grid)), 4)
        left = change.leave(m)
        assert left.shape[-1] == len(change.cells(grid)), change
        if change.grid_after(grid) == m.shape[2:]:
            assert torch.equal(left, m.flatten(2) if change.inside is None else m.flatten(2)[..., change.inside])


def test_a_map_that_is_left_on_a_lying_grid_is_read_at_the_same_distance_from_the_centre():
    m = torch.arange(15.0).reshape(1, 1, 3, 5)
    turn = next(change for change in transforms_of((3, 5), 4, EquivarianceConfig()) if change.kind == "quarter turns")
    # 5 x 3 patches over the 3 x 5 ones, centre on centre; beyond the border the nearest
    expected = m[0, 0, :, 1:4][[0, 0, 1, 2, 2]]
    torch.testing.assert_close(turn.leave(m).reshape(5, 3), expected)


def test_compared_patches_are_named_row_by_row():
    for change in transforms_of((6, 9), 4, EquivarianceConfig()):
        h, w = change.grid_after((6, 9))
        cells = change.cells((6, 9))
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        both = torch.stack([rows, columns]).float()[None]
        assert torch.equal(change.select(both)[0].T.long(), cells), change


def test_a_rotation_by_a_right_angle_is_the_quarter_turn():
    x = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    (turn,) = of_kind("rotation", angles=(90.0,))
    assert turn.inside.all()
    torch.testing.assert_close(turn.after(x), x.rot90(1, (2, 3)), atol=1e-4, rtol=0)
    m = F.avg_pool2d(x, 4)
    torch.testing.assert_close(turn.transport(m).unflatten(2, (10, 10)), m.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_a_rectangle_is_rotated_as_the_square_around_it():
    """Its angles stay right: a rotation, in pixels, and not in shares of the sides."""
    whole = torch.rand(1, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    rectangle = whole[..., 20:60, 12:68]
    for grid in ((10, 14), (14, 10)):
        x = rectangle if grid == (10, 14) else whole[..., 12:68, 20:60]
        for turn in of_kind("rotation", grid, angles=(12.0, -35.0), interpolation="bilinear"):
            (square,) = of_kind("rotation", (20, 20), angles=(turn.angle,), interpolation="bilinear")
            turned = square.after(whole)
            turned = turned[..., 20:60, 12:68] if grid == (10, 14) else turned[..., 12:68, 20:60]
            there, expected = (turn.select(F.avg_pool2d(y, 4)) for y in (turn.after(x), turned))
            assert there.shape[2] > 20
            torch.testing.assert_close(there, expected, atol=1e-4, rtol=0)


def test_a_rotation_by_half_a_turn_is_two_quarter_turns_of_a_rectangle():
    x = torch.rand(2, 3, 24, 36, generator=torch.Generator().manual_seed(0))
    (turn,) = of_kind("rotation", (6, 9), angles=(180.0,))
    assert turn.inside.all()
    torch.testing.assert_close(turn.after(x), x.rot90(2, (2, 3)), atol=1e-4, rtol=0)


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
        torch.testing.assert_close(change.select(m1), change.transport(m0), atol=1e-5, rtol=0)
        assert change.offset[0] % 4 == 0
        assert change.offset[0] != 0
    assert all(change.offset[0] % 4 == 2 for change in of_kind("unaligned crops"))


@pytest.mark.parametrize("grid", [*((side, side) for side in range(5, 30)), (5, 9), (12, 7)])
def test_crops_fit_into_the_image_and_overlap(grid):
    for change in transforms_of(grid, 4, EquivarianceConfig(angles=())):
        if change.kind not in CROPS:
            continue
        x = torch.zeros(1, 1, grid[0] * 4, grid[1] * 4)
        assert change.before(x).shape[-2:] == change.after(x).shape[-2:] == tuple(side * 4 for side in change.grid)
        assert change.inside.sum() > 1
        assert not change.inside.all()


@pytest.mark.parametrize("grid", [(2, 2), (3, 3), (3, 4), (5, 5)])
def test_what_compares_one_patch_is_not_measured(grid):
    """Its place is not measurable, and would take the other angles' of the kind away."""
    found = transforms_of(grid, 4, EquivarianceConfig(angles=(5.0, 45.0)))
    assert all(len(change.cells(grid)) > 1 for change in found)
    assert {"quarter turns", "flip"} <= {change.kind for change in found}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_the_interpolation_that_is_set_resamples_image_and_map(interpolation):
    x = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    mode = "nearest-exact" if interpolation == "nearest" else interpolation
    for change in of_kind("isotropic scale", interpolation=interpolation):
        size = change.size[0]
        torch.testing.assert_close(change.after(x), F.interpolate(x, (size * 4, size * 4), mode=mode))
        m = F.avg_pool2d(x, 4)
        torch.testing.assert_close(change.transport(m), F.interpolate(m, (size, size), mode=mode).flatten(2))
    (turn,) = of_kind("rotation", interpolation=interpolation, angles=(20.0,))
    others = {"bilinear", "bicubic", "nearest"} - {interpolation}
    for other in others:
        (another,) = of_kind("rotation", interpolation=other, angles=(20.0,))
        assert (turn.after(x) - another.after(x)).abs().max() > 0.05
        assert (turn.transport(F.avg_pool2d(x, 4)) - another.transport(F.avg_pool2d(x, 4))).abs().max() > 0.01


@pytest.mark.parametrize("angles", [(0.0,), (200.0,), (5.0, 5.0), (float("nan"),)])
def test_angles_that_mean_nothing_are_refused(angles):
    with pytest.raises(UserError, match="angles"):
        EquivarianceConfig(angles=angles)
