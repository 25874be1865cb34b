"""Files of other projects: theirs become our sets, ours become files that theirs read.

What a user says is an `Asked`; a `Reader` recognises files by contents and gives a `Draft` for each set in them, which
`Match` checks against the real images.
"""

from dd.exchange.draft import Asked, Draft
from dd.exchange.front import import_sets
from dd.exchange.reader import Reader, Recognised
from dd.exchange.source import ForeignFiles

__all__ = ["Asked", "Draft", "ForeignFiles", "Reader", "Recognised", "import_sets"]
