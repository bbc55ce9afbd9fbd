"""Non-linear, attentive, few-shot and logistic probes, against scikit-learn, torch and arithmetic."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from equimid.errors import UserError
from equimid.evaluation import EvaluationConfig, FeatureTable, Pixels
from equimid.evaluation.probes import (
    attentive,
    logistic,
    measure_attentive,
    measure_fewshot,
    measure_logistic,
    measure_mlp,
    mlp,
)
from equimid.evaluation.probes.attentive import AttentivePooling
from equimid.evaluation.probes.heads import HeadTrainer
from equimid.evaluation.probes.logistic import choose_logistic, draw_images, fewshot_top1, fit_logistic, penalty_of
from equimid.evaluation.probes.mlp import fit_mlp
from equimid.randomness import counted_torch_seed
from helpers.drawing import CPU
from helpers.probing import PatchColours, clusters, coloured, digits_table, folders, probed, study


def parts(n, classes="abc"):
    return {f"{part}/{c}": n for part in ("train", "test") for c in classes}


# --- logistic


@pytest.mark.parametrize("penalty", [1e-1, 1e-3, 1e-5])
def test_logistic_probe_is_scikit_learns_on_digits(penalty):
    """C = 1 / (n λ); the minimum itself, and top-1 within 0.2 points. A far mean makes the centring matter."""
    train, test = digits_table("train"), digits_table("test")
    x, y = train.features[:600] + 3, train.labels[:600]
    queries = test.features + 3
    peer = LogisticRegression(C=1 / (len(x) * penalty), max_iter=20000, tol=1e-7).fit(x.double().numpy(), y.numpy())
    head = fit_logistic(x, y, 10, penalty, steps=5000)
    assert head.converged

    def objective(weight, probabilities):
        return log_loss(y.numpy(), probabilities) + penalty / 2 * float((weight**2).sum())

    ours = objective(head.weight.numpy(), head.logits(x).softmax(1).numpy())
    theirs = objective(peer.coef_, peer.predict_proba(x.double().numpy()))
    assert ours <= theirs * (1 + 1e-4)
    top1 = 100 * float((head.logits(queries).argmax(1) == test.labels).float().mean())
    assert abs(top1 - 100 * peer.score(queries.double().numpy(), test.labels.numpy())) <= 0.2
    again = fit_logistic(x, y, 10, penalty, start=head)
    assert torch.allclose(again.logits(queries), head.logits(queries), atol=0.05)


def test_logistic_rows_may_come_in_parts(monkeypatch):
    table = clusters(50, spread=1)
    whole = fit_logistic(table.features, table.labels, 4, 0.01)
    monkeypatch.setattr(logistic, "_ROWS", 7)
    parted = fit_logistic(table.features, table.labels, 4, 0.01)
    assert torch.allclose(whole.weight, parted.weight, atol=1e-4)
    assert torch.allclose(whole.logits(table.features), parted.logits(table.features), atol=1e-4)


def test_penalty_is_chosen_by_the_held_out_images_and_fitted_on_all(monkeypatch):
    """A fifth of the labels is chance, and so are 60 columns: a middle penalty reads best. The head is that of all."""
    rng = np.random.default_rng(0)
    table = clusters(200, spread=1)
    chance = torch.from_numpy(rng.random(200) < 0.2)
    labels = torch.where(chance, torch.from_numpy(rng.integers(0, 4, 200)), table.labels)
    table = FeatureTable(torch.cat([table.features, torch.from_numpy(rng.normal(0, 1, (200, 60))).float()], 1), labels)
    monkeypatch.setattr(logistic, "PENALTIES", (1e5, 1.0, 1e-6))
    head, details = choose_logistic(table, 4, 0.3, 0, CPU)
    assert details["penalty"] == 1.0
    assert "warning" not in details
    expected = fit_logistic(table.features, table.labels, 4, 1.0)
    assert torch.allclose(head.weight, expected.weight, atol=1e-5)
    monkeypatch.setattr(logistic, "PENALTIES", (1.0, 1e-6))
    assert "end of the grid" in choose_logistic(table, 4, 0.3, 0, CPU)[1]["warning"]


def test_logistic_grid_is_that_of_augself():
    assert len(logistic.PENALTIES) == 45
    assert (max(logistic.PENALTIES), min(logistic.PENALTIES)) == (1e5, pytest.approx(1e-6))


# --- few images


def test_few_shot_draws_n_of_each_class_and_larger_draws_hold_the_smaller():
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 4, 200))
    small, large = draw_images(labels, 2, 0, 0), draw_images(labels, 5, 0, 0)
    assert labels[small].bincount().tolist() == [2] * 4
    assert labels[large].bincount().tolist() == [5] * 4
    assert set(small) < set(large)
    others = [draw_images(labels, 2, seed, draw) for seed, draw in ((0, 1), (1, 0))]
    assert all(set(small) != set(other) for other in others)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_strength_is_that_of_scikit_learn(classes):
    table = clusters(120, spread=2)
    rows = table.labels < classes
    x, y = table.features[rows], table.labels[rows]
    head = fit_logistic(x, y, classes, penalty_of(0.1, len(x), classes))
    peer = LogisticRegression(C=0.1, max_iter=20000, tol=1e-8).fit(x.double().numpy(), y.numpy())
    found = head.logits(x).softmax(1).numpy()
    assert np.abs(found - peer.predict_proba(x.double().numpy())).max() < 1e-3


def test_few_shot_is_scikit_learns_on_centred_unit_features():
    """Overlapping classes far from the origin, rows of many lengths: with another preparation, other answers."""
    rng = np.random.default_rng(0)
    table = clusters(400, spread=2)
    x = (table.features.numpy() * np.exp(rng.normal(0, 0.7, (400, 1))) + 4).astype(np.float64)
    y, rows = table.labels.numpy(), draw_images(table.labels, 2, 0, 0)

    def top1(x):
        return 100 * LogisticRegression(C=10.0, max_iter=1000).fit(x[rows], y[rows]).score(x, y)

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    centred = x - x[rows].mean(0)
    table = FeatureTable(torch.from_numpy(x).float(), table.labels)
    assert fewshot_top1(table, table, rows) == pytest.approx(top1(unit(centred)), abs=0.3)
    for other in (unit(x), centred, unit(x - x.mean(0))):
        assert abs(top1(other) - top1(unit(centred))) > 0.4


def test_few_shot_interval_is_students_over_draws(tmp_path, monkeypatch):
    data = folders(tmp_path, parts(6, "ab"))
    values = iter([60.0, 70.0, 80.0, 90.0, 92.0, 94.0])
    monkeypatch.setattr("equimid.evaluation.probes.logistic.fewshot_top1", lambda *_: next(values))
    config = EvaluationConfig(fewshot_per_class=(1, 3, 50), fewshot_draws=3)
    one, three = measure_fewshot(study(config), data)
    error = float(student.ppf(0.975, 2)) * 10 / math.sqrt(3)
    assert (one.value, one.low, one.high) == (70, pytest.approx(70 - error), pytest.approx(70 + error))
    assert (one.evaluation, one.metric, one.unit, one.n) == ("fewshot", "top1", "%", 12)
    assert (one.details["per_class"], one.details["draws"]) == (1, 3)
    assert (three.value, three.details["per_class"]) == (92, 3)
    monkeypatch.undo()
    (alone,) = measure_fewshot(study(replace(config, fewshot_per_class=(3,), fewshot_draws=1)), data)
    assert (alone.low, alone.high) == (None, None)


def test_few_shot_with_more_images_than_a_class_has_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"smallest class .* has 2 training images"):
        measure_fewshot(study(EvaluationConfig(fewshot_per_class=(3,))), folders(tmp_path, parts(2, "ab")))


# --- two layers


def rings(n, seed=0):
    """Two classes that no plane parts: within a circle, and around it."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    radius, angle = 1 + labels + rng.normal(0, 0.1, n), rng.uniform(0, 2 * np.pi, n)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(n, 5.0)], 1) * (1e-3, 1e-3, 1)
    return FeatureTable(torch.from_numpy(x).float(), torch.from_numpy(labels))


