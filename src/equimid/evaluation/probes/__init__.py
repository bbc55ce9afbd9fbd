"""Probes: what a simple reader makes of frozen features."""

from equimid.evaluation.probes.attentive import measure_attentive
from equimid.evaluation.probes.knn import knn_predictions, measure_knn
from equimid.evaluation.probes.linear import fit_linear, measure_linear
from equimid.evaluation.probes.logistic import measure_fewshot, measure_logistic
from equimid.evaluation.probes.mlp import measure_mlp

__all__ = [
    "fit_linear",
    "knn_predictions",
    "measure_attentive",
    "measure_fewshot",
    "measure_knn",
    "measure_linear",
    "measure_logistic",
    "measure_mlp",
]
