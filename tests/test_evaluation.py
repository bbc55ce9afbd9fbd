"""Evaluation: the probes against scikit-learn, equivariance against extractors that have it or not, records."""

import json
import math
import os
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from equimid.backbones import Features, create_backbone
from equimid.data import ArraySource, open_source
from equimid.errors import UnreadableImage, UserError
from equimid.evaluation import (
    EvaluationConfig,
    FeatureTable,
    Preprocessing,
    Scope,
    draw_feature_maps,
    embed,
    knn_predictions,
    measure_equivariance,
    measure_knn,
    measure_linear,
    pixels,
)
from equimid.evaluation.equivariance import pose_kinds
from equimid.records import SCHEMA, Record, read_records, write_records

CPU = torch.device("cpu")
SCOPE = Scope("backbone", "drawn", 0, "abc")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def drawn(n=6, size=(16, 16), labels=True, seed=0, cell=4):
    """n images of random colours in cells of `cell` px; size is (width, height)."""
    rng = np.random.default_rng(seed)
    width, height = size
    cells = rng.integers(0, 256, (n, -(-height // cell), -(-width // cell), 3), dtype=np.uint8)
    return ArraySource(
        name="drawn",
        split="all",
        labels=rng.integers(0, 3, n) if labels else None,
        classes=("a", "b", "c") if labels else (),
        images=cells.repeat(cell, 1).repeat(cell, 2)[:, :height, :width],
        numbers=np.arange(n),
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


# --- equivariance


def unspoilt(maps):
    return maps


def shifted(maps):
    return maps.roll(1, -1)


def placed(maps):
    """Channels that say where they are."""
    rows = torch.linspace(-2, 2, maps.shape[2])[:, None].expand(maps.shape[2:])
    columns = torch.linspace(-2, 2, maps.shape[3])[None, :].expand(maps.shape[2:])
    return torch.cat([maps[:, :2] + rows, maps[:, 2:4] + columns, maps[:, 4:]], dim=1)


class Stub(nn.Module):
    """Token maps that are, in every layer, one linear function of each patch's mean colour, then `spoil`."""

    def __init__(self, spoil=unspoilt, depth=2, grid=4, patch=4, width=8):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Identity() for _ in range(depth))
        self.patch_embed = SimpleNamespace(patch_size=(patch, patch))
        side = grid * patch
        self.pretrained_cfg = {"input_size": (3, side, side), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.25,) * 3}
        rng = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(depth, width, 3, generator=rng))
        self.register_buffer("bias", torch.randn(depth, width, 1, 1, generator=rng))
        self.patch, self.spoil = patch, spoil

    def token_maps(self, images, layers):
        assert not self.training
        patches = F.avg_pool2d(images, self.patch)
        return {
            layer: self.spoil(
                torch.einsum("dc,nchw->ndhw", self.weight[layer - 1], patches) + self.bias[layer - 1]
            )
            for layer in layers
        }  # fmt: skip


KINDS = ("quarter turns", "flip", "scale")


def measured(backbone, source, scope=SCOPE, images=256):
    """{(metric, subject, kind, layer): record}"""
    records = measure_equivariance(backbone, source, EvaluationConfig(equivariance_images=images), scope, device=CPU)
    found = {(r.metric, r.subject, r.details["kind"], r.details["layer"]): r for r in records}
    assert len(found) == len(records)
    return found


def test_exact_equivariance_is_measured_as_one():
    found = measured(Stub(), drawn(8))
    for (metric, subject, kind, layer), record in found.items():
        if subject == "backbone" and kind != "scale":
            assert record.value == pytest.approx(1, abs=1e-5), (metric, kind, layer)
        if subject == "mismatched" and metric == "centred_cosine":
            assert abs(record.value) < 0.5, (kind, layer)
        if subject == "mismatched":
            assert record.value < found[metric, "backbone", kind, layer].value - 0.1


@pytest.mark.parametrize("spoil", [shifted, placed])
@pytest.mark.parametrize("kind", ["quarter turns", "flip"])
def test_what_is_not_equivariant_scores_lower(spoil, kind):
    found = measured(Stub(spoil), drawn(8))
    for layer in (1, 2):
        assert found["centred_cosine", "backbone", kind, layer].value < 0.9
        assert found["cosine", "backbone", kind, layer].value < 0.97


def test_every_layer_and_kind_is_recorded():
    found = measured(Stub(depth=3), drawn(5))
    expected = {
        (metric, subject, kind, layer)
        for metric in ("cosine", "centred_cosine")
        for subject in ("backbone", "mismatched")
        for kind in KINDS
        for layer in (1, 2, 3)
    }
    assert set(found) == expected
    for record in found.values():
        assert record.evaluation == "equivariance"
        assert record.n == 5
        assert record.low <= record.value <= record.high
    random = measured(Stub(depth=3), drawn(5), replace(SCOPE, subject="random"))
    assert set(random) == {(m, "random", k, layer) for m, s, k, layer in expected if s == "backbone"}


def test_layers_are_told_apart():
    """Only layer 2 is spoilt."""

    class Half(Stub):
        def token_maps(self, images, layers):
            maps = super().token_maps(images, layers)
            return {layer: shifted(m) if layer == 2 else m for layer, m in maps.items()}

    found = measured(Half(), drawn(8))
    assert found["cosine", "backbone", "flip", 1].value == pytest.approx(1, abs=1e-5)
    assert found["cosine", "backbone", "flip", 2].value < 0.97


@pytest.mark.parametrize(
    ("available", "wanted", "used"), [(2, 256, 2), (32, 32, 32), (33, 256, 32), (40, 33, 32), (35, 34, 34)]
)
def test_every_image_has_another_one_to_be_compared_with(available, wanted, used):
    """A last batch of one image is left out."""
    found = measured(Stub(depth=1), drawn(available), images=wanted)
    assert {record.n for record in found.values()} == {used}
    assert found["cosine", "mismatched", "flip", 1].value < 0.95


def test_one_image_is_not_enough():
    with pytest.raises(ValueError, match="equivariance needs other images"):
        measured(Stub(), drawn(1))


def test_centring_takes_a_common_vector_away():
    """A large vector that all tokens share hides that the maps do not correspond."""

    def common(maps):
        direction = torch.linspace(-1, 1, maps.shape[1])[:, None, None]
        return shifted(maps) + 30 * direction

    found = measured(Stub(common), drawn(16))
    assert found["cosine", "backbone", "flip", 1].value > 0.97
    assert found["centred_cosine", "backbone", "flip", 1].value < 0.7


def test_a_transformer_lies_between_its_references():
    backbone = create_backbone(
        "vit_tiny_patch16_224", 1, (1,), img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3
    )
    backbone.pretrained_cfg = Stub().pretrained_cfg
    found = measured(backbone.train(), drawn(12))
    values = defaultdict(list)
    for (_, subject, _, _), record in found.items():
        assert -1 <= record.value <= 1
        values[subject].append(record.value)
    assert {layer for *_, layer in found} == {1, 2, 3}
    assert np.mean(values["mismatched"]) <= np.mean(values["backbone"])


@pytest.mark.parametrize("grid", range(2, 21))
def test_scaled_grids_are_others_than_the_upright_one(grid):
    kinds = pose_kinds(grid)
    assert tuple(kinds) == KINDS
    sizes = [size for _, _, size in kinds["scale"]]
    assert (grid, grid) not in sizes
    assert len(set(sizes)) == 4
    assert all(side >= 1 and side != grid for size in sizes for side in size)
    assert any(h != w for h, w in sizes)
    assert kinds["quarter turns"] == [(turns, False, (grid, grid)) for turns in (1, 2, 3)]
    assert kinds["flip"] == [(0, True, (grid, grid))]
    assert all(not turns and not flip for turns, flip, _ in kinds["scale"])


# --- pictures


@pytest.mark.parametrize("grid", [2, 4])
def test_feature_maps_are_drawn(tmp_path, grid):
    records = draw_feature_maps(Stub(depth=3, grid=grid), drawn(5), [1, 3], tmp_path, SCOPE, device=CPU, images=2)
    assert [r.details["layer"] for r in records] == [1, 3]
    for record in records:
        assert (record.evaluation, record.metric, record.value, record.n) == ("feature_maps", "picture", None, 2)
        assert f"Layer {record.details['layer']}:" in record.details["caption"]
        assert not os.path.isabs(record.picture)
        with Image.open(tmp_path / record.picture) as picture:
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("L")).std() > 10
    assert len({(tmp_path / r.picture).read_bytes() for r in records}) == 2
    read = tmp_path / "records.jsonl"
    write_records(read, records)
    assert read_records(read) == records


