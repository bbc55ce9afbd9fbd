"""What EquiMod is told of a view: as it was drawn, standardised by constants that are those of our own views (T18)."""

import json
from dataclasses import replace
from datetime import date
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image

from equimid.addons import AddonContext, EquiModConfig
from equimid.addons import equimod_constants as constants_module
from equimid.addons.equimod_constants import (
    PARAMETERS,
    Constants,
    draw_parameters,
    find_constants,
    measure_constants,
    parameters,
    store_constants,
)
from equimid.errors import UserError
from equimid.randomness import counted_generator
from equimid.views import CentreView, ExtraView, Photometric, ViewsConfig
from test_equimod import PLAN, SMALL, D, Images, make_batch, make_case, see

SETTING = AddonContext(batch=8, image_size=16, patch_size=8, cls_layer=0)


def test_parameters_are_those_that_were_drawn():
    """The measurement draws as the workers do, and a batch tells the add-on what was drawn."""
    batch = make_batch()
    of_batch = [parameters(boxes, rows) for boxes, rows in zip(batch.crop_boxes, batch.crop_rows, strict=True)]
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
    assert np.abs(batch.crops[0][2].permute(1, 2, 0).numpy().astype(int) - cut).max() <= 1


def test_parameters_are_standardised_and_constant_ones_are_zero():
    plain = ViewsConfig(flip=0.0, first=Photometric(blur=0.7), second=Photometric(blur=0.7)).plan(16, 8)
    measured = measure_constants(plain, 200)
    addon = SMALL.build(D, PLAN)
    torch_mean, torch_std = torch.tensor(measured.mean), torch.tensor(measured.std)
    addon.load_state_dict(addon.state_dict() | {"mean": torch_mean, "std": torch_std})  # they are in checkpoints
    p = addon.parameters_of(make_batch(40, plain))
    names = np.array(PARAMETERS)
    assert set(names[(p == 0).all(0).numpy()]) == {"flip", "solarised"}
    varying = p[:, torch_std > 0]
    assert varying.mean(0).abs().max() < 0.7  # these images are all wide
    assert (varying.std(0) - 1).abs().max() < 0.5


def test_the_original_is_not_told_of_solarisation():
    batch = make_batch()
    negated = replace(batch, crop_rows=[torch.cat([r[:, :-1], 1 - r[:, -1:]], 1) for r in batch.crop_rows])
    for form, told in (("comparison", True), ("original", False)):
        addon, vectors = make_case(replace(SMALL, form=form))
        one, other = (addon(see(vectors, b)) for b in (batch, negated))
        assert torch.equal(one, other) is not told


def test_views_without_their_batch_are_an_error():
    addon, vectors = make_case()
    with pytest.raises(ValueError, match="without their batch"):
        addon(see(vectors, None))


# --- constants


def stored_entries():
    return [Constants(**entry) for entry in json.loads(constants_module._PACKAGED.read_text())]


def views_of(entry):
    """The view settings that an entry was measured for."""
    (first, scale, flip), (second, *_) = [
        (Photometric(**{k: tuple(x) if isinstance(x, list) else x for k, x in rest.items()}), tuple(scale), flip)
        for rest in [dict(view) for view in entry.views]
        for scale, flip in [(rest.pop("crop_scale"), rest.pop("flip"))]
    ]
    return ViewsConfig(crop_scale=scale, flip=flip, first=first, second=second)


