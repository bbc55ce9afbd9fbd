"""Views: what a method asks for (`ViewPlan`), and its realisation in the workers and on the device."""

from equimid.views.photometric import Photometric
from equimid.views.plan import CropView, PosedViews, ViewPlan, ViewsConfig
from equimid.views.realise import Views, normalise, realise, sample_poses
from equimid.views.worker import Batch, Key, ViewDataset, collate

__all__ = [
    "Batch",
    "CropView",
    "Key",
    "Photometric",
    "PosedViews",
    "ViewDataset",
    "ViewPlan",
    "Views",
    "ViewsConfig",
    "collate",
    "normalise",
    "realise",
    "sample_poses",
]
