"""Selection: sets that are made of real images."""
