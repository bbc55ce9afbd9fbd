"""Equivariance of every layer: place, correspondence of patches, and how well a pose can be read back."""

from equimid.evaluation.equivariance.correspondence import PatchColours, measure_correspondence
from equimid.evaluation.equivariance.maps import measure_equivariance
from equimid.evaluation.equivariance.pose_probe import measure_readback
from equimid.evaluation.equivariance.transforms import changes

__all__ = ["PatchColours", "changes", "measure_correspondence", "measure_equivariance", "measure_readback"]
