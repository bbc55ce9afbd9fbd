"""The comparison as a whole: every cell of the grid trains, on one process and on two, and costs what it should."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from equimid.recipes import BASES, recipe
from equimid.runs.flops import step_flops

GRID = Path(__file__).parent.parent / "benchmarks" / "grid.py"
# no drop path: what it drops depends on the number of processes
QUICK = ["train.batch_size=16", "method.hidden=64", "backbone.embed_dim=32", "backbone.drop_path=0"]


def grid_module():
    spec = importlib.util.spec_from_file_location("grid", GRID)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


grid = grid_module()
CELLS = list(grid.cells())


def test_the_grid_is_full():
    names = {name for name, _ in CELLS}
    for base in BASES:
        assert base in names
        for addon in ("augself", "equimod", "essl", "stl"):
            assert {f"{base}+{addon}", f"{base}+{addon}@3"} <= names
        assert {f"{base}+ser", f"{base}+ser@12"} <= names
        labels = {recipe_label(name, settings) for name, settings in CELLS if name in (base, f"{base}+ser")}
        assert labels == {"2 x 224", "3 x 224", "2 x 224 + 4 x 96"}


def recipe_label(name, settings):
    return grid.override(recipe(f"{name}-imagenet"), settings).plan().label


@pytest.fixture(scope="module")
def on_two_processes():
    """{cell: its printed losses}, of all cells one after another; strict about parameters without gradient."""
    done = subprocess.run([sys.executable, str(GRID), "--ranks", "2", *QUICK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if " x " in line]
    return {cell_id(*cell): line for cell, line in zip(CELLS, lines, strict=True)}


def cell_id(name, settings):
    return " ".join([name, *settings])


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "settings"), CELLS, ids=[cell_id(*cell) for cell in CELLS])
def test_every_cell_trains_three_steps_alike_on_one_and_two_processes(name, settings, on_two_processes, tmp_path):
    row = grid.run(name, [*settings, *QUICK], tmp_path / "run")
    assert row["step"] == "3"
    losses = {key: float(value) for key, value in row.items() if key.startswith("loss/")}
    addon = name.partition("+")[2].partition("@")[0]
    named = {"total", recipe(f"{name}-tiny").method.name, *([addon] if addon else [])}
    assert set(losses) == {f"loss/{part}" for part in named}
    printed = on_two_processes[cell_id(name, settings)].split("  ")[-1]
    for part, value in (entry.split() for entry in printed.split(", ")):
        assert losses[f"loss/{part}"] == pytest.approx(float(value), rel=2e-3, abs=2e-3), part


BASE_FLOPS = 2 * (36_724_547_584 + 2_097_152)


# of MoCo-v3 at ViT-S/16, 224 px, batch 2,048; the specification's section 8
@pytest.mark.parametrize(
    ("row", "ratio"),
    [("augself", 1.0002), ("stl", 1.0032), ("essl", 1.262), ("mocov3-multicrop", 1.269), ("equimod", 1.373),
     ("dino", 73.70 / 73.453), ("barlow", 57.00 / 73.453)],
)  # fmt: skip
def test_flops_are_those_of_the_specification(row, ratio):
    assert step_flops(recipe(f"{row}-imagenet")) / BASE_FLOPS == pytest.approx(ratio, rel=0.005)


def test_moco_v3_costs_73_4_gflops_per_image():
    """Law 10; 2,097,152 multiply-adds more for the logits of a batch of 2,048."""
    assert step_flops(recipe("mocov3-imagenet")) == pytest.approx(BASE_FLOPS, rel=1e-6)
