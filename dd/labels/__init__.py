"""Soft labels of augmented views: their storage formats, the views they belong to, and their store beside a set."""

from dd.labels.labeller import Labeller, live
from dd.labels.settings import LabelSettings
from dd.labels.store import LabelStore

__all__ = ["LabelSettings", "LabelStore", "Labeller", "live"]
