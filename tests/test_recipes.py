"""Recipes: the rows of the paper's comparison, in three sizes; what each changes in its parent."""

import subprocess
import sys
from dataclasses import replace

import pytest

from equimid.backbones import build_backbone
from equimid.config import Config, differences, flatten, load_config, override, save_config
from equimid.errors import UserError
from equimid.recipes import ADDITIONS, BASES, ROWS, SIZES, configured, names, parent, recipe

# the specification's section 11: linear top-1 on ImageNet-1k, and what decides that a run is that row. Of every recipe:
# the add-on, cls_layer, (full, small) views, and settings of the add-on
_SER = {
    "ser.form": "canonical", "ser.detached": False, "ser.complement": False, "ser.source": "resize",
    "ser.temperature": 0.3, "ser.weight": 1.0,
}  # fmt: skip
PUBLISHED = {
    "mocov3": ("68.44", None, 0, (2, 0), {}),
    "augself": ("67.55", "augself", 0, (2, 0), {"augself.layer": 0, "augself.form": "comparison"}),
    "stl": ("65.49", "stl", 0, (2, 0), {"stl.layer": 0, "stl.form": "comparison"}),
    "equimod": ("68.95", "equimod", 0, (2, 0), {"equimod.layer": 0, "equimod.form": "comparison"}),
    "essl": ("70.60", "essl", 0, (2, 0), {"essl.layer": 0, "essl.size": 96}),
    "ser": ("69.28", "ser", 3, (2, 0), _SER | {"ser.layers": [3]}),
    "ser-multicrop": ("71.56", "ser", 3, (2, 4), _SER | {"ser.layers": [3]}),
    # the paper inserts CLS at the regularised layer; at the last it cannot be
    "ser-layer9-cls9": ("68.72", "ser", 9, (2, 0), _SER | {"ser.layers": [9]}),
    "ser-layer12-cls0": ("68.18", "ser", 0, (2, 0), _SER | {"ser.layers": [12]}),
    "control": ("68.82", "ser", 3, (2, 0), _SER | {"ser.layers": [3], "ser.weight": 0.0}),
    # which of the two the paper reads, it does not say
    "augself-layer3": ("68.23", "augself", 0, (2, 0), {"augself.layer": 3, "augself.pool": "mean"}),
    "augself-layer3-cls": ("68.23", "augself", 0, (2, 0), {"augself.layer": 3, "augself.pool": "cls"}),
    "equimod-layer3": ("69.51", "equimod", 0, (2, 0), {"equimod.layer": 3, "equimod.pool": "mean"}),
}
# of all of them: the network, the length of training, and the probe
ALIKE = {
    "method.name": "mocov3", "backbone.name": "vit_small_patch16_224", "backbone.image_size": 224,
    "backbone.patch_size": None, "backbone.embed_dim": None, "backbone.depth": None, "backbone.num_heads": None,
    "train.batch_size": 2048, "train.epochs": 100, "train.steps": 0, "train.accumulate": 1, "views.local.size": 96,
    "evaluation.network": "student", "evaluation.linear_crops": True, "evaluation.linear_features": "last4",
    "evaluation.linear_epochs": 50, "evaluation.linear_batch": 2048,
}  # fmt: skip


