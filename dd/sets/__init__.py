"""Distilled sets: the data structure and its file format."""

from dd.sets._checks import is_finite
from dd.sets._hashes import hashed_once
from dd.sets.distilled import DistilledSet
from dd.sets.formats import load, save

__all__ = ["DistilledSet", "hashed_once", "is_finite", "load", "save"]
