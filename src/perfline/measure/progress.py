"""How far is a long pass, and how long will it still take?

On a terminal one line that rewrites itself; elsewhere (a CI log) a plain line every 30 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PLAIN_EVERY_S = 30.0
TTY_EVERY_S = 0.5


class ProgressLine:
    """Reports one pass; call it with (done, all) after every prompt."""

    def __init__(
        self,
        what: str,
        write: Callable[[str], None],
        tty: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``write`` puts text on the terminal as it is, without adding a line end."""
        self._what, self._write, self._tty, self._clock = what, write, tty, clock
        self._begin = self._last = clock()
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        """Show the progress if it is time to."""
        now = self._clock()
        finished = done == total
        if now - self._last < (TTY_EVERY_S if self._tty else PLAIN_EVERY_S) and not (
            finished and self._shown
        ):
            return
        first = not self._shown
        self._last, self._shown = now, True
        rate = done / (now - self._begin) if now > self._begin else 0.0
        left = f"{_minutes((total - done) / rate)} left" if rate else "time left unknown"
        line = f"{self._what}: {done}/{total} questions, {rate:.1f} questions/s, {left}"
        if first:
            self._write("\n")  # pytest's own line of dots stays as it is
        if self._tty:
            self._write(f"\r\x1b[2K{line}" + ("\r\x1b[2K" if finished else ""))
        else:
            self._write(f"{line}\n")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
