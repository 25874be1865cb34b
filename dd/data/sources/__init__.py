"""Sources of real images: find data sets by name or path and read them, before any preprocessing.

fashion-mini                       embedded, needs no download
fashion-mnist mnist svhn cifar10 cifar100 tiny-imagenet
                                   searched locally, else downloaded
imagenet-1k imagenet-21k imagenette imagewoof imagefruit imagemeow imagesquawk imageyellow imagenet-10 imagenet-100
                                   searched locally, never downloaded
folder:PATH  parquet:PATH  npz:PATH
                                   a user's own data
"""

from dd.data.sources.content import Arrays
from dd.data.sources.entry import CatalogueEntry
from dd.data.sources.listing import Kind, SourceInfo, kind_of, list_sources
from dd.data.sources.locate import Located, is_local, locate_data, require_known
from dd.data.sources.raw import Facts, Raw, load_raw

__all__ = [
    "Arrays",
    "CatalogueEntry",
    "Facts",
    "Kind",
    "Located",
    "Raw",
    "SourceInfo",
    "is_local",
    "kind_of",
    "list_sources",
    "load_raw",
    "locate_data",
    "require_known",
]
