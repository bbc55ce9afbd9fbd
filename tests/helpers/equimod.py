"""EquiMod on random features of drawn views."""

import numpy as np
import torch
from PIL import Image

from equimid.addons import EquiModConfig, StudentOutputs
from equimid.features import Features
from equimid.views import Key, ViewDataset, Views, ViewsConfig, collate
from equimid.views.plan import standard_views

D, TAU = 5, 0.3


PLAN = standard_views(ViewsConfig(), 16, 8)


SMALL = EquiModConfig(temperature=TAU, hidden=7, dim=6)


class Images:
    """Random pixels, 50 x 38."""

    def __len__(self):
        return 100

    def load(self, index):
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (38, 50, 3), dtype=np.uint8))


def make_batch(n=6, plan=PLAN):
    dataset = ViewDataset(Images(), plan, seed=3)
    return collate([dataset[Key(0, i, posed=False)] for i in range(n)])


def make_case(config=SMALL, n=6):
    """The add-on and features of n images of clean view, view 1 and view 2, float64."""
    rng = torch.Generator().manual_seed(0)
    vectors = [torch.randn(n, D, generator=rng, dtype=torch.float64) for _ in range(3)]
    torch.manual_seed(0)
    return config.build(D, PLAN).double(), vectors


def see(vectors, batch):
    clean, *crops = [Features(x) for x in vectors]
    return StudentOutputs(crops, {"equimod": [clean]}, views=Views([], batch=batch))
