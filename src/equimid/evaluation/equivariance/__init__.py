"""Equivariance of every layer, and how well a pose can be read back."""

from equimid.evaluation.equivariance.changes import changes
from equimid.evaluation.equivariance.maps import measure_equivariance
from equimid.evaluation.equivariance.readback import measure_readback

__all__ = ["changes", "measure_equivariance", "measure_readback"]
