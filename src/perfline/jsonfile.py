"""How does JSON get into and out of a file without being torn, lost or misread?

Reading: :func:`read` gives a :class:`~perfline.fields.Node`; a file of another kind than the wanted
one is named, and the command that takes it. Writing: :func:`write`, and :func:`write_text` for
other text, replace a file at once or not at all, and :func:`locked` holds the directory while a
file is read, changed and written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NoReturn

from perfline.errors import PerflineError, clip, printable
from perfline.fields import Node, shown

# Of a file.
Kind = Literal["record", "comparison", "search", "baseline", "published", "benchmark"]

_STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}  # may be a file: it is continued, not replaced


def read(
    path: Path, schema: int, error: type[PerflineError], fix: str, wanted: Kind | None = None
) -> Node:
    """Read a JSON object with ``"schema": schema``; raise ``error`` for anything else.

    Another kind of file than ``wanted`` is told by its name.
    """
    name = printable(str(path))
    if is_special(path):  # a FIFO would wait for its writer for ever, a device need not end
        raise error(f"{name}: is no regular file; save it to one, and name that")
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_whole,
            parse_float=_finite,
            object_pairs_hook=once,
        )
        if "\\ud" in text.lower():  # half a surrogate pair is no text, and cannot be written
            json.dumps(data, ensure_ascii=False).encode()
    except FileNotFoundError as failure:
        raise error(f"{name}: is not there; {fix}") from failure
    except OSError as failure:
        raise error(f"{name}: cannot be read: {failure.strerror}") from failure
    except UnicodeDecodeError as failure:
        raise error(f"{name}: is not UTF-8 text (byte {failure.start}); {fix}") from failure
    except json.JSONDecodeError as failure:
        raise error(
            f"{name}: is torn or not JSON at line {failure.lineno}, column {failure.colno}: "
            f"{failure.msg}; {fix}"
        ) from failure
    except UnicodeEncodeError as failure:
        half = repr(failure.object[failure.start])
        raise error(f"{name}: holds {half}, half a surrogate pair, in a text; {fix}") from failure
    except RecursionError as failure:
        raise error(f"{name}: is nested too deeply; {fix}") from failure
    except _Ambiguous as failure:
        raise error(f"{name}: holds {failure}; {fix}") from failure
    if not isinstance(data, dict):
        raise error(f"{name}: holds {shown(data)} (expected a JSON object); {fix}")
    if wanted is not None and (other := _mistaken(data, wanted)):
        raise error(f"{name}: {other}")
    node = Node(path, data, error, fix)
    if node.number("schema") != schema:
        raise error(
            f"{name}: has schema {data['schema']}, and this perfline reads schema {schema}; "
            "use the perfline that wrote it, or make it anew"
        )
    return node


def kind(data: Mapping[str, object]) -> Kind | None:
    """Return what a JSON object is; None where it is nothing that is known."""
    if data.get("kind") in ("compare", "search"):
        return "comparison" if data["kind"] == "compare" else "search"
    return next((name for name, keys in _KEYS if keys <= data.keys()), None)


def digest(data: object) -> str:
    """Return ``sha256:`` and 16 hex digits over the canonical JSON of ``data``."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def is_special(path: Path) -> bool:
    """Whether ``path`` leads to a device, a FIFO or a socket: no file to replace or read again."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_continued(path: Path) -> bool:
    """Whether :func:`write` adds to what is there, as to a terminal, and replaces nothing."""
    return os.fspath(path) in _STREAMS or is_special(path)


Check = Callable[[Path], object]  # reads what was written; what it raises leaves the old file


def write(
    path: Path,
    data: Mapping[str, object],
    error: type[PerflineError],
    check: Check = lambda written: None,
) -> None:
    """Replace ``path`` by ``data``, one value a line, keys sorted, as :func:`write_text` does."""
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, error, check)


def write_text(
    path: Path, text: str, error: type[PerflineError], check: Check = lambda written: None
) -> None:
    """Replace ``path`` by ``text``: at once, or not at all; ``error``, one line, where that fails.

    A reader sees the old file or the new one. What a killed writer leaves behind is a hidden
    ``.tmp`` file that nothing reads. A link stays, and what it leads to is replaced; a device or a
    FIFO, such as ``/dev/null``, stays and is written into. ``check`` is asked before the old file
    goes.
    """
    try:
        raw = text.encode()
        if is_continued(path):
            _write_into(path, raw)
        else:
            _replace(_target(path), raw, check)
    except OSError as failure:
        raise _unwritable(path, str(failure.strerror), error) from failure
    except UnicodeEncodeError as failure:
        half = repr(failure.object[failure.start])
        what = f"its text would hold {half}, which is no UTF-8"
        raise _unwritable(path, what, error) from failure


def withdraw(path: Path, error: type[PerflineError]) -> None:
    """Remove an older file that a failure, or a kill, would leave to be taken for the new one.

    What others write into as well, such as GitHub's step summary, is left alone.
    """
    if is_continued(path) or str(path) == os.environ.get("GITHUB_STEP_SUMMARY"):
        return
    try:
        _target(path).unlink(missing_ok=True)
    except OSError as failure:
        raise _unwritable(path, str(failure.strerror), error) from failure


def check_writable(path: Path, error: type[PerflineError]) -> None:
    """Raise ``error`` if :func:`write` to ``path`` could not work; leave what is there alone."""
    try:
        if is_continued(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as failure:
        raise _unwritable(path, str(failure.strerror), error) from failure


@contextmanager
def locked(path: Path, error: type[PerflineError]) -> Iterator[None]:
    """Hold the directory of ``path``, so that read, change and write lose no other's change.

    Waits for the other writer. The lock goes with its process, however that ends, and leaves no
    file behind.
    """
    import fcntl  # POSIX only, and only writers need it

    shown = printable(str(path.parent))
    try:
        # A directory in the file's place is for whoever reads or writes it to tell.
        place = path.parent if path.is_dir() else _target(path).parent
        place.mkdir(parents=True, exist_ok=True)
        directory = os.open(place, os.O_RDONLY)
    except OSError as failure:
        raise error(f"{shown}: cannot be locked: {failure.strerror}") from failure
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
        except OSError as failure:  # some network file systems
            raise error(f"{shown}: cannot be locked: {failure.strerror}") from failure
        yield
    finally:
        os.close(directory)


def once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object, for ``object_pairs_hook``; ValueError where a key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name = twice([name for name, _ in pairs])
        raise _Ambiguous(f"the key {clip(repr(name), 60)} twice")
    return found


def twice(names: Sequence[str]) -> str | None:
    """Return the first name that stands twice; None where all are different."""
    return next((name for name in names if names.count(name) > 1), None)


class _Ambiguous(ValueError):  # noqa: N818 - becomes the reader's error
    """What Python's json reads without a word: NaN, a number too large, a key that stands twice."""


