"""The report: what one run, or several compared, recorded, as one HTML page that fetches nothing."""

from equimid.report.page import write_report, write_sweep_report
from equimid.sweep_plan import SweepPlan, read_sweep

__all__ = ["SweepPlan", "read_sweep", "write_report", "write_sweep_report"]
