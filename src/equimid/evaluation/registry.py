"""Everything that can be measured, by its name on the command line."""

from collections.abc import Mapping

from equimid.evaluation import probes, robustness
from equimid.evaluation.detection import measure_detection
from equimid.evaluation.equivariance import measure_correspondence, measure_equivariance, measure_pose_probe
from equimid.evaluation.figures import draw_attention, draw_feature_maps, draw_neighbours, record_explorer
from equimid.evaluation.segmentation import measure_segmentation
from equimid.evaluation.study import Measurement

__all__ = ["MEASUREMENTS"]

_BESIDE = ("random",)
_COLOURS = ("random", "patch_colours")

_ALL = (
    Measurement("knn", "weighted nearest neighbours", probes.measure_knn, ("random", "pixels")),
    Measurement("linear", "linear probe, a grid of learning rates", probes.measure_linear, ("random", "pixels")),
    Measurement("logistic", "logistic regression, a grid of penalties", probes.measure_logistic, _BESIDE),
    Measurement("mlp", "two-layer probe", probes.measure_mlp, _BESIDE),
    Measurement("fewshot", "logistic regression on 1, 5 and 10 images a class", probes.measure_fewshot, _BESIDE),
    Measurement("attentive", "a learned query's attention over the tokens", probes.measure_attentive, _BESIDE),
    Measurement("equivariance", "every layer under every kind of pose", measure_equivariance, _BESIDE),
    Measurement("correspondence", "the same patch found again in a changed image", measure_correspondence, _COLOURS),
    Measurement("pose-probe", "how well turn and flip can be read back", measure_pose_probe, _BESIDE),
    Measurement("geometry", "accuracy under turns, flips, scales and any angle", robustness.measure_geometry, _BESIDE),
    Measurement("corruptions", "accuracy under generated corruptions: 15 kinds, or 19", robustness.measure_generated),
    Measurement("imagenet-c", "ImageNet-C: top-1 and mCE; needs --train", robustness.measure_imagenet_c),
    Measurement("imagenet-p", "ImageNet-P: flip rate, top-5 distance; needs --train", robustness.measure_imagenet_p),
    Measurement("imagenet-v2", "ImageNet-V2; needs --train", robustness.measure_v2),
    Measurement("imagenet-r", "ImageNet-R; needs --train", robustness.measure_r),
    Measurement("imagenet-sketch", "ImageNet-Sketch; needs --train", robustness.measure_sketch),
    Measurement("imagenet-a", "ImageNet-A; needs --train", robustness.measure_a),
    Measurement("detection", "Faster R-CNN over frozen tokens; VOC or COCO boxes", measure_detection, _BESIDE),
    Measurement("segmentation", "linear segmentation on tokens; images/ and masks/", measure_segmentation, _BESIDE),
    Measurement("feature-maps", "pictures: token maps under a pose", draw_feature_maps),
    Measurement("attention", "pictures: where CLS looks in the last block", draw_attention),
    Measurement("neighbours", "pictures: nearest neighbours", draw_neighbours),
    Measurement("explorer", "token maps under every pose of a small set, for the page to explore", record_explorer),
)  # fmt: skip
MEASUREMENTS: Mapping[str, Measurement] = {measurement.name: measurement for measurement in _ALL}
