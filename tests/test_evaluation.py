"""Evaluation: the probes against scikit-learn, equivariance against extractors that have it or not, records."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from drawing import CPU, MEAN, SCOPE, STD, drawn
from equimid.backbones import Features
from equimid.data import ArraySource, open_source
from equimid.errors import UnreadableImage, UserError
from equimid.evaluation import (
    EvaluationConfig,
    FeatureTable,
    Preprocessing,
    embed,
    knn_predictions,
    measure_knn,
    measure_linear,
    pixels,
)


def clusters(n, classes=4, width=8, spread=0.1, seed=0):
    """Features that lie around one corner a class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    features = np.eye(classes, width)[labels] * 3 + spread * rng.normal(size=(n, width))
    return FeatureTable(torch.from_numpy(features).float(), torch.from_numpy(labels))


def digits_table(split):
    source = open_source("digits", split)
    features = torch.from_numpy(source.images.reshape(len(source), -1)).float() / 127.5 - 1
    return FeatureTable(features, torch.from_numpy(source.labels))


# --- kNN


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (200, 0.02)])
def test_knn_is_that_of_scikit_learn(k, temperature):
    rng = np.random.default_rng(k)
    x, y, queries = rng.normal(size=(300, 10)), rng.integers(0, 7, 300), rng.normal(size=(1500, 10))
    peer = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(x, y)
    found = knn_predictions(
        FeatureTable(torch.from_numpy(x).float(), torch.from_numpy(y)),
        torch.from_numpy(queries).float(),
        k,
        temperature,
    )
    votes = np.sort(peer.predict_proba(queries), axis=1)
    clear = votes[:, -1] - votes[:, -2] > 1e-4
    assert clear.mean() > 0.99
    assert np.array_equal(found.numpy()[clear], peer.predict(queries)[clear])


def test_knn_with_more_neighbours_than_images_asks_all():
    train = clusters(12)
    test = clusters(40, seed=1)
    assert torch.equal(knn_predictions(train, test.features, 100, 0.1), knn_predictions(train, test.features, 12, 0.1))
    record = measure_knn(train, test, EvaluationConfig(knn_k=100, knn_temperature=0.1), SCOPE)[0]
    assert record.value == 100
    assert record.n == 40


@pytest.mark.parametrize("temperature", [1e-3, 1e-8, 1e-30])
def test_knn_at_a_small_temperature_follows_the_nearest(temperature):
    rng = np.random.default_rng(0)
    train = FeatureTable(torch.from_numpy(rng.normal(size=(60, 3))).float(), torch.from_numpy(rng.integers(0, 5, 60)))
    queries = torch.from_numpy(rng.normal(size=(50, 3))).float()
    similarity = F.normalize(queries, dim=1) @ F.normalize(train.features, dim=1).T
    top = similarity.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 0.01  # at 1e-3 the second one's vote is then e^-10
    assert clear.sum() > 20
    nearest = train.labels[similarity.argmax(1)]
    assert torch.equal(knn_predictions(train, queries, 20, temperature)[clear], nearest[clear])


def test_knn_class_that_only_the_test_has_is_never_right():
    train, test = clusters(12), clusters(40, seed=1)
    unknown = FeatureTable(test.features, test.labels + 4)
    assert measure_knn(train, unknown, EvaluationConfig(), SCOPE)[0].value == 0


# --- linear probe

SHORT = EvaluationConfig(linear_epochs=20)


def test_linear_probe_separates_what_is_separable():
    (record,) = measure_linear(clusters(400), clusters(400, seed=1), SHORT, SCOPE)
    assert record.value > 99
    assert (record.evaluation, record.metric, record.unit, record.n) == ("linear", "top1", "%", 400)


def test_linear_probe_is_near_scikit_learn_on_digits():
    train, test = digits_table("train"), digits_table("test")
    peer = LogisticRegression(max_iter=1000).fit(train.features.numpy(), train.labels.numpy())
    expected = 100 * peer.score(test.features.numpy(), test.labels.numpy())
    (record,) = measure_linear(train, test, EvaluationConfig(linear_epochs=40), SCOPE)
    assert abs(record.value - expected) < 3
    assert record.value > 90


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda y: (y + 1 + torch.arange(len(y)) % 3) % 4,
        lambda y: y + 5,  # classes that training does not have
    ],
)
def test_rate_and_head_do_not_see_the_test_labels(corrupt):
    """Overlapping clusters and few epochs, so that the rates differ; the head's predictions are the same too."""
    train, test = clusters(300, spread=2.5), clusters(300, spread=2.5, seed=1)
    config = EvaluationConfig(linear_epochs=3)
    (true,) = measure_linear(train, test, config, SCOPE)
    corrupted = FeatureTable(test.features, corrupt(test.labels))
    (false,) = measure_linear(train, corrupted, config, SCOPE)
    assert false.details == true.details
    assert false.value < true.value


