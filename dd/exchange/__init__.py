"""Exchange with other projects: import their files as our sets, and export our sets to formats that they read.

An `Asked` holds the user's options. A `Reader` recognises files by their contents and returns a `Draft` of each set in
them, and `Match` checks the drafts against the real images.
"""

from dd.exchange.draft import Asked, Draft
from dd.exchange.front import import_sets
from dd.exchange.reader import Reader, Recognised
from dd.exchange.source import ForeignFiles

__all__ = ["Asked", "Draft", "ForeignFiles", "Reader", "Recognised", "import_sets"]
