"""Byte counts and durations, formatted for people."""

import re


def readable_size(number: float | None) -> str:
    """Format a number of bytes: `"5.6 MB"`; an empty string for None."""
    if number is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"


def parse_size(text: str) -> int:
    """Return a number of bytes: "8GB", "500 MB", "1.5e9"; units are decimal, as in `readable_size`.

    Raises:
        ValueError: it is no positive size.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].upper() not in units or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is no size: write 8GB or 500MB")
    return int(float(found[1]) * units[found[2].upper()])


def readable_time(seconds: float) -> str:
    """Format a number of seconds: `"40 s"`, `"3 min"`, `"2.5 h"`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