def test_two_layers_read_what_one_cannot():
    """Also where a column never changes, and the others are small."""
    config = EvaluationConfig(mlp_width=64, mlp_epochs=20, mlp_rates=(1e-7, 1e-2))
    head, details = fit_mlp(rings(600), 2, config, 0, CPU)
    test = rings(300, seed=1)
    with torch.no_grad():
        assert (head(test.features).argmax(1) == test.labels).float().mean() > 0.95
    assert details["rate"] == 1e-2
    linear, _ = probed(rings(600), test, replace(config, linear_epochs=10))
    assert linear < 70


def test_trainer_chooses_and_trains_anew_on_all_to_that_epoch(monkeypatch):
    """Held-out accuracy is made to be best after epoch 2 of 4 of the first rate; then all images, two epochs."""
    table, seen = clusters(30, spread=1), []

    def batches(indices, size):
        seen.append(len(indices))
        return (table.features[torch.from_numpy(rows)] for rows in np.split(indices, range(size, len(indices), size)))

    accuracies = iter([(1, 2), (9, 2), (3, 4), (5, 6)])
    monkeypatch.setattr(HeadTrainer, "_scores", lambda self, heads, indices: [(top1, 0) for top1 in next(accuracies)])
    trainer = HeadTrainer(lambda _: torch.nn.Linear(8, 4), batches, table.labels, (0.1, 0.01), 4, 0.2, 0, CPU)
    head, details = trainer.fit()
    assert (details["rate"], details["epoch"], details["held_out_top1"]) == (0.1, 2, 9)
    assert seen == [24] * 4 + [30] * 2
    assert not head.training
    accuracies = iter([(1, 2), (9, 2), (3, 4), (5, 6)])
    torch.manual_seed(1)  # hidden state decides nothing
    assert torch.equal(trainer.fit()[0].weight, head.weight)


