"""What does not go together is told when the configuration is built, with its reason and the nearest valid setting."""

import re

import pytest

from equimid.addons import AugSelfConfig, EquiModConfig, ESSLConfig, SERConfig, STLConfig, plan_views
from equimid.config import Config, override
from equimid.engine import TrainConfig
from equimid.errors import UserError
from equimid.recipes import recipe
from equimid.views import LocalViews, ViewsConfig
from helpers.tasks import TINY


def assert_refused(make, *words):
    """In one line that holds all the words."""
    with pytest.raises(UserError) as told:
        make()
    text = str(told.value)
    assert "\n" not in text
    assert all(re.search(word, text) for word in words), text


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("ser-tiny", ["augself.layer=2", "augself.pool=cls"],
         ["CLS after block 2", "enters after block 2", r"augself\.pool=mean", r"backbone\.cls_layer=1 or less"]),
        ("stl-tiny", ["train.batch_size=33"], ["33: an odd number", "use 34"]),
        ("stl-tiny", ["train.batch_size=36", "train.accumulate=4"], ["9: an odd number", "use 10"]),
        ("essl-tiny", ["essl.size=21"], [r"essl\.size is 21", "8 px patch", "try 24"]),
        ("essl-small", ["essl.size=112"], ["larger than the image of 96 px", r"essl\.size=96 or less"]),
        ("mocov3-multicrop-tiny", ["views.local.size=12"], [r"views\.local\.size is 12", "8 px patch", "try (8|16)"]),
        ("mocov3-tiny", ["backbone.image_size=30"], [r"backbone\.image_size is 30", "try 32"]),
        ("ser-tiny", ["train.batch_size=1"], ["leaves one image", "at least two"]),
        ("ser-tiny", ["train.batch_size=4", "train.accumulate=4"], ["leaves one image", "at least two"]),
        ("ser-multicrop-tiny", ["views.full=3"], ["SER pairs views", r"3 x 32 \+ 4 x 16", r"views\.full=2"]),
        ("ser-3view-tiny", ["views.local.count=1"], ["SER pairs views", r"3 x 32 \+ 1 x 16", r"views\.full=2"]),
        ("essl-tiny", ["ser.fraction=1"], ["essl reads cropped images, and 0 of 128", r"lower ser\.fraction"]),
        ("stl-tiny", ["ser.fraction=0.999"], ["stl reads cropped images, and 0 of 128", r"lower ser\.fraction"]),
        ("equimod-tiny", ["ser.fraction=0.992"],
         ["equimod reads cropped images, and 1 of 128", r"lower ser\.fraction"]),
        ("ser-tiny", ["seed=-1"], ["seed is -1", r"0\.\.4294967295"]),
        ("ser-tiny", ["ser.hidden=0"], [r"ser\.hidden is 0"]),
        ("ser-tiny", ["ser.area=1e9,1e9"], [r"ser\.area", "1/16 to 16"]),
        ("ser-tiny", ["views.std=0,0,0"], [r"views\.std\.0 is 0", "greater than 0"]),
        ("augself-tiny", ["augself.flip=0.5"], ["nothing to predict", r"views\.flip=0\.5"]),
        ("mocov3-tiny", ["method.name=barlow"], ["unknown method 'barlow'", "did you mean 'barlow_twins'"]),
        ("mocov3-tiny", ["method.name=moco"], ["unknown method 'moco'", "did you mean 'mocov3'", "Installed here: "]),
        ("mocov3-tiny", ["aug_self.weight=1"], ["unknown setting 'aug_self.weight'", "did you mean 'augself.weight'"]),
        ("mocov3-tiny", ["stll.weight=1"], [r"unknown setting", r"did you mean 'stl\.weight'"]),
        ("essl-tiny", ["essl.siz=16"], [r"did you mean 'essl\.size'"]),
        ("ser-tiny", ["ser.layers=1,2", "ser.layer_weights=1"], ["one weight of 0 or more for each layer", "or none"]),
        ("ser-tiny", ["ser.layer_weights=-1"], [r"ser\.layer_weights\.0 is -1", "0 or more"]),
        ("ser-tiny", ["ser.layer_weights=nan"], [r"ser\.layer_weights\.0 is 'nan'", "finite"]),
        ("ser-tiny", ["ser.temperature=.nan"], [r"ser\.temperature is nan"]),
        ("essl-tiny", ["essl.weight=nan"], [r"essl\.weight is 'nan'"]),
        ("mocov3-tiny", ["views.full=1"], [r"views\.full is 1; it must be in \[2, 3\]"]),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(name, settings, words):
    assert_refused(lambda: override(recipe(name), settings), *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"addons": {"stl": STLConfig()}, "train": TrainConfig(batch_size=15)}, ["15: an odd number", "use 16"]),
        ({"addons": {"essl": ESSLConfig(size=90)}}, ["essl.size is 90", "try 96"]),
        ({"addons": {"augself": AugSelfConfig(layer=3, pool="cls")}}, ["enters after block 3", "cls_layer=2 or less"]),
        ({"addons": {"ser": SERConfig(fraction=1.0), "equimod": EquiModConfig()}}, ["0 of 256 are left"]),
        ({"addons": {"equimod": EquiModConfig(), "ser": SERConfig(fraction=1.0)}}, ["0 of 256 are left"]),
        ({"addons": {"ser": SERConfig()}, "views": ViewsConfig(full=3, local=LocalViews(2))}, ["3 x 224 . 2 x 96"]),
        ({"views": ViewsConfig(local=LocalViews(2, 100))}, ["views.local.size is 100", "try 96"]),
    ],
)
def test_a_configuration_made_by_hand_is_refused_alike(change, words):
    assert_refused(lambda: Config(**change), *words)


