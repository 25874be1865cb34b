"""The pipeline from recipe to report: prepare, synthesise, evaluate, with caching and resuming.

dd.run("datm", ipc=10)                  the same as `dd run method=datm ipc=10`
dd.evaluate("set.safetensors")          the same as `dd eval set.safetensors`
"""

from dd.pipeline.evaluation import evaluate, evaluate_distilled, load
from dd.pipeline.front import run
from dd.pipeline.outcome import Outcome
from dd.pipeline.plan import locate, plan
from dd.pipeline.run import help_run, run_recipe

__all__ = ["Outcome", "evaluate", "evaluate_distilled", "help_run", "load", "locate", "plan", "run", "run_recipe"]
