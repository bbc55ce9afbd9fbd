"""Photometric operations against torchvision's, image by image, and the laws of the drawn rows."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from equimid.errors import UserError
from equimid.randomness import counted_generator
from equimid.views import photometric
from equimid.views.config import Photometric
from equimid.views.photometric import FIELDS, apply, draw

NOTHING = {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarise": 0.0}
NO_JITTER = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
ALL = Photometric(jitter=1.0, grey=0.3, blur=0.7, solarise=0.5, brightness=0.8, saturation=0.7, hue=0.5)
CONFIGS = {
    "brightness": Photometric(**(NOTHING | NO_JITTER | {"jitter": 1.0, "brightness": 0.8})),
    "contrast": Photometric(**(NOTHING | NO_JITTER | {"jitter": 1.0, "contrast": 0.8})),
    "saturation": Photometric(**(NOTHING | NO_JITTER | {"jitter": 1.0, "saturation": 1.5})),
    "hue": Photometric(**(NOTHING | NO_JITTER | {"jitter": 1.0, "hue": 0.5})),
    "jitter": Photometric(**(NOTHING | {"jitter": 1.0, "hue": 0.4, "brightness": 0.8})),
    "grey": Photometric(**(NOTHING | {"grey": 0.5})),
    "blur": Photometric(**(NOTHING | {"blur": 0.8})),
    "wide blur": Photometric(**(NOTHING | {"blur": 1.0, "blur_sigma": (3.0, 9.0), "blur_kernel": 31})),
    "solarise": Photometric(**(NOTHING | {"solarise": 0.5})),
    "all": ALL,
}


def pictures(n: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise over a gradient, with black, white, grey and pure patches (the corners of HSV)."""
    generator = torch.Generator().manual_seed(height * width)
    ramp = torch.linspace(0, 1, width).expand(n, 3, height, width)
    images = 0.5 * ramp + 0.5 * torch.rand(n, 3, height, width, generator=generator)
    for place, colour in enumerate([(0, 0, 0), (1, 1, 1), (0.3, 0.3, 0.3), (1, 0, 0), (0, 1, 0), (0, 0.5, 0.5)]):
        images[:, :, :4, 4 * place : 4 * place + 4] = torch.tensor(colour).view(3, 1, 1)
    return images.to(dtype)


def rows_of(config: Photometric, n: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.stack([draw(config, counted_generator(seed, "test", i)) for i in range(n)]))


def by_torchvision(image: Tensor, row: Tensor, kernel: int) -> Tensor:
    """All but solarise, one image (3, H, W)."""
    values = dict(zip(FIELDS, row.tolist(), strict=True))
    if values["jittered"]:
        for place in range(4):
            match int(values[f"order_{place}"]):
                case 0:
                    image = TF.adjust_brightness(image, values["brightness"])
                case 1:
                    image = TF.adjust_contrast(image, values["contrast"])
                case 2:
                    image = TF.adjust_saturation(image, values["saturation"])
                case 3 if values["hue"]:  # ColorJitter leaves a range of 0 out
                    image = TF.adjust_hue(image, values["hue"])
    if values["grey"]:
        image = TF.rgb_to_grayscale(image, 3)
    if values["sigma"]:
        image = TF.gaussian_blur(image, [kernel, kernel], [values["sigma"]])
    return image


