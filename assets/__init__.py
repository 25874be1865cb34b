"""Data that ships with the package; see the files beside this one."""
