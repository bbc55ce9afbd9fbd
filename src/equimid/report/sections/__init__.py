"""The sections of the page: each arranges records or curves; nothing is measured here."""

from collections import defaultdict
from collections.abc import Sequence

from equimid.evaluation.registry import MEASUREMENTS, measurement_of
from equimid.report.blocks import Section
from equimid.report.formatting import capital
from equimid.report.published import published_section
from equimid.report.read_run import Run
from equimid.report.sections import layers, run, scores
from equimid.report.seeds import seeds_section
from equimid.report.series import Point, all_series, grouped, points_of

__all__ = ["all_sections"]


def all_sections(runs: Sequence[Run], explore: Section) -> list[Section]:
    """In the order of the page; `explore` is drawn by a script of its own.

    A section that has no function here, but measurements, shows a table of their scores, or of layers by subjects where
    records have a layer, and the pictures.
    """
    points = points_of(all_series(runs))
    of = defaultdict[str, list[Point]](list, grouped(points, lambda p: measurement_of(p.evaluation).section))
    sections = [
        run.run_section(runs),
        Section("evaluation", "Evaluation", scores.evaluation(runs, of["evaluation"])),
        seeds_section(runs),
        published_section(runs),
        Section("robustness", "Robustness", scores.robustness(of["robustness"])),
        Section("geometry", "Turned, mirrored and scaled images", scores.geometry(of["geometry"]), "Geometry"),
        Section("equivariance", "Equivariance", layers.equivariance(runs, of["equivariance"])),
        Section(
            "correspondence", "Correspondence of patches", layers.correspondence(of["correspondence"]), "Correspondence"
        ),
        Section("pose-probe", "Pose probe", layers.pose_probe(of["pose-probe"])),
        explore,
        Section("dense", "Detection and segmentation", scores.dense(of["dense"])),
    ]
    shown = {section.id for section in sections}
    for measurement in MEASUREMENTS.values():
        if (name := measurement.section) not in shown:
            title = capital(measurement.title)
            sections.append(Section(name, title, scores.plain_section(name, title, runs, of[name])))
            shown.add(name)
    return [*sections, run.training_section(runs)]
