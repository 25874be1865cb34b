"""The page of one or several runs: everything that a run leaves, in one HTML file."""

from dd.page.page import Written, write_page

__all__ = ["Written", "write_page"]
