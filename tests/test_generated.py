"""Accuracy under generated corruptions: what is measured of which images, and that nothing but the seed decides."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.errors import UserError
from equimid.evaluation import EvaluationConfig, Preprocessing
from equimid.evaluation.config import Corruption, RobustnessConfig
from equimid.evaluation.probes import measure_linear
from equimid.evaluation.robustness import corruption_accuracy as generated
from equimid.evaluation.robustness import measure_generated
from equimid.evaluation.robustness.corruption_accuracy import CLEAN, CorruptedImages
from equimid.evaluation.robustness.corruptions import KINDS, VALIDATION_KINDS, corrupt
from equimid.randomness import counted_generator
from helpers.drawing import drawn
from helpers.probing import PatchColours, folders, study

FEW = EvaluationConfig(
    linear_epochs=20,
    robustness=RobustnessConfig(kinds=("gaussian_noise", "fog", "speckle_noise"), severities=(1, 5)),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    counts = {f"{part}/{name}": n for part, n in (("train", 20), ("test", 8)) for name in "abc"}
    return folders(tmp_path_factory.mktemp("coloured"), counts, spread=40)


def named(records):
    return {(r.metric, r.details.get("corruption"), r.details.get("severity")): r for r in records}


def test_settings_know_all_kinds_in_order():
    assert get_args(Corruption) == (*KINDS, *VALIDATION_KINDS)
    assert RobustnessConfig().kinds == KINDS


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kinds": ("rain",)}, "rain"),
        ({"kinds": ()}, "kinds"),
        ({"kinds": ("fog", "fog")}, "once"),
        ({"severities": ()}, "severities"),
        ({"severities": (0, 1)}, "severities"),
        ({"severities": (6,)}, "severities"),
        ({"images": 0}, "images"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        RobustnessConfig(**setting)


def test_every_kind_and_severity_has_its_accuracy(data):
    records = measure_generated(study(FEW), data)
    found = named(records)
    wanted = {("top1", k, s) for k in FEW.robustness.kinds for s in (1, 5)}
    assert set(found) == {*wanted, ("top1", *CLEAN), ("mean_top1", None, None)}
    assert {(r.evaluation, r.unit, r.n) for r in records} == {("generated_corruptions", "%", 24)}
    assert {r.details["label"] for r in records} == {"generated"}
    (linear,) = measure_linear(study(FEW), data)
    clean = found[("top1", *CLEAN)]
    assert (clean.value, clean.low, clean.high) == (linear.value, linear.low, linear.high)
    assert clean.value > 80
    assert found["top1", "fog", 5].value < clean.value


def test_mean_is_over_the_test_kinds_alone(data):
    found = named(measure_generated(study(FEW), data))
    mean = found["mean_top1", None, None]
    tested = [found["top1", kind, s].value for kind in ("gaussian_noise", "fog") for s in (1, 5)]
    assert mean.value == pytest.approx(np.mean(tested))
    assert mean.low < mean.value < mean.high
    assert mean.details["kinds"] == ["gaussian_noise", "fog"]
    assert mean.details["severities"] == [1, 5]
    only = replace(FEW, robustness=RobustnessConfig(kinds=("spatter",), severities=(1,)))
    assert ("mean_top1", None, None) not in named(measure_generated(study(only), data))


def test_workers_and_batches_change_nothing(data, monkeypatch):
    expected = measure_generated(study(FEW), data)
    assert measure_generated(study(FEW, workers=2), data) == expected
    monkeypatch.setattr(generated, "_BATCH", 5)
    assert measure_generated(study(FEW), data) == expected


def test_fewer_images_are_drawn_once_for_a_seed(data, monkeypatch):
    seen = []
    make = generated.CorruptedImages

    def note(source, chosen, *rest):
        seen.append(chosen.tolist())
        return make(source, chosen, *rest)

    monkeypatch.setattr(generated, "CorruptedImages", note)
    few = replace(FEW, robustness=replace(FEW.robustness, images=7))
    records = measure_generated(study(few), data)
    assert {r.n for r in records} == {7}
    assert measure_generated(study(few), data) == records
    measure_generated(study(few, seed=1), data)
    assert seen[0] == seen[1] != seen[2]
    assert len(set(seen[0])) == 7


def test_corruption_is_of_the_resized_crop_in_eight_bits():
    preprocessing, source = Preprocessing(24, 0.8, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), drawn(3, (50, 40))
    images = CorruptedImages(source, np.array([0, 2]), preprocessing, [CLEAN, ("fog", 3)], seed=5)
    assert len(images) == 4
    assert torch.equal(images[2], preprocessing(source.load(2)))
    cut = source.load(2).resize((24, 24), Image.Resampling.BICUBIC, box=(9, 4, 41, 36))  # the middle 32 of 40 px
    corrupted = corrupt(np.asarray(cut), "fog", 3, counted_generator(5, "corruption fog", 3, 2))
    mean, std = torch.tensor((0.4, 0.5, 0.6)), torch.tensor((0.2, 0.3, 0.25))
    expected = ((torch.from_numpy(corrupted) / 255 - mean) / std).permute(2, 0, 1)
    assert torch.allclose(images[3], expected, atol=1e-6)


def test_draws_depend_on_seed_kind_severity_and_image_alone():
    preprocessing, source = Preprocessing(24, 1.0, (0.5,) * 3, (0.5,) * 3), drawn(4, (24, 24))
    source = replace(source, images=np.full_like(source.images, 128))

    def noise(index, seed=0, kind="gaussian_noise", severity=1, among=(0, 1, 2, 3)):
        images = CorruptedImages(source, np.array(among), preprocessing, [("fog", 1), (kind, severity)], seed)
        return images[2 * among.index(index) + 1]

    first = noise(2)
    assert torch.equal(noise(2, among=(2,)), first)
    others = [noise(1), noise(2, seed=1), noise(2, kind="impulse_noise"), noise(2, severity=2)]
    for other in others:
        assert not torch.equal(other, first)
    # not the same numbers, scaled
    assert abs(np.corrcoef(first.flatten(), others[3].flatten())[0, 1]) < 0.1


def test_network_for_tiny_images_is_refused(data):
    network = PatchColours()
    network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (3, 4, 4)}
    with pytest.raises(UserError, match="4 px"):
        measure_generated(study(FEW, network), data)