def test_feature_maps_are_of_a_larger_grid_whatever_the_image(tmp_path):
    for grid in range(2, 9):
        seen = []

        class Watched(Stub):
            def token_maps(self, images, layers, seen=seen):
                seen.append(images.shape[-1] // self.patch)
                return super().token_maps(images, layers)

        draw_feature_maps(Watched(grid=grid), drawn(2), [1], tmp_path, SCOPE, device=CPU, images=1)
        assert seen[0] == grid
        assert seen[1] > grid


def test_pictures_of_other_data_stand_beside(tmp_path):
    """Records of other data stay in the file, so their pictures must stay too."""
    first = draw_feature_maps(Stub(), drawn(2), [1], tmp_path, SCOPE, device=CPU, images=1)
    kept = (tmp_path / first[0].picture).read_bytes()
    other = replace(SCOPE, data="some/other data")
    second = draw_feature_maps(Stub(), drawn(2, seed=1), [1], tmp_path, other, device=CPU, images=1)
    assert second[0].picture != first[0].picture
    assert (tmp_path / first[0].picture).read_bytes() == kept
    again = draw_feature_maps(Stub(), drawn(2), [1], tmp_path, SCOPE, device=CPU, images=1)
    assert again == first


# --- records


def record(evaluation="knn", data="digits", value=90.0, **changes):
    return Record(evaluation, "top1", value, 360, "backbone", data, 0, "abc", unit="%", **changes)


def test_records_come_back_as_they_were(tmp_path):
    written = [
        record(low=88.5, high=91.25, details={"k": 20, "note": "Größe \u2028 β"}),
        record("feature_maps", value=None, picture="pictures/layer.png", details={"layer": 3, "caption": "a\nb"}),
    ]
    path = tmp_path / "records.jsonl"
    write_records(path, written)
    assert read_records(path) == written
    assert len(path.read_text().splitlines()) == 2


def test_second_measurement_replaces_and_other_data_adds(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, [record(value=10.0), record(value=11.0, details={"k": 1}), record("linear", value=20.0)])
    write_records(path, [record(value=50.0)])
    assert [(r.evaluation, r.value) for r in read_records(path)] == [("linear", 20), ("knn", 50)]
    write_records(path, [record(data="mnist", value=60.0)])
    assert [(r.evaluation, r.data, r.value) for r in read_records(path)] == [
        ("linear", "digits", 20),
        ("knn", "digits", 50),
        ("knn", "mnist", 60),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b'{"evaluation": "knn", "metric"',
        b'{"schema": 1}',
        b'{"evaluation": "knn"}',
        b"[1, 2]",
        b"17",
        b'{"schema": "one"}',
        b"\x00\x00\x00\x00",
        b'{"schema": 1, "evaluation": "\xff\xfe"}',
    ],
)
def test_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "records.jsonl"
    write_records(path, [record()])
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=r"records\.jsonl, line 3 is not a record"):
        read_records(path)