def test_rate_is_chosen_by_the_held_out_images():
    """Rates that are too small to learn anything lose, wherever they stand in the grid."""
    for rates in ((1e-9, 0.3), (0.3, 1e-9)):
        config = EvaluationConfig(linear_epochs=5, linear_rates=rates)
        (record,) = measure_linear(clusters(400, spread=0.7), clusters(200, spread=0.7, seed=1), config, SCOPE)
        assert record.details["rate"] == 0.3
        assert record.value > 95


@pytest.mark.parametrize("diverging", [1e6, 3e38])
def test_diverging_rate_does_no_harm(diverging):
    """Also where one class is so frequent that a head of NaN, if it counted as class 0, would look good."""
    train, test = clusters(300, spread=3), clusters(300, spread=3, seed=1)
    for number in (train, test):
        number.labels[torch.arange(300) % 10 != 0] = 0
    alone = measure_linear(train, test, replace(SHORT, linear_rates=(1e-3, 1e-2)), SCOPE)[0]
    beside = measure_linear(train, test, replace(SHORT, linear_rates=(1e-3, 1e-2, diverging)), SCOPE)[0]
    assert math.isfinite(beside.value)
    assert beside.value >= alone.value - 3


def test_head_that_diverged_to_nan_is_never_right():
    """Argmax of NaN is 0; were that a prediction, nine in ten would be right here."""
    train = clusters(300)
    train.labels[torch.arange(300) % 10 != 0] = 0
    (record,) = measure_linear(train, train, replace(SHORT, linear_rates=(3e38,)), SCOPE)
    assert record.value == record.details["held_out_top1"] == 0


def test_linear_probe_is_a_function_of_its_seed():
    train, test = clusters(200, spread=2), clusters(200, spread=2, seed=1)
    config = EvaluationConfig(linear_epochs=2)
    first, again = (measure_linear(train, test, config, SCOPE) for _ in range(2))
    assert first == again
    others = [measure_linear(train, test, config, replace(SCOPE, seed=seed))[0] for seed in (1, 2, 3)]
    values = {(r.value, r.details["held_out_top1"]) for r in (*first, *others)}
    assert len(values) > 1


@pytest.mark.parametrize(
    ("rates", "warned"),
    [
        ((1e-9, 1e-8, 0.1), True),
        ((1e-9, 0.1, 1e-8), True),  # the greatest, though not the last
        ((0.1, 1e-9, 1.0), False),
        ((1e-9, 0.1, 1e5), False),
    ],
)
def test_linear_probe_says_when_the_grid_ends_too_early(rates, warned):
    train = clusters(300, spread=1.5)
    config = EvaluationConfig(linear_epochs=5, linear_rates=rates)
    (record,) = measure_linear(train, clusters(100, seed=1), config, SCOPE)
    assert record.details["rate"] == 0.1
    assert ("warning" in record.details) == warned


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


class ColourMean(nn.Module):
    """CLS = the mean colour of what it is shown, while it is in eval mode."""

    def __init__(self, size=16):
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, size, size), "crop_pct": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}

    def forward(self, images):
        assert not self.training
        return Features(images.mean((2, 3)))


def test_embeddings_are_in_the_order_of_the_labels():
    source = drawn(11)
    told = []
    table = embed(
        ColourMean(), source, device=CPU, batch_size=4, progress=lambda done, total: told.append((done, total))
    )
    assert table.features.dtype == torch.float32
    assert torch.equal(table.labels, torch.from_numpy(source.labels))
    expected = torch.from_numpy(source.images).float().mean((1, 2)) / 255
    assert torch.allclose(table.features, expected, atol=1e-6)
    assert told == [(4, 11), (8, 11), (11, 11)]


def test_pixels_are_the_images_at_32_px():
    source = drawn(5, size=(32, 32))
    table = pixels(source)
    assert table.features.shape == (5, 3 * 32 * 32)
    assert torch.equal(table.labels, torch.from_numpy(source.labels))
    expected = torch.from_numpy(source.images).permute(0, 3, 1, 2).flatten(1).float() / 127.5 - 1
    assert torch.allclose(table.features, expected, atol=1e-6)
    assert pixels(drawn(3, size=(50, 20))).features.shape == (3, 3072)


def test_labels_are_needed_for_tables():
    source = drawn(5, labels=False)
    with pytest.raises(ValueError, match="no labels"):
        pixels(source)
    with pytest.raises(ValueError, match="no labels"):
        embed(ColourMean(), source, device=CPU)


def test_unreadable_image_is_named():
    class Torn(ArraySource):
        def load(self, i):
            if i == 2:
                raise UnreadableImage("truncated")
            return super().load(i)

    whole = drawn(4)
    torn = Torn(name="drawn", split="all", labels=whole.labels, images=whole.images, numbers=whole.numbers)
    with pytest.raises(UserError, match=r"drawn\[2\].*truncated"):
        pixels(torn)


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
