"""Recipes: the rows of the paper's comparison, in three sizes; what each changes in its parent."""

import subprocess
import sys
from dataclasses import replace

import pytest

from equimid.backbones import build_backbone
from equimid.config import Config, differences, load_config, override, save_config
from equimid.errors import UserError
from equimid.recipes import ADDITIONS, BASES, ROWS, SIZES, configured, names, parent, recipe

# the specification's section 11: linear top-1 on ImageNet-1k
PUBLISHED = {
    "mocov3": "68.44", "augself": "67.55", "stl": "65.49", "ser": "69.28", "equimod": "68.95", "essl": "70.60",
    "ser-multicrop": "71.56", "ser-layer9": "68.72", "ser-layer12": "68.18", "control": "68.82",
    "equimod-layer3": "69.51", "augself-layer3": "68.23",
}  # fmt: skip


def equimid(*arguments):
    return subprocess.run([sys.executable, "-m", "equimid", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("name", names())
def test_every_recipe_survives_its_yaml_file(name, tmp_path):
    config = recipe(name)
    assert config.recipe == name
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_rows_have_the_published_numbers_and_the_comparisons_scale():
    assert {name: row.published for name, row in ROWS.items() if row.published} == PUBLISHED
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
    assert keys("late-cls") == {"backbone.cls_layer"}
    assert {key.split(".")[0] for key in keys("ser")} == {"ser", "backbone"}
    assert keys("augself-layer3") == {"augself.layer"}
    assert keys("equimod-layer3") == {"equimod.layer"}
    assert keys("mocov3-3view") == keys("ser-3view") == {"views.full"}
    assert keys("mocov3-multicrop") == keys("ser-multicrop") == {"views.local.count"}


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
    shown = equimid("recipes", "show", "ser-layer9-imagenet", "ser.share=0.05").stdout.splitlines()
    assert "ser.share=0.05" in shown
    assert "augself=null" in shown
    assert shown[shown.index("# against ser-imagenet:") + 1 :] == [
        "# ser.layers: [3] -> [9]", "# ser.share: 0.02 -> 0.05"
    ]  # fmt: skip
    wrong = equimid("recipes", "show")
    assert wrong.returncode == 2
    assert "equimid recipes show NAME" in wrong.stderr


def test_constants_of_other_views_are_measured_and_used(tmp_path):
    file = tmp_path / "own.json"
    refused = equimid("recipes", "show", "equimod-tiny", "views.crop_scale=0.5,1.0")
    assert refused.returncode == 2
    assert "equimid constants --recipe" in refused.stderr
    done = equimid("constants", "--recipe", "equimod-tiny", "--out", str(file), "--draws", "200",
                   "views.crop_scale=0.5,1.0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = override(recipe("equimod-tiny"), ["views.crop_scale=0.5,1.0", f"equimod.constants={file}"])
    assert config.views.crop_scale == (0.5, 1.0)
    bad = equimid("constants", "--recipe", "equimod-tiny", "--out", str(file), "--draws", "1")
    assert bad.returncode == 2
    assert bad.stderr.count("\n") == 1


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
