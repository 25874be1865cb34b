"""Released distilled sets: records, download and publication."""
