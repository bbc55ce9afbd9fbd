"""Views of random pixels in different shapes, for tests of views."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from equimid.errors import UnreadableImage
from equimid.views import Photometric, PosedViews, ViewsConfig
from equimid.views.plan import standard_views

PLAIN = Photometric(jitter=0, grey=0, blur=0, solarise=0)
POSED = PosedViews(count=4, sizes=(16, 16), patch_size=4, area=(0.7, 1.3), aspect=(3 / 4, 4 / 3))
STILL = replace(POSED, area=(1.0, 1.0), aspect=(1.0, 1.0))  # turns and flips only


def make_plan(posed=POSED, plain=True, size=16, **changes):
    config = ViewsConfig(first=PLAIN, second=PLAIN) if plain else ViewsConfig()
    return replace(standard_views(replace(config, **changes), size, 4), posed=posed)


class Drawn:
    """Images of random pixels and of different shapes; those in `bad` cannot be read."""

    def __init__(self, n=12, bad=()):
        self.n, self.bad = n, frozenset(bad)

    def __len__(self):
        return self.n

    def load(self, index):
        if index in self.bad:
            raise UnreadableImage("truncated")
        rng = np.random.default_rng(index)
        height, width = rng.integers(24, 60, 2)
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def items(dataset, keys):
    return [dataset[key] for key in keys]


def same(a, b):
    return (
        (a.index, a.posed, a.unreadable) == (b.index, b.posed, b.unreadable)
        and all(torch.equal(x, y) for x, y in zip(a.pixels, b.pixels, strict=True))
        and torch.equal(a.boxes, b.boxes)
        and torch.equal(a.photometric, b.photometric)
    )


def resized(image, size, flipped=False, box=None):
    """(3, size, size) uint8, PIL's bilinear resize."""
    done = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    done = done.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else done
    return torch.from_numpy(np.array(done)).permute(2, 0, 1)


def unshared(box, image):
    """Box in pixels (left, top, right, bottom) and the flip, from what an item records."""
    top, left, height, width, flipped = box.tolist()
    edges = (left * image.width, top * image.height, (left + width) * image.width, (top + height) * image.height)
    assert all(abs(edge - round(edge)) < 1e-3 for edge in edges)
    return tuple(round(edge) for edge in edges), bool(flipped)
