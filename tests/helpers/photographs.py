"""JPEG files that look a little like photographs, as a source; pixels that differ by rounding. For tests of views."""

import io

import numpy as np
import torch
from PIL import Image

from equimid.data import open_image
from equimid.errors import UnreadableImage

ORIENTATION = 0x0112


def near(found, expected, most=1):
    """uint8 tensors of one shape that differ by at most `most`."""
    return found.shape == expected.shape and int((found.int() - expected.int()).abs().max()) <= most


def smooth(size, seed=0):
    """RGB image of (width, height) px: smooth colours and a little noise."""
    rng = np.random.default_rng(seed)
    colours = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray(
        np.clip(np.asarray(colours) + rng.normal(0, 4, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    )


def encoded(image, orientation=1, kind="JPEG", **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif, **options)
    return stream.getvalue()


class Files:
    """Encoded files as a source. reads, loads: the indices that were asked for."""

    def __init__(self, contents):
        self.contents, self.reads, self.loads = list(contents), [], []

    def __len__(self):
        return len(self.contents)

    def read(self, index):
        self.reads.append(index)
        if self.contents[index] is None:
            raise UnreadableImage("no such file")
        return self.contents[index]

    def load(self, index):
        self.loads.append(index)
        if self.contents[index] is None:
            raise UnreadableImage("no such file")
        return open_image(io.BytesIO(self.contents[index]))

    def describe(self, index):
        return f"file {index}"


def tensor_of(image):
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
