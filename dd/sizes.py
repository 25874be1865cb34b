"""Byte counts and durations, formatted for people."""


def readable_size(number: float | None) -> str:
    """Format a number of bytes: `"5.6 MB"`; an empty string for None."""
    if number is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"


def readable_time(seconds: float) -> str:
    """Format a number of seconds: `"40 s"`, `"3 min"`, `"2.5 h"`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
