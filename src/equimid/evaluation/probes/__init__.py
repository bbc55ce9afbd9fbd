"""Probes: what a simple reader makes of frozen features."""

from equimid.evaluation.probes.knn import knn_predictions, measure_knn
from equimid.evaluation.probes.linear import fit_linear, measure_linear

__all__ = ["fit_linear", "knn_predictions", "measure_knn", "measure_linear"]
