"""Linear probe as published: each epoch every training image is cropped anew and passes the frozen network once.

Letters: G learning rates, C classes, D columns, B images of a batch over all ranks, S pixels.
Crops: RandomResizedCrop(S, [0.08, 1]) and a flip in half of them (MoCo-v3, DINO, SER); SGD with momentum 0.9, no weight
decay, rates times B / 256, cosine per epoch. All heads of the grid take their step on the same batch, so that a grid
costs one run. Held-out and test images are centre crops.

Learning rate and epoch (of the last fifth, as SER) are chosen on the held-out part of the training images, and the head
is kept as it was then: it has not seen the held-out images. That is SER's way; training anew on all images would double
the cost, which the probe on cached features can afford and this one cannot. MoCo-v3 and DINO train on all training
images and report the best epoch of the test images, which flatters.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from equimid.data import Source, loaded_batches
from equimid.distributed import rank, world_size
from equimid.errors import UserError
from equimid.evaluation.classifier import Classifier
from equimid.evaluation.preprocessing import Preprocessing, load_image
from equimid.evaluation.probes.heads import Chooser, HeadGrid, cosine, last_fifth, split_to_choose, warn_at_grid_edge
from equimid.evaluation.study import Study
from equimid.randomness import counted_generator
from equimid.views.crops import sample_crop

__all__ = ["fit_on_crops"]

_SCALE = (0.08, 1.0)  # of the image's area
_FLIP = 0.5


def fit_on_crops(study: Study, source: Source) -> Classifier:
    """The network with the linear head that random crops of the labelled images of `source` give; on any number of
    ranks, the same.

    Raises:
        UserError: no labels, one class, no class with two images, or an image that cannot be read.
    """
    if source.labels is None:
        raise UserError(f"{source.name} has no labels, and a probe needs them: give folders of classes")
    config, seed, device = study.config, study.scope.seed, study.device
    fit, held = split_to_choose(torch.as_tensor(source.labels), config.held_out, seed)
    table = study.probe_features(source.take(held.numpy()))
    x_held, y_held = table.features.to(device), table.labels.to(device)
    rates, epochs = config.linear_rates, config.linear_epochs
    heads = HeadGrid(rates, len(source.classes), x_held.shape[1], counted_generator(seed, "linear probe"), device)
    batches = _Batches(len(fit), config.linear_batch, seed)
    crops = _Crops(source.take(fit.numpy()), study.preprocessing, seed)
    chooser, kept = Chooser(rates, last_fifth(epochs)), heads.head(0)
    with study.bar(f"linear probe on crops, {study.scope.subject}") as progress:
        for epoch in range(epochs):
            batches.epoch = epoch
            scale = batches.size / 256 * cosine(epoch, epochs)
            loaded = loaded_batches(crops, batches=batches, workers=study.workers, collate=_collate)
            for number, ((images, labels), count) in enumerate(zip(loaded, batches.counts, strict=True)):
                heads.step(_columns(study, images, x_held.shape[1]), labels.to(device), scale, count)
                if progress:
                    progress(epoch * len(batches) + number + 1, epochs * len(batches))
            if epoch + 1 < chooser.first:
                continue
            if chooser.see(epoch + 1, heads.scores(x_held, y_held)) and chooser.best:
                kept = heads.head(chooser.best.number)
    best = chooser.best
    assert best is not None
    details: dict[str, Any] = {
        "rate": rates[best.number], "epoch": best.epoch, "epochs": epochs, "held_out_top1": best.top1, "crops": True,
        "features": config.linear_features,
        **warn_at_grid_edge(rates[best.number], rates),
    }  # fmt: skip
    return Classifier(study, *kept, source.classes, details)


@torch.no_grad()
def _columns(study: Study, images: Tensor, columns: int) -> Tensor:
    """(b, D) float32; of a rank whose share of a batch is empty, (0, D)."""
    if len(images) == 0:
        return torch.zeros(0, columns, device=study.device)
    return study.columns(images.to(study.device, non_blocking=True)).float()


class _Batches(Sampler[list[tuple[int, int]]]):
    """Keys (epoch, index) of this rank's share of every batch of `epoch`; each image comes once."""

    def __init__(self, images: int, size: int, seed: int) -> None:
        self.images, self.size, self.seed, self.epoch = images, min(size, images), seed, 0
        self.counts = [min(self.size, images - start) for start in range(0, images, self.size)]  # over all ranks

    def __len__(self) -> int:
        return len(self.counts)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = counted_generator(self.seed, "linear crops, order", self.epoch).permutation(self.images).tolist()
        for start in range(0, self.images, self.size):
            yield [(self.epoch, index) for index in order[start : start + self.size][rank() :: world_size()]]


class _Crops(Dataset[tuple[Tensor, int]]):
    """(3, S, S) and label by the key (epoch, index), whatever the worker or rank."""

    def __init__(self, source: Source, preprocessing: Preprocessing, seed: int) -> None:
        size, mean, std = preprocessing.size, preprocessing.mean, preprocessing.std
        self.source, self.seed, self.normalise = source, seed, Preprocessing(size, 1.0, mean, std)
        assert source.labels is not None
        self.labels: npt.NDArray[np.int64] = source.labels

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        image = load_image(self.source, index)
        rng = counted_generator(self.seed, "linear crops", epoch, index)
        side = self.normalise.size
        # crop, then resize: the filter must not look past the edges of the crop
        cut = image.crop(sample_crop(image.size, _SCALE, rng)).resize((side, side), Image.Resampling.BICUBIC)
        if rng.random() < _FLIP:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self.normalise(cut), int(self.labels[index])


def _collate(items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    labels = torch.tensor([label for _, label in items], dtype=torch.int64)
    return (torch.stack([image for image, _ in items]) if items else torch.empty(0)), labels
