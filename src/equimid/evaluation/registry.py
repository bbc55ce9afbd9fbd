"""Everything that can be measured, by its name on the command line. Functions are imported when they run."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from equimid.errors import UserError

if TYPE_CHECKING:
    from equimid.evaluation.study import Study
    from equimid.records import Record

__all__ = ["MEASUREMENTS", "Measurement", "find_measurement"]


@dataclass(frozen=True)
class Measurement:
    """
    name:       on the command line
    text:       what it measures, one line
    function:   "module:name" below equimid.evaluation, of (study, data, train) -> records
    references: subjects that are measured beside the network by default: "random", "pixels", "patch_colours"
    """

    name: str
    text: str
    function: str
    references: tuple[str, ...] = ()

    def run(self, study: "Study", data: str, train: str | None) -> "list[Record]":
        """The records of a network on these data; see `equimid.evaluation.study`."""
        module, name = self.function.split(":")
        function: Any = getattr(import_module(f"equimid.evaluation.{module}"), name)
        found: list[Record] = function(study, data, train)
        return found


_BESIDE = ("random",)
_COLOURS = ("random", "patch_colours")

_ALL = (
    Measurement("knn", "weighted nearest neighbours", "probes:measure_knn", ("random", "pixels")),
    Measurement("linear", "linear probe, a grid of learning rates", "probes:measure_linear", ("random", "pixels")),
    Measurement("logistic", "logistic regression, a grid of penalties", "probes:measure_logistic", _BESIDE),
    Measurement("mlp", "two-layer probe", "probes:measure_mlp", _BESIDE),
    Measurement("fewshot", "logistic regression on 1, 5 and 10 images a class", "probes:measure_fewshot", _BESIDE),
    Measurement("attentive", "a learned query's attention over the tokens", "probes:measure_attentive", _BESIDE),
    Measurement("equivariance", "every layer under every pose", "equivariance:measure_equivariance", _BESIDE),
    Measurement("correspondence", "the same patch found again in a transformed image",
                "equivariance:measure_correspondence", _COLOURS),
    Measurement("pose-probe", "how well turn and flip can be read", "equivariance:measure_pose_probe", _BESIDE),
    Measurement("geometry", "accuracy under turns, flips, scales and any angle", "robustness:measure_geometry",
                _BESIDE),
    Measurement("corruptions", "accuracy under generated corruptions: 15 kinds, or 19", "robustness:measure_generated"),
    Measurement("imagenet-c", "ImageNet-C: top-1 and mCE; needs --train", "robustness:measure_imagenet_c"),
    Measurement("imagenet-p", "ImageNet-P: flip rate, top-5 distance; needs --train", "robustness:measure_imagenet_p"),
    Measurement("imagenet-v2", "ImageNet-V2; needs --train", "robustness:measure_v2"),
    Measurement("imagenet-r", "ImageNet-R; needs --train", "robustness:measure_r"),
    Measurement("imagenet-sketch", "ImageNet-Sketch; needs --train", "robustness:measure_sketch"),
    Measurement("imagenet-a", "ImageNet-A; needs --train", "robustness:measure_a"),
    Measurement("detection", "Faster R-CNN over frozen tokens; VOC or COCO boxes", "detection:measure_detection",
                _BESIDE),
    Measurement("segmentation", "linear segmentation on tokens; images/ and masks/",
                "segmentation:measure_segmentation", _BESIDE),
    Measurement("feature-maps", "pictures: token maps under a pose", "figures:draw_feature_maps"),
    Measurement("attention", "pictures: what CLS attends to in the last block", "figures:draw_attention"),
    Measurement("neighbours", "pictures: nearest neighbours", "figures:draw_neighbours"),
    Measurement("explorer", "token maps under every pose of a small set, for the page to explore",
                "figures:record_explorer"),
)  # fmt: skip
MEASUREMENTS: Mapping[str, Measurement] = {measurement.name: measurement for measurement in _ALL}


def find_measurement(name: str, where: str = "") -> Measurement:
    """
    Args:
        where: put before the mistake, such as the name of a file.

    Raises:
        UserError: there is none of that name.
    """
    if name not in MEASUREMENTS:
        raise UserError(f"{where}there is no measurement {name!r}; there are {', '.join(MEASUREMENTS)}")
    return MEASUREMENTS[name]
