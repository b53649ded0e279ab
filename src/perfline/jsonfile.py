"""How does JSON get into and out of a file without being torn, lost or misread?

Reading: :func:`read` gives a :class:`Node`, whose typed look-ups raise one line that names the file
and the key; a file of another kind than the wanted one is named, and the command that takes it.
Writing: :func:`write`, and :func:`write_text` for other text, replace a file at once or not at all,
and :func:`locked` holds the directory while a file is read, changed and written.
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, cast

from perfline.errors import PerflineError

Scalar = str | int | float | bool | None
Kind = Literal["record", "comparison", "baseline", "published", "benchmark"]  # of a file

_STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}  # may be a file: it is continued, not replaced


@dataclass(frozen=True)
class Node:
    """A JSON object in a file, with look-ups that raise ``error`` for what is not as expected."""

    file: Path
    data: Mapping[str, object]
    error: type[PerflineError]
    fix: str  # what the user can do about a broken file
    where: str = ""  # dotted keys to this object, with a dot at the end

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raise the one line about ``key``."""
        raise self.error(printable(f"{self.file}: key '{self.where}{key}' {problem}; {self.fix}"))

    def text(self, key: str) -> str:
        """Return a string that is not empty."""
        value = self._get(key, "text")
        return value if isinstance(value, str) and value else self._mistyped(key, value, "text")

    def optional_text(self, key: str) -> str | None:
        """Return a string, or None for null."""
        return None if self._get(key, "text or null") is None else self.text(key)

    def number(self, key: str) -> float:
        """Return a finite number."""
        value = self._get(key, "a number")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            self._mistyped(key, value, "a number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """Return a finite number, or None for null."""
        return None if self._get(key, "a number or null") is None else self.number(key)

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self._get(key, "true or false")
        return value if isinstance(value, bool) else self._mistyped(key, value, "true or false")

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the list of strings under ``key``."""
        value = self._get(key, "a list of text")
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._mistyped(key, value, "a list of text")
        return tuple(value)

    def child(self, key: str) -> Node:
        """Return the object under ``key``."""
        return self._node(key, self._get(key, "an object"), key)

    def children(self) -> Iterator[tuple[str, Node]]:
        """Yield the objects that this object holds under every key."""
        for key in self.data:
            yield key, self.child(key)

    def items(self, key: str) -> Iterator[Node]:
        """Yield the objects of the list under ``key``."""
        value = self._get(key, "a list of objects")
        if not isinstance(value, list):
            self._mistyped(key, value, "a list of objects")
        for position, item in enumerate(value):
            yield self._node(key, item, f"{key}.{position}")

    def scalars(self, key: str) -> dict[str, Scalar]:
        """Return the object under ``key``, which holds text, numbers, true, false and null only."""
        child = self.child(key)
        for name, value in child.data.items():
            infinite = isinstance(value, float) and not math.isfinite(value)
            if infinite or not isinstance(value, str | int | float | None):
                child._mistyped(name, value, "text, a number, true, false or null")
        return cast("dict[str, Scalar]", dict(child.data))

    def _get(self, key: str, expected: str) -> object:
        if key not in self.data:
            self.fail(key, f"is missing (expected {expected})")
        return self.data[key]

    def _node(self, key: str, value: object, name: str) -> Node:
        if not isinstance(value, dict):
            self._mistyped(name, value, "an object")
        return Node(self.file, value, self.error, self.fix, f"{self.where}{name}.")

    def _mistyped(self, key: str, value: object, expected: str) -> NoReturn:
        self.fail(key, f"is {_shown(value)} (expected {expected})")


def read(
    path: Path, schema: int, error: type[PerflineError], fix: str, wanted: Kind | None = None
) -> Node:
    """Read a JSON object with ``"schema": schema``; raise ``error`` for anything else.

    Another kind of file than ``wanted`` is told by its name.
    """
    shown = printable(str(path))
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(
            text, parse_constant=_refuse_constant, parse_int=_whole, parse_float=_finite
        )
        if "\\ud" in text.lower():  # half a surrogate pair is no text, and cannot be written
            json.dumps(data, ensure_ascii=False).encode()
    except FileNotFoundError as failure:
        raise error(f"{shown}: is not there; {fix}") from failure
    except OSError as failure:
        raise error(f"{shown}: cannot be read: {failure.strerror}") from failure
    except UnicodeDecodeError as failure:
        raise error(f"{shown}: is not UTF-8 text (byte {failure.start}); {fix}") from failure
    except json.JSONDecodeError as failure:
        raise error(
            f"{shown}: is torn or not JSON at line {failure.lineno}, column {failure.colno}: "
            f"{failure.msg}; {fix}"
        ) from failure
    except UnicodeEncodeError as failure:
        half = repr(failure.object[failure.start])
        raise error(f"{shown}: holds {half}, half a surrogate pair, in a text; {fix}") from failure
    except RecursionError as failure:
        raise error(f"{shown}: is nested too deeply; {fix}") from failure
    except _NotANumber as failure:
        raise error(f"{shown}: holds {failure}; {fix}") from failure
    if not isinstance(data, dict):
        raise error(f"{shown}: holds {_shown(data)} (expected a JSON object); {fix}")
    if wanted is not None and (other := _mistaken(data, wanted)):
        raise error(f"{shown}: {other}")
    node = Node(path, data, error, fix)
    if node.number("schema") != schema:
        raise error(
            f"{shown}: has schema {data['schema']}, and this perfline reads schema {schema}; "
            "use the perfline that wrote it, or make it anew"
        )
    return node


def kind(data: Mapping[str, object]) -> Kind | None:
    """Return what a JSON object is; None where it is nothing that is known."""
    if data.get("kind") == "compare":
        return "comparison"
    return next((name for name, keys in _KEYS if keys <= data.keys()), None)


def digest(data: object) -> str:
    """Return ``sha256:`` and 16 hex digits over the canonical JSON of ``data``."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def printable(text: str, instead: str = "?") -> str:
    """Return ``text`` on one line, ``instead`` for what a terminal obeys or cannot encode."""
    return "".join(sign if sign.isprintable() else instead for sign in text)


def is_special(path: Path) -> bool:
    """Whether ``path`` leads to a device, a FIFO or a socket: no file to replace or read again."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def write(path: Path, data: Mapping[str, object], error: type[PerflineError]) -> None:
    """Replace ``path`` by ``data``, one value a line, keys sorted, as :func:`write_text` does."""
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, error)


