"""What did other packages say while a model was loaded, compiled, warmed up and run?

Somebody's warnings policy (``filterwarnings = error``, ``-W error``) never decides a measurement:
while perfline works, warnings, and what libraries log as one, become notices of the record. They
are counted outside of the timed rounds; inside, they are ignored, so that no round pays for them.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path

# Libraries that log what others warn of; their loggers' names are their packages'.
LOGGERS = ("transformers", "torch", "huggingface_hub", "accelerate")
LONGEST = 300  # characters of a text
MOST = 50  # different notices; what a broken package says beyond is counted as one more
_OWN_AFFAIR = (DeprecationWarning, PendingDeprecationWarning, ResourceWarning, ImportWarning)
_TIMED: ContextVar[bool] = ContextVar("timed", default=False)


@dataclass(frozen=True)
class Notice:
    """What one package said, and how often it was said outside of timed rounds.

    Attributes:
        source: the package, such as ``transformers``; ``perfline`` for what perfline noticed.
    """

    source: str
    text: str
    count: int = 1

    @property
    def line(self) -> str:
        """For a person; how often, where that is more than once."""
        seen = f" (seen {self.count} times before the timed rounds)" if self.count > 1 else ""
        return f"{'' if self.source == 'perfline' else f'{self.source}: '}{self.text}{seen}"


@dataclass
class Notices:
    """The notices of one session or one process."""

    _seen: dict[tuple[str, str], Notice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make what takes in logged lines."""
        self._handler = _Handler(self)

    @property
    def all(self) -> tuple[Notice, ...]:
        """In the order in which they were first seen."""
        return tuple(self._seen.values())

    def add(self, source: str, text: str) -> None:
        """Count one more of ``text``."""
        line = "".join(sign if sign.isprintable() else " " for sign in text)
        line = " ".join(line.split())
        if len(line) > LONGEST:
            line = f"{line[:LONGEST]} ... ({len(line)} characters)"
        key = (source, line)
        if key not in self._seen and len(self._seen) >= MOST:
            key = ("perfline", f"other packages said more than these {MOST} different things")
        old = self._seen.get(key)
        self._seen[key] = Notice(*key) if old is None else replace(old, count=old.count + 1)

    def once(self, lines: Iterable[str]) -> None:
        """Note what perfline itself found, unless it is noted already."""
        for line in lines:
            if ("perfline", line) not in self._seen:
                self.add("perfline", line)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take in what is warned of and logged meanwhile, whatever the warnings' filters say."""
        loggers = [each for each in _loggers() if self._handler not in each.handlers]  # not twice
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = self._warned
            for logger in loggers:
                logger.addHandler(self._handler)
            try:
                yield
            finally:
                for logger in loggers:
                    logger.removeHandler(self._handler)

    def _warned(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        # Who warns is the caller of ``warnings.warn``; ``filename`` is whom it warns.
        caller = sys._getframe(2).f_globals.get("__name__", "")
        source = str(caller).partition(".")[0]
        warned = Path(filename).parts
        inside = warned[warned.index("site-packages") + 1 :] if "site-packages" in warned else ()
        if issubclass(category, _OWN_AFFAIR) and inside[:1] == (source,):
            return  # a package that uses what it deprecates itself
        if issubclass(category, ResourceWarning):
            return  # a file that somebody left open
        self.add(source, str(message))


def _loggers() -> list[logging.Logger]:
    """The libraries' loggers, and those below them whose lines do not reach them."""
    below = [
        logging.getLogger(name)
        for name in list(logging.root.manager.loggerDict)
        if name.partition(".")[0] in LOGGERS and "." in name
    ]
    return [*map(logging.getLogger, LOGGERS), *(each for each in below if not each.propagate)]


@contextmanager
def timed() -> Iterator[None]:
    """Ignore meanwhile what is warned of and logged: nothing in here pays for counting."""
    token = _TIMED.set(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _TIMED.reset(token)


class _Handler(logging.Handler):
    """Hands what is logged as a warning or worse to the notices."""

    def __init__(self, notices: Notices) -> None:
        super().__init__(logging.WARNING)
        self._notices = notices

    def emit(self, record: logging.LogRecord) -> None:
        if not _TIMED.get():
            self._notices.add(record.name.partition(".")[0], record.getMessage())