def test_newer_records_ask_for_a_newer_version(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, [record(), record("linear")])
    newer = json.loads(path.read_text().splitlines()[0]) | {"schema": SCHEMA + 1, "unheard_of": 1}
    path.write_text(path.read_text() + json.dumps(newer) + "\n")
    with pytest.raises(UserError, match=r"line 3: written by a newer version.*update"):
        read_records(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="newer version"):
        write_records(path, [record(value=1.0)])
    assert path.read_bytes() == before


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    write_records(path, [record(value=10.0)])
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            write_records(path, [record(value=20.0)])
    assert path.read_bytes() == before
    write_records(path, [record(value=30.0)])  # what the failed one left does no harm
    assert [r.value for r in read_records(path)] == [30.0]


def test_a_number_added_to_a_token_changes_nothing():
    """Tokens are normalised before they are compared."""
    plain, raised = measured(Stub(), drawn(8)), measured(Stub(lambda maps: maps + 100), drawn(8))
    for key, record in plain.items():
        assert raised[key].value == pytest.approx(record.value, abs=1e-3), key


def test_the_mean_token_is_that_of_all_batches():
    def common(maps):
        return shifted(maps) + 30 * torch.linspace(-1, 1, maps.shape[1])[:, None, None]

    assert measured(Stub(common), drawn(40))["centred_cosine", "mismatched", "flip", 1].value < 0.5
