"""Views: what a method asks for (`ViewPlan`), and its realisation in the workers and on the device."""

from equimid.views.dataset import Batch, Key, ViewDataset, collate
from equimid.views.device_decode import decode_encoded
from equimid.views.on_device import Views, normalise, sample_poses, to_device_views
from equimid.views.photometric import FIELDS, Photometric, draw
from equimid.views.plan import (
    CentreView,
    CropView,
    ExtraView,
    LocalViews,
    PosedViews,
    ViewPlan,
    ViewsConfig,
    check_size,
)

__all__ = [
    "FIELDS",
    "Batch",
    "CentreView",
    "CropView",
    "ExtraView",
    "Key",
    "LocalViews",
    "Photometric",
    "PosedViews",
    "ViewDataset",
    "ViewPlan",
    "Views",
    "ViewsConfig",
    "check_size",
    "collate",
    "decode_encoded",
    "draw",
    "normalise",
    "sample_poses",
    "to_device_views",
]
