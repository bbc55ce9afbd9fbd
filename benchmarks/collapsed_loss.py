"""What the patch loss says of made maps: the table of docs/methods.md.

    python benchmarks/collapsed_loss.py

32 images on a grid of 8 x 9 patches, temperature 0.3, both views alike. Every map is exactly equivariant. They differ
in what a patch says: which image it is of, what it shows, or both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.losses import patch_ntxent

IMAGES, GRID, TEMPERATURE = 32, (8, 9), 0.3


def simplex(count: int) -> Tensor:
    """(count, count): unit vectors as far from each other as they can be."""
    return F.normalize(torch.eye(count, dtype=torch.float64) - 1 / count, dim=1)


def made_maps() -> dict[str, Tensor]:
    """{name: (IMAGES * patches, D)}."""
    patches = GRID[0] * GRID[1]
    rng = torch.Generator().manual_seed(0)
    images = simplex(IMAGES).repeat_interleave(patches, 0)
    pictures = torch.rand(IMAGES, 3, 4, 4, generator=rng, dtype=torch.float64)
    colours = F.interpolate(pictures, GRID, mode="bicubic").flatten(2).mT.reshape(-1, 3)
    own = torch.eye(IMAGES * patches)
    both = torch.cat([simplex(IMAGES).repeat_interleave(patches, 0).float(), own], 1)
    return {
        "one vector per image, repeated: place is lost": images,
        "the image's vector and one of the patch, half each": both,
        "every patch a direction of its own": own,
        "the patch's colour, smooth pictures": colours,
    }


def main() -> None:
    patches = GRID[0] * GRID[1]
    ids = torch.arange(IMAGES).repeat_interleave(patches)
    cells = torch.cartesian_prod(*(torch.arange(side) for side in GRID)).repeat(IMAGES, 1)
    print("| map | `ser.negatives=images` (the paper) | `ser.negatives=all`, distance 1 |\n|---|---|---|")
    for name, z in made_maps().items():
        values = [float(patch_ntxent(z, z, ids, TEMPERATURE, *more)) for more in ((), (cells,))]
        print(f"| {name} | {values[0]:.2f} | {values[1]:.2f} |")


if __name__ == "__main__":
    main()
