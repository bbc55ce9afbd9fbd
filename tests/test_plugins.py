"""Add-ons and base methods from outside the package: a registered class, an entry point, and what goes wrong."""

import csv
import os
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch

from equimid.addons import ADDONS, Addon, AddonConfig
from equimid.config import Config, load_config, override, save_config
from equimid.distributed import mean_over_ranks
from equimid.errors import UserError
from equimid.methods import METHODS, Method, MethodConfig
from equimid.plugins import Registry
from equimid.recipes import recipe
from equimid.runs.pretrain import pretrain

EXAMPLE = Path(__file__).parent.parent / "examples" / "own_addon.py"
QUICK = [
    "train.batch_size=16", "train.steps=12", "backbone.embed_dim=32", "method.hidden=32", "runtime.workers=0",
    "runtime.tensorboard=false", "runtime.log_every=1", "evaluation.linear_epochs=1", "optim.warmup_epochs=0",
    "evaluation.equivariance_images=4",
]  # fmt: skip


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def column(run, name):
    with (run / "metrics.csv").open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream)]


def test_an_add_on_of_your_own_trains_from_a_recipe(tmp_path):
    """On two processes; the class itself is 30 lines or less, and the package is not touched."""
    text = EXAMPLE.read_text()
    assert len(text[text.index("@ADDONS") : text.index("if __name__")].splitlines()) <= 30
    out = tmp_path / "run"
    done = python(EXAMPLE, "digits", out, "meancolour.layer=2", "runtime.devices=2", *QUICK)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = column(out, "loss/meancolour")
    assert sum(losses[-3:]) < sum(losses[:3])
    assert column(out, "gradient/meancolour")[0] > 0
    assert (out / "report.html").exists()
    assert "meancolour" in (out / "config.yaml").read_text()


def install(folder):
    """A package with the example's class and an entry point, as an installer leaves it."""
    (folder / "someones.py").write_text(EXAMPLE.read_text().split('if __name__ == "__main__"')[0])
    info = folder / "someones-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: someones\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[equimid.addons]\nmeancolour = someones:MeanColourConfig\n")


def test_an_add_on_of_an_installed_package_is_a_setting_of_the_command_line(tmp_path):
    install(tmp_path)
    cli = ["-m", "equimid"]
    shown = python(*cli, "recipes", "show", "mocov3-tiny", "meancolour.weight=0.5", PYTHONPATH=str(tmp_path))
    assert "meancolour.weight=0.5" in shown.stdout.split(), shown.stderr
    assert "\nmeancolour.hidden=64" in shown.stdout.partition("# changed against")[2]
    done = python(
        *cli, "pretrain", "digits", "--recipe", "mocov3-tiny", "--out", tmp_path / "run", "meancolour.weight=0.5",
        *QUICK, PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(column(tmp_path / "run", "loss/meancolour")) == 12
    without = python(*cli, "recipes", "show", "mocov3-tiny", "meancolour.weight=0.5")
    assert without.returncode == 2
    assert "unknown setting 'meancolour.weight'" in without.stderr
    # a run with an add-on that is gone is not evaluated as something else
    gone = python(*cli, "evaluate", tmp_path / "run")
    assert gone.returncode == 2
    assert "unknown setting 'meancolour" in gone.stderr


def test_a_broken_package_is_named(tmp_path):
    install(tmp_path)
    (tmp_path / "someones.py").write_text("import nothing_of_that_name\n")
    shown = python("-m", "equimid", "recipes", "show", "mocov3-tiny", PYTHONPATH=str(tmp_path))
    assert shown.returncode == 2
    assert "'meancolour' of another package" in shown.stderr
    assert "Traceback" not in shown.stderr


class Alignment(Method):
    """Alignment and uniformity (Wang and Isola 2020), small enough for a test."""

    name = "alignment"

    def __init__(self, config, width):
        super().__init__()
        self.projector = torch.nn.Linear(width, config.hidden)

    def forward(self, student, momentum, when):
        x, y = (torch.nn.functional.normalize(self.projector(cls), dim=1) for cls in student[:2])
        return mean_over_ranks((x - y).pow(2).sum(1) + torch.exp(-2 * torch.cdist(x, x).pow(2)).mean(1).log())


def test_a_base_method_of_your_own_trains_with_and_without_add_ons(tmp_path, monkeypatch):
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))

    @METHODS.register
    @dataclass(frozen=True)
    class AlignmentConfig(MethodConfig):
        name: Literal["alignment"] = "alignment"
        hidden: int = 16

        def build(self, width):
            return Alignment(self, width)

    settings = ["data.source=digits", "method.name=alignment", *QUICK]
    for number, extra in enumerate(([], ["ser.weight=1", "ser.layers=2", "ser.fraction=0.25"])):
        out = tmp_path / str(number)
        pretrain(override(recipe("mocov3-tiny"), [*settings, *extra]), out, finish=False)
        losses = column(out, "loss/alignment")
        assert sum(losses[-3:]) < sum(losses[:3])
        assert load_config(out / "config.yaml").method == AlignmentConfig(hidden=32)


