"""Handing the backbone on."""

from equimid.export.backbone import load_backbone, save_backbone

__all__ = ["load_backbone", "save_backbone"]
