from __future__ import annotations

from fakes import FakeClock
from perfline.measure.progress import ProgressLine


def run(tty, seconds_each, total):
    clock, written = FakeClock(), []
    line = ProgressLine("tiny: eager", written.append, tty, clock)
    for done in range(1, total + 1):
        clock.now += seconds_each
        line(done, total)
    return written


def test_a_log_gets_a_plain_line_every_30_s():
    written = run(tty=False, seconds_each=10.0, total=9)
    assert written == [
        "\n",  # off pytest's line of dots
        "tiny: eager: 3/9 questions, 0.1 questions/s, 60 s left\n",
        "tiny: eager: 6/9 questions, 0.1 questions/s, 30 s left\n",
        "tiny: eager: 9/9 questions, 0.1 questions/s, 0 s left\n",
    ]


def test_a_terminal_gets_one_line_that_rewrites_itself_and_goes():
    written = run(tty=True, seconds_each=1.0, total=3)
    assert written[0] == "\n"
    assert len(written) == 4
    assert all(text.startswith("\r\x1b[2K") and "\n" not in text for text in written[1:])
    assert written[-1].endswith("\r\x1b[2K")


def test_a_short_pass_says_nothing():
    assert run(tty=True, seconds_each=0.01, total=10) == []
    assert run(tty=False, seconds_each=1.0, total=10) == []


def test_long_times_are_in_minutes():
    assert "33 min left" in run(tty=False, seconds_each=40.0, total=51)[1]
