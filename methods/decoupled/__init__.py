"""Decoupled distillation: teachers are trained once, and images are made to please them, batch by batch."""
