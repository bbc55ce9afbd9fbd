"""Pictures of what the network sees, and the data of the page's explorer."""

from equimid.evaluation.figures.attention import draw_attention
from equimid.evaluation.figures.explorer import record_explorer
from equimid.evaluation.figures.feature_maps import draw_feature_maps
from equimid.evaluation.figures.neighbours import draw_neighbours

__all__ = ["draw_attention", "draw_feature_maps", "draw_neighbours", "record_explorer"]