def outside_sampling_error(entry, draws=3000):
    """Parameters whose stored mean or deviation is not that of fresh draws."""
    rng = np.random.default_rng(11)
    crops = views_of(entry).plan(32, 8).crops
    x = torch.cat([draw_parameters(view, [(500, 375), (375, 500)] * (draws // 2), rng) for view in crops]).double()
    mean, var = x.mean(0), x.var(0, unbiased=False)
    fourth = ((x - mean) ** 4).mean(0)
    error_of_mean, error_of_var = (var / len(x)).sqrt(), ((fourth - var**2) / len(x)).clamp(min=0).sqrt()
    far = (mean - torch.tensor(entry.mean)).abs() > 5 * error_of_mean + 1e-6
    far |= (var - torch.tensor(entry.std).square()).abs() > 5 * error_of_var + 1e-5
    return {name for name, wrong in zip(PARAMETERS, far.tolist(), strict=True) if wrong}


@pytest.mark.parametrize("entry", stored_entries(), ids=lambda entry: entry.command)
def test_stored_constants_are_those_of_our_views(entry):
    """T18."""
    assert outside_sampling_error(entry) == set()
    assert entry.draws >= 100_000
    assert date.fromisoformat(entry.measured)
    assert (
        views_of(entry).plan(224, 16).crops[:2]
        == views_of(find_constants(views_of(entry).plan(224, 16))).plan(224, 16).crops[:2]
    )


def test_the_constants_of_the_release_would_be_found_out():
    """T18: what the SER release standardises MoCo-v3's views with."""
    ours = find_constants(PLAN)
    changed = {"blurred": 0.27, "solarised": 0.05}
    ratio = {"solarised": 4.6, "blurred": 1.6, "saturation": 0.25, "brightness": 0.5, "contrast": 0.5, "hue": 0.5}
    mean = [changed.get(name, value) for name, value in zip(PARAMETERS, ours.mean, strict=True)]
    std = [value / ratio.get(name, 1) for name, value in zip(PARAMETERS, ours.std, strict=True)]
    assert outside_sampling_error(replace(ours, mean=mean)) == {"blurred", "solarised"}
    assert outside_sampling_error(replace(ours, std=std)) == set(ratio)


def test_constants_are_found_by_what_decides_the_draws(tmp_path):
    file = tmp_path / "own.json"
    config = ViewsConfig(flip=0.25)
    store_constants(measure_constants(config.plan(16, 8), 10, "first"), file)
    store_constants(measure_constants(ViewsConfig().plan(16, 8), 10), file)
    store_constants(measure_constants(config.plan(16, 8), 20, "second"), file)
    assert [entry["command"] for entry in json.loads(file.read_text())] == ["", "second"]
    assert list(tmp_path.iterdir()) == [file]
    # size, kernel, threshold, interpolation and further views draw nothing for the first two
    same = replace(config, full=3, interpolation="bicubic", first=Photometric(blur_kernel=9, solarise_threshold=0.3))
    assert find_constants(same.plan(224, 16), str(file)).command == "second"


def test_measuring_is_repeatable_and_what_never_varies_has_no_deviation():
    still = Photometric(brightness=0, blur_sigma=(0.7, 0.7))
    config = ViewsConfig(flip=1.0, first=still, second=still)
    one, other = (measure_constants(config.plan(size, 8), 49) for size in (16, 32))
    assert one == other
    found = dict(zip(PARAMETERS, zip(one.mean, one.std, strict=True), strict=True))
    assert found["flip"] == found["brightness"] == found["blurred"] == (1.0, 0.0)
    assert found["sigma"] == (0.7, 0.0)  # not the 1e-16 of rounding
    ratio = torch.tensor(measure_constants(PLAN, 3000).std) / torch.tensor(find_constants(PLAN).std)
    assert (ratio - 1).abs().max() < 0.1
    with pytest.raises(UserError, match="1 draws"):
        measure_constants(PLAN, 1)


def test_views_without_constants_are_refused_with_the_command(tmp_path):
    views = ViewsConfig(crop_scale=(0.2, 1.0), second=Photometric(blur=0.1, solarise=0.3))
    plan = views.plan(16, 8)
    for ask in (lambda: SMALL.extend(plan, SETTING), lambda: SMALL.build(D, plan)):
        with pytest.raises(UserError) as told:
            ask()
        text = str(told.value)
        assert "views.crop_scale=0.2,1.0, stored with 0.08,1.0; views.second.solarise=0.3, stored with 0.2" in text
        command = "equimid constants --recipe NAME views.crop_scale=0.2,1.0 views.second.solarise=0.3 --out equimod"
        assert command in text
        assert "equimod.constants=equimod_constants.json" in text
        assert "\n" not in text
    file = tmp_path / "own.json"
    absent = replace(SMALL, constants=str(file))
    with pytest.raises(UserError, match=f"own.json does not exist .*views.second.solarise=0.3 --out {file}"):
        absent.build(D, plan)
    # the folder of a run can be read where the file is not: the numbers are in its checkpoint
    assert list(absent.extend(plan, SETTING).extra) == ["equimod"]
    store_constants(measure_constants(plan, 10), file)
    extended = replace(SMALL, constants=str(file)).extend(plan, SETTING)
    assert extended.extra == {"equimod": ExtraView(CentreView(16, 224 / 256))}


def damaged(views):
    entry = json.loads(resources.files("equimid.addons").joinpath("equimod_constants.json").read_text())[0]
    return json.dumps([entry | {"views": views(entry["views"])}])


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[1]", '[{"views": []}]', "nan", b"\xff\xfe\xff", damaged(lambda v: v[:1]),
     damaged(lambda v: [v[0], v[1] | {"flip": "abc"}]), damaged(lambda v: [v[0] | {"flip": None}, v[1]])],
)  # fmt: skip
def test_a_damaged_file_is_told_in_one_line(content, tmp_path):
    file = tmp_path / "own.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for act in (lambda: find_constants(PLAN, str(file)), lambda: store_constants(find_constants(PLAN), file)):
        with pytest.raises(UserError, match=r"own\.json") as told:
            act()
        assert "\n" not in str(told.value)


def test_numbers_that_cannot_be_are_damage(tmp_path):
    file = tmp_path / "own.json"
    entry = json.loads(constants_module._PACKAGED.read_text())[0]
    changes = ({"mean": entry["mean"][1:]}, {"std": [-x for x in entry["std"]]}, {"names": entry["names"][::-1]})
    for change in changes:
        file.write_text(json.dumps([{**entry, **change}]))
        with pytest.raises(UserError, match="delete it and measure"):
            find_constants(PLAN, str(file))


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", 0.0), ("temperature", float("nan")), ("hidden", 0), ("dim", 0), ("form", "else"), ("weight", -1),
     ("layer", -1)],
)  # fmt: skip
def test_bad_settings_are_refused_in_one_line(key, value):
    with pytest.raises(UserError, match=f"equimod.{key} is") as told:
        EquiModConfig(**{key: value})
    assert "\n" not in str(told.value)