def write_text(path: Path, text: str, error: type[PerflineError]) -> None:
    """Replace ``path`` by ``text``: at once, or not at all; ``error``, one line, where that fails.

    A reader sees the old file or the new one. What a killed writer leaves behind is a hidden
    ``.tmp`` file that nothing reads. A link stays, and what it leads to is replaced; a device or a
    FIFO, such as ``/dev/null``, stays and is written into.
    """
    try:
        raw = text.encode()
        if _continued(path):
            _write_into(path, raw)
        else:
            _replace(_target(path), raw)
    except OSError as failure:
        raise _unwritable(path, str(failure.strerror), error) from failure
    except UnicodeEncodeError as failure:
        half = repr(failure.object[failure.start])
        what = f"its text would hold {half}, which is no UTF-8"
        raise _unwritable(path, what, error) from failure


def check_writable(path: Path, error: type[PerflineError]) -> None:
    """Raise ``error`` if :func:`write` to ``path`` could not work; leave what is there alone."""
    try:
        if _continued(path):
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


class _NotANumber(ValueError):  # noqa: N818 - becomes the reader's error
    """NaN, an infinity or a number too large, which Python's json reads without a word."""


def _refuse_constant(name: str) -> NoReturn:
    raise _NotANumber(f"{name}, which is no number")


def _whole(digits: str) -> int:
    if len(digits) > 20:  # 64 bits take 20 characters
        raise _NotANumber(f"a whole number of {len(digits)} digits (expected at most 64 bits)")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _NotANumber(f"{digits[:40]}, which is too large for a number")
    return value


def _shown(value: object) -> str:
    try:
        return json.dumps(value)[:40]
    except RecursionError:
        return "nested too deeply"


_TOLD: dict[Kind, tuple[str, str]] = {
    "record": (
        "the record of a pytest session",
        "`perfline baselines update`, `report`, `export` and `history` take it",
    ),
    "comparison": ("a record of perfline compare", "`perfline report` takes it"),
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


def _continued(path: Path) -> bool:
    return os.fspath(path) in _STREAMS or is_special(path)


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


def _replace(target: Path, raw: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(path: Path, why: str, error: type[PerflineError]) -> PerflineError:
    return error(printable(f"{path}: cannot be written: {why}"))
