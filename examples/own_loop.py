"""SER in a training loop of your own: a timm backbone, any loss on its CLS embedding, no engine.

    python examples/own_loop.py

Here the base loss is a toy (predict the mean colour); put your own in its place.
"""

import numpy as np
import torch

from equimid import create_backbone, patch_projector, sample_pose_pair, ser_loss


def main(steps: int = 60) -> list[float]:
    """Train on drawn images; returns the equivariance loss of every step."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    backbone = create_backbone("vit_tiny_patch16_224", cls_layer=2, taps=(2,), img_size=64, depth=4)
    phi = patch_projector(backbone.embed_dim, 128)
    head = torch.nn.Linear(backbone.embed_dim, 3)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *phi.parameters(), *head.parameters()], lr=3e-4)
    history = []
    for _ in range(steps):
        images = torch.nn.functional.interpolate(torch.randn(16, 3, 8, 8), size=64, mode="bicubic")
        base_loss = (head(backbone(images).cls) - images.mean((2, 3))).pow(2).mean()

        # SER: two poses of some images, their token maps, one loss
        posed = images[:8]
        poses = sample_pose_pair(len(posed), grid=(4, 4), rng=rng)
        views = [pose.act(posed, patch_size=16) for pose in poses]
        maps = [features.maps[2] for features in backbone.forward_packed(views)]
        equivariance = ser_loss(phi, maps, poses, image_ids=torch.arange(len(posed)), temperature=0.3)

        loss = base_loss + 1.0 * equivariance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(equivariance.detach()))
    return history


if __name__ == "__main__":
    losses = main()
    print(f"equivariance loss: {sum(losses[:5]) / 5:.2f} in the first steps, {sum(losses[-5:]) / 5:.2f} in the last")
