"""Accuracy on turned, mirrored and scaled images."""

from collections.abc import Sequence

from equimid.report.blocks import Block, Heading, Section, Text
from equimid.report.sections.poses import pose_blocks
from equimid.report.sections.tables import by_data, warnings
from equimid.report.series import Series

__all__ = ["geometry_section"]


def geometry_section(series: Sequence[Series]) -> Section:
    """A curve over the angle, and a mark for each pose of the other kinds."""
    blocks: list[Block] = []
    for number, (data, records) in enumerate(by_data(series, "geometry").items()):
        shown = [s for s in series if s.key in records]
        blocks.append(Heading(f"On {data}"))
        blocks += pose_blocks(f"geometry-{number}", f"Geometry on {data}", "Top-1", shown, records)
    if blocks:
        text = Text(
            "Top-1 in % of a linear probe that was fitted to upright images, on test images in other poses; all plots "
            "on one scale. Over the angle only the disc that turns into itself is shown, at 0 degrees too."
        )
        blocks = [text, *warnings(series, "geometry"), *blocks]
    return Section("geometry", "Turned, mirrored and scaled images", blocks, short="Geometry")
