"""A classifier that reads the class off the red channel, and trees of drawn images, for tests of robustness."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from equimid.evaluation import EvaluationConfig, Study
from equimid.evaluation.preprocessing import Pixels
from equimid.evaluation.probes.linear import Classifier
from helpers.drawing import SCOPE

STEP = 20  # of the red channel, from class to class


@dataclass(frozen=True)
class Reader(Classifier):
    """Class k for an image whose middle is of red 20 k; the other classes follow by their distance from it."""

    def logits(self, images):
        side = images.shape[-1]
        red = (images[:, 0, side // 2, side // 2].cpu() * 0.5 + 0.5) * 255
        return -(red[:, None] - STEP * torch.arange(len(self.classes))).abs()


def study(folder, **config):
    return Study(Pixels(), SCOPE, EvaluationConfig(**config), Path(folder))


def reader(folder, classes=("n1", "n2", "n3"), **config):
    none = torch.zeros(0)
    return Reader(study(folder, **config), none, none, tuple(classes), {"rate": 0.1})


def draw_class(path, seen_as, size=32):
    """An image that the reader takes for that class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # green and blue do not lie on a line with it: a linear probe learns them at once
    colour = (STEP * seen_as, 53 * seen_as**2 % 256, 31 * seen_as**3 % 256)
    Image.new("RGB", (size, size), colour).save(path)
    return path


def draw_training(root, classes=("n1", "n2", "n3"), each=4):
    for number, name in enumerate(classes):
        for k in range(each):
            draw_class(root / name / f"{k}.png", number)
    return str(root)


def value(records, metric, **details):
    """Of the one record of that metric whose details hold these."""
    found = [r for r in records if r.metric == metric and details.items() <= r.details.items()]
    assert len(found) == 1, found
    return found[0].value
