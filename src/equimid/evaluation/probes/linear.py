"""Linear probe: every learning rate of a grid is trained at once, and one head of them is tested once.

Letters: G learning rates, C classes, D columns, B images of a batch over all ranks, S pixels. SGD with momentum 0.9, no
weight decay, cosine per epoch, rates times B / 256, as the linear probes of MoCo-v3 (`main_lincls.py`: the final CLS)
and DINO (`eval_linear.py`: CLS of the last four blocks), which SER follows. MoCo-v3 and DINO train on all training
images and report the best epoch of the test images, which flatters. Here learning rate and epoch (of the last fifth, as
SER) are chosen on a held-out part of the training images.

On cached features (default), the head is then trained anew on all training images, to that epoch of the same schedule.

On crops (`evaluation.linear_crops`, as published), each epoch crops every training image anew, RandomResizedCrop(S,
[0.08, 1]) and a flip in half of them, and passes it through the frozen network. The head is kept as it was at the
chosen epoch, without the held-out images, as SER does: to train anew would double the cost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from equimid.evaluation.config import EvaluationConfig
from equimid.evaluation.preprocessing import FeatureTable, Preprocessing, load_image
from equimid.evaluation.probes.heads import (
    Chooser,
    HeadGrid,
    cosine,
    last_fifth,
    predicted,
    split_to_choose,
    warn_at_grid_edge,
)
from equimid.evaluation.study import Study, labelled_splits
from equimid.randomness import counted_generator
from equimid.records import Record
from equimid.views.crops import sample_crop

__all__ = ["Classifier", "choose_linear", "fit_linear", "measure_linear"]

_SCALE = (0.08, 1.0)  # of the image's area
_FLIP = 0.5


@dataclass(frozen=True)
class Classifier:
    """A frozen network with a linear head: what robustness is measured of.

    Attributes:
        study:   the network
        weight:  (C, D) of the head
        bias:    (C,)
        classes: C names, those of the training images' folders
        details: how the head was found, for records
    """

    study: Study
    weight: Tensor
    bias: Tensor
    classes: tuple[str, ...]
    details: dict[str, object]

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """(b, C), on the CPU, of preprocessed images (b, 3, S, S)."""
        return self.of_features(self.study.columns(images.to(self.study.device)).float().cpu())

    def of_features(self, columns: Tensor) -> Tensor:
        """(n, C) of the features that the study calls columns, (n, D)."""
        return columns @ self.weight.T + self.bias


def measure_linear(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Top-1 of the chosen head on the test images."""
    fit, test = labelled_splits(data, train)
    head = fit_linear(study, fit)
    table = study.probe_features(test)
    correct = (predicted(head.of_features(table.features)) == table.labels).numpy()
    return [study.scope.accuracy("linear", correct, dict(head.details))]


def fit_linear(study: Study, source: Source) -> Classifier:
    """The network with the linear head that the labelled images of `source` give.

    Raises:
        UserError: no labels, one class, or no class with two images.
    """
    if study.config.linear_crops:
        # several measurements of one study read the same head
        stamp = source.stamp()
        if stamp not in study.heads:
            study.heads[stamp] = fit_on_crops(study, source)
        head: Classifier = study.heads[stamp]
        return replace(head, details=dict(head.details))
    table, config = study.probe_features(source), study.config
    weight, bias, details = choose_linear(table, len(source.classes), config, study.scope.seed, study.device)
    details["features"] = config.linear_features
    return Classifier(study, weight, bias, source.classes, details)


def choose_linear(
    table: FeatureTable, classes: int, config: EvaluationConfig, seed: int, device: torch.device
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Weight (C, D) and bias (C,) that labelled features (n, D) give, and how they were found."""
    fit, held = split_to_choose(table.labels, config.held_out, seed)
    x, y, rates = table.features.to(device), table.labels.to(device), config.linear_rates
    chooser, x_held, y_held = Chooser(rates, last_fifth(config.linear_epochs)), x[held], y[held]
    for epoch, heads in _epochs(x[fit], y[fit], classes, rates, config, seed):
        if epoch >= chooser.first:
            chooser.see(epoch, heads.scores(x_held, y_held))
    best = chooser.best
    assert best is not None
    rate = rates[best.number]
    for epoch, heads in _epochs(x, y, classes, (rate,), config, seed):  # noqa: B007
        if epoch == best.epoch:
            break
    details: dict[str, Any] = {
        "rate": rate, "epoch": best.epoch, "epochs": config.linear_epochs, "held_out_top1": best.top1,
        **warn_at_grid_edge(rate, rates),
    }  # fmt: skip
    return *heads.head(0), details


def _epochs(
    x: Tensor, y: Tensor, classes: int, rates: Sequence[float], config: EvaluationConfig, seed: int
) -> Iterator[tuple[int, HeadGrid]]:
    """The heads after each epoch, counted from 1."""
    rng = counted_generator(seed, "linear probe")
    heads = HeadGrid(rates, classes, x.shape[1], rng, x.device)
    batch = min(config.linear_batch, len(x))
    for epoch in range(config.linear_epochs):
        scale = batch / 256 * cosine(epoch, config.linear_epochs)
        order = torch.from_numpy(rng.permutation(len(x))).to(x.device)
        for rows in order.split(batch):
            mine = rows[rank() :: world_size()]  # the heads sum their gradients over ranks
            heads.step(x[mine], y[mine], scale, len(rows))
        yield epoch + 1, heads


# --- on crops


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
    for epoch in range(epochs):
        batches.epoch = epoch
        scale = batches.size / 256 * cosine(epoch, epochs)
        loaded = loaded_batches(crops, batches=batches, workers=study.workers, collate=_collate)
        steps = zip(loaded, batches.counts, strict=True)
        title = f"linear probe on crops, epoch {epoch + 1} of {epochs}"
        for (images, labels), count in study.track(steps, title, len(batches)):
            heads.step(_columns(study, images, x_held.shape[1]), labels.to(device), scale, count)
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
