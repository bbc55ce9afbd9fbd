"""Detection with a frozen network."""

from equimid.evaluation.detection.annotations import DetectionSet, detection_splits, open_detection
from equimid.evaluation.detection.measure import measure_detection
from equimid.evaluation.detection.scores import Scores, score
from equimid.evaluation.detection.train import Detections

__all__ = ["DetectionSet", "Detections", "Scores", "detection_splits", "measure_detection", "open_detection", "score"]
