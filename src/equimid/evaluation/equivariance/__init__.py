"""Equivariance of every layer, and how well a pose can be read back."""

from equimid.evaluation.equivariance.maps import measure_equivariance

__all__ = ["measure_equivariance"]
