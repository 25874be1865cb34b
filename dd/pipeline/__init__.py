"""A run from recipe to report: prepare, synthesise, evaluate; what is cached, what is resumed.

dd.run("datm", ipc=10)                  what `dd run method=datm ipc=10` does
dd.evaluate("set.safetensors")          what `dd eval set.safetensors` does
"""

from dd.pipeline.evaluation import evaluate, evaluate_distilled, load
from dd.pipeline.front import run
from dd.pipeline.outcome import Outcome
from dd.pipeline.plan import locate, plan
from dd.pipeline.run import run_recipe

__all__ = ["Outcome", "evaluate", "evaluate_distilled", "load", "locate", "plan", "run", "run_recipe"]
