"""Every setting is read and has an effect (T26): base methods and SER here, other add-ons beside their tests."""

import ast
import importlib.util
import inspect
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

import equimid
from equimid.addons import ADDONS, SERConfig, plan_views
from equimid.config import Config, differences, flatten, load_config, override, save_config
from equimid.engine import OptimConfig, TrainConfig
from equimid.errors import UserError
from equimid.evaluation import EvaluationConfig
from equimid.methods import METHODS, DINOConfig, MoCoV3Config
from equimid.recipes import configured, recipe
from equimid.recipes.describe import every_setting
from equimid.schedules import StepInfo
from equimid.views import LocalViews, Photometric, ViewsConfig
from helpers.processes import run_program
from helpers.tasks import TINY, make_task, make_views

SOURCE = Path(equimid.__file__).parent
ROOT = Path(__file__).parent.parent


def signature(config):
    """What a base objective does with its settings."""
    torch.manual_seed(0)
    method = config.build(6).double()
    rng = torch.Generator().manual_seed(1)
    x = [torch.randn(7, 6, dtype=torch.float64, generator=rng) for _ in range(6)]
    for _ in range(2):  # a center moves
        loss = method(x, [y + 0.1 for y in x[:2]] if method.uses_momentum else [], StepInfo(4, 20, 2))
    shapes = [(tuple(p.shape), p.requires_grad) for p in method.parameters()]
    frozen = [len(method.frozen_at(StepInfo(step, 20, 2))) for step in range(20)]
    temperatures = [config.teacher_temperature_at(e) for e in range(10)] if isinstance(config, DINOConfig) else []
    return (round(float(loss.detach()), 9), shapes, frozen, method.momentum_at(StepInfo(3, 20)), temperatures)


METHOD_CHANGES = {
    "mocov3": {"temperature": 0.3, "momentum": 0.9, "hidden": 9, "dim": 7, "multi_crop": "sum"},
    "dino": {
        "out_dim": 13, "hidden": 9, "bottleneck": 6, "norm_last_layer": True, "student_temperature": 0.2,
        "teacher_temperature_start": 0.03, "teacher_temperature": 0.08, "teacher_warmup_epochs": 6,
        "center_momentum": 0.5, "momentum": 0.9, "freeze_last_layer_epochs": 3,
    },
    "barlow_twins": {"off_diagonal_weight": 0.1, "hidden": 9, "dim": 7},
    "simclr": {"temperature": 0.3, "hidden": 9, "dim": 7},
    "vicreg": {"invariance": 5.0, "variance": 5.0, "covariance": 5.0, "hidden": 9, "dim": 7},
    "simsiam": {"hidden": 9, "dim": 7, "bottleneck": 6},
    "byol": {"momentum": 0.9, "hidden": 9, "dim": 7},
}  # fmt: skip


def test_no_method_is_missing_in_the_table_of_changes():
    assert set(METHOD_CHANGES) == {name for name in METHODS if METHODS[name].__module__.startswith("equimid.")}


@pytest.mark.parametrize("name", METHOD_CHANGES)
def test_every_setting_of_every_method_has_an_effect(name):
    kind, changes = METHODS[name], METHOD_CHANGES[name]
    assert set(changes) == {f.name for f in fields(kind)} - {"name"}
    small = {"hidden": 10, "dim": 5, "bottleneck": 5, "out_dim": 12, "teacher_warmup_epochs": 4,
             "teacher_temperature": 0.07}  # fmt: skip
    config = kind(**{key: value for key, value in small.items() if key in changes})
    found = [signature(config), *(signature(replace(config, **{key: value})) for key, value in changes.items())]
    assert signature(config) == found[0]
    for key, other in zip(changes, found[1:], strict=True):
        assert other != found[0], f"method.{key} changes nothing"


