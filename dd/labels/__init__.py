"""Labels of augmented views: the forms they are kept in, the views they are of, and their store beside a set."""

from dd.labels.labeller import Labeller, live
from dd.labels.settings import LabelSettings
from dd.labels.store import LabelStore

__all__ = ["LabelSettings", "LabelStore", "Labeller", "live"]