def test_changing_the_method_brings_its_own_settings():
    config = override(recipe("mocov3-tiny"), ["method.out_dim=64", "method.name=dino"])
    assert (config.method.name, config.method.out_dim, config.method.momentum) == ("dino", 64, 0.996)
    with pytest.raises(UserError, match=r"unknown setting 'method.predictor'"):
        override(config, ["method.predictor=1"])
    with pytest.raises(UserError, match="unknown method 'dinno'; did you mean 'dino'"):
        override(config, ["method.name=dinno"])


def test_a_configuration_with_an_unknown_method_is_refused(tmp_path):
    save_config(Config(), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text().replace("name: mocov3", "name: nothing")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="unknown method 'nothing'"):
        load_config(tmp_path / "config.yaml")


def test_two_classes_of_one_name_are_refused_and_the_same_one_is_not():
    registry: Registry = Registry("add-on", "equimid.nothing", AddonConfig)

    @dataclass(frozen=True)
    class One(AddonConfig):
        name: ClassVar[str] = "one"

    @dataclass(frozen=True)
    class Other(AddonConfig):
        name: ClassVar[str] = "one"

    registry.register(One)
    registry.register(One)
    with pytest.raises(UserError, match="two classes want to be the add-on 'one'"):
        registry.register(Other)
    assert list(registry) == ["one"]
    assert "ser" in ADDONS


@pytest.mark.parametrize("name", ["views", "Mine", "2nd", "", "a.b", None])
def test_a_name_that_cannot_be_a_setting_is_refused(name):
    made = dataclass(frozen=True)(type("Mine", (AddonConfig,), {"name": name}))
    with pytest.raises(UserError, match="expected a class attribute `name`"):
        ADDONS.register(made)


def test_the_names_that_add_ons_cannot_have_are_those_of_the_configuration():
    assert set(ADDONS.reserved) == {f.name for f in fields(Config)}


def test_a_run_is_read_without_the_plugins_that_it_did_not_use(tmp_path, monkeypatch):
    monkeypatch.setattr(ADDONS, "_classes", dict(ADDONS._classes))

    @ADDONS.register
    @dataclass(frozen=True)
    class Mine(AddonConfig):
        name: ClassVar[str] = "mine2"

    with_it = override(recipe("ser-tiny"), ["mine2.weight=0.5"])
    save_config(recipe("ser-tiny"), tmp_path / "without.yaml")
    save_config(with_it, tmp_path / "with.yaml")
    assert load_config(tmp_path / "with.yaml") == with_it
    del ADDONS._classes["mine2"]
    assert load_config(tmp_path / "without.yaml") == recipe("ser-tiny")
    with pytest.raises(UserError, match=r"unknown setting 'mine2\.weight'"):
        load_config(tmp_path / "with.yaml")


class Wrong(Addon):
    """Whatever it is told to return."""

    def __init__(self, config, width):
        super().__init__()
        self.found, self.unused = config.found, torch.nn.Parameter(torch.ones(2))

    def forward(self, seen):
        return {"vector": seen.crops[0].cls, "none": None, "number": 1.0, "constant": torch.tensor(1.0),
                "unused": seen.crops[0].cls.mean()}[self.found]  # fmt: skip


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("vector", r"the loss of 'wrong' is a tensor of shape \(16, 32\)"),
        ("none", "the loss of 'wrong' is NoneType"),
        ("number", "the loss of 'wrong' is float"),
        ("constant", "the loss of 'wrong' has no gradient"),
        ("unused", r"no loss has a gradient for addons\.wrong\.unused"),
        ("module", "build\\(\\) of 'wrong' gave Linear; expected a Addon"),
        ("nothing", r"'wrong' has no build\(embed_dim, plan\)"),
    ],
)
def test_what_a_faulty_add_on_does_is_told_by_its_name(found, message, tmp_path, monkeypatch):
    monkeypatch.setattr(ADDONS, "_classes", dict(ADDONS._classes))

    @ADDONS.register
    @dataclass(frozen=True)
    class WrongConfig(AddonConfig):
        name: ClassVar[str] = "wrong"
        found: str = "vector"

        def build(self, width, plan):
            if self.found == "nothing":
                return super().build(width, plan)
            return torch.nn.Linear(1, 1) if self.found == "module" else Wrong(self, width)

    config = override(recipe("mocov3-tiny"), ["data.source=digits", f"wrong.found={found}", *QUICK])
    with pytest.raises(UserError, match=message) as told:
        pretrain(config, tmp_path / "run", finish=False)
    assert "\n" not in str(told.value)


def test_a_class_that_is_no_add_on_or_no_dataclass_is_refused():
    with pytest.raises(UserError, match="must derive from AddonConfig"):
        ADDONS.register(dataclass(frozen=True)(type("Mine", (), {"name": "mine"})))
    with pytest.raises(UserError, match="put @dataclass"):
        ADDONS.register(type("Mine", (AddonConfig,), {"name": "mine"}))


def test_a_loss_that_is_infinite_only_with_its_weight_stops_the_run(tmp_path):
    config = override(recipe("ser-tiny"), ["data.source=digits", "ser.weight=1e38", *QUICK])
    with pytest.raises(UserError, match="total is inf"):
        pretrain(config, tmp_path / "run", finish=False)
