"""Accuracy under corruptions, shifts and poses."""

from equimid.evaluation.robustness.corruption_accuracy import measure_generated
from equimid.evaluation.robustness.geometry import measure_geometry
from equimid.evaluation.robustness.imagenet_c import measure_imagenet_c
from equimid.evaluation.robustness.imagenet_p import measure_imagenet_p
from equimid.evaluation.robustness.imagenet_variants import measure_a, measure_r, measure_sketch, measure_v2

__all__ = [
    "measure_a",
    "measure_generated",
    "measure_geometry",
    "measure_imagenet_c",
    "measure_imagenet_p",
    "measure_r",
    "measure_sketch",
    "measure_v2",
]
