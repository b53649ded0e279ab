"""What stands in a file of questions? Files -> rows, each a mapping of columns to what they hold.

CSV, JSON lines, Parquet, and the directory that ``datasets`` saves; pyarrow reads the latter two.
Nothing is converted: in a CSV the choice "None" stays "None", and "007" stays "007".
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfline import jsonfile
from perfline.errors import DataError, clip
from perfline.tasks.task import DataSpec

Row = Mapping[str, object]


@dataclass(frozen=True)
class Place:
    """A row, and where it stands, such as ``test.csv:3``, for messages."""

    where: str
    row: Row


def read_rows(path: Path, name: Path, spec: DataSpec) -> Iterator[Place]:
    """Yield the rows of one file, which a task calls ``name``; DataError names file and row."""
    wanted = spec.sha256.get(name.as_posix())
    if wanted is not None and (found := file_digest(path)) != wanted:
        raise DataError(
            f"{path}: its sha256 is {found}; the task expects {wanted}: fetch it again, or correct "
            "data.sha256"
        )
    read: Callable[[Path, DataSpec], Iterator[Place]] = {
        "csv": _csv,
        "jsonl": _json_lines,
        "parquet": _parquet,
        "datasets": _datasets,
    }[spec.format]
    for place in read(path, spec):
        if isinstance(spec.columns, Mapping):
            moved = {name: _inside(place, way) for name, way in spec.columns.items()}
            yield Place(place.where, {**place.row, **moved})
        else:
            yield place


def file_digest(path: Path) -> str:
    """Return a file's sha256, as sha256sum has it; of a directory, that of its files' sums."""
    try:
        if path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.is_file())
            return sums_digest({each.relative_to(path).as_posix(): each for each in files})
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; expected a file") from error


def sums_digest(files: Mapping[str, Path]) -> str:
    """Return the sha256 of what ``sha256sum`` prints of the files, sorted by name."""
    lines = [f"{file_digest(path)}  {name}\n" for name, path in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _text(path: Path) -> str:
    kind = "CSV" if path.suffix == ".csv" else "text"
    try:
        raw = path.read_bytes()
    except OSError as error:
        why = error.strerror
        raise DataError(f"{path}: cannot be read: {why}; expected a {kind} file") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: is not UTF-8 (byte 0x{raw[error.start]:02x})") from error


def _csv(path: Path, spec: DataSpec) -> Iterator[Place]:
    """Rows by physical line; blank lines are skipped."""
    columns = spec.columns if isinstance(spec.columns, tuple) else None
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            where = f"{path}:{line}"
            line = reader.line_num + 1
            if not cells:
                continue
            if columns is None:
                columns = tuple(cells)
                if name := jsonfile.twice(columns):
                    raise DataError(f"{where}: the column '{clip(name, 60)}' stands twice")
                continue
            if len(cells) != len(columns):
                raise DataError(
                    f"{where}: has {len(cells)} columns; expected {len(columns)}: "
                    f"{', '.join(columns)}"
                )
            yield Place(where, dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}:{line}: is not valid CSV: {error}") from error


def _json_lines(path: Path, spec: DataSpec) -> Iterator[Place]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=jsonfile.once)
            if "\\ud" in line.lower():  # half of a surrogate pair is JSON, and no text
                json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: holds no JSON object; expected one row a line")
        yield Place(f"{path}:{number}", row)


def _parquet(path: Path, spec: DataSpec) -> Iterator[Place]:
    pyarrow = _pyarrow(path)
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: is not readable Parquet: {_first(error)}") from error
    yield from _of_table(path, table)


def _datasets(path: Path, spec: DataSpec) -> Iterator[Place]:
    """One split as ``Dataset.save_to_disk`` leaves it: state.json, and Arrow streams."""
    pyarrow = _pyarrow(path)
    state = path / "state.json"
    try:
        names = [each["filename"] for each in json.loads(state.read_bytes())["_data_files"]]
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("a file's name is none")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path}: is no split that `datasets` saved ({_first(error)}); expected a directory "
            "with state.json, of Dataset.save_to_disk"
        ) from error
    tables = []
    for name in names:
        try:
            with pyarrow.OSFile(str(path / name)) as file:
                tables.append(pyarrow.ipc.open_stream(file).read_all())
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path / name}: is no Arrow stream: {_first(error)}") from error
    yield from _of_table(path, pyarrow.concat_tables(tables))


def _of_table(path: Path, table: Any) -> Iterator[Place]:
    if name := jsonfile.twice(table.column_names):
        raise DataError(f"{path}: the column '{clip(name, 60)}' stands twice")
    for number, row in enumerate(table.to_pylist()):
        yield Place(f"{path}, row {number}", row)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise DataError(
            f"{path}: pyarrow reads such files, and is not installed; "
            "type `pip install 'perfline[data]'`"
        ) from error
    return pyarrow


def _first(error: BaseException) -> str:
    lines = str(error).splitlines()
    return clip(lines[0], 200) if lines else type(error).__name__


def _inside(place: Place, way: str) -> object:
    """What stands at ``choices.text``: inside a mapping, or inside each of a list of mappings."""
    found: object = place.row
    for step in way.split("."):
        several = isinstance(found, list)
        each: list[Any] = found if isinstance(found, list) else [found]
        if not all(isinstance(one, dict) and step in one for one in each):
            known = f" (columns: {', '.join(map(str, place.row))})"
            raise DataError(f"{place.where}: has no '{clip(way, 60)}'{clip(known)}")
        inside = [one[step] for one in each]
        found = inside if several else inside[0]
    return found
