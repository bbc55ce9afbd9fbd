"""Evaluation: a frozen backbone in, records out. Nothing here knows what trained the weights."""

from equimid.evaluation.config import EvaluationConfig
from equimid.evaluation.equivariance import measure_equivariance
from equimid.evaluation.feature_maps import draw_feature_maps
from equimid.evaluation.features import FeatureTable, Preprocessing, embed, pixels
from equimid.evaluation.knn import knn_predictions, measure_knn
from equimid.evaluation.linear import measure_linear
from equimid.evaluation.scope import Scope

__all__ = [
    "EvaluationConfig",
    "FeatureTable",
    "Preprocessing",
    "Scope",
    "draw_feature_maps",
    "embed",
    "knn_predictions",
    "measure_equivariance",
    "measure_knn",
    "measure_linear",
    "pixels",
]
