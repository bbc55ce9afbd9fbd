"""Everything that can be measured, by its name on the command line."""

from collections.abc import Mapping

from equimid.evaluation.equivariance import measure_equivariance
from equimid.evaluation.pictures import draw_feature_maps
from equimid.evaluation.probes import measure_knn, measure_linear
from equimid.evaluation.study import Measurement

__all__ = ["MEASUREMENTS"]

_ALL = (
    Measurement("knn", "weighted nearest neighbours of the final embedding", measure_knn, ("random", "pixels")),
    Measurement("linear", "linear probe, a grid of learning rates", measure_linear, ("random", "pixels")),
    Measurement("equivariance", "equivariance of every layer under every kind of pose", measure_equivariance, ("random",)),
    Measurement("feature-maps", "pictures of token maps under a pose", draw_feature_maps),
)
MEASUREMENTS: Mapping[str, Measurement] = {measurement.name: measurement for measurement in _ALL}