def equimid(*arguments):
    return subprocess.run([sys.executable, "-m", "equimid", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("name", names())
def test_every_recipe_survives_its_yaml_file(name, tmp_path):
    config = recipe(name)
    assert config.recipe == name
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_with_a_published_number_has_that_rows_settings(name):
    row, config = ROWS[name], recipe(f"{name}-imagenet")
    if name not in PUBLISHED:
        assert row.published == ""
        return
    number, addon, cls_layer, views, settings = PUBLISHED[name]
    assert row.published == number
    flat = flatten(config)
    assert list(config.addons) == ([addon] if addon else [])
    assert flat["backbone.cls_layer"] == cls_layer
    assert (flat["views.full"], flat["views.local.count"]) == views
    wanted = ALIKE | settings
    assert {key: flat[key] for key in wanted} == wanted
    assert flat.get("ser.negatives", "images") == "images"


def test_no_two_recipes_of_one_number_but_the_two_readings_of_augself():
    numbers = [row.published for row in ROWS.values() if row.published]
    assert {n for n in numbers if numbers.count(n) > 1} == {"68.23"}
    assert set(PUBLISHED) <= set(ROWS)


def test_recipes_of_imagenet_have_the_probe_on_crops_and_the_smaller_ones_the_cached_one():
    for name in ROWS:
        assert recipe(f"{name}-imagenet").evaluation.linear_crops, name
        for size in ("small", "tiny"):
            assert not recipe(f"{name}-{size}").evaluation.linear_crops, (name, size)
    # as published elsewhere: crops too, with features and epochs of their own
    found = {name: recipe(f"{name}-published-imagenet").evaluation for name in ("mocov3", "dino", "barlow")}
    told = {name: (e.linear_features, e.linear_epochs, e.linear_batch) for name, e in found.items()}
    assert told == {"mocov3": ("cls", 90, 1024), "dino": ("last4", 100, 1024), "barlow": ("cls", 100, 256)}


def test_rows_have_the_comparisons_scale():
    for name, row in ROWS.items():
        config = row.make()
        assert row.text
        if not name.endswith("-published"):
            assert (config.train.batch_size, config.train.epochs) == (2048, 100), name
            assert (config.backbone.name, config.backbone.image_size) == ("vit_small_patch16_224", 224), name


def keys(row):
    """Settings in which a row differs from its parent."""
    name = f"{row}-imagenet"
    return set(differences(recipe(parent(name)), recipe(name))) - {"recipe"}


def test_controls_differ_from_ser_in_one_thing():
    """T6: nothing is confounded."""
    assert keys("control") == keys("ser-detached") - {"ser.detached"} | {"ser.weight"} == {"ser.weight"}
    assert keys("ser-detached") == {"ser.detached"}
    assert keys("ser-complement") == {"ser.complement"}
    assert keys("ser-layer9") == keys("ser-layer12") == {"ser.layers"}
    assert keys("ser-layer9-cls9") == keys("ser-layer12-cls0") == {"backbone.cls_layer"}
    assert keys("late-cls") == keys("late-cls9") == {"backbone.cls_layer"}
    assert {key.split(".")[0] for key in keys("ser")} == {"ser", "backbone"}
    assert keys("augself-layer3") == {"augself.layer"}
    assert keys("augself-layer3-cls") == {"augself.pool"}
    assert keys("equimod-layer3") == {"equimod.layer"}
    assert keys("mocov3-3view") == keys("ser-3view") == {"views.full"}
    assert keys("mocov3-multicrop") == keys("ser-multicrop") == {"views.local.count"}


@pytest.mark.parametrize("size", SIZES)
def test_cls_enters_at_the_regularised_layer_or_where_it_does_in_ser(size):
    """And with the control of its own: the same network without SER."""
    third, ninth = (2, 5) if size == "tiny" else (3, 9)
    network = {name: recipe(f"{name}-{size}").backbone for name in ROWS}
    layers = {name: recipe(f"{name}-{size}").addons["ser"].layers[0] for name in ROWS if name.startswith("ser")}
    assert (network["ser"].cls_layer, layers["ser"]) == (third, third)
    assert (network["ser-layer9"].cls_layer, layers["ser-layer9"]) == (third, ninth)
    assert (network["ser-layer9-cls9"].cls_layer, layers["ser-layer9-cls9"]) == (ninth, ninth)
    last = 6 if size == "tiny" else 12
    assert (network["ser-layer12"].cls_layer, layers["ser-layer12"]) == (third, last)
    assert (network["ser-layer12-cls0"].cls_layer, layers["ser-layer12-cls0"]) == (0, last)
    assert network["late-cls9"] == network["ser-layer9-cls9"]
    assert network["mocov3"] == network["ser-layer12-cls0"]
    assert recipe(f"late-cls9-{size}").addons == {}


def test_view_settings_are_those_of_the_table():
    labels = {name: recipe(f"{name}-imagenet").plan().label for name in ROWS}
    assert {name for name, label in labels.items() if label == "3 x 224"} == {
        "equimod", "equimod-layer3", "mocov3-3view", "ser-3view"
    }  # fmt: skip
    assert {name for name, label in labels.items() if label == "2 x 224 + 4 x 96"} == {
        "essl", "mocov3-multicrop", "ser-multicrop"
    }  # fmt: skip
    assert labels.pop("dino-published") == "2 x 224 + 8 x 96"
    assert all(labels[name] == "2 x 224" for name in ("mocov3", "ser", "augself", "stl", "dino", "barlow"))


def test_ser_is_weighed_as_the_paper_has_it_beside_each_base():
    found = {base: recipe(f"{base}+ser-imagenet").addons["ser"] for base in BASES}
    assert (found["mocov3"].temperature, found["mocov3"].weight) == (0.3, 1.0)
    assert (found["barlow"].temperature, found["dino"].temperature) == (0.3, 0.5)
    assert all(recipe(f"{base}+ser-imagenet").backbone.cls_layer == 3 for base in BASES)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("base", BASES)
def test_any_base_goes_with_any_add_on(base, size):
    for addition in ADDITIONS:
        config = recipe(f"{base}+{addition}-{size}")
        assert list(config.addons) == [addition]
        assert config.method == recipe(f"{base}-{size}").method
        assert config.recipe == f"{base}+{addition}-{size}"
        assert parent(config.recipe) == f"{base}-{size}"
    assert recipe(f"{base}+augself@9-{size}").addons["augself"].layer == (5 if size == "tiny" else 9)


def test_a_row_is_its_combination():
    for row, combination in (("ser", "mocov3+ser"), ("essl", "mocov3+essl"), ("dino-ser", "dino+ser"),
                             ("equimod-layer3", "mocov3+equimod@3"), ("ser-layer12", "mocov3+ser@12")):  # fmt: skip
        for size in SIZES:
            one, other = recipe(f"{row}-{size}"), recipe(f"{combination}-{size}")
            assert replace(one, recipe="") == replace(other, recipe="")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ser", "did you mean 'ser-tiny'|Sizes are"),
        ("ser-huge", "Sizes are: imagenet, small, tiny"),
        ("sar-tiny", "did you mean 'ser-tiny'"),
        ("dino+eslp-tiny", "add-ons ser, augself"),
        ("dine+ser-tiny", "bases are mocov3"),
        ("mocov3+augself@0-tiny", "layers 1 to 12"),
        ("mocov3+augself@13-imagenet", "layer"),
        ("", "Sizes are"),
    ],
)
def test_unknown_recipes_are_refused(name, message):
    with pytest.raises(UserError, match=message) as told:
        recipe(name)
    assert "\n" not in str(told.value)


