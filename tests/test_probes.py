"""kNN and linear probe: against scikit-learn, blind to the test labels, functions of their seed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from equimid.errors import UserError
from equimid.evaluation import EvaluationConfig, FeatureTable
from equimid.evaluation.probes import fit_linear, heads, knn_predictions, measure_knn, measure_linear
from equimid.evaluation.probes.heads import Chooser, HeadGrid
from equimid.evaluation.probes.linear import choose_linear
from equimid.randomness import counted_generator
from helpers.drawing import CPU
from helpers.probing import PatchColours, clusters, coloured, digits_table, folders, probed, study

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


def test_knn_top1_on_digits_is_scikit_learns_within_a_fifth_of_a_point():
    train, test = digits_table("train"), digits_table("test")
    peer = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    peer.fit(train.features.numpy(), train.labels.numpy())
    found = knn_predictions(train, test.features, 20, 0.07)
    top1 = 100 * float((found == test.labels).float().mean())
    assert abs(top1 - 100 * peer.score(test.features.numpy(), test.labels.numpy())) <= 0.2


def test_knn_with_more_neighbours_than_images_asks_all_and_says_so(tmp_path):
    train, test = clusters(12), clusters(40, seed=1)
    assert torch.equal(knn_predictions(train, test.features, 100, 0.1), knn_predictions(train, test.features, 12, 0.1))
    data = folders(tmp_path, {"train/a": 6, "train/b": 5, "test/a": 3, "test/b": 4})
    (record,) = measure_knn(study(EvaluationConfig(knn_k=100, knn_temperature=0.1)), data)
    assert (record.value, record.n, record.details["k"]) == (100, 7, 11)
    assert "100 neighbours" in record.details["warning"]
    (enough,) = measure_knn(study(EvaluationConfig(knn_k=11)), data)
    assert enough.details == {"k": 11, "temperature": 0.07}


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


def test_labelled_training_images_may_lie_elsewhere(tmp_path):
    """With them, all of the data is tested on; its own training part is not trained on."""
    data = folders(tmp_path / "data", {"a": 7, "b": 9}, spread=5)
    train = folders(tmp_path / "labelled", {"a": 5, "b": 5}, spread=5)
    for measure in (measure_knn, measure_linear):
        (record,) = measure(study(EvaluationConfig(knn_k=3, linear_epochs=30)), data, train)
        assert (record.value, record.n) == (100, 16)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train/a": 3, "train/b": 3, "test/a": 2, "test/c": 2}, "do not match: b only in the training images, c only"),
        ({"train/a": 3, "test/a": 2}, "no labels"),
        ({"train/a": 1, "train/b": 1, "test/a": 2, "test/b": 2}, "at least two images of one class"),
    ],
)
def test_data_that_a_linear_probe_cannot_use_are_refused(tmp_path, counts, message):
    with pytest.raises(UserError, match=message):
        measure_linear(study(), folders(tmp_path, counts))


def test_images_of_one_class_are_refused():
    with pytest.raises(UserError, match="12 training images in 1 class"):
        fit_linear(study(), coloured(36).take(np.arange(0, 36, 3)))


# --- linear probe

SHORT = EvaluationConfig(linear_epochs=20)


def test_linear_probe_separates_what_is_separable(tmp_path):
    top1, details = probed(clusters(400), clusters(400, seed=1), SHORT)
    assert top1 > 99
    assert details["epochs"] == 20
    data = folders(tmp_path, {f"{part}/{c}": 8 for part in ("train", "test") for c in "abc"}, spread=5)
    (record,) = measure_linear(study(EvaluationConfig(linear_epochs=30)), data)
    assert (record.evaluation, record.metric, record.unit, record.n) == ("linear", "top1", "%", 24)
    assert record.value == 100
    assert record.details["features"] == "cls"


def test_linear_probe_is_near_scikit_learn_on_digits():
    train, test = digits_table("train"), digits_table("test")
    peer = LogisticRegression(max_iter=1000).fit(train.features.numpy(), train.labels.numpy())
    expected = 100 * peer.score(test.features.numpy(), test.labels.numpy())
    top1, _ = probed(train, test, EvaluationConfig(linear_epochs=40))
    assert abs(top1 - expected) < 3
    assert top1 > 90


def test_heads_of_a_grid_are_those_that_torch_trains_alone():
    """Two epochs of SGD by autograd, in the order of the counted generator; the batch does not divide the images."""
    x, y, rates, epochs, batch = clusters(70, spread=1).features, clusters(70).labels, (0.1, 2.0), 2, 32
    grid = HeadGrid(rates, 4, 8, counted_generator(3, "start"), CPU)
    twins = []
    for number, rate in enumerate(rates):
        layer = torch.nn.Linear(8, 4)
        with torch.no_grad():
            layer.weight.copy_(grid.head(number)[0])
            layer.bias.zero_()
        twins.append((layer, torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)))
    for epoch in range(epochs):
        scale = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        for rows in torch.randperm(70, generator=torch.Generator().manual_seed(epoch)).split(batch):
            grid.step(x[rows], y[rows], scale, len(rows))
            for (layer, optimizer), rate in zip(twins, rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * scale
                optimizer.zero_grad()
                F.cross_entropy(layer(x[rows]), y[rows]).backward()
                optimizer.step()
    for number, (layer, _) in enumerate(twins):
        weight, bias = grid.head(number)
        assert torch.allclose(weight, layer.weight, atol=1e-5)
        assert torch.allclose(bias, layer.bias, atol=1e-5)
    assert weight.norm() > 1


def test_learning_rate_is_of_256_images():
    """A batch of 64 at rate r steps as far as one of 256 at r / 4 would: the first step of one full batch."""
    table = clusters(64, spread=1)
    config = EvaluationConfig(linear_epochs=1, linear_rates=(0.8,), linear_batch=1000)
    weight, bias, _ = choose_linear(table, 4, config, 0, CPU)
    layer = torch.nn.Linear(8, 4)
    with torch.no_grad():
        start = counted_generator(0, "linear probe").normal(0, 0.01, size=(4, 8))
        layer.weight.copy_(torch.from_numpy(start))
        layer.bias.zero_()
    F.cross_entropy(layer(table.features), table.labels).backward()
    assert torch.allclose(weight, layer.weight - 0.2 * layer.weight.grad, atol=1e-6)
    assert torch.allclose(bias, layer.bias - 0.2 * layer.bias.grad, atol=1e-6)


def test_choice_is_by_accuracy_then_likelihood_then_the_latest_epoch_and_the_smallest_rate():
    chooser = Chooser((0.3, 0.1, 1.0))
    seen = [
        [(50, -1), (40, -1), (60, -9)],
        [(70, -2), (70, -1), (60, 0)],
        [(70, -1), (70, -1), (70, -1)],
        [(10, 0), (69, 0), (70, -math.inf)],
    ]
    assert [chooser.see(epoch, scores) for epoch, scores in enumerate(seen, start=1)] == [True, True, True, False]
    best = chooser.best
    assert (best.number, best.epoch, best.top1) == (1, 3, 70)


def test_scores_are_accuracy_and_likelihood_and_nan_is_the_worst(monkeypatch):
    monkeypatch.setattr(heads, "_ROWS", 6)  # in parts of three rows
    grid = HeadGrid((0.1, 0.1), 4, 8, counted_generator(0, "start"), CPU)
    table = clusters(10, spread=2)
    grid.weight[:4] = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    grid.weight[4:] = math.nan
    (right, likelihood), lost = grid.scores(table.features, table.labels)
    logits = table.features @ grid.weight[:4].T
    assert right == 10 * int((logits.argmax(1) == table.labels).sum())
    assert likelihood == pytest.approx(-float(F.cross_entropy(logits, table.labels)), rel=1e-5)
    assert lost == (0, -math.inf)


def test_head_is_trained_to_the_chosen_epoch_of_the_whole_schedule(monkeypatch):
    """Held-out accuracy is made to be best after epoch 8 of 10: the head is that of all images after 8 of 10 epochs."""
    train, config = clusters(60, spread=2), EvaluationConfig(linear_epochs=10, linear_rates=(0.5,))
    scores = iter([(90, 0), (30, 0), (40, 0)])
    monkeypatch.setattr(HeadGrid, "scores", lambda self, x, y: [next(scores)])
    weight, bias, details = choose_linear(train, 4, config, 0, CPU)
    assert (details["epoch"], details["held_out_top1"]) == (8, 90)
    assert next(scores, None) is None
    rng = counted_generator(0, "linear probe")
    grid = HeadGrid((0.5,), 4, 8, rng, CPU)
    for epoch in range(8):
        rows = torch.from_numpy(rng.permutation(60))
        grid.step(train.features[rows], train.labels[rows], 60 / 256 * (1 + math.cos(math.pi * epoch / 10)) / 2, 60)
    assert torch.allclose(weight, grid.head(0)[0], atol=1e-6)
    assert torch.allclose(bias, grid.head(0)[1], atol=1e-6)


def test_rate_epoch_and_head_do_not_see_the_test_labels(tmp_path):
    """The same test images in folders whose names are swapped: the same head, other accuracy."""
    config = EvaluationConfig(linear_epochs=3)
    counts = {f"{part}/{c}": n for part, n in (("train", 20), ("test", 12)) for c in "abc"}
    data = folders(tmp_path, counts, spread=70)
    (true,) = measure_linear(study(config), data)
    for old, new in (("a", "x"), ("b", "a"), ("c", "b"), ("x", "c")):
        (tmp_path / "test" / old).rename(tmp_path / "test" / new)
    (false,) = measure_linear(study(config), data)
    assert false.details == true.details
    assert false.value < true.value


def test_rate_is_chosen_by_the_held_out_images():
    """Rates that are too small to learn anything lose, wherever they stand in the grid."""
    for rates in ((1e-9, 0.3), (0.3, 1e-9)):
        config = EvaluationConfig(linear_epochs=5, linear_rates=rates)
        top1, details = probed(clusters(400, spread=0.7), clusters(200, spread=0.7, seed=1), config)
        assert details["rate"] == 0.3
        assert top1 > 95


@pytest.mark.parametrize("diverging", [1e6, 3e38])
def test_diverging_rate_does_no_harm(diverging):
    """Also where one class is so frequent that a head of NaN, if it counted as class 0, would look good."""
    train, test = clusters(300, spread=3), clusters(300, spread=3, seed=1)
    for number in (train, test):
        number.labels[torch.arange(300) % 10 != 0] = 0
    alone, _ = probed(train, test, replace(SHORT, linear_rates=(1e-3, 1e-2)))
    beside, _ = probed(train, test, replace(SHORT, linear_rates=(1e-3, 1e-2, diverging)))
    assert math.isfinite(beside)
    assert beside >= alone - 3


class Loud(PatchColours):
    def forward_features(self, images, layers=()):
        found = super().forward_features(images, layers)
        return replace(found, cls=found.cls * 1e4)


def test_head_that_diverged_to_nan_is_never_right(tmp_path):
    """Argmax of NaN is 0; were that a prediction, most would be right here."""
    train = clusters(300)
    train.labels[torch.arange(300) % 10 != 0] = 0
    config = replace(SHORT, linear_rates=(3e38,))
    top1, details = probed(train, train, config)
    assert top1 == details["held_out_top1"] == 0
    data = folders(tmp_path, {"train/a": 18, "train/b": 2, "test/a": 18, "test/b": 2}, spread=70)
    (record,) = measure_linear(study(config, Loud()), data)
    assert record.value == record.details["held_out_top1"] == 0


def test_linear_probe_is_a_function_of_its_seed():
    train, test = clusters(200, spread=2), clusters(200, spread=2, seed=1)
    config = EvaluationConfig(linear_epochs=2)
    first, again = (probed(train, test, config) for _ in range(2))
    assert first == again
    others = [probed(train, test, config, seed) for seed in (1, 2, 3)]
    assert len({(top1, details["held_out_top1"]) for top1, details in (first, *others)}) > 1


@pytest.mark.parametrize(
    ("rates", "warned"),
    [
        ((1e-9, 1e-8, 0.1), True),
        ((1e-9, 0.1, 1e-8), True),  # the greatest, though not the last
        ((0.1, 1e-9, 1e5), False),
        ((1e-9, 0.1, 1e5), False),
    ],
)
def test_linear_probe_says_when_the_grid_ends_too_early(rates, warned):
    config = EvaluationConfig(linear_epochs=5, linear_rates=rates)
    _, details = probed(clusters(300, spread=1.5), clusters(100, seed=1), config)
    assert details["rate"] == 0.1
    assert ("warning" in details) == warned


def test_four_last_blocks_are_read_where_asked():
    config = EvaluationConfig(linear_epochs=1, linear_features="last4")
    assert fit_linear(study(config), coloured(30)).weight.shape == (3, 16)  # two blocks of 8 columns
    assert fit_linear(study(EvaluationConfig(linear_epochs=1)), coloured(30)).weight.shape == (3, 8)
