"""Pictures of what the network sees, and the data of the page's explorer."""

from equimid.evaluation.pictures.feature_maps import draw_feature_maps

__all__ = ["draw_feature_maps"]