SER_CHANGES = {
    "weight": 0.5, "temperature": 0.5, "layers": (3,), "layer_weights": (1.0, 0.2), "fraction": 0.75, "hidden": 8,
    "area": (0.2, 0.4), "aspect": (2.0, 3.0), "complement": True, "source": "shared_crop", "form": "cross_view",
    "detached": True, "grids": 0, "negatives": "all", "negative_distance": 0,
}  # fmt: skip
SER_WITH = {"negative_distance": {"negatives": "all"}}  # what a setting needs beside it


def test_every_setting_of_ser_has_an_effect():
    assert set(SER_CHANGES) == {f.name for f in fields(SERConfig)}

    def seen(config):
        plan, task = plan_views(ViewsConfig(), TINY, {"ser": config}, 8), make_task(config)
        losses = task(make_views())
        watched = [p.requires_grad for p in task.addons.parameters()]
        return plan.posed, round(float(losses.named["ser"]), 5), round(float(losses.total.detach()), 5), watched

    config = SERConfig(layers=(1, 3), hidden=16, fraction=0.5)
    before = seen(config)
    assert seen(config) == before
    for key, value in SER_CHANGES.items():
        needed = replace(config, **SER_WITH.get(key, {}))
        assert seen(replace(needed, **{key: value})) != seen(needed), f"ser.{key} changes nothing"


def parts(kind):
    """The dataclasses of settings below one, with itself."""
    found = [kind]
    for hint in get_type_hints(kind).values():
        for option in [hint, *get_args(hint)]:
            if is_dataclass(option) and isinstance(option, type):
                found += parts(option)
    return found


def read_in(files):
    return read_in_code(*(Path(file).read_text() for file in files))


def read_in_code(*codes):
    """Names that this code reads: attributes, and strings for getattr; checks of settings do not count."""
    found = set()
    for code in codes:
        pending = [ast.parse(code)]
        while pending:
            node = pending.pop()
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                continue
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            pending += ast.iter_child_nodes(node)
    return found


EVERYWHERE = [file for file in SOURCE.rglob("*.py") if "recipes" not in file.parts]
SETTINGS = list(dict.fromkeys([*parts(Config), *(p for r in (METHODS, ADDONS) for name in r for p in parts(r[name]))]))


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_every_setting_is_read_somewhere(kind):
    """A net: it finds a setting that no line reads. Settings of a method or an add-on are read in its own file, or by
    the methods of its class."""
    own = [name for registry in (METHODS, ADDONS) for name in registry if kind is registry[name]]
    if own:
        room = Path(inspect.getfile(kind)).parent
        read = read_in([room / f"{own[0]}.py", SOURCE / "task.py"])
        read |= read_in_code(*(inspect.getsource(c) for c in kind.__mro__ if is_dataclass(c)))
    else:
        read = read_in(EVERYWHERE)
    unread = {f.name for f in fields(kind)} - read - {"name"}
    assert not unread, f"nothing reads {sorted(unread)} of {kind.__name__}"


def test_the_net_of_settings_is_as_wide_as_the_configuration():
    assert {Config, LocalViews, Photometric, OptimConfig, SERConfig, MoCoV3Config} <= set(SETTINGS)
    assert len(SETTINGS) >= 20


def test_a_run_that_was_saved_before_a_setting_existed_keeps_what_it_did(tmp_path):
    file = tmp_path / "config.yaml"
    config = recipe("ser-tiny")
    save_config(config, file)
    assert differences(load_config(file), config) == {}
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "grids:" not in line))
    assert differences(load_config(file), config) == {"ser.grids": (0, 16)}


def test_every_setting_is_described_with_its_unit_or_range():
    settings = [d for name in METHODS for d in every_setting(name)]
    assert len({d.key for d in settings}) > 150
    for d in settings:
        assert len(d.text) > 1, f"{d.key} has no description"
        assert not d.text.endswith("."), d.key
        assert d.limits or d.unit or d.kind != "value", f"{d.key} has no range, unit or type"


def test_every_setting_of_a_recipe_is_one_that_is_described():
    for name in ("ser-tiny", "dino-small", "mocov3+essl-tiny", "equimod-small", "stl-tiny", "augself-tiny"):
        config = recipe(name)
        known = {d.key for d in every_setting(config.method.name)} | set(ADDONS)
        assert set(flatten(config)) <= known


