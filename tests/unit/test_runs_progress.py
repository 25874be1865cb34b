import os
import pty
import re
import subprocess
import sys

import pytest

from dd.runs import bar, progress


class Lazy:
    """A number that counts how often it is looked at, as a tensor on a device would be waited for."""

    looks = 0

    def __float__(self):
        Lazy.looks += 1
        return 0.731


def test_without_a_terminal_there_is_one_line_at_the_end_and_nothing_on_stdout(capsys):
    Lazy.looks = 0
    with bar("synthesise", 30) as shown:
        for it in range(1, 31):
            shown.update(it, loss=Lazy(), step=it)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"synthesise 30/30  loss 0\.731  step 30  \d+\.\d it/s  in 0:00\n", err)
    assert Lazy.looks == 1


def test_a_line_every_so_often(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_PLAIN", 0.0)
    with bar("synthesise", 4, start=1) as shown:
        for it in range(2, 5):
            shown.update(it, loss=0.731)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["synthesise 2/4", "synthesise 3/4", "synthesise 4/4"]
    assert re.fullmatch(r"synthesise 3/4  loss 0\.731  \d+\.\d it/s  0:00 left", lines[1])


def test_an_interrupted_block_still_says_how_far_it_came(capsys):
    def interrupted():
        with bar("evaluate", 10) as shown:
            shown.update(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().err.startswith("evaluate 3/10  ")


def test_nothing_done_nothing_said(capsys):
    with bar("evaluate", 10, start=10):
        pass
    assert capsys.readouterr() == ("", "")


def test_speed_and_time_left_follow_the_last_minute():
    pace = progress._Pace(total=1000, start=100)
    began = pace.began
    for it in range(101, 111):  # ten slow iterations of ten seconds
        pace.step(it, began + 10.0 * (it - 100))
    assert pace.speed(began + 100) == pytest.approx(0.1, rel=0.01)
    for it in range(111, 811):  # then ten a second
        pace.step(it, began + 100 + 0.1 * (it - 110))
    assert pace.speed(began + 170) == pytest.approx(10, rel=0.03)
    assert pace.text({"loss": 0.7312}, began + 170) == "loss 0.731  10.0 it/s  0:19 left"
    pace.step(1000, began + 190)
    assert pace.text({}, began + 180 * 60) == "12.0 s/it  in 3:00:00"


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (0.73149, "0.731"), (1234.5, "1234"), (1e-5, "1e-05"), (float("nan"), "nan")]
)
def test_numbers_are_short(value, text):
    assert progress._short(value) == text


SCRIPT = """
from dd.runs import bar
with bar("synthesise", 3) as shown:
    for it in range(1, 4):
        shown.update(it, loss=0.731)
        print("result", it)
"""


def on_a_terminal(**env):
    """Run the script with stderr on a terminal; what it wrote to stdout, and what to the terminal."""
    leader, follower = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**clean, "TERM": "xterm-256color", "COLUMNS": "100", **env},
        stdout=subprocess.PIPE,
        stderr=follower,
        timeout=60,
    )
    os.close(follower)
    seen = b""
    try:
        while chunk := os.read(leader, 65536):
            seen += chunk
    except OSError:  # Linux says EIO at the end
        pass
    os.close(leader)
    assert done.returncode == 0, seen
    return done.stdout.decode(), seen.decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-9]|38;5;[0-9]+|9[0-7])m")


def test_on_a_terminal_it_is_a_coloured_bar_and_stdout_stays_clean():
    out, seen = on_a_terminal()
    assert out == "result 1\nresult 2\nresult 3\n"
    assert "result" not in seen
    assert "synthesise" in seen
    assert "3/3" in seen
    assert "loss 0.731" in seen
    assert COLOUR.search(seen)


def test_no_color_is_honoured():
    out, seen = on_a_terminal(NO_COLOR="1")
    assert out == "result 1\nresult 2\nresult 3\n"
    assert "3/3" in seen
    assert not COLOUR.search(seen)


def test_a_dumb_terminal_gets_plain_lines():
    assert "\x1b" not in on_a_terminal(TERM="dumb")[1]
