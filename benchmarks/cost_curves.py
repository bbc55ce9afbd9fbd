"""Step time against batch, posed images, layers tapped and ranks, each with the law that it follows.

    python benchmarks/cost_curves.py [--rounds 3] [--out docs/speed.png]

MoCo-v3 with SER, drawn images at 224 px, float32 on the CPU and bf16 on a GPU. All points of a curve take turns in one
process; ranks are gloo processes of one thread each, as many as there are cores. A law is fitted by least squares to
the medians; the error is the largest relative distance of a point from it.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from bench_step import DrawnStep
from lib.timing import choose_device, describe_machine, paired

from equimid.engine import keep_freed_memory
from equimid.recipes import recipe

NAME, PRECISION = "vit_small_patch16_224", {"cpu": "fp32", "cuda": "bf16"}


def step(device: torch.device, batch: int = 16, posed: int = 2, layers: tuple[int, ...] = (3,), name: str = NAME):
    config = recipe("ser-imagenet")
    config = replace(
        config,
        backbone=replace(config.backbone, name=name),
        train=replace(config.train, batch_size=batch, accumulate=1),
        addons={"ser": replace(config.addons["ser"], fraction=posed / batch, layers=layers, grids=1)},
    )
    made = DrawnStep(config, device)
    return lambda: made(PRECISION[device.type])


def curve(title: str, points: dict[int, object], law: str, terms: list, rounds: int, device: torch.device) -> dict:
    times = paired({str(x): run for x, run in points.items()}, rounds, device)
    return fitted(title, np.array(list(points)), np.array([times[str(x)].median for x in points]), law, terms)


def fitted(title: str, x: np.ndarray, y: np.ndarray, law: str, terms: list) -> dict:
    columns = np.stack([term(x.astype(float)) for term in terms], axis=1)
    # relative errors count alike
    factors = np.linalg.lstsq(columns / y[:, None], np.ones_like(y), rcond=None)[0]
    error = float(np.abs(columns @ factors / y - 1).max())
    written = law.format(*(f"{factor:.3g}" for factor in factors))
    print(f"\n{title}\n  {written}   (largest error {error:.0%})")
    for a, b in zip(x, y, strict=True):
        print(f"  {a:>8} {b:9.3f} s", flush=True)
    return {"title": title, "x": x, "y": y, "terms": terms, "factors": factors, "law": written}


def rank_seconds(rank: int, ranks: int, port: int, found, rounds: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    config = recipe("ser-imagenet")
    config = replace(
        config,
        backbone=replace(config.backbone, name="vit_tiny_patch16_224"),
        train=replace(config.train, batch_size=8, accumulate=1),
        addons={"ser": replace(config.addons["ser"], fraction=2 / 8, grids=1)},
    )
    made = DrawnStep(config, torch.device("cpu"))
    made.task = torch.nn.parallel.DistributedDataParallel(made.task)
    made.task.follow = made.task.module.follow
    seconds = paired({"step": lambda: made("fp32")}, rounds, torch.device("cpu"))["step"].median
    if rank == 0:
        found[ranks] = seconds
    dist.destroy_process_group()


def over_ranks(rounds: int) -> dict:
    with mp.Manager() as manager:
        found = manager.dict()
        for ranks in sorted({1, 2, min(4, os.cpu_count() or 1)}):
            mp.spawn(rank_seconds, (ranks, 29500 + ranks, found, rounds), nprocs=ranks)
        seconds = dict(found)
    x, y = np.array(list(seconds)), np.array(list(seconds.values()))
    return fitted(
        "ranks (ViT-Ti, 8 images and 2 posed each, one thread each)", x, y, "{} s + {} s W", [np.ones_like, lambda v: v]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("docs/speed.png"))
    options = parser.parse_args()
    device = choose_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    print(", ".join(f"{key} {value}" for key, value in describe_machine(device).items()))
    one, linear, square = np.ones_like, lambda v: v, lambda v: v**2
    scale = 16 if device.type == "cuda" else 1
    batches = [b * scale for b in (4, 8, 16, 32)]
    images = [n * scale for n in (2, 4, 8, 16)]
    layers = [(3,), (3, 6), (3, 6, 9), (3, 6, 9, 12)]
    curves = [
        curve("batch (2 posed images)", {b: step(device, b) for b in batches}, "{} s + {} s B", [one, linear],
              options.rounds, device),
        curve(f"posed images of {16 * scale}, 196 patches each", {n: step(device, 16 * scale, n) for n in images},
              "{} s + {} s n + {} s n^2", [one, linear, square], options.rounds, device),
        curve("layers tapped (8 posed images)",
              {len(taps): step(device, 16 * scale, 8 * scale, taps) for taps in layers},
              "{} s + {} s L", [one, linear], options.rounds, device),
        over_ranks(options.rounds),
    ]  # fmt: skip
    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3.2), constrained_layout=True)
    for axis, found in zip(axes, curves, strict=True):
        x = np.linspace(found["x"].min(), found["x"].max(), 50)
        axis.plot(x, np.stack([t(x) for t in found["terms"]], 1) @ found["factors"], color="0.6")
        axis.plot(found["x"], found["y"], "o", color="C0")
        axis.set(title=found["title"].split(" (")[0].split(",")[0], ylabel="seconds a step", ylim=(0, None))
        axis.text(0.04, 0.06, found["law"], transform=axis.transAxes, fontsize=9)
    figure.savefig(options.out, dpi=110)
    print(f"\nwritten: {options.out}; median step {median(c['y'][0] for c in curves):.2f} s")


if __name__ == "__main__":
    main()
