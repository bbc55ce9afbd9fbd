"""Linear probe on random crops: what is drawn, how it is trained, on one process and on two."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from equimid.errors import UnreadableImage, UserError
from equimid.evaluation import EvaluationConfig
from equimid.evaluation.preprocessing import Preprocessing
from equimid.evaluation.probes import fit_linear, linear, measure_linear
from equimid.evaluation.probes.heads import HeadGrid, split_to_choose
from equimid.evaluation.probes.linear import _Batches, _Crops, fit_on_crops
from equimid.randomness import counted_generator
from equimid.testing import on_ranks
from helpers.drawing import drawn
from helpers.probing import PatchColours, coloured, folders, study

CROPS = EvaluationConfig(linear_crops=True, linear_epochs=4, linear_batch=16, linear_rates=(0.03, 0.3, 3.0))
PLAIN = Preprocessing(16, 1.0, (0.0,) * 3, (1.0,) * 3)


def ramps(n=400, size=64):
    """Red is the row and green the column, in pixels: a crop shows where it was cut."""
    rows, columns = np.mgrid[:size, :size] * 4
    images = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    source = drawn(n)
    return source.__class__(
        name="ramps", split="all", labels=source.labels, classes=source.classes,
        images=images[None].repeat(n, 0), numbers=source.numbers,
    )  # fmt: skip


def test_crops_have_the_areas_of_torchvisions_and_half_are_flipped():
    crops = _Crops(ramps(), PLAIN, seed=0)
    found = torch.stack([crops[0, i][0] for i in range(400)]) * 255 / 4  # in pixels
    heights = (found[:, 0, -1].mean(1) - found[:, 0, 0].mean(1)) * 16 / 15
    widths = (found[:, 1, :, -1].mean(1) - found[:, 1, :, 0].mean(1)) * 16 / 15
    flipped = float((widths < 0).float().mean())
    assert abs(flipped - 0.5) < 0.1  # four standard errors
    torch.manual_seed(0)
    boxes = [RandomResizedCrop.get_params(torch.zeros(3, 64, 64), [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    areas = torch.tensor([box[2] * box[3] / 64**2 for box in boxes])
    ours = heights * widths.abs() / 64**2
    for fraction in (0.1, 0.5, 0.9):
        assert float(ours.quantile(fraction)) == pytest.approx(float(areas.quantile(fraction)), abs=0.08)


def test_crops_are_drawn_anew_each_epoch_and_are_a_function_of_seed_epoch_and_index():
    source = ramps(4)
    crop, again = _Crops(source, PLAIN, 0)[1, 2], _Crops(source, PLAIN, 0)[1, 2]
    assert torch.equal(crop[0], again[0])
    assert crop[1] == source.labels[2]
    for other in (_Crops(source, PLAIN, 0)[0, 2], _Crops(source, PLAIN, 0)[1, 3], _Crops(source, PLAIN, 1)[1, 2]):
        assert not torch.equal(crop[0], other[0])


def test_every_image_comes_once_an_epoch_in_another_order():
    batches = _Batches(10, 4, seed=0)
    first = list(batches)
    assert [len(batch) for batch in first] == batches.counts == [4, 4, 2]
    assert sorted(key for batch in first for key in batch) == [(0, i) for i in range(10)]
    batches.epoch = 1
    second = list(batches)
    assert sorted(key for batch in second for key in batch) == [(1, i) for i in range(10)]
    assert [i for b in first for _, i in b] != [i for b in second for _, i in b]


def test_probe_on_crops_learns_and_says_how(tmp_path):
    data = folders(tmp_path, {f"{part}/{c}": 20 for part in ("train", "test") for c in "abc"})
    (record,) = measure_linear(study(CROPS), data)
    assert record.value > 90
    assert record.details["crops"]
    assert record.details["rate"] in CROPS.linear_rates
    assert 1 <= record.details["epoch"] <= 4


def test_workers_change_nothing():
    config = EvaluationConfig(linear_crops=True, linear_epochs=2, linear_batch=16)
    alone, helped = (fit_linear(study(config, workers=w), coloured(40)) for w in (0, 2))
    assert torch.equal(alone.weight, helped.weight)
    assert alone.details == helped.details


def test_a_study_trains_the_head_of_the_same_images_once(monkeypatch):
    """Every measurement of robustness asks for it, and it costs all its epochs of passes."""
    trained = []
    monkeypatch.setattr(linear, "fit_on_crops", lambda *asked: trained.append(asked) or fit_on_crops(*asked))
    config = EvaluationConfig(linear_crops=True, linear_epochs=2, linear_batch=16)
    asked = study(config)
    first, again = fit_linear(asked, coloured(40)), fit_linear(asked, coloured(40))
    assert len(trained) == 1
    assert torch.equal(first.weight, again.weight)
    first.details["more"] = 1
    assert "more" not in fit_linear(asked, coloured(40)).details
    fit_linear(asked, coloured(44))
    assert len(trained) == 2, "other images"
    fit_linear(replace(asked, config=replace(config, linear_epochs=3)), coloured(40))
    assert len(trained) == 3, "another study"


def test_head_is_that_of_a_loop_written_out():
    """Two epochs of batches of 16, crops of the images that are not held out, rates for 256 images."""
    source, network = coloured(40, spread=60), PatchColours().eval()
    config = EvaluationConfig(linear_crops=True, linear_epochs=2, linear_batch=16, linear_rates=(0.7,), held_out=0.2)
    head = fit_on_crops(study(config), source)
    images = source.take(split_to_choose(torch.as_tensor(source.labels), 0.2, 0)[0].numpy())
    crops = _Crops(images, Preprocessing.of(network.pretrained_cfg), 0)
    expected, batches = HeadGrid((0.7,), 3, 8, counted_generator(0, "linear probe"), torch.device("cpu")), 0
    for epoch, factor in enumerate((1, 0.5)):
        order = counted_generator(0, "linear crops, order", epoch).permutation(32)
        for rows in (order[:16], order[16:]):
            x = network.forward_features(torch.stack([crops[epoch, i][0] for i in rows])).cls
            expected.step(x, torch.as_tensor(images.labels[rows]), factor * 16 / 256, 16)
            batches += 1
    assert batches == 4
    assert torch.allclose(head.weight, expected.weight, atol=1e-6)
    assert torch.allclose(head.bias, expected.bias, atol=1e-6)


def test_head_of_the_best_epoch_is_kept_as_it_was(monkeypatch):
    """Held-out accuracy is made to be best after epoch 9 of 10, of the second rate."""
    seen, weights = iter([(1, 2, 0), (1, 9, 3), (8, 5, 4)]), []
    assert CROPS.linear_rates[1] == 0.3

    def scores(self, x, y):
        weights.append(self.head(1)[0])
        return [(top1, 0) for top1 in next(seen)]

    monkeypatch.setattr(HeadGrid, "scores", scores)
    head = fit_on_crops(study(replace(CROPS, linear_epochs=10)), coloured(40))
    assert (head.details["rate"], head.details["epoch"], head.details["held_out_top1"]) == (0.3, 9, 9)
    assert torch.equal(head.weight, weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_unreadable_image_is_named():
    source = coloured(20)

    class Torn(source.__class__):
        def load(self, i):
            if self.numbers[i] == 7:
                raise UnreadableImage("truncated")
            return super().load(i)

    torn = Torn(**{name: getattr(source, name) for name in ("name", "split", "labels", "classes", "images", "numbers")})
    with pytest.raises(UserError, match=r"coloured\[7\].*truncated"):
        fit_on_crops(study(CROPS), torn)


def test_labels_are_needed():
    with pytest.raises(UserError, match="no labels"):
        fit_on_crops(study(CROPS), drawn(8, labels=False))


def crops_on_ranks(rank, ranks):
    """28 images to fit in batches of 9: the last batch has one image, so that rank 1 has none of it."""
    source = coloured(36, spread=60)
    config = EvaluationConfig(
        linear_crops=True, linear_epochs=2, linear_batch=9, linear_rates=(0.1, 1.0), held_out=0.22
    )
    head = fit_on_crops(study(config), source)
    assert (len(source) - 8) % 9 == 1
    return {
        "weight": head.weight,
        "bias": head.bias,
        "chosen": torch.tensor([head.details["rate"], head.details["epoch"], head.details["held_out_top1"]]),
    }


def test_two_processes_give_what_one_gives():
    one = crops_on_ranks(0, 1)
    for fraction in on_ranks(crops_on_ranks, 2):
        for name, expected in one.items():
            assert torch.allclose(fraction[name], expected, atol=1e-5), name