def test_heads_follow_adamw_and_the_cosine():
    table = clusters(40, spread=1)

    def batches(indices, size):
        yield table.features[torch.from_numpy(indices)]

    trainer = HeadTrainer(lambda _: torch.nn.Linear(8, 4), batches, table.labels, (0.1,), 2, 0.2, 0, CPU)
    ours = [head.weight.detach().clone() for _, (head,) in trainer._epochs(np.arange(40), (0.1,))]
    random_baseline = torch.nn.Linear(8, 4)
    with counted_torch_seed(0, "probe, weights"):
        random_baseline.reset_parameters()
    optimizer = torch.optim.AdamW(random_baseline.parameters(), lr=0.1)
    for expected, rate in zip(ours, (0.1, 0.05), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(random_baseline(table.features), table.labels).backward()
        optimizer.step()
        assert torch.allclose(random_baseline.weight, expected, atol=1e-5)


def test_mlp_and_logistic_of_a_folder(tmp_path):
    data = folders(tmp_path, parts(12))
    config = EvaluationConfig(mlp_width=32, mlp_epochs=20, mlp_rates=(1e-2,))
    for measure, name in ((measure_mlp, "mlp"), (measure_logistic, "logistic")):
        (record,) = measure(study(config), data)
        assert (record.evaluation, record.metric, record.n, record.details["features"]) == (name, "top1", 36, "cls")
        assert record.value > 90


# --- attentive pooling


def test_attentive_pooling_is_torchs_attention_with_one_query():
    torch.manual_seed(0)
    pooling, peer = AttentivePooling(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        pooling.query.normal_()
        pooling.key.weight.normal_()
        peer.in_proj_weight.copy_(torch.cat([torch.eye(16), pooling.key.weight, pooling.value.weight]))
        peer.in_proj_bias.copy_(torch.cat([torch.zeros(16), torch.randn(16), pooling.value.bias]))
        peer.out_proj.load_state_dict(pooling.out.state_dict())
    tokens = torch.randn(3, 9, 16)
    x = F.layer_norm(tokens, (16,))
    expected, weights = peer(pooling.query.expand(3, 1, 16), x, x)
    assert torch.allclose(pooling(tokens), expected[:, 0], atol=1e-5)
    assert weights.std() > 0.01


class OnePatchTells(PatchColours):
    """CLS says nothing."""

    def forward_features(self, images, layers=()):
        found = super().forward_features(images, layers)
        return replace(found, cls=torch.zeros_like(found.cls))


ATTENTIVE = EvaluationConfig(attentive_heads=2, attentive_epochs=12, attentive_rates=(1e-6, 1e-2))


def test_attentive_probe_reads_tokens(tmp_path):
    data = folders(tmp_path, parts(16))
    (record,) = measure_attentive(study(ATTENTIVE, OnePatchTells()), data)
    assert (record.evaluation, record.metric, record.unit, record.n) == ("attentive", "top1", "%", 48)
    assert record.details["rate"] == 1e-2
    assert record.value > 85


def test_attentive_probe_is_the_same_where_tokens_do_not_fit(tmp_path, monkeypatch):
    data, config = folders(tmp_path, parts(8), spread=70), replace(ATTENTIVE, attentive_epochs=2)
    kept = measure_attentive(study(config), data)
    monkeypatch.setattr(attentive, "_GIB", 1e-9)
    assert measure_attentive(study(config), data) == kept


def test_tokens_are_those_of_the_last_layer_after_the_norm():
    source, network = coloured(5), PatchColours().eval()
    (found,) = attentive._Tokens(study(), source).batches(np.array([3, 0]), 8)
    images = next(study().batches(source, indices=np.array([3, 0])))
    tokens = network.forward_features(images, [2]).maps[2].flatten(2).transpose(1, 2)
    assert found.shape == (2, 16, 8)
    assert torch.allclose(found, F.layer_norm(tokens, (8,)), atol=1e-6)


def test_networks_that_cannot_be_attended_to_are_refused():
    with pytest.raises(UserError, match="no tokens"):
        measure_attentive(study(encoder=Pixels()), "digits")
    with pytest.raises(UserError, match="attentive_heads is 3; it must divide"):
        measure_attentive(study(EvaluationConfig(attentive_heads=3)), "digits")


def test_the_held_out_part_standardises_nothing_that_is_chosen_by_it():
    """The two-layer probe, told which images it is built for: first without the held-out ones, then with all."""
    table, built = clusters(60), []

    class Watched(HeadTrainer):
        def _epochs(self, indices, rates):
            built.append((len(indices), self.build(indices)[0].mean.clone()))
            return super()._epochs(indices, rates)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlp, "HeadTrainer", Watched)
        fit_mlp(table, 4, EvaluationConfig(mlp_width=4, mlp_epochs=1, held_out=0.2), 0, CPU)
    (fitted, first), (everything, second) = built
    assert (fitted, everything) == (48, 60)
    assert torch.allclose(second, table.features.mean(0), atol=1e-6)
    assert not torch.allclose(first, second, atol=1e-6)
