"""Evaluation: a frozen network in, records out. Nothing here knows what trained the weights."""

from equimid.evaluation.config import DetectionConfig, EvaluationConfig
from equimid.evaluation.equivariance import PatchColours
from equimid.evaluation.preprocessing import FeatureTable, Pixels, Preprocessing
from equimid.evaluation.registry import MEASUREMENTS
from equimid.evaluation.study import Measurement, Scope, Study, labelled_splits

__all__ = [
    "MEASUREMENTS",
    "DetectionConfig",
    "EvaluationConfig",
    "FeatureTable",
    "Measurement",
    "PatchColours",
    "Pixels",
    "Preprocessing",
    "Scope",
    "Study",
    "labelled_splits",
]
