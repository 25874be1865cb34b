"""Selection: distilled sets that consist of real images."""
