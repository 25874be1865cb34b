"""Evaluation: fresh students on a set, on random real images, on the starting point and on all real data."""

from dd.evaluation.protocols import PROTOCOLS, Protocol
from dd.evaluation.report import Report, Score

__all__ = ["PROTOCOLS", "Protocol", "Report", "Score"]