@pytest.mark.parametrize(
    ("size", "dtype"), [((40, 56), torch.float32), ((32, 32), torch.float32), ((33, 97), torch.float64)]
)
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_torchvision_image_by_image(name: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    config, images = CONFIGS[name], pictures(12, *size, dtype)
    rows = rows_of(config, 12)
    found = apply(images, rows, config)
    assert found.dtype == dtype
    assert found.min() >= 0
    assert found.max() <= 1
    # torchvision's hue works in float32 whatever comes in
    exact = dtype == torch.float64 and rows[:, FIELDS.index("hue")].eq(0).all()
    for image, row, out in zip(images, rows, found, strict=True):
        expected = by_torchvision(image, row, config.blur_kernel)
        sure = torch.ones_like(expected, dtype=torch.bool)
        if row[FIELDS.index("solarised")]:
            # rounding decides for a pixel on the threshold
            sure = (expected - config.solarise_threshold).abs() > 1e-5
            expected = TF.solarize(expected, config.solarise_threshold)
        assert sure.float().mean() > 0.9
        torch.testing.assert_close(out[sure], expected[sure], rtol=0, atol=1e-7 if exact else 1e-5)


def test_every_operation_occurs_in_the_comparison() -> None:
    rows = rows_of(ALL, 12)
    for name in ("grey", "sigma", "solarised"):
        applied = rows[:, FIELDS.index(name)] != 0
        assert applied.any()
        assert not applied.all()
    assert len({tuple(row[1:5].tolist()) for row in rows}) > 6


def test_kernel_shrinks_to_what_reflection_allows() -> None:
    config = Photometric(**(NOTHING | {"blur": 1.0, "blur_sigma": (2.0, 2.0)}))
    images = torch.rand(2, 3, 5, 40, generator=torch.Generator().manual_seed(0))
    expected = TF.gaussian_blur(images, [9, 9], [2.0, 2.0])
    torch.testing.assert_close(apply(images, rows_of(config, 2), config), expected, rtol=0, atol=1e-6)
    line = images[:, :, :1]
    assert torch.equal(apply(line, rows_of(config, 2), config), line)


def test_blur_of_white_is_not_above_white() -> None:
    # the float32 weights of some kernels add up to more than 1
    white = torch.ones(64, 3, 32, 32)
    found = apply(white, rows_of(CONFIGS["blur"], 64), CONFIGS["blur"])
    assert found.max() == 1
    assert found.min() > 1 - 1e-6


def test_identity_rows_change_no_bit() -> None:
    images = pictures(5, 40, 56)
    rows = rows_of(Photometric(**NOTHING), 5)
    assert torch.equal(rows[0], torch.tensor([0.0, 0, 1, 2, 3, 1, 1, 1, 0, 0, 0, 0]))
    assert torch.equal(apply(images, rows, ALL), images)
    # nor does jitter of range 0, whatever its order
    still = Photometric(**(NOTHING | NO_JITTER | {"jitter": 1.0}))
    assert torch.equal(apply(images, rows_of(still, 5), still), images)
    assert not torch.equal(apply(images, rows_of(ALL, 5), ALL), images)


def test_input_is_kept_whatever_its_layout() -> None:
    images = pictures(6, 40, 56)
    rows = rows_of(ALL, 6)
    kept, kept_rows = images.clone(), rows.clone()
    expected = apply(images, rows, ALL)
    assert torch.equal(images, kept)
    assert torch.equal(rows, kept_rows)
    assert torch.equal(apply(images.to(memory_format=torch.channels_last), rows, ALL), expected)
    assert not apply(images.clone().requires_grad_(), rows, ALL).requires_grad


def test_neighbours_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    images, rows = pictures(12, 40, 56), rows_of(ALL, 12)
    together = apply(images, rows, ALL)
    alone = torch.cat([apply(images[i : i + 1], rows[i : i + 1], ALL) for i in range(12)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    turned = apply(images.flip(0), rows.flip(0), ALL).flip(0)
    torch.testing.assert_close(turned, together, rtol=0, atol=1e-6)
    monkeypatch.setattr(photometric, "_CHUNK_CPU", 5 * images[0].numel())  # 5 + 5 + 2
    torch.testing.assert_close(apply(images, rows, ALL), together, rtol=0, atol=1e-6)


def test_no_images() -> None:
    found = apply(torch.zeros(0, 3, 8, 8), torch.zeros(0, len(FIELDS)), ALL)
    assert found.shape == (0, 3, 8, 8)


def test_host_never_reads_the_device() -> None:
    # a meta tensor has no values: whatever would wait for them raises
    images = torch.empty(12, 3, 40, 56, device="meta")
    assert apply(images, rows_of(ALL, 12), ALL).shape == images.shape


def test_autocast_does_not_reach_in() -> None:
    images, rows = pictures(4, 32, 32), rows_of(CONFIGS["blur"], 4)
    expected = apply(images, rows, CONFIGS["blur"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(apply(images, rows, CONFIGS["blur"]), expected)


def test_rows_are_a_function_of_the_generator() -> None:
    first = draw(Photometric(), counted_generator(0, "view", 3, 7))
    assert first.dtype == np.float32
    assert first.shape == (len(FIELDS),)
    assert np.array_equal(first, draw(Photometric(), counted_generator(0, "view", 3, 7)))
    assert not np.array_equal(first, draw(Photometric(), counted_generator(0, "view", 3, 8)))
    # pinned: other numbers here would change every run that is resumed
    assert first.tolist() == pytest.approx(PINNED, abs=1e-6)


def test_draws_are_counted_whatever_is_applied() -> None:
    off, on = Photometric(**NOTHING), Photometric(jitter=1, grey=1, blur=1, solarise=1)
    generators = [counted_generator(0, "view", 0) for _ in range(3)]
    draw(off, generators[0])
    row = draw(on, generators[1])
    mixed = draw(Photometric(**(NOTHING | {"blur": 1.0})), generators[2])
    assert len({generator.random() for generator in generators}) == 1
    assert mixed[FIELDS.index("sigma")] == row[FIELDS.index("sigma")]


def test_probabilities_and_ranges() -> None:
    n, config = 2000, Photometric(solarise=0.2, blur=0.1, contrast=1.6)
    columns = dict(zip(FIELDS, rows_of(config, n).numpy().T, strict=True))
    jittered = columns["jittered"] == 1

    def about(found: float, expected: float, trials: int) -> None:
        assert abs(found - expected) < 4 * (expected * (1 - expected) / trials) ** 0.5

    about(jittered.mean(), 0.8, n)
    about(columns["grey"].mean(), 0.2, n)
    about((columns["sigma"] != 0).mean(), 0.1, n)
    about(columns["solarised"].mean(), 0.2, n)
    spans = {"brightness": (0.6, 1.4), "contrast": (0.0, 2.6), "saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
    spans["sigma"] = (0.1, 2.0)
    for name, (low, high) in spans.items():
        applied = columns["sigma"] != 0 if name == "sigma" else jittered
        values, width = columns[name][applied], high - low
        assert low - 1e-6 <= values.min() < low + 0.05 * width
        assert high - 0.05 * width < values.max() <= high + 1e-6
        assert abs(values.mean() - (low + high) / 2) < 4 * width / (12 * len(values)) ** 0.5
        assert set(columns[name][~applied].tolist()) == {0.0 if name in ("hue", "sigma") else 1.0}
    orders = np.stack([columns[f"order_{place}"] for place in range(4)], axis=1)
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    assert (orders[~jittered] == np.arange(4)).all()
    counts = np.unique(orders[jittered], axis=0, return_counts=True)[1]
    assert len(counts) == 24
    expected = jittered.sum() / 24
    assert ((counts - expected) ** 2 / expected).sum() < 60  # chi-square, 23 degrees: p = 4e-5
    # one number each: no operation follows another
    names = ("brightness", "contrast", "saturation", "hue", "grey", "solarised", "sigma")
    both = jittered & (columns["sigma"] != 0)
    for chosen, count in ((jittered, 6), (both, 7)):
        table = np.stack([columns[name][chosen] for name in names[:count]])
        assert np.abs(np.corrcoef(table) - np.eye(count)).max() < 4.5 / chosen.sum() ** 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jitter", 1.1),
        ("grey", -0.1),
        ("blur", float("nan")),
        ("solarise", 2),
        ("brightness", -0.4),
        ("contrast", float("inf")),
        ("saturation", -1),
        ("hue", 0.6),
        ("hue", -0.1),
        ("blur_sigma", (0.0, 2.0)),
        ("blur_sigma", (2.0, 0.1)),
        ("blur_sigma", (0.1, float("nan"))),
        ("blur_kernel", 22),
        ("blur_kernel", -1),
        ("solarise_threshold", 128),
    ],
)
def test_bad_configurations_are_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^{name}[. 0-9]*is .*; it must "):
        Photometric(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "rows", "message"),
    [
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 12), "RGB"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 12), "uint8"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(3, 12), "one draw"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 12, device="meta"), "cpu"),
    ],
)
def test_bad_tensors_are_named(images: Tensor, rows: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply(images, rows, ALL)


PINNED = [1, 1, 2, 0, 3, 0.8684974, 0.9582486, 0.8836203, -0.0218238, 0, 1.3932854, 0]
