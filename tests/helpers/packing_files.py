"""Photographs to be packed, for tests of packing and of shards."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from equimid.data import Packed, pack

# a few images a shard
SMALL = {"shard_bytes": 30_000}


def photograph(path: Path, seed: int, size: tuple[int, int] = (48, 32), **options: Any) -> Path:
    """Smooth colours that no other seed has; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


def class_folders(root: Path, n: int = 24, classes: int = 3, **options: Any) -> Path:
    """n JPEGs in folders class0, class1, ..."""
    for k in range(n):
        photograph(root / f"class{k % classes}" / f"image{k:02}.jpg", k, **options)
    return root


def packed(data: Path, out: Path, **settings: Any) -> Packed:
    return pack(str(data), out, **{**SMALL, **settings})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by its name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}
