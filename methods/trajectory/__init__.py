"""Trajectory matching: a student trained on synthetic images follows the parameters of experts trained on real ones."""