def test_the_command_lists_and_shows():
    listed = equimid("recipes").stdout
    for name, row in ROWS.items():
        (line,) = [line for line in listed.splitlines() if line.split()[:1] == [name]]
        assert row.text in line
        assert row.published in line
    shown = equimid("recipes", "show", "ser-layer9-imagenet", "ser.fraction=0.05").stdout.splitlines()
    settings = [line.split(" #")[0].strip() for line in shown]
    assert settings.count("ser.fraction=0.05") == 2, "among what is changed, and in its group"
    assert "augself=null" in settings
    first = shown.index("# changed against ser-imagenet:")
    assert settings[first + 1 : first + 3] == ["ser.layers=[9]", "ser.fraction=0.05"]
    assert "was [3]" in shown[first + 1]
    assert shown[first + 3] == ""
    described = [line for line in shown if "=" in line.split(" #")[0] and not line.endswith("=null")]
    assert all(" # " in line for line in described), "every setting has a description"
    wrong = equimid("recipes", "show")
    assert wrong.returncode == 2
    assert "equimid recipes show NAME" in wrong.stderr


def test_a_default_configuration_is_the_base_alone():
    assert Config().addons == {}
    assert Config().plan().label == "2 x 224"


def test_an_add_on_that_settings_add_is_that_of_the_recipes():
    config = configured("ser-tiny", ["essl.weight=0.3", "equimod.weight=0.1"])
    assert config.addons["essl"] == replace(recipe("essl-tiny").addons["essl"], weight=0.3)
    assert config.addons["equimod"] == replace(recipe("equimod-tiny").addons["equimod"], weight=0.1)
    assert config.addons["ser"] == recipe("ser-tiny").addons["ser"]
    assert configured("ser-small", ["essl.weight=0.3"]).plan().label == "2 x 96 + 4 x 32"
    assert configured("mocov3-tiny", ["ser.weight=0.5"]).addons["ser"].layers == (2,)
    assert configured("essl-tiny", ["essl.weight=0.3"]) == override(recipe("essl-tiny"), ["essl.weight=0.3"])


def test_dino_draws_cls_as_it_draws_its_positions():
    for name in ("dino-small", "barlow-tiny"):
        config = recipe(name)
        backbone = build_backbone(replace(config.backbone, embed_dim=576), (), 0)
        assert float(backbone.cls_token.detach().std()) == pytest.approx(0.02, rel=0.2)
        assert float(backbone.pos_embed.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(build_backbone(recipe("mocov3-tiny").backbone, (), 0).cls_token.detach().std()) < 1e-4


@pytest.mark.parametrize("base", BASES)
def test_every_base_has_smaller_heads_at_size_small(base):
    large, small = (recipe(f"{base}-{size}").method for size in ("imagenet", "small"))
    assert large != small, "recipes/sizes.py has no heads of this method"
