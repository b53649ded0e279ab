from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perfline.errors import RecordError
from perfline.jsonfile import check_writable, digest, is_special, locked, read, write, write_text

FIX = "make it anew"


def reading(path: Path) -> str:
    """Return the one line that reading the file raises."""
    with pytest.raises(RecordError) as raised:
        read(path, 1, RecordError, FIX)
    return str(raised.value)


def test_what_was_written_is_read_sorted_one_value_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    write(path, {"b": [1, 2.5], "a": "é", "schema": 1}, RecordError)

    assert path.read_text("utf-8").splitlines() == [
        "{",
        ' "a": "é",',
        ' "b": [',
        "  1,",
        "  2.5",
        " ],",
        ' "schema": 1',
        "}",
    ]
    assert read(path, 1, RecordError, FIX).data == {"a": "é", "b": [1, 2.5], "schema": 1}
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_is_readable_by_others(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write(tmp_path / "run.json", {}, RecordError)

    assert (tmp_path / "run.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 1,\n "a": [1', "is torn or not JSON at line 2, column 9: Expecting"),
        ("", "is torn or not JSON at line 1, column 1: Expecting value"),
        ("<<<<<<< HEAD\n{}", "is torn or not JSON at line 1, column 1"),
        ('{"schema": 1, "a": NaN}', "holds NaN, which is no number; make it anew"),
        ('{"schema": 1, "a": -Infinity}', "holds -Infinity, which is no number"),
        ('{"schema": 1, "a": {"b": 1, "b": 2}}', "holds the key 'b' twice; make it anew"),
        ("[1]", "holds [1] (expected a JSON object)"),
        ('{"schema": 2}', "has schema 2, and this perfline reads schema 1"),
        ("{}", "key 'schema' is missing (expected a number); make it anew"),
        ('{"schema": "1"}', "key 'schema' is \"1\" (expected a number)"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)

    assert reading(path).startswith(f"{path}: {message}")


def test_an_absent_or_binary_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")

    assert reading(tmp_path / "a.json") == (f"{tmp_path / 'a.json'}: is not there; make it anew")
    assert reading(tmp_path / "b.json").endswith("is not UTF-8 text (byte 0); make it anew")


def test_the_digest_ignores_order_and_sees_every_value() -> None:
    assert digest({"a": 1, "b": [2.0]}) == digest(json.loads('{"b": [2.0], "a": 1}'))
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest({}) == "sha256:44136fa355b3678a"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write(path, {"schema": 1}, RecordError)

    with pytest.raises(ValueError, match="not JSON compliant"):
        write(path, {"schema": float("nan")}, RecordError)

    assert read(path, 1, RecordError, FIX).data == {"schema": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "run.json"

    with pytest.raises(RecordError, match=r"^.*run\.json: cannot be written: (Not a dir|File ex)"):
        write(path, {}, RecordError)
    with pytest.raises(RecordError, match="cannot be locked"), locked(path, RecordError):
        pass


def test_what_a_killed_writer_left_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    (tmp_path / ".run.json.0badcafe.tmp").write_text('{"schema"')
    write(path, {"schema": 1}, RecordError)

    assert read(path, 1, RecordError, FIX).data == {"schema": 1}


COUNT = """
import sys
from pathlib import Path
from perfline.errors import RecordError
from perfline.jsonfile import locked, read, write
path = Path(sys.argv[1])
for _ in range(25):
    with locked(path, RecordError):
        count = read(path, 1, RecordError, "").number("count")
        write(path, {"schema": 1, "count": count + 1, "ballast": "x" * 50_000}, RecordError)
"""


def test_two_updates_at_once_lose_nothing_and_a_reader_sees_no_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write(path, {"schema": 1, "count": 0}, RecordError)
    writers = [subprocess.Popen([sys.executable, "-c", COUNT, str(path)]) for _ in range(2)]
    while any(writer.poll() is None for writer in writers):
        assert read(path, 1, RecordError, FIX).number("count") <= 50

    assert [writer.returncode for writer in writers] == [0, 0]
    assert read(path, 1, RecordError, FIX).number("count") == 50
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[" * 100_000, "is nested too deeply"),
        ("1" * 400, "holds a whole number of 400 digits (expected at most 64 bits)"),
        ("1" * 5000, "holds a whole number of 5000 digits (expected at most 64 bits)"),
        ("1e999", "holds 1e999, which is too large for a number"),
        ("-1e999", "holds -1e999, which is too large for a number"),
        (r'"\uD800"', r"holds '\ud800', half a surrogate pair, in a text"),
        (r'{"\udfff": 1}', r"holds '\udfff', half a surrogate pair, in a text"),
    ],
)
def test_absurd_json_is_one_line(tmp_path: Path, value: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(f'{{"schema": 1, "a": {value}}}')

    assert reading(path) == f"{path}: {message}; {FIX}"


def test_a_whole_surrogate_pair_is_text(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(r'{"schema": 1, "a": "\ud83d\ude00"}')

    assert read(path, 1, RecordError, FIX).text("a") == "\U0001f600"


def test_a_link_stays_and_what_it_leads_to_changes(tmp_path: Path) -> None:
    target = tmp_path / "kept" / "run.json"
    link = tmp_path / "latest.json"
    link.symlink_to("kept/run.json")

    check_writable(link, RecordError)
    write_text(link, "one", RecordError)
    write_text(link, "two", RecordError)

    assert link.is_symlink()
    assert target.read_text() == "two"
    assert [path.name for path in target.parent.iterdir()] == ["run.json"]
    with locked(link, RecordError):
        holder = os.open(target.parent, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(holder)


def test_a_link_to_itself_and_a_directory_are_one_line(tmp_path: Path) -> None:
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)

    for writing in (
        lambda p: write_text(p, "", RecordError),
        lambda p: check_writable(p, RecordError),
    ):
        with pytest.raises(RecordError, match=r"loop\.json: cannot be written: Too many levels"):
            writing(loop)
        with pytest.raises(RecordError, match=r"cannot be written: it is a directory$"):
            writing(tmp_path)
    assert loop.is_symlink()


def test_a_fifo_stays_one_and_is_written_into(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    check_writable(fifo, RecordError)
    write_text(fifo, "é", RecordError)

    assert os.read(reader, 10) == "é".encode()
    os.close(reader)
    assert is_special(fifo)
    assert list(tmp_path.iterdir()) == [fifo]


def test_the_null_device_is_left_alone() -> None:
    before = os.stat("/dev/null")  # noqa: PTH116 - no file of ours

    check_writable(Path("/dev/null"), RecordError)
    write(Path("/dev/null"), {"schema": 1}, RecordError)

    assert Path("/dev/null").stat().st_ino == before.st_ino
    assert Path("/dev/null").is_char_device()


def test_what_standard_output_is_sent_to_is_continued(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    out.write_text("before\n")
    code = (
        "from pathlib import Path; from perfline.errors import RecordError; "
        "from perfline.jsonfile import write_text; "
        "write_text(Path('/dev/stdout'), 'text\\n', RecordError); print('after')"
    )
    with out.open("a") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)

    assert out.read_text() == "before\ntext\nafter\n"


def test_half_a_surrogate_pair_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write(path, {"schema": 1}, RecordError)

    with pytest.raises(RecordError) as raised:
        write(path, {"schema": 1, "env": "\udcff"}, RecordError)

    what = "its text would hold '\\udcff', which is no UTF-8"
    assert str(raised.value) == f"{path}: cannot be written: {what}"
    assert read(path, 1, RecordError, FIX).data == {"schema": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_names_of_files_are_shown_in_printable_characters(tmp_path: Path) -> None:
    path = tmp_path / "a\n\x1b[31m\udcff.json"
    path.write_text("[")
    shown = f"{tmp_path}/a\\n\\x1b[31m\\udcff.json"

    assert reading(path).startswith(f"{shown}: is torn or not JSON")
    path.write_text("{}")
    assert reading(path).startswith(f"{shown}: key 'schema' is missing")
    path.unlink()
    assert reading(path) == f"{shown}: is not there; {FIX}"
    path.mkdir()
    with pytest.raises(RecordError) as raised:
        write_text(path, "", RecordError)
    assert str(raised.value) == f"{shown}: cannot be written: it is a directory"
