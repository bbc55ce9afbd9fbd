"""Corruptions: laws that hold for all of them, and each one's own definition where it can be worked out by hand."""

import colorsys
import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from equimid.errors import UserError
from equimid.evaluation.robustness.corruptions import (
    KINDS,
    RANDOM_KINDS,
    SEVERITIES,
    VALIDATION_KINDS,
    corrupt,
    digital,
    kernels,
    weather,
)

ALL = (*KINDS, *VALIDATION_KINDS)
# where the published constants themselves do not order the severities by the distance to the clean image
NOT_ORDERED = {
    "glass_blur": "the second blur smooths what the shuffles tore, and their number is 2, 1, 3, 2, 2",
    "frost": "severity 4 dims the image more than 3 and lays the same frost on it",
    "elastic_transform": "1 and 2 move the image as a whole, 3 to 5 crumple it",
    "saturate": "1 and 2 take colour away, 3 to 5 add it",
}
NOT_ORDERED_SMALL = {
    **NOT_ORDERED,
    "motion_blur": "3 and 4 have the same deviation in CIFAR-10-C's constants",
    "pixelate": "blocks are no whole pixels",
}


def scene(height, width, seed=0):
    """A drawn scene: a sky that darkens, a coarse texture, a house, bars of several widths."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    image = np.stack([0.3 + 0.4 * y, 0.45 + 0.3 * y, 0.8 - 0.4 * y], axis=2)
    texture = ndimage.gaussian_filter(rng.normal(size=(height, width)), min(height, width) / 40)
    image += 0.12 * (texture / texture.std())[..., None]
    image[(abs(x - 0.4) < 0.2) & (y > 0.4)] = (0.7, 0.25, 0.2)
    image[(np.sin(40 * x) > 0.3) & (y > 0.75)] *= 0.4
    return (image.clip(0, 1) * 255).astype(np.uint8)


def run(image, kind, severity, seed=0):
    return corrupt(image, kind, severity, np.random.default_rng(seed))


def grey(level, side=224):
    return np.full((side, side, 3), level, dtype=np.uint8)


def distance(a, b):
    return float(((a.astype(float) - b) ** 2).mean())


# --- all of them


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("kind", ALL)
def test_corruption_keeps_the_shape_and_is_a_function_of_image_and_generator(kind, side):
    image = scene(side, side)
    before, found = image.copy(), []
    for severity in SEVERITIES:
        corrupted, again, other = (run(image, kind, severity, seed) for seed in (0, 0, 1))
        assert corrupted.shape == image.shape
        assert corrupted.dtype == np.uint8
        assert np.array_equal(corrupted, again)
        assert np.array_equal(corrupted, other) == (kind not in RANDOM_KINDS)
        found.append(distance(corrupted, image))
    assert np.array_equal(image, before)
    assert min(found) > 0
    ordered = bool(np.all(np.diff(found) > 0))
    assert ordered or kind in (NOT_ORDERED if side == 224 else NOT_ORDERED_SMALL), found
    if kind != "elastic_transform":
        assert found[-1] > found[0]


@pytest.mark.parametrize("shape", [(8, 8), (8, 50), (70, 33), (150, 224)])
@pytest.mark.parametrize("kind", ALL)
def test_corruption_of_any_shape_leaves_no_severity_without_effect(kind, shape):
    image = scene(*shape)
    for severity in SEVERITIES:
        corrupted = run(image, kind, severity)
        assert corrupted.shape == image.shape
        assert distance(corrupted, image) > 0


@pytest.mark.parametrize("kind", ["gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "pixelate"])
def test_lengths_grow_with_the_image(kind):
    """The same scene at twice the size, corrupted and halved again, is about the small one corrupted."""
    small = scene(112, 112)
    large = np.asarray(Image.fromarray(small).resize((448, 448), Image.Resampling.BICUBIC))
    middle = np.asarray(Image.fromarray(small).resize((224, 224), Image.Resampling.BICUBIC))
    halved = np.asarray(Image.fromarray(run(large, kind, 5)).resize((224, 224), Image.Resampling.BOX))
    corrupted = run(middle, kind, 5)
    assert distance(halved, corrupted) < 0.05 * distance(middle, corrupted)


@pytest.mark.parametrize(
    ("image", "kind", "severity", "message"),
    [
        (grey(9), "rain", 1, "no corruption 'rain'"),
        (grey(9), "fog", 0, "severity 0"),
        (grey(9), "fog", 6, "severity 6"),
        (grey(9, 7), "fog", 1, "8 px"),
        (grey(9)[..., 0], "fog", 1, "expected"),
        (grey(9).astype(float), "fog", 1, "expected"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(image, kind, severity, message):
    with pytest.raises(UserError, match=message):
        run(image, kind, severity)


# --- noises


@pytest.mark.parametrize(
    ("kind", "severity", "deviation"),
    [
        ("gaussian_noise", 1, 0.08),
        ("gaussian_noise", 2, 0.12),
        ("speckle_noise", 1, 0.15 * 128 / 255),
        ("speckle_noise", 2, 0.2 * 128 / 255),
        ("shot_noise", 1, math.sqrt(128 / 255 / 60)),
        ("shot_noise", 2, math.sqrt(128 / 255 / 25)),
    ],
)
def test_noise_has_its_deviation(kind, severity, deviation):
    noise = (run(grey(128), kind, severity).astype(float) - 128) / 255
    assert noise.std() == pytest.approx(deviation, rel=0.01)
    assert abs(noise.mean()) < 0.002
    channels = np.corrcoef(noise.reshape(-1, 3).T)
    assert abs(channels[0, 1]) < 0.02


@pytest.mark.parametrize(("severity", "fraction"), [(1, 0.03), (5, 0.27)])
def test_impulse_noise_is_a_share_of_black_and_white(severity, fraction):
    noisy = run(grey(100), "impulse_noise", severity)
    assert (noisy == 0).mean() == pytest.approx(fraction / 2, rel=0.05)
    assert (noisy == 255).mean() == pytest.approx(fraction / 2, rel=0.05)
    assert ((noisy == 0) | (noisy == 100) | (noisy == 255)).all()


# --- blurs


def test_disk_counts_the_pixels_within_its_radius():
    """29 pixels lie within 3 of the middle; the softening of severity 1 is too narrow to matter."""
    kernel = kernels.disk(3, 0.1)
    assert (kernel > 1e-6).sum() == 29
    assert kernel.max() == pytest.approx(1 / 29)
    for radius, soft, width in ((0.3, 0.4, 3), (1.5, 0.1, 5), (4, 0.5, 11), (10, 0.5, 25)):
        kernel = kernels.disk(radius, soft)
        assert kernel.shape == (width, width)
        assert kernel.sum() == pytest.approx(1)
        assert np.allclose(kernel, kernel[::-1]) and np.allclose(kernel, kernel.T)  # noqa: PT018


def test_convolution_by_transforms_is_convolution():
    image = scene(40, 61).astype(np.float32) / 255
    kernel = kernels.disk(6, 0.5)
    direct = np.stack([ndimage.convolve(image[..., c], kernel, mode="mirror") for c in range(3)], axis=2)
    assert np.allclose(kernels.convolve(image, kernel), direct, atol=1e-5)


@pytest.mark.parametrize(("severity", "sigma"), [(1, 1), (3, 3), (5, 6)])
def test_gaussian_blur_spreads_a_point_by_its_deviation(severity, sigma):
    point = grey(0)
    point[:, 112] = 255
    profile = run(point, "gaussian_blur", severity)[100, :, 0].astype(float)
    i = np.arange(224) - 112
    assert math.sqrt((profile * i**2).sum() / profile.sum()) == pytest.approx(sigma, rel=0.05)


def test_motion_trails_to_one_side():
    point = np.zeros((21, 21), dtype=np.float32)
    point[10, 10] = 1
    weights = np.exp(-(np.arange(7) ** 2) / 8)
    trail = kernels.motion(point, 3, 2, 0)
    assert np.allclose(trail[10, 4:11], (weights / weights.sum())[::-1], atol=1e-6)
    assert np.count_nonzero(trail) == 7
    assert np.allclose(kernels.motion(point, 3, 2, 90), trail.T, atol=1e-6)


def test_magnified_ramp_is_a_flatter_ramp_about_the_middle():
    x = np.arange(20, dtype=np.float32)
    ramp = Image.fromarray(np.tile(x, (12, 1)))
    assert np.allclose(np.asarray(kernels.magnify(ramp, 1.6))[5], 9.5 + (x - 9.5) / 1.6, atol=1e-4)


def test_zoom_blur_leaves_the_middle_and_pulls_the_border_outwards():
    """At 1 + t the pixel at d from the middle shows what was at d / (1 + t): on a ramp, the mean over the twelve
    images of severity 1 (the image, and 1, 1.01, ... 1.10) is known."""
    d = np.arange(224) - 111.5
    ramp = np.repeat((127.5 + d)[None, :, None], 224, 0).repeat(3, 2).astype(np.uint8)
    shrink = (1 + sum(1 / (1 + t / 100) for t in range(11))) / 12
    expected = ramp[0, :, 0].mean() + d * shrink
    assert np.abs(run(ramp, "zoom_blur", 1)[50, :, 0] - expected).max() < 1


def test_glass_blur_takes_every_pixel_from_nearby():
    """On 32 px, severity 1 blurs next to nothing and shuffles once by one pixel up and left, from the last pixel on:
    what is taken has not itself been replaced."""
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    glass = run(image, "glass_blur", 1)
    shifted = [np.roll(image, (down, right), (0, 1)) for down in (0, 1) for right in (0, 1)]
    same = np.stack([(glass == other).all(2) for other in shifted])
    assert same.any(0)[2:, 2:].all()
    assert same[0][:2].all()
    assert same[0][:, :2].all()
    assert np.allclose(same[:, 2:, 2:].mean((1, 2)), 0.25, atol=0.06)


# --- weather


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_and_saturation_are_those_of_hsv(severity):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image[0] = 0  # black: no hue, no saturation
    image[1] = 90
    shift = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    times, plus = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1]
    for kind, change in (
        ("brightness", lambda h, s, v: (h, s, min(v + shift, 1))),
        ("saturate", lambda h, s, v: (h, min(s * times + plus, 1), v)),
    ):
        pixels = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in image.reshape(-1, 3) / 255]
        assert np.abs(run(image, kind, severity) - 255 * np.reshape(pixels, image.shape)).max() < 0.51


@pytest.mark.parametrize("severity", SEVERITIES)
def test_weather_adds_light(severity):
    image = scene(96, 96)
    assert (run(image, "snow", severity) >= image).all()
    assert run(image, "fog", severity).max() <= image.max()
    kept = (1, 0.8, 0.7, 0.65, 0.6)[severity - 1]
    assert (run(image, "frost", severity) >= np.floor(image * kept)).all()
    black = run(grey(0), "fog", severity)
    assert (black == 0).all()  # the range is brought back to what it was: nothing


def test_plasma_is_rougher_where_it_decays_less():
    fields = [weather.plasma(64, decay, np.random.default_rng(0)) for decay in (2.0, 1.4)]
    for field in fields:
        assert (field.min(), field.max(), field.shape) == (0, 1, (64, 64))
        # a torus: across the seam as elsewhere
        assert np.abs(field[:, 0] - field[:, -1]).mean() < 3 * np.abs(np.diff(field)).mean()
    smooth, rough = (np.abs(np.diff(field)).mean() / field.std() for field in fields)
    assert rough > 1.4 * smooth


@pytest.mark.parametrize("side", [64, 224])
def test_spatter_covers_about_as_much_at_every_size(side):
    """Noise of mean .65 exceeds a threshold of .68 at severity 2 and 3: by the normal law, with the deviation that a
    Gaussian blur leaves (0.3 / (2 sqrt(pi) sigma))."""
    for severity, sigma in ((2, 3), (3, 2)):
        expected = 0.5 * math.erfc(0.03 / (0.3 / (2 * math.sqrt(math.pi) * sigma)) / math.sqrt(2))
        wet = [(run(grey(40, side), "spatter", severity, seed)[..., 2] > 40).mean() for seed in range(8)]
        assert np.mean(wet) == pytest.approx(expected, abs=0.08)
    muddy = run(grey(200, side), "spatter", 5)
    assert (muddy <= 200).all()
    assert muddy.reshape(-1, 3).min(0).tolist() == pytest.approx([63, 42, 20], abs=25)


# --- digital


def test_contrast_draws_towards_the_mean_of_the_channel():
    image = grey(0, 8)
    image[:4], image[4:] = (50, 0, 10), (150, 200, 10)
    flat = run(image, "contrast", 3)  # a fifth of the distance is left
    assert flat[0, 0].tolist() == [90, 80, 10]
    assert flat[7, 7].tolist() == [110, 120, 10]


def test_pixelate_takes_means_of_blocks():
    image = scene(224, 336)
    blocks = image.reshape(112, 2, 168, 2, 3).mean((1, 3))
    assert np.abs(run(image, "pixelate", 2) - blocks.repeat(2, 0).repeat(2, 1)).max() <= 1  # rounded twice


@pytest.mark.parametrize(("severity", "quality"), [(1, 25), (2, 18), (3, 15), (4, 10), (5, 7)])
def test_jpeg_is_pillows(severity, quality):
    image, file = scene(40, 56), io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    assert np.array_equal(run(image, "jpeg_compression", severity), np.asarray(Image.open(file)))


def test_elastic_transform_moves_a_plane_by_a_plane():
    """Severity 1 is an affine map all but for a field as wide as the image."""
    y, x = np.mgrid[:224, :224].astype(np.float32)
    moved = digital.elastic_transform(np.stack([x, y, x], 2), 0, np.random.default_rng(0), 1.0)
    middle = np.s_[80:144, 80:144]
    basis = np.stack([x[middle].ravel(), y[middle].ravel(), np.ones(64 * 64)], axis=1)
    for channel in range(2):
        plane, residual, *_ = np.linalg.lstsq(basis, moved[..., channel][middle].ravel(), rcond=None)
        assert residual[0] / 64**2 < 0.05
        assert 0.5 < plane[channel] < 1.5
    assert np.abs(moved[..., 0] - x)[middle].mean() > 1


def test_elastic_transform_moves_small_images_by_less():
    """In proportion to the side: by pixels of the image, a seventh."""
    shifts = []
    for side in (224, 32):
        x = np.tile(np.arange(side, dtype=np.float32)[None, :, None], (side, 1, 3))
        inner = np.s_[side // 4 : -side // 4, side // 4 : -side // 4, 0]
        upright = [
            ((digital.elastic_transform(x, 4, np.random.default_rng(seed), side / 224) - x)[inner] ** 2).mean()
            for seed in range(20)
        ]
        shifts.append(math.sqrt(np.mean(upright)))
    assert 2 < shifts[0] < 8
    assert shifts[0] / shifts[1] == pytest.approx(7, rel=0.3)


def test_smooth_field_is_a_gaussian_blur():
    white = np.random.default_rng(0).normal(size=(40, 56)).astype(np.float32)
    blurred = ndimage.gaussian_filter(white, 3, mode="reflect", truncate=6)
    assert np.allclose(kernels.smooth_field(white, 3), blurred, atol=1e-3)
    assert kernels.gaussian_gain(3) == pytest.approx(1 / (2 * math.sqrt(math.pi) * 3), rel=0.01)
