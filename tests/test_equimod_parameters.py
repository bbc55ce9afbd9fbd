"""What EquiMod is told of a view: as it was drawn, standardised by what our own views draw (T18)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.addons.equimod import PARAMETERS, draw_parameters, parameters, statistics_of
from equimid.randomness import counted_generator
from equimid.views import Photometric, ViewsConfig
from equimid.views.plan import standard_views
from helpers.equimod import PLAN, SMALL, D, Images, make_batch, make_case, see


def test_parameters_are_those_that_were_drawn():
    """The measurement draws as the workers do, and a batch tells the add-on what was drawn."""
    batch = make_batch()
    of_batch = [parameters(view.boxes, view.photometric) for view in batch.crops]
    for i in range(6):
        rng = counted_generator(3, "view", 0, i)
        for view, found in zip(PLAN.crops, of_batch, strict=True):
            assert torch.equal(found[i], draw_parameters(view, [(50, 38)], rng)[0])
    blurred, sigma = (of_batch[1][:, PARAMETERS.index(name)] for name in ("blurred", "sigma"))
    assert torch.equal(blurred, (sigma > 0).float())
    assert bool((of_batch[0][:, PARAMETERS.index("blurred")] == 1).all())
    # and the box is where the pixels are from
    box = of_batch[0][2]
    top, left, height, width = (box[:4] * torch.tensor([38, 50, 38, 50])).round().int().tolist()
    cut = Images().load(2).crop((left, top, left + width, top + height)).resize((16, 16), Image.Resampling.BILINEAR)
    cut = np.array(cut)[:, ::-1] if box[4] else np.array(cut)
    # PIL rounds otherwise
    assert np.abs(batch.crops[0].pixels[2].permute(1, 2, 0).numpy().astype(int) - cut).max() <= 1


def test_parameters_are_standardised_and_constant_ones_are_zero():
    plain = standard_views(ViewsConfig(flip=0.0, first=Photometric(blur=0.7), second=Photometric(blur=0.7)), 16, 8)
    addon = SMALL.build(D, PLAN)
    mean, std = statistics_of(plain, 200)
    addon.load_state_dict(addon.state_dict() | {"mean": mean, "std": std})  # they are in checkpoints
    p = addon.parameters_of(make_batch(40, plain))
    names = np.array(PARAMETERS)
    assert set(names[(p == 0).all(0).numpy()]) == {"flip", "solarised"}
    varying = p[:, std > 0]
    assert varying.mean(0).abs().max() < 0.7  # these images are all wide
    assert (varying.std(0) - 1).abs().max() < 0.5


def test_the_original_is_not_told_of_solarisation():
    batch = make_batch()
    crops = [
        replace(x, photometric=torch.cat([x.photometric[:, :-1], 1 - x.photometric[:, -1:]], 1)) for x in batch.crops
    ]
    negated = replace(batch, crops=crops)
    for form, told in (("comparison", True), ("original", False)):
        addon, vectors = make_case(replace(SMALL, form=form))
        one, other = (addon(see(vectors, b)) for b in (batch, negated))
        assert torch.equal(one, other) is not told


def test_views_without_their_batch_are_an_error():
    addon, vectors = make_case()
    with pytest.raises(ValueError, match="without their batch"):
        addon(see(vectors, None))


def far_from_fresh_draws(mean, std, plan, draws=3000):
    """Parameters whose mean or deviation is not that of fresh draws, by five errors of sampling."""
    rng = np.random.default_rng(11)
    x = [draw_parameters(view, [(500, 375), (375, 500)] * (draws // 2), rng) for view in plan.crops[:2]]
    x = torch.cat(x).double()
    true, var = x.mean(0), x.var(0, unbiased=False)
    fourth = ((x - true) ** 4).mean(0)
    error_of_mean, error_of_var = (var / len(x)).sqrt(), ((fourth - var**2) / len(x)).clamp(min=0).sqrt()
    far = (true - mean).abs() > 5 * error_of_mean + 1e-6
    far |= (var - std.square()).abs() > 5 * error_of_var + 1e-5
    return {name for name, wrong in zip(PARAMETERS, far.tolist(), strict=True) if wrong}


@pytest.mark.parametrize(
    "views", [ViewsConfig(), ViewsConfig(crop_scale=(0.2, 1.0), flip=0.0, first=Photometric(blur=0.3))]
)
def test_statistics_are_those_of_the_views_of_the_run(views):
    """T18."""
    plan = standard_views(views, 16, 8)
    assert far_from_fresh_draws(*statistics_of(plan), plan) == set()
    addon = SMALL.build(D, plan)
    assert torch.equal(addon.mean, statistics_of(plan)[0]), "every process draws the same"
    other = standard_views(replace(views, crop_scale=(0.5, 1.0)), 16, 8)
    assert {"height", "width"} <= far_from_fresh_draws(*statistics_of(other), plan)


def test_the_statistics_of_the_release_would_be_found_out():
    """T18: what the SER release standardises MoCo-v3's views with."""
    mean, std = statistics_of(PLAN)
    changed = {"blurred": 0.27, "solarised": 0.05}
    ratio = {"solarised": 4.6, "blurred": 1.6, "saturation": 0.25, "brightness": 0.5, "contrast": 0.5, "hue": 0.5}
    wrong = torch.tensor([changed.get(name, value) for name, value in zip(PARAMETERS, mean.tolist(), strict=True)])
    assert far_from_fresh_draws(wrong, std, PLAN) == {"blurred", "solarised"}
    wrong = torch.tensor([value / ratio.get(name, 1) for name, value in zip(PARAMETERS, std.tolist(), strict=True)])
    assert far_from_fresh_draws(mean, wrong, PLAN) == set(ratio)