def test_ser_alone_needs_two_images():
    """Where no configuration says it before."""
    assert_refused(lambda: plan_views(ViewsConfig(), TINY, {"ser": SERConfig()}, 1), "at least two", "raise train")


@pytest.mark.parametrize(
    ("batch", "accumulate", "ranks", "unit", "multiple"),
    [(12, 1, 4, 2, 8), (8, 2, 4, 2, 16), (12, 1, 5, 1, 5), (24, 2, 4, 2, 16)],
)
def test_ranks_that_would_cut_a_pair_are_refused(batch, accumulate, ranks, unit, multiple):
    train = TrainConfig(batch_size=batch, accumulate=accumulate)
    assert_refused(lambda: train.check_ranks(ranks, unit), f"over {ranks} processes", f"multiple of {multiple}$")
    TrainConfig(batch_size=2 * multiple, accumulate=accumulate).check_ranks(ranks, unit)


def test_ranks_that_hold_whole_pairs_are_taken():
    config = override(recipe("stl-tiny"), ["train.batch_size=12"])
    assert config.plan().unit == 2
    for ranks in (1, 2, 3, 6):
        config.train.check_ranks(ranks, config.plan().unit)
    override(recipe("mocov3-tiny"), ["train.batch_size=12"]).train.check_ranks(4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ser-tiny", ["augself.layer=3", "augself.pool=cls"]),
        ("ser-tiny", ["backbone.cls_layer=0", "augself.layer=1", "augself.pool=cls"]),
        ("stl-tiny", ["ser.fraction=0.9", "essl.size=16"]),
        ("ser-3view-tiny", ["essl.size=8"]),
        ("ser-multicrop-tiny", ["views.local.count=3"]),
        ("ser-tiny", ["ser.fraction=1"]),
        ("ser-tiny", ["ser.layers=1,3", "ser.layer_weights=0,2"]),
        ("equimod-small", ["stl.weight=0.1", "ser.detached=true", "augself.layer=4"]),
    ],
)
def test_what_goes_together_is_taken(name, settings):
    config = override(recipe(name), settings)
    assert config.plan().crops
