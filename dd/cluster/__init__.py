"""A run as jobs: one leads, others help, and the process that the user started drives them."""

from dd.cluster.driver import drive, drive_experts

__all__ = ["drive", "drive_experts"]
