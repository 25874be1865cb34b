"""Decoupled distillation: train teachers once, then optimise or select images with them, batch by batch."""
