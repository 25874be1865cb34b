"""A run that loses its machine, whenever that is, resumes with the same command and ends in the same bits."""

import re
from signal import SIGKILL

from dd.engine.synthesise import CHECKPOINT_EVERY


def test_a_run_killed_in_every_stage(place, long, uninterrupted, same_run):
    again = ("run", *long, "--json")

    run = place.start(*again)
    assert run.signal_when(SIGKILL, lambda: "made expert 2" in run.err).code == -SIGKILL

    run = place.start(*again)
    killed = run.signal_when(SIGKILL, lambda: place.logged() > 1.5 * CHECKPOINT_EVERY)
    done = place.logged()
    assert killed.code == -SIGKILL
    assert "kept expert 2 of 6" in killed.err
    assert "made expert 1" not in killed.err
    assert "made set" not in killed.err

    run = place.start(*again)
    killed = run.signal_when(SIGKILL, lambda: "made student 1 on the distilled set" in run.err)
    assert killed.code == -SIGKILL
    assert "kept expert 4 of 6" in killed.err
    assert "made expert" not in killed.err
    first = int(re.findall(r"synthesis resumes at iteration (\d+) of 60", killed.err)[0])
    assert 0 < done - first <= CHECKPOINT_EVERY
    assert not (place.folder() / "report.json").exists()

    whole = place.dd(*again)
    assert whole.code == 0
    assert "kept set datm" in whole.err
    assert "synthesis resumes" not in whole.err
    assert "kept student 1 on the distilled set" in whole.err
    assert "made student 1 on random real images" in whole.err
    same_run(place, whole.report, *uninterrupted)
    assert place.half_written() == []
    assert not (place.folder() / "checkpoint.safetensors").exists()
