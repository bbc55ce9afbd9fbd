"""Equivariance of every layer: place, correspondence of patches, and how well a pose can be read back."""

from equimid.evaluation.equivariance.correspondence import PatchColours, measure_correspondence
from equimid.evaluation.equivariance.maps import measure_equivariance
from equimid.evaluation.equivariance.pose_probe import measure_pose_probe
from equimid.evaluation.equivariance.transforms import transforms_of

__all__ = ["PatchColours", "measure_correspondence", "measure_equivariance", "measure_pose_probe", "transforms_of"]
