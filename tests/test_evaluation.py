"""Evaluation: settings, scope, features and how images are brought to a network."""

import math
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.backbones import Encoder
from equimid.data import ArraySource
from equimid.errors import UnreadableImage, UserError
from equimid.evaluation import EvaluationConfig, Pixels, Preprocessing
from equimid.features import Features
from helpers.drawing import MEAN, SCOPE, STD, drawn
from helpers.probing import study


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"crop": 0.0}, "crop"),
        ({"knn_k": 0}, "knn_k"),
        ({"knn_temperature": 0.0}, "knn_temperature"),
        ({"knn_temperature": math.nan}, "knn_temperature"),
        ({"linear_epochs": 0}, "linear_epochs"),
        ({"linear_rates": ()}, "linear_rates"),
        ({"linear_rates": (0.1, -1.0)}, "linear_rates"),
        ({"linear_rates": (0.1, math.inf)}, "linear_rates"),
        ({"linear_rates": (0.1, math.nan)}, "linear_rates"),
        ({"held_out": 0.6}, "held_out"),
        ({"linear_batch": 0}, "linear_batch"),
        ({"mlp_rates": ()}, "mlp_rates"),
        ({"mlp_width": 0}, "mlp_width"),
        ({"attentive_rates": (0.0,)}, "attentive_rates"),
        ({"attentive_heads": 0}, "attentive_heads"),
        ({"fewshot_per_class": ()}, "fewshot_per_class"),
        ({"fewshot_per_class": (5, 0)}, "fewshot_per_class"),
        ({"fewshot_draws": 0}, "fewshot_draws"),
        ({"equivariance_images": 1}, "equivariance_images"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        EvaluationConfig(**setting)


# --- scope


def test_accuracy_has_wilsons_interval():
    """8 of 10: (p + z²/2n ± z sqrt(p q / n + z²/4n²)) / (1 + z²/n), z = 1.959964."""
    record = SCOPE.accuracy("knn", np.array([True] * 8 + [False] * 2), {"k": 3})
    assert (record.value, record.n, record.unit, record.details) == (80, 10, "%", {"k": 3})
    assert record.low == pytest.approx(49.016, abs=0.01)
    assert record.high == pytest.approx(94.332, abs=0.01)
    perfect = SCOPE.accuracy("knn", np.ones(50, dtype=bool), {})
    assert perfect.low == pytest.approx(100 * 50 / (50 + 1.959964**2), abs=0.01)
    assert perfect.high == 100


def test_mean_has_a_normal_interval():
    record = SCOPE.mean("equivariance", "cosine", np.array([0.1, 0.2, 0.6]), {"layer": 1}, subject="mismatched")
    error = 1.96 * math.sqrt((0.04 + 0.01 + 0.09) / 2) / math.sqrt(3)
    assert record.value == pytest.approx(0.3)
    assert (record.low, record.high) == (pytest.approx(0.3 - error), pytest.approx(0.3 + error))
    assert (record.subject, record.data, record.seed, record.checkpoint, record.n) == (
        "mismatched",
        "drawn",
        0,
        "abc",
        3,
    )
    single = SCOPE.mean("equivariance", "cosine", np.array([0.5]), {})
    assert (single.value, single.low, single.high, single.subject) == (0.5, None, None, "backbone")


# --- features


class ColourMean(Encoder):
    """CLS = the mean colour of what it is shown."""

    depth, embed_dim, patch_size = 0, 3, 1
    pretrained_cfg: ClassVar = {"input_size": (3, 16, 16), "crop_pct": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}

    def forward_features(self, images, layers=()):
        assert not self.training
        return Features(images.mean((2, 3)))


def test_embeddings_are_in_the_order_of_the_labels():
    source = drawn(150)
    told = []

    @contextmanager
    def bar(what):
        yield lambda done, total: told.append((done, total))

    table = replace(study(encoder=ColourMean()), bar=bar).features(source)
    assert table.features.dtype == torch.float32
    assert torch.equal(table.labels, torch.from_numpy(source.labels))
    expected = torch.from_numpy(source.images).float().mean((1, 2)) / 255
    assert torch.allclose(table.features, expected, atol=1e-6)
    assert told == [(64, 150), (128, 150), (150, 150)]


def test_pixels_are_the_images_at_32_px():
    source = drawn(5, size=(32, 32))
    table = study(encoder=Pixels()).features(source)
    assert table.features.shape == (5, 3 * 32 * 32)
    assert torch.equal(table.labels, torch.from_numpy(source.labels))
    expected = torch.from_numpy(source.images).permute(0, 3, 1, 2).flatten(1).float() / 127.5 - 1
    assert torch.allclose(table.features, expected, atol=1e-6)
    assert study(encoder=Pixels()).features(drawn(3, size=(50, 20))).features.shape == (3, 3072)


def test_labels_are_needed_for_tables():
    with pytest.raises(UserError, match="no labels"):
        study().features(drawn(5, labels=False))


def test_unreadable_image_is_named():
    class Torn(ArraySource):
        def load(self, i):
            if i == 2:
                raise UnreadableImage("truncated")
            return super().load(i)

        def fingerprint(self):
            return "torn"

    whole = drawn(4)
    torn = Torn(name="drawn", split="all", labels=whole.labels, images=whole.images, numbers=whole.numbers)
    with pytest.raises(UserError, match=r"drawn\[2\].*truncated"):
        study().features(torn)


def as_image(array):
    return Image.fromarray(array.astype(np.uint8))


def test_image_of_the_size_is_only_normalised():
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    x = Preprocessing(20, 1.0, MEAN, STD)(as_image(image))
    expected = (image / 255 - np.array(MEAN)) / np.array(STD)
    assert np.allclose(x.permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (22, 20)])
