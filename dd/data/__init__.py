"""Real images: sources by name, splits on the device, preprocessing, augmentation."""

from dd.data.preprocess import Preprocess
from dd.data.real import DataSettings, RealData, Split, open_data
from dd.data.sources import list_sources

__all__ = ["DataSettings", "Preprocess", "RealData", "Split", "list_sources", "open_data"]
