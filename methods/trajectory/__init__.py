"""Trajectory matching: synthetic images on which a student's parameters follow those of experts."""
