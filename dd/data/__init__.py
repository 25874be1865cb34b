"""Real images: data sets by name, splits on the device, preprocessing."""

from dd.data.preprocess import Preprocess
from dd.data.real import RealData, open_data
from dd.data.settings import DataSettings
from dd.data.sources import Arrays, CatalogueEntry, Kind, is_local, kind_of, list_sources
from dd.data.split import Split

__all__ = [
    "Arrays",
    "CatalogueEntry",
    "DataSettings",
    "Kind",
    "Preprocess",
    "RealData",
    "Split",
    "is_local",
    "kind_of",
    "list_sources",
    "open_data",
]