def _refuse_constant(name: str) -> NoReturn:
    raise _Ambiguous(f"{name}, which is no number")


def _whole(digits: str) -> int:
    if len(digits) > 20:  # 64 bits take 20 characters
        raise _Ambiguous(f"a whole number of {len(digits)} digits (expected at most 64 bits)")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Ambiguous(f"{digits[:40]}, which is too large for a number")
    return value


_TOLD: dict[Kind, tuple[str, str]] = {
    "record": (
        "the record of a pytest session",
        "`perfline baselines update`, `report`, `export` and `history` take it",
    ),
    "comparison": ("a record of perfline compare", "`perfline report` takes it"),
    "search": ("a record of a search", "`perfline bisect` goes on behind it where it is partial"),
    "baseline": ("a baseline", "`perfline baselines show` takes its case"),
    "published": ("published figures", "pytest reads them from baselines/published/"),
    "benchmark": (
        "pytest-benchmark's JSON",
        "`pytest-benchmark compare` takes it; perfline's own record is what --results names",
    ),
}
_KEYS: tuple[tuple[Kind, frozenset[str]], ...] = (
    ("record", frozenset({"environment", "cases", "partial"})),
    ("baseline", frozenset({"case_digest", "machine"})),
    ("published", frozenset({"source", "metrics", "case"})),
    ("benchmark", frozenset({"machine_info", "benchmarks"})),
)


def _mistaken(data: Mapping[str, object], wanted: Kind) -> str:
    """Say what a file is instead of what is ``wanted``; empty where that cannot be told."""
    found = kind(data)
    if found is None or found == wanted:
        return ""
    what, taken = _TOLD[found]
    return f"is {what} (expected {_TOLD[wanted][0]}); {taken}"


def _target(path: Path) -> Path:
    """Where ``path`` leads to; OSError for a link to itself and for a directory."""
    try:
        target = path.resolve()
    except RuntimeError as failure:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from failure
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    return target


def _write_into(path: Path, raw: bytes) -> None:
    stream = _STREAMS.get(os.fspath(path))
    number = os.open(path, os.O_WRONLY) if stream is None else os.dup(stream)
    with os.fdopen(number, "wb") as file:
        file.write(raw)


def _replace(target: Path, raw: bytes, check: Check) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        check(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(path: Path, why: str, error: type[PerflineError]) -> PerflineError:
    return error(printable(f"{path}: cannot be written: {why}"))
