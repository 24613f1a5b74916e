"""A finished or running run as a page to read; reads run folders only."""

from chatlearn.report.alarms import alarm_lines
from chatlearn.report.html import write_report

__all__ = ["alarm_lines", "write_report"]
