"""The benchmark of the step runs whole and says what it did; no times are looked at."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import bench_step as step
import pytest
from lib.options import StepOptions

from equimid.errors import UserError
from equimid.recipes import recipe
from equimid.runs.flops import step_flops
from equimid.views import sample_poses
from helpers.processes import run_program


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(step, "_SIDE", 32)
    return StepOptions(
        batch_size=4, posed=2, image_size=32, name="vit_tiny_patch16_224", precision="bf16", repeats=1, device="cpu"
    )


def test_every_side_is_timed_in_every_precision(small, tmp_path):
    result = step.bench_step(small)
    sides = [(row["side"], row["precision"]) for row in result.rows]
    ours = ["base", "ser", "packed", "separate"]
    assert sorted(sides) == sorted([*((s, p) for s in ours for p in ("fp32", "bf16")), ("plain", "fp32")])
    assert all(len(row) == 7 and row["seconds"] > 0 and row["memory MiB"] > 1 for row in result.rows)
    assert "auto" not in " ".join(result.notes), "nothing was chosen: the precision was given"
    assert result.settings["posed"] == 2
    by_side = {(row["side"], row["precision"]): row for row in result.rows}
    for precision in ("fp32", "bf16"):
        wall = by_side["ser", precision]["seconds"] / by_side["base", precision]["seconds"]
        assert result.ratios[f"time with SER / without, {precision}"] == pytest.approx(wall)
        expected = wall / result.ratios["FLOPs with SER / without"]
        assert result.ratios[f"the same / FLOP ratio, {precision}"] == pytest.approx(expected)
    assert json.loads(result.save(tmp_path).read_text())["rows"] == result.rows


def test_a_round_compares_the_same_poses(small, monkeypatch):
    drawn, views = [], step.DrawnStep.views
    monkeypatch.setattr(step.DrawnStep, "views", lambda self, number: drawn.append(number) or views(self, number))
    small = replace(small, image_size=96, precision="fp32", repeats=2)
    result = step.bench_step(small)
    ours = 4  # the plain side runs in a process of its own
    rounds = [drawn[first : first + ours] for first in range(0, ours * (step.DRAWS + 2), ours)]
    assert rounds == [[number] * ours for number in (1, 2, 3, 1, 2)]
    base, ser = step._configs(small, 4)
    plan = ser.plan()
    patches = [sum(h * w for h, w in (p.grid for p in sample_poses(plan, 0, n, 0, 1))) for n in (1, 2, 3)]
    assert len(set(patches)) > 1
    counted = [step_flops(ser, whole=False, poses=sample_poses(plan, 0, n, 0, 1)) for n in (1, 2, 3)]
    assert sorted(range(3), key=counted.__getitem__) == sorted(range(3), key=patches.__getitem__)
    expected = sum(counted) / 3 / step_flops(base, whole=False)
    assert result.ratios["FLOPs with SER / without"] == pytest.approx(expected)


def test_the_flops_of_a_row_are_those_that_were_done(small):
    base, ser = step._configs(small, 4)
    assert ser.plan().posed.count == 2
    assert base.addons == {}
    assert 0.85 < step_flops(ser, whole=False) / step_flops(ser) < 1
    vit_small = recipe("mocov3-imagenet")
    # the last block for CLS alone: all but q, k, v, and of attention all but one query
    t, d = 197, 384
    left_out = 2 * (9 * (t - 1) * d * d + 2 * (t - 1) * t * d) * 2 * (3 + 1)
    whole, done = (step_flops(vit_small, 4, whole=flag) for flag in (True, False))
    assert whole - done == pytest.approx(left_out, rel=1e-6)


def test_a_precision_that_there_is_not_is_refused(small):
    with pytest.raises(UserError, match="fp8"):
        step._precision("fp8", None, None)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")
def test_memory_is_told_also_where_freed_memory_is_kept():
    program = """
import torch
from lib.timing import growth
from equimid.engine.machine import keep_freed_memory
keep_freed_memory()
def side():
    torch.ones(2**24)
print(*(growth(side, torch.device("cpu")) >> 20 for _ in range(3)))
"""
    done = run_program([sys.executable, "-c", program], cwd=Path(__file__).parent.parent / "benchmarks")
    grown = [int(mib) for mib in done.stdout.split()]
    assert len(grown) == 3
    assert all(60 <= mib <= 80 for mib in grown), grown
