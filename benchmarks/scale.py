"""What pretraining costs on paper: GPU hours, cores, storage and network, from counted FLOPs and measured loaders.

    python benchmarks/scale.py [--loader FOLDER/loader.json] [--peak 989e12] [--use 0.4]

FLOPs are counted on the meta device (`equimid.runs.flops`); images per second and core are read from what
`bench.py loader --out FOLDER` wrote. The GPU's part is an assumption: its peak (an H100's dense bf16) and the
share of it that a step reaches. Bytes an image are those of 300 ImageNet photographs (docs/shards.md).
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from equimid.recipes import recipe
from equimid.runs.flops import step_flops
from equimid.task import Task

DATA = {"ImageNet-1k, 100 epochs": (1_281_167, 100), "ImageNet-22k, 100 epochs": (14_197_122, 100),
        "a billion images, 1 epoch": (10**9, 1)}  # fmt: skip
BYTES = {"as they are": 109e3, "packed at 256 px": 30e3}
NETWORKS = {
    "ViT-S/16": "vit_small_patch16_224",
    "ViT-B/16": "vit_base_patch16_224",
    "ViT-L/16": "vit_large_patch16_224",
}
ROWS = {"MoCo-v3": "mocov3-imagenet", "MoCo-v3 + SER": "ser-imagenet", "DINO + SER": "dino+ser-imagenet",
        "Barlow Twins + SER": "barlow+ser-imagenet", "SER, 2 + 4 views": "ser-multicrop-imagenet"}  # fmt: skip
HEADS = {"vit_small_patch16_224": None, "vit_base_patch16_224": 12, "vit_large_patch16_224": 16}


def configured(row: str, network: str, batch: int = 4096):
    config = recipe(ROWS[row])
    name = NETWORKS[network]
    backbone = replace(config.backbone, name=name, num_heads=HEADS[name] or config.backbone.num_heads)
    return replace(config, backbone=backbone, train=replace(config.train, batch_size=batch, accumulate=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loader", type=Path)
    parser.add_argument("--peak", type=float, default=989e12, help="FLOP/s of a GPU")
    parser.add_argument("--use", type=float, default=0.4, help="share of the peak that a step reaches")
    options = parser.parse_args()
    rate = options.peak * options.use
    print(f"assumed: {options.peak / 1e12:.0f} TFLOP/s a GPU, {options.use:.0%} of it used\n")

    print("| configuration (batch 4,096) | GFLOPs an image | images/s a GPU | " + " | ".join(DATA) + " |")
    print("|---|--:|--:|" + "--:|" * len(DATA))
    speeds = {}
    for network in NETWORKS:
        for row in ROWS if network == "ViT-S/16" else ("MoCo-v3", "MoCo-v3 + SER"):
            flops = step_flops(configured(row, network))
            speeds[f"{network}, {row}"] = rate / flops
            hours = [f"{n * epochs * flops / rate / 3600:,.1f} h" for n, epochs in DATA.values()]
            print(f"| {network}, {row} | {flops / 1e9:.1f} | {rate / flops:,.0f} | {' | '.join(hours)} |", flush=True)

    print("\n| storage | " + " | ".join(DATA) + " |\n|---|" + "--:|" * len(DATA))
    for kept, each in BYTES.items():
        print(
            f"| {kept}, {each / 1e3:.0f} kB an image | "
            + " | ".join(f"{n * each / 1e9:,.0f} GB" for n, _ in DATA.values())
            + " |"
        )

    if options.loader:
        rows = json.loads(options.loader.read_text())["rows"]
        print(
            "\n| loader | images/s a core | "
            + " | ".join(f"cores a GPU: {n}" for n in list(speeds)[:2])
            + " |\n|---|--:|--:|--:|"
        )
        for found in rows:
            cores = [f"{speed / found['images/s per core']:,.1f}" for speed in list(speeds.values())[:2]]
            print(f"| {found['side']} | {found['images/s per core']:,.0f} | {' | '.join(cores)} |")
        for kept, each in BYTES.items():
            print(f"read {kept}: {list(speeds.values())[1] * each / 1e6:,.0f} MB/s a GPU")

    config = configured("MoCo-v3 + SER", "ViT-S/16")
    task = Task(config.backbone, config.method, config.addons, config.plan(), 0)
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    print(f"\ntrained parameters {trained / 1e6:.1f} M: gradients {4 * trained / 1e6:,.0f} MB a step over all ranks")
    print(
        "\n| batch | posed (r = 0.02) | patches a view | SER / base FLOPs, one process "
        "| the loss alone, sharded | gathered for SER |"
    )
    print("|--:|--:|--:|--:|--:|--:|")
    width, base = config.addons["ser"].hidden, step_flops(recipe("mocov3-imagenet"))
    for batch in (1024, 4096, 16_384, 65_536):
        posed = round(0.02 * batch)
        patches = 196 * posed
        # 2M anchors against 2M keys: similarities forward and again backward, two gradient products; both directions
        # of student and momentum maps, of which one side has no gradient
        sharded = 2 * (2 * patches) ** 2 * 2 * width * 3
        whole = step_flops(configured("MoCo-v3 + SER", "ViT-S/16", batch)) / step_flops(
            configured("MoCo-v3", "ViT-S/16", batch)
        )
        gathered = 2 * 2 * patches * width * 4
        print(
            f"| {batch:,} | {posed:,} | {patches:,} | {whole:.4f} | {sharded / batch / base:.2%} "
            f"| {gathered / 1e6:,.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
