"""Distribution matching: synthetic images of which a network makes what it makes of real ones."""
