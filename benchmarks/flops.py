"""FLOPs of one training step per image, counted by torch on the meta device (attention unfused): no weights, no time.

    python benchmarks/flops.py

MoCo-v3 with ViT-S/16 at 224 px, and SER at a global batch of 2,048 for several shares r of posed images. Token maps
are counted at the mean size, 14 x 14, as the specification of the method does.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from equimid.addons import SERConfig
from equimid.backbones import BackboneConfig
from equimid.methods import MoCoV3Config
from equimid.poses import Pose
from equimid.task import Task
from equimid.views import Views

BATCH = 2048


def views(posed: int) -> Views:
    meta = torch.device("meta")
    poses = [Pose.identity(posed, (14, 14), meta) for _ in range(2 if posed else 0)]
    return Views(
        [torch.empty(BATCH - posed, 3, 224, 224, device=meta) for _ in range(2)],
        [torch.empty(posed, 3, 224, 224, device=meta) for _ in poses],
        poses,
        torch.empty(posed, dtype=torch.int64, device=meta),
    )


def gflops(cls_layer: int, ser: SERConfig | None) -> float:
    """Per image, 2 FLOPs a multiply-add."""
    task = Task(BackboneConfig(cls_layer=cls_layer), MoCoV3Config(), ser, seed=0).to("meta")
    with FlopCounterMode(display=False) as counter:
        task(views(max(2, round(ser.share * BATCH)) if ser else 0)).total.backward()
    return counter.get_total_flops() / BATCH / 1e9


def main() -> None:
    base, late = gflops(0, None), gflops(3, None)
    print(f"torch {torch.__version__}; global batch {BATCH}, one process holding all of it")
    print(f"MoCo-v3                  {base:8.3f} GFLOPs per image   (specification: 73.453 with its logits)")
    print(f"MoCo-v3, late CLS        {late:8.3f}                    ratio {late / base:.4f}")
    print("MoCo-v3 + SER, r    posed   GFLOPs     ratio   (specification, canonical form, sharded)")
    for share, specified in ((0.01, 1.0002), (0.02, 1.0044), (0.05, 1.0327), (0.1, 1.1327)):
        found = gflops(3, SERConfig(share=share))
        posed = max(2, round(share * BATCH))
        print(f"                {share:4.2f} {posed:8d} {found:8.3f} {found / base:9.4f}   ({specified})", flush=True)


if __name__ == "__main__":
    main()
