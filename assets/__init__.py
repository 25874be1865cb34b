"""Data that ships with the package; the other files in this folder describe it."""
