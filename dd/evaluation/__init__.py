"""Honest numbers: fresh students on a set, beside random real images, the starting point, and all the data."""

from dd.evaluation.protocols import PROTOCOLS, Protocol
from dd.evaluation.report import Report, Score

__all__ = ["PROTOCOLS", "Protocol", "Report", "Score"]
