"""FLOPs of one training step per image, ViT-S/16 at 224 px and a global batch of 2,048, counted on the meta device.

    python benchmarks/flops.py

Every view setting and add-on on MoCo-v3, beside the ratio of the specification of the methods; then SER for several
shares r of posed images.
"""

from dataclasses import replace

import torch

from equimid.recipes import recipe
from equimid.runs.flops import step_flops

# rows of the comparison, with the ratio that the specification gives
SPECIFIED = {
    "mocov3": 1.0, "mocov3-multicrop": 1.269, "augself": 1.0002, "stl": 1.0032, "essl": 1.262, "equimod": 1.373,
    "dino": 73.70 / 73.449, "barlow": (56.60 + 0.40) / 73.449,
}  # fmt: skip


def main() -> None:
    base = step_flops(recipe("mocov3-imagenet"))
    print(f"torch {torch.__version__}; global batch 2048, one process holding all of it")
    print("row                 views                GFLOPs     ratio   (specification)")
    for row, specified in SPECIFIED.items():
        config = recipe(f"{row}-imagenet")
        found = step_flops(config)
        print(
            f"{row:19} {config.plan().label:18} {found / 1e9:8.3f} {found / base:9.4f}   ({specified:.4f})", flush=True
        )
    print("MoCo-v3 + SER, r    posed   GFLOPs     ratio   (specification, canonical form, sharded)")
    ser = recipe("ser-imagenet")
    for fraction, specified in ((0.01, 1.0002), (0.02, 1.0044), (0.05, 1.0327), (0.1, 1.1327)):
        config = replace(ser, addons={"ser": replace(ser.addons["ser"], fraction=fraction)})
        found, posed = step_flops(config), config.plan().posed
        count = posed.count if posed else 0
        print(
            f"                {fraction:4.2f} {count:8d} {found / 1e9:8.3f} {found / base:9.4f}   ({specified})",
            flush=True,
        )


if __name__ == "__main__":
    main()
