"""The full grid: every base method with every add-on and none, at the final embedding and at layer 3, and every view
setting, three steps each on the bundled digits, from recipes of the tiny size.

    python benchmarks/grid.py                  # one process
    python benchmarks/grid.py --ranks 2        # two processes
    python benchmarks/grid.py --flops          # with GFLOPs per image of the same run at ViT-S/16, batch 2,048

Prints views, losses of the last step, seconds per step (the median) and, with --flops, the ratio to MoCo-v3.
"""

import argparse
import csv
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from equimid.config import override
from equimid.recipes import ADDITIONS, BASES, recipe
from equimid.runs.flops import step_flops
from equimid.runs.pretrain import pretrain

MULTICROP, THREE = "views.local.count=4", "views.full=3"
STEPS = 3


def cells() -> Iterator[tuple[str, list[str]]]:
    """(recipe without its size, settings) of every cell."""
    for base in BASES:
        yield from ((base, settings) for settings in ([], [THREE], [MULTICROP]))
        yield from ((f"{base}+ser", settings) for settings in ([], [THREE], [MULTICROP]))
        yield f"{base}+ser@12", []
        for addition in ADDITIONS:
            if addition != "ser":
                yield from ((f"{base}+{addition}{at}", []) for at in ("", "@3"))


def run(name: str, settings: Sequence[str], folder: Path) -> dict[str, str]:
    """Train the cell's three steps; the last row of its metrics, with the median seconds per step."""
    common = [
        "data.source=digits", f"train.steps={STEPS}", "runtime.workers=0", "runtime.tensorboard=false",
        "runtime.accelerator=cpu",
    ]  # fmt: skip
    config = override(recipe(f"{name}-tiny"), [*common, *settings])
    pretrain(config, folder, finish=False)
    with (folder / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == STEPS, f"{name}: {len(rows)} steps"
    losses = {key: float(value) for row in rows for key, value in row.items() if key.startswith("loss/")}
    assert all(math.isfinite(value) for value in losses.values()), f"{name}: {losses}"
    seconds = statistics.median(config.train.batch_size / float(row["images_per_second"]) for row in rows)
    return rows[-1] | {"seconds_per_step": str(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--flops", action="store_true")
    parser.add_argument("settings", nargs="*")
    told = parser.parse_args()
    if told.ranks > 1 and "LOCAL_RANK" not in os.environ:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={told.ranks}"]
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(subprocess.run([*launcher, *sys.argv], env=os.environ | {"GRID_FOLDER": folder}).returncode)
    is_main = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if is_main:
        print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores; {told.ranks} process(es)")
        print(f"{'cell':24} {'views':18} {'s/step':>7} {'GFLOPs':>8} {'ratio':>7}  losses of step {STEPS}")
    base = step_flops(recipe("mocov3-imagenet")) if told.flops else 0.0
    with tempfile.TemporaryDirectory() as own:
        folder = Path(os.environ.get("GRID_FOLDER", own))
        for number, (name, settings) in enumerate(cells()):
            row = run(name, [*settings, *told.settings], folder / str(number))
            if is_main:
                show(name, settings, row, base)


def show(name: str, settings: Sequence[str], row: Mapping[str, str], base: float) -> None:
    """Print a cell's line; FLOPs where those of the base are given."""
    config = override(recipe(f"{name}-imagenet"), settings)
    flops = step_flops(config) if base else 0.0
    counted = f"{flops / 1e9:8.2f} {flops / base:7.4f}" if base else f"{'':8} {'':7}"
    losses = ", ".join(f"{k[5:]} {float(v):.3f}" for k, v in row.items() if k.startswith("loss/"))
    print(f"{name:24} {config.plan().label:18} {float(row['seconds_per_step']):7.2f} {counted}  {losses}", flush=True)


if __name__ == "__main__":
    main()
