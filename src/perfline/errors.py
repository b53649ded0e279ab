"""Which errors does perfline raise, and for whom?

Every error a user can cause is one line that names the file, the key or line, what was found,
what was expected and what to do::

    PerflineError
    ├── CaseError          a case's or a task's YAML is wrong
    ├── DataError          weights, questions or data.tar are absent, broken or unsafe
    │   └── MissingData    ... absent, with the command that gets them
    ├── MissingRanks       a case's model is split over more ranks than there are
    ├── MetricError        a number that is no measurement (NaN, infinite)
    ├── EngineError        the model could not be loaded, compiled or run
    │   ├── DeviceMemory   ... because the device's memory is full
    │   ├── NoSharedPrefixes  ... after a prefix; each prompt by itself it may run
    │   ├── NoFidelity        ... in fp32; in its own dtype it may run
    │   └── NoDecode          ... token by token; its prompts it may run
    ├── BaselineError      a baseline file is torn, hand-edited, or refused
    ├── RecordError        a results file is torn, partial, or of another schema
    ├── WorkerError        a process of one side of a comparison crashed, hung or refused
    ├── SearchError        a search over environments cannot begin, or cannot go on
    ├── InstallError       an environment with what was asked for cannot be made
    └── RankError          a rank of a torchrun job failed, hung, or is of another kind
        └── ReplicaLost    ... and with it the model that it held with others
"""

from __future__ import annotations

import re

_LONG = re.compile(r"\S{404,}")  # longer than what is cut already


class PerflineError(Exception):
    """Base of all errors that perfline raises for its users.

    Whatever a user, a file or another process put into the message, it can be shown: what a
    terminal obeys is escaped, and a word of more than 400 characters is cut, with its length said.
    """

    def __init__(self, message: object = "") -> None:
        """Keep ``message`` as it can be shown; its lines stay lines."""
        lines = (printable(line) for line in str(message).split("\n"))
        super().__init__(_LONG.sub(lambda found: clip(found[0]), "\n".join(lines)))


class CaseError(PerflineError):
    """A case's or a task's YAML is wrong: the message names file, key, value and what is valid."""


class DataError(PerflineError):
    """Weights or MMLU data are broken or unsafe: the message names file and line or member."""


class MissingData(DataError):  # noqa: N818 - reads as the state it reports
    """Weights or MMLU data are not there; ``command`` gets them."""

    def __init__(self, message: str, command: str = "") -> None:
        """Keep ``command``, the one line to type to get the data; a copy's message has it."""
        super().__init__(f"{message}; get it with: {command}" if command else message)
        self.command = command


class MissingRanks(PerflineError):  # noqa: N818 - reads as the state it reports
    """A case's model is split over more processes than there are: says how to start them."""


class MetricError(PerflineError):
    """A value that is no measurement."""


class EngineError(PerflineError):
    """The model could not be loaded, compiled or run."""


class DeviceMemory(EngineError):  # noqa: N818
    """The device's memory is full: the message says how much was needed and what to lower."""


class NoSharedPrefixes(EngineError):  # noqa: N818 - reads as the state it reports
    """The model, or the installed transformers, runs no forward after a prefix.

    The plain path, one forward a prompt, gives the same answers, and takes longer.
    """


class NoFidelity(EngineError):  # noqa: N818 - reads as the state it reports
    """The model cannot be held against itself in fp32 on this device; the message says why."""


class NoDecode(EngineError):  # noqa: N818 - reads as the state it reports
    """The engine cannot generate token by token with this model; the message says why."""


class BaselineError(PerflineError):
    """A baseline file cannot be read, or an update of it is refused."""


class RecordError(PerflineError):
    """A record (``results/run.json``) cannot be read or used."""


class WorkerError(PerflineError):
    """A process of one side of a comparison failed: it crashed, hung or refused; never a time.

    The message names the side, what it was asked, how it ended, and the end of its stderr.
    """


class SearchError(PerflineError):
    """A search (bisect, isolate) cannot begin, or cannot go on; what was measured is kept."""


class InstallError(PerflineError):
    """An environment cannot be made: what was asked for is unfit, or an installer refused it.

    The message has the installer's own last lines, without credentials.
    """


class RankError(PerflineError):
    """A rank of a torchrun job failed, hung or does not match; the message names rank and host."""


class ReplicaLost(RankError):  # noqa: N818
    """Ranks that hold one model between them did not go on together: none of them can go on."""


def told(kind: str | None, text: str) -> RankError | DeviceMemory | NoFidelity:
    """What another rank says that it met: of all kinds, two have to stay themselves.

    Where memory is full, less may be asked for; where fp32 cannot be had, nothing is wrong.
    """
    for own in (DeviceMemory, NoFidelity):
        if kind == own.__name__:
            return own(text)
    return RankError(text)


def printable(text: str, instead: str = "") -> str:
    """Return ``text`` on one line; escaped, or ``instead``, what no terminal should be sent."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else instead or repr(sign)[1:-1] for sign in text)


def clip(text: str, longest: int = 400) -> str:
    """Return ``text`` on one line: ``longest`` characters at most, then how many there are."""
    text = printable(text)
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"
