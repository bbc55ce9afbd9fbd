"""The sections of the page: each arranges records or curves; nothing is measured here."""

from collections.abc import Sequence

from equimid.report.blocks import Section
from equimid.report.read_run import Run
from equimid.report.sections import layers, published, robustness, run, scores
from equimid.report.seeds import seeds_section
from equimid.report.series import all_series

__all__ = ["all_sections"]

# evaluations with sections of their own; the explorer is no section of records
APART = (
    "training", "explorer", layers.EQUIVARIANCE, layers.CORRESPONDENCE, layers.PROBE, scores.GEOMETRY,
    robustness.VIDEOS, *robustness.VARIANTS, *robustness.CORRUPTED, *scores.DENSE, *scores.PICTURES,
)  # fmt: skip


def all_sections(runs: Sequence[Run], explore: Section) -> list[Section]:
    """In the order of the page, those that have something to show; `explore` is drawn by a script of its own."""
    series = all_series(runs)
    sections = [
        run.run_section(runs),
        scores.evaluation_section(runs, series, APART),
        seeds_section(runs),
        published.published_section(series),
        robustness.robustness_section(series),
        scores.geometry_section(series),
        layers.equivariance_section(runs, series),
        layers.correspondence_section(series),
        layers.probe_section(series),
        explore,
        scores.dense_section(series),
        *(scores.pictures_section(series, evaluation) for evaluation in scores.PICTURES),
        run.training_section(runs, series),
    ]
    return [section for section in sections if section.blocks or section.html]