def test_the_page_of_settings_is_that_of_the_declarations():
    """python docs/make_settings.py"""
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "make_settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: TrainConfig(batch_size=0), "train.batch_size is 0; it must be 1 or more"),
        (lambda: TrainConfig(epochs=2.5), "train.epochs is 2.5; it must be a whole number"),
        (lambda: replace(TrainConfig(), batch_size=10, accumulate=3), "train.batch_size is 10"),
        (lambda: SERConfig(weight=float("nan")), "ser.weight is nan; it must be a finite number"),
        (lambda: SERConfig(fraction=1.5), "ser.fraction is 1.5; it must be in (0, 1]"),
        (lambda: SERConfig(layers=()), "ser.layers is (); it must have 1 value(s) or more"),
        (lambda: EvaluationConfig(linear_rates=(1.0, -1.0)), "evaluation.linear_rates.1 is -1.0; it must be greater"),
        (lambda: MoCoV3Config(multi_crop="max"), "method.multi_crop is 'max'; it must be one of 'mean' or 'sum'"),
        (lambda: SERConfig(wieght=1), "unknown setting 'ser.wieght'"),
    ],
)
def test_mistakes_name_setting_value_and_range(make, named):
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).startswith(named)


def test_a_mistake_of___post_init___has_its_group_wherever_it_is_built():
    config = recipe("ser-tiny")
    for setting, named in (
        ("views.first.blur_kernel=4", "views.first.blur_kernel is 4"),
        ("ser.layers=2,2", "ser.layers is [2, 2]"),
        ("views.local.scale=0.5,0.1", "views.local.scale is [0.5, 0.1]"),
    ):
        with pytest.raises(UserError) as caught:
            override(config, [setting])
        assert named in str(caught.value)


HEAVY = {"torch", "torchvision", "timm", "lightning", "sklearn", "scipy", "matplotlib", "transformers", "pandas"}


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["recipes"], 0),
        (["recipes", "show", "ser-small"], 0),
        (["recipes", "show", "dino+essl@3-tiny", "essl.weight=2"], 0),
        (["pretrain", "--help"], 0),
        (["evaluate"], 0),
        (["pretrain", "digits", "ser.wieght=1"], 2),
        (["pretrain", "digits", "ser.weight=-1"], 2),
        (["pretrain", "no/such/folder"], 2),
        (["pretrain", "digits", "--recipe", "sre-small"], 2),
        (["evaluate", "knn", "--model", "no/such/run"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_lists_help_and_mistakes_do_not_wait_for_torch(words, status, tmp_path):
    """A count of heavy modules, since seconds depend on the machine."""
    program = f"""
import sys
sys.argv = ["equimid", *{words!r}]
from equimid.cli import main
try:
    main()
    status = 0
except SystemExit as stop:
    status = stop.code or 0
heavy = sorted({HEAVY!r} & set(sys.modules))
sys.exit(f"{{status}} {{heavy}}" if heavy or status != {status} else 0)
"""
    done = run_program([sys.executable, "-c", program], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("in_chans", None), ("wandb", None), ("learning_rate", "optim.lr"), ("optim.learning_rate", "optim.lr"),
        ("num_workers", "runtime.workers"), ("ser.wieght", "ser.weight"), ("epoch", "train.epochs"),
        ("weight", "ser.weight"),
    ],
)  # fmt: skip
def test_the_nearest_setting_is_named_and_no_other(key, meant):
    with pytest.raises(UserError) as caught:
        configured("ser-tiny", [f"{key}=1"])
    expected = f"did you mean {meant!r}?" if meant else "lists all settings"
    assert expected in str(caught.value)


def test_a_file_without_the_name_of_its_method_and_with_a_wrong_setting(tmp_path):
    (tmp_path / "config.yaml").write_text("method:\n  temprature: 1\n")
    with pytest.raises(UserError, match=r"unknown setting 'method\.temprature'; the method mocov3 has"):
        load_config(tmp_path / "config.yaml")
