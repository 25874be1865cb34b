"""Ctrl-C and SIGTERM: the exit code, what is said, and that nothing is lost."""

import os
import re
from signal import SIGINT, SIGTERM, getsignal

import pytest
import torch

from dd.errors import Interrupted
from dd.runs.stop import Stop

# gets a signal once: while it makes an artefact (at=-1), or while iteration `at` is under way
STOPS_ITSELF = '''
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from dd.engine.method import Method, Synthetic
from dd.engine.registry import register
from torch.optim import SGD


@register("stops-itself")
@dataclass(frozen=True)
class StopsItself(Method):
    """Shrinks images."""

    iterations: int = 3
    at: int = 0
    signal: int = 0

    def prepare(self, task, got):
        def make():
            if self.at == -1:
                self.stop()
            return {"zero": torch.zeros(1)}, {}

        return task.store.tensors("zeros", {}, make, "the zero").tensors["zero"]

    def stop(self):
        if not Path("stopped").exists():
            Path("stopped").touch()
            os.kill(os.getpid(), self.signal)

    def start(self, task, prepared):
        return Synthetic(task.data.train.images(task.real_indices("start")), task.targets)

    def optimisers(self, syn):
        return [SGD([syn.images], lr=1.0)]

    def loss(self, syn, task, prepared, it):
        if it == self.at:
            self.stop()
        return (syn.images - prepared).square().mean()
'''
CODES = {SIGINT: 130, SIGTERM: 75}


@pytest.fixture
def itself(place, pictures):
    """Settings of a run that gets a signal once."""
    (place.path / "itself.py").write_text(STOPS_ITSELF)
    tiny = ("eval.protocol=smoke", "eval.steps=3", "eval.full=false", "student.depth=1", "student.width=4")
    return ("run", "method=itself.py", pictures, "ipc=1", "device=cpu", "compile=false", *tiny)


def said(stopped, number, command) -> bool:
    """Whether the last words are which signal came, and the command that resumes."""
    last = f"dd: stopped by {number.name}; everything finished is kept; the same command resumes: {command}"
    return stopped.code == CODES[number] and stopped.err.splitlines()[-1] == last and stopped.out == ""


def test_a_run_stopped_in_two_stages(place, long, uninterrupted, same_run):
    command = ("run", *long)

    run = place.start(*command)
    stopped = run.signal_when(SIGINT, lambda: "made expert 2" in run.err)
    assert said(stopped, SIGINT, f"dd {' '.join(command)}")

    run = place.start(*command)
    stopped = run.signal_when(SIGTERM, lambda: place.logged() > 5)
    assert said(stopped, SIGTERM, f"dd {' '.join(command)}")
    assert "kept expert 2 of 6" in stopped.err
    done = place.logged()

    whole = place.dd(*command, "--json")
    assert whole.code == 0
    assert f"synthesis resumes at iteration {done} of 60" in whole.err  # not one is lost
    same_run(place, whole.report, *uninterrupted)


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
@pytest.mark.parametrize("at", [-1, 1, 2])
def test_no_signal_is_forgotten(place, itself, at, number):
    command = (*itself, f"at={at}", f"signal={int(number)}")
    before = getsignal(number)
    stopped = place.dd(*command)
    assert said(stopped, number, f"dd {' '.join(command)}")
    assert "on the distilled set" not in stopped.err
    assert getsignal(number) is before
    again = place.dd(*command)
    assert again.code == 0
    went_on = re.findall(r"resumes at iteration (\d) of 3", again.err)
    assert went_on == ([] if at == -1 else [str(at + 1)])
    assert place.half_written() == []


def test_a_forced_run_goes_on_without_force(place, itself):
    command = (*itself, "at=1", f"signal={int(SIGINT)}")
    stopped = place.dd(*command, "force=true")
    assert stopped.err.splitlines()[-1].endswith("the same command without force=true resumes")
    assert "resumes at iteration 2 of 3" in place.dd(*command).err


def test_torchs_compiler_does_not_swallow_a_signal():
    def backend(graph, inputs):
        os.kill(os.getpid(), SIGTERM)
        return graph.forward

    compiled = torch.compile(torch.sin, backend=backend)
    with Stop("").watching(), pytest.raises(Interrupted):
        compiled(torch.ones(2))
