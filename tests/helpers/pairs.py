"""Images of several shapes, and batches of their views with keys in pairs, for tests."""

import numpy as np
from PIL import Image

from equimid.addons import plan_views
from equimid.views import Key, LocalViews, ViewDataset, ViewsConfig, collate
from helpers.tasks import TINY

LOCAL = LocalViews(count=4, size=16, scale=(0.05, 0.25))
CROPS = ViewsConfig(local=LOCAL)  # 2 x 32 + 4 x 16
SHAPES = [(40, 60), (60, 40), (50, 50), (31, 77)]  # width, height


class Images:
    """Random pixels, of four shapes in turn."""

    def __init__(self, n=64):
        self.n = n

    def __len__(self):
        return self.n

    def load(self, index):
        width, height = SHAPES[index % len(SHAPES)]
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_batch(plan, keys, seed=0):
    dataset = ViewDataset(Images(), plan, seed)
    return collate([dataset[key] for key in keys])


def in_pairs(count, epoch=0, start=0, posed=0):
    """Keys as the engine makes them: the first image of a pair lends its draws."""
    return [Key(epoch, start + p, p < posed, start + p // 2 * 2) for p in range(count)]


def plan_of(views=CROPS, batch=8, **addons):
    return plan_views(views, TINY, addons, batch)
