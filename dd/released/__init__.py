"""Released distilled sets: records of them, and the way from a name to a set on this machine."""
