"""The report: what one run, or several compared, recorded, as one HTML page that fetches nothing."""

from equimid.report.page import write_report

__all__ = ["write_report"]
