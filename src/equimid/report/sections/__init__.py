"""The sections of the page: each arranges records or curves; nothing is measured here."""

from collections.abc import Sequence

from equimid.report.blocks import Section
from equimid.report.read_run import Run
from equimid.report.sections.correspondence import correspondence_section
from equimid.report.sections.equivariance import equivariance_section
from equimid.report.sections.geometry import geometry_section
from equimid.report.sections.pictures import NAMES, pictures_section
from equimid.report.sections.pose_probe import pose_probe_section
from equimid.report.sections.published import published_section
from equimid.report.sections.robustness import CORRUPTED, VARIANTS, robustness_section
from equimid.report.sections.scores import DENSE, dense_section, evaluation_section
from equimid.report.sections.settings import run_section
from equimid.report.sections.training import training_section
from equimid.report.seeds import seeds_section
from equimid.report.series import all_series

__all__ = ["all_sections"]

# evaluations with sections of their own; the explorer is no section of records
APART = (
    "training", "equivariance", "correspondence", "pose_probe", "geometry", "imagenet_p", "explorer",
    *VARIANTS, *CORRUPTED, *DENSE, *NAMES,
)  # fmt: skip


def all_sections(runs: Sequence[Run], explore: Section) -> list[Section]:
    """In the order of the page, those that have something to show; `explore` is drawn by a script of its own."""
    series = all_series(runs)
    sections = [
        run_section(runs),
        evaluation_section(runs, series, APART),
        seeds_section(runs),
        published_section(series),
        robustness_section(series),
        geometry_section(series),
        equivariance_section(runs, series),
        correspondence_section(series),
        pose_probe_section(series),
        explore,
        dense_section(series),
        *(pictures_section(series, evaluation) for evaluation in NAMES),
        training_section(runs, series),
    ]
    return [section for section in sections if section.blocks or section.html]
