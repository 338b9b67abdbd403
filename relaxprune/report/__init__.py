"""Reports that people look at: one HTML page for a run, or for several side by side, and the same numbers as JSON."""

from .writing import write_report as write_report

__all__ = ["write_report"]
