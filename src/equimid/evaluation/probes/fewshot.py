"""Few-shot probe: logistic regression on n images of each class, over several draws of these images.

Features are centred by the drawn images and brought to unit length (CL2N of SimpleShot, Wang et al. 2019): a few
images a class estimate a mean, but not the variance of every column. The strength of the L2 penalty is fixed: there are
no images to choose it by, and on unit length it means the same for every network. scikit-learn's LogisticRegression.
"""

import logging

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from torch import Tensor

from equimid.errors import UserError
from equimid.evaluation.preprocessing import FeatureTable
from equimid.evaluation.probes.heads import check_classes
from equimid.evaluation.study import Study, labelled_splits
from equimid.randomness import counted_generator
from equimid.records import Record

__all__ = ["draw_images", "fewshot_top1", "measure_fewshot"]

logger = logging.getLogger("equimid")

_C = 10.0  # scikit-learn's: of the summed cross-entropy against half the squared norm


def measure_fewshot(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Mean top-1 over draws on all test images, with Student's 95 % interval over the draws, for each n that every
    class has images for. The final embedding is read. The interval is of the draws, not of the test images.

    Raises:
        UserError: one class, or every n is more than the smallest class has.
    """
    config, scope = study.config, study.scope
    fit, test = (study.features(source) for source in labelled_splits(data, train))
    check_classes(fit.labels)
    smallest = int(fit.labels.unique(return_counts=True)[1].min())
    possible = [n for n in config.fewshot_per_class if n <= smallest]
    if not possible:
        raise UserError(
            f"the smallest class of {data} has {smallest} training images; evaluation.fewshot_per_class is "
            f"{config.fewshot_per_class}: give a number that every class has"
        )
    for n in sorted(set(config.fewshot_per_class) - set(possible)):
        logger.warning("few-shot: left out %d images a class, as the smallest class has %d", n, smallest)
    records = []
    for n in possible:
        values = np.array([
            fewshot_top1(fit, test, draw_images(fit.labels, n, scope.seed, draw))
            for draw in range(config.fewshot_draws)
        ])  # fmt: skip
        middle, error = float(values.mean()), None
        if len(values) > 1:
            error = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
        records.append(
            scope.record(
                "fewshot",
                "top1",
                middle,
                len(test.labels),
                unit="%",
                low=None if error is None else max(0.0, middle - error),
                high=None if error is None else min(100.0, middle + error),
                details={"per_class": n, "draws": len(values), "C": _C},
            )
        )
    return records


def draw_images(labels: Tensor, n: int, seed: int, draw: int) -> npt.NDArray[np.int64]:
    """Indices of n images of each class, ascending; a smaller n draws a part of a larger one's images."""
    order = counted_generator(seed, "few-shot", draw).permutation(len(labels))
    shuffled = labels.numpy()[order]
    chosen = [order[shuffled == label][:n] for label in np.unique(shuffled)]
    return np.sort(np.concatenate(chosen))


def fewshot_top1(train: FeatureTable, test: FeatureTable, drawn: npt.NDArray[np.int64]) -> float:
    """Percent of the test images that the drawn training images classify rightly."""
    from sklearn.linear_model import LogisticRegression  # here, so that data workers do not load it

    rows = torch.from_numpy(drawn)
    centre = train.features[rows].mean(0)
    x, queries = (F.normalize(t - centre, dim=1).double().numpy() for t in (train.features[rows], test.features))
    head = LogisticRegression(C=_C, max_iter=1000).fit(x, train.labels[rows].numpy())
    return 100 * float(head.score(queries, test.labels.numpy()))
