"""Bytes in words."""


def readable_size(number: float | None) -> str:
    """Bytes for people: `"5.6 MB"`; nothing for None."""
    if number is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