def test_other_shapes_are_cut_in_the_centre(size):
    """Coloured bars beside a square centre: none of them is seen, all of the centre is."""
    width, height = size
    image = np.full((height, width, 3), (255, 0, 0))
    left, top = (width - 20) // 2, (height - 20) // 2
    centre = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    image[top : top + 20, left : left + 20] = centre
    x = Preprocessing(20, 1.0, (0.0,) * 3, (1.0,) * 3)(as_image(image))
    assert x.shape == (3, 20, 20)
    assert np.array_equal((x * 255).round().permute(1, 2, 0).numpy(), centre)


def test_centre_is_the_centre_to_half_a_pixel():
    image = np.random.default_rng(0).integers(0, 256, (20, 25, 3))
    preprocessing = Preprocessing(20, 0.9, MEAN, STD)
    x, mirrored = preprocessing(as_image(image)), preprocessing(as_image(image[:, ::-1]))
    assert torch.allclose(x, mirrored.flip(-1), atol=2 / 255 / min(STD))


def test_crop_shows_that_share_of_the_centre():
    """A ramp from 0 to 1: of a crop of 0.875, the first and the last value are 1/16 from the ends."""
    ramp = np.linspace(0, 255, 256)[None, :, None].repeat(256, 0).repeat(3, 2)
    x = Preprocessing(224, 0.875, (0.0,) * 3, (1.0,) * 3)(as_image(ramp))
    assert x[0, 100, 0].item() == pytest.approx(1 / 16, abs=0.006)
    assert x[0, 100, -1].item() == pytest.approx(15 / 16, abs=0.006)
    small = Preprocessing(56, 0.875, (0.0,) * 3, (1.0,) * 3)(as_image(ramp.transpose(1, 0, 2)))
    assert small[0, 0, 20].item() == pytest.approx(1 / 16, abs=0.015)
    assert small[0, -1, 20].item() == pytest.approx(15 / 16, abs=0.015)


def test_preprocessing_reads_timms_keys():
    config = {"input_size": [3, 48, 48], "crop_pct": 0.9, "mean": list(MEAN), "std": list(STD)}
    assert Preprocessing.of(config) == Preprocessing(48, 0.9, MEAN, STD)
    del config["crop_pct"]
    assert Preprocessing.of(config).crop == 1.0
