"""Sweeps over settings: one YAML file for W&B's agents and, without an account, for this machine.

Trials are ranked by held-out accuracy; only the winner is scored on test images, once.
"""

from dd.sweeps.draft import draft
from dd.sweeps.local import Swept, is_sweep, read_swept, sweep
from dd.sweeps.yaml_file import Parameter, SweepFile, read_sweep

__all__ = ["Parameter", "SweepFile", "Swept", "draft", "is_sweep", "read_sweep", "read_swept", "sweep"]
