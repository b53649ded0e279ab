"""Does the matrix of versions say what its rows found, whatever happened to them?"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "matrix.py"
PAGE = """\
# Versions

<!-- rows: made by `make matrix` -->

<!-- rows: end -->

Between.

<!-- resolved: made by `make matrix` -->
old
<!-- resolved: end -->

After.
"""


@pytest.fixture
def matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, in a checkout with a page, a lock and this pyproject.toml."""
    spec = importlib.util.spec_from_file_location("matrix", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "matrix", module)  # its dataclasses look there
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "pip_settings", dict)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "versions.md").write_text(PAGE)
    (tmp_path / "constraints.txt").write_text("# head\npytest==9.2.0\ntorch==2.13.0\n")
    (tmp_path / "pyproject.toml").write_text((REPOSITORY / "pyproject.toml").read_text())
    return module


def record(letters: str = "AB", margins: str = "1.5 0.3", **changes: Any) -> dict[str, Any]:
    """A record of two questions, answered by both engines."""
    held = {"subjects": {"sky": {"letters": letters, "margins": margins}}}
    case = {"accuracy": {"eager": held, "inductor": held}, "verdicts": [], "errors": []}
    return {"partial": False, "cases": {"tiny": {**case, **changes}}}


class Commands:
    """Instead of uv and pytest: what is run is noted; a record is written, or a command fails."""

    def __init__(self, module: ModuleType, records: dict[str, Any], failing: dict[str, str]):
        self.module, self.records, self.failing = module, records, failing
        self.ran: list[list[str]] = []
        self.pins: dict[str, str] = {}
        self.row = ""

    def __call__(
        self, command: list[str], *, folder: Path | None = None, quiet: bool = False
    ) -> str:
        self.ran.append(list(command))
        text = " ".join(command)
        for word, line in self.failing.items():
            if word in text:
                raise self.module.FailedError(line)
        if "compile" in command and "--output-file" in command:
            pins = Path(command[command.index("--output-file") + 1])
            self.pins[self.row] = pins.read_text() if pins.exists() else ""
        if "-c" in command:
            return json.dumps(dict.fromkeys(self.module.PACKAGES, "1.2"))
        if given := [word for word in command if word.startswith("--results=")]:
            Path(given[0].partition("=")[2]).write_text(json.dumps(self.records[self.row]))
        return "/usr/bin/python3\n"


def run(
    module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    rows: dict[str, Any],
    failing: dict[str, str] | None = None,
) -> tuple[int, Commands]:
    """``make matrix`` over rows of these records."""
    commands = Commands(module, rows, failing or {})
    monkeypatch.setattr(module, "output", commands)
    ran = module.ran

    def of_row(uv: str, folder: Path, row: Any) -> Any:
        commands.row = row.name
        return ran(uv, folder, row)

    monkeypatch.setattr(module, "ran", of_row)
    return module.run_rows("uv", Path("environment").absolute(), list(rows)), commands


def page(module: ModuleType) -> dict[str, list[str]]:
    return {line[0]: line for line in module.rows_of(module.section("rows"))}


def test_there_are_eight_rows_and_the_page_can_hold_them(matrix: ModuleType):
    assert len({row.name for row in matrix.ROWS}) == len(matrix.ROWS) == 8
    text = (REPOSITORY / "docs" / "versions.md").read_text()
    for name in ("rows", "resolved"):
        assert text.count(matrix.BEGIN.format(name)) == text.count(matrix.END.format(name)) == 1


def test_the_page_as_it_stands_has_every_row_and_none_that_failed(matrix: ModuleType):
    text = (REPOSITORY / "docs" / "versions.md").read_text()
    assert re.findall(r"(?m)^\| ([\w.-]+) \| \d", text)[: len(matrix.ROWS)] == [
        row.name for row in matrix.ROWS
    ]
    assert "**" not in text.partition("<!-- rows")[2]


def test_a_row_that_passed_says_versions_and_that_its_answers_are_those_of_the_lock(
    matrix: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    near = record(margins="1.51 0.302")
    status, _ = run(matrix, monkeypatch, {"lock": record(), "newest": near})
    assert status == 0
    assert page(matrix)["lock"][1:8] == ["1.2"] * 4 + ["passed", "the reference", "none"]
    assert page(matrix)["newest"][1:8] == ["1.2"] * 4 + ["passed", "same", "none"]
    assert not Path("environment").exists()
    text = Path("docs/versions.md").read_text()
    assert text.startswith("# Versions\n")
    assert "old" in text  # the other table is not touched
    assert text.endswith("After.\n")


@pytest.mark.parametrize(
    ("letters", "margins", "said"),
    [
        ("AC", "1.5 0.3", "2 flips, 0 margins moved"),  # both engines
        ("AB", "1.6 0.3", "0 flips, 2 margins moved"),
        ("ABA", "1.5 0.3 1", "other engines or questions"),
    ],
)
def test_other_answers_are_counted(matrix: ModuleType, monkeypatch, letters, margins, said):
    rows = {"lock": record(), "newest": record(letters, margins)}
    run(matrix, monkeypatch, rows)
    assert page(matrix)["newest"][6] == said


def test_a_tie_that_falls_to_the_other_side_is_rounding(matrix: ModuleType, monkeypatch):
    rows = {"lock": record("AB", "1.5 0.0004"), "newest": record("AC", "1.5 0.0003")}
    run(matrix, monkeypatch, rows)
    assert page(matrix)["newest"][6] == "same"


def test_without_the_locks_row_answers_are_not_called_the_same(matrix: ModuleType, monkeypatch):
    run(matrix, monkeypatch, {"newest": record()})
    assert page(matrix)["newest"][6:8] == ["not compared: run ROWS=lock, too", "none"]


def test_a_row_of_before_is_compared_once_the_lock_has_run(matrix: ModuleType, monkeypatch):
    run(matrix, monkeypatch, {"newest": record()})
    run(matrix, monkeypatch, {"lock": record()})
    assert page(matrix)["newest"][6] == "same"


def test_a_row_that_the_page_has_of_a_later_day_is_not_made_older(matrix: ModuleType, monkeypatch):
    run(matrix, monkeypatch, {"newest": record()})
    text = Path("docs/versions.md").read_text()
    Path("docs/versions.md").write_text(re.sub(r"\d{4}-\d\d-\d\d", "9999-01-01", text))
    run(matrix, monkeypatch, {"lock": record()})
    assert page(matrix)["newest"][6:] == ["not compared: run ROWS=lock, too", "none", "9999-01-01"]


def test_only_notices_that_the_lock_has_not_are_told(matrix: ModuleType, monkeypatch):
    old = {"source": "torch", "text": "a | b", "load": 1}
    new = {"source": "transformers", "text": "`x` is\ndeprecated | <gone>", "warmup": 312}
    rows = {
        "lock": {**record(), "notices": [old]},
        "newest": record(notices=[{**old, "load": 7}, new]),
    }
    run(matrix, monkeypatch, rows)
    assert page(matrix)["lock"][7] == "torch: a \\| b"
    assert page(matrix)["newest"][7] == "transformers: `x` is deprecated \\| &lt;gone>"


def test_a_failed_row_does_not_stop_the_others(matrix: ModuleType, monkeypatch):
    rows = {"transformers-5.0": record(), "lock": record()}
    status, _ = run(matrix, monkeypatch, rows, {"venv/bin/python -m pytest": "boom | here"})
    assert status == 1
    assert [line[5] for line in page(matrix).values()] == ["**failed**: boom \\| here"] * 2
    assert [line[6:8] for line in page(matrix).values()] == [["none", "-"]] * 2
    assert not Path("environment").exists()


def test_failed_contract_tests_fail_the_row_and_its_answers_stand(matrix: ModuleType, monkeypatch):
    status, _ = run(matrix, monkeypatch, {"lock": record()}, {"test_upstream.py": "no symbol X"})
    assert status == 1
    assert page(matrix)["lock"][5:7] == ["**failed**: no symbol X", "the reference"]


def test_what_does_not_resolve_is_a_failed_row_without_versions(matrix: ModuleType, monkeypatch):
    status, _ = run(matrix, monkeypatch, {"newest": record()}, {"pip compile": "cause: no torch"})
    assert status == 1
    assert page(matrix)["newest"][1:6] == ["-"] * 4 + ["**failed**: cause: no torch"]


@pytest.mark.parametrize(
    ("verdict", "partial", "result"),
    [
        ({"word": "invalid", "metric": "p_infer_core"}, False, "passed (timings disturbed)"),
        ({"word": "invalid", "metric": "acc_val"}, False, "**failed**: suite"),
        ({"word": "regressed", "metric": "acc_val"}, False, "**failed**: suite"),
        ({"word": "invalid", "metric": "p_infer_core"}, True, "**failed**: suite"),
        ({"word": "ok", "metric": "p_infer_core"}, False, "**failed**: suite"),
    ],
)
def test_a_busy_machine_fails_no_row(matrix: ModuleType, monkeypatch, verdict, partial, result):
    measured = {**record(verdicts=[verdict]), "partial": partial}

    def suite(folder: Path, python: Path, words: Any) -> None:
        if "--cases=tiny" in words:
            (folder / "run.json").write_text(json.dumps(measured))
            raise matrix.FailedError("suite")

    monkeypatch.setattr(matrix, "pytest", suite)
    run(matrix, monkeypatch, {"lock": measured})
    assert page(matrix)["lock"][5] == result


def test_the_records_own_error_says_more_than_the_name_of_a_test(matrix: ModuleType, monkeypatch):
    measured = record(errors=["test_throughput[tiny]: no module named x"])

    def suite(folder: Path, python: Path, words: Any) -> None:
        (folder / "run.json").write_text(json.dumps(measured))
        raise matrix.FailedError("FAILED tests/perf/test_throughput.py")

    monkeypatch.setattr(matrix, "pytest", suite)
    run(matrix, monkeypatch, {"lock": measured})
    assert page(matrix)["lock"][5] == "**failed**: test_throughput[tiny]: no module named x"


def test_rows_that_are_not_run_stay_as_the_page_has_them(matrix: ModuleType, monkeypatch):
    run(matrix, monkeypatch, {"lock": record(), "newest": record()})
    for file in Path("results/matrix").glob("*.json"):
        file.unlink()  # as in a fresh clone
    before = page(matrix)["newest"]
    run(matrix, monkeypatch, {"lowest": record()})
    assert list(page(matrix)) == ["lowest", "lock", "newest"]
    assert page(matrix)["newest"] == before


def test_each_row_asks_uv_for_its_versions(matrix: ModuleType, monkeypatch):
    names = ["lowest", "transformers-5.0", "lock", "torch-2.15", "newest"]
    _, commands = run(matrix, monkeypatch, dict.fromkeys(names, record()))
    lowest, transformers, lock, torch, newest = [c for c in commands.ran if "compile" in c]
    assert "lowest-direct" in lowest
    assert lock[lock.index("--constraints") + 1] == "constraints.txt"
    assert "--constraints" not in newest
    # The lock is preferred but for torch: held where the row asks for another transformers.
    assert commands.pins == dict.fromkeys(names, "") | dict.fromkeys(
        ["transformers-5.0", "torch-2.15"], "# head\npytest==9.2.0"
    )
    assert "--constraints" in transformers
    assert "--constraints" in torch


def test_the_newest_python_here_is_looked_for_from_above(matrix: ModuleType, monkeypatch):
    asked = []

    def find(command: list[str], **options: object) -> str:
        asked.append(command[-1])
        if command[-1] != "3.12":
            raise matrix.FailedError("no interpreter")
        return "/usr/bin/python3.12\n"

    monkeypatch.setattr(matrix, "output", find)
    assert matrix.interpreter("uv", matrix.NEWEST) == "/usr/bin/python3.12"
    assert asked == ["3.15", "3.14", "3.13", "3.12"]
    with pytest.raises(matrix.FailedError, match=r"no interpreter for Python 3\.11 here"):
        matrix.interpreter("uv", "3.11")


def test_what_is_only_resolved_stands_in_a_table_of_its_own(matrix: ModuleType, monkeypatch):
    def solve(command: list[str], **options: object) -> str:
        if "aarch64-apple-darwin" in command and "3.15" in command:
            raise matrix.FailedError("cause: no wheels")
        return "torch==2.13.0+cpu\ntqdm==4\ntransformers==5.24.0 ; python_version > '3'\n"

    monkeypatch.setattr(matrix, "output", solve)
    assert matrix.run_rows("uv", Path("environment"), ["resolved"]) == 1
    lines = {line[0]: line[1:] for line in matrix.rows_of(matrix.section("resolved"))}
    assert list(lines) == ["3.11", "3.12", "3.13", "3.14", "3.15"]
    assert set(lines["3.11"]) == {"torch==2.13.0, transformers==5.24.0"}
    assert lines["3.15"].count("**no**: cause: no wheels") == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("collected 6\nE   FutureWarning: gone\nFAILED tests/x.py - E", "FutureWarning: gone"),
        ("ok\nFAILED tests/x.py::y - boom\nFAILED z", "FAILED tests/x.py::y - boom"),
        ("error: No solution found\n  cause: Because torch", "cause: Because torch"),
        ("error: unexpected", "error: unexpected"),
        ("\n  something\n", "something"),
        ("", ""),
    ],
)
def test_the_first_telling_line_of_an_output(matrix: ModuleType, text: str, line: str):
    assert matrix.first_failure(text) == line


def test_a_command_that_fails_or_hangs_is_told(matrix: ModuleType, monkeypatch):
    with pytest.raises(matrix.FailedError, match="boom"):
        matrix.output(["sh", "-c", "echo boom; exit 3"])
    monkeypatch.setattr(matrix, "LIMIT_S", 0.01)
    with pytest.raises(matrix.FailedError, match=r"`sleep 60` did not end within 0\.01 s"):
        matrix.output(["sleep", "60"])


def test_what_a_command_has_started_ends_with_it(matrix: ModuleType):
    left = matrix.output(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"]).strip()
    state = Path("/proc", left, "stat")
    while state.exists() and " Z " not in state.read_text():  # killed is not yet ended
        time.sleep(0.01)


def test_a_run_that_is_told_to_end_leaves_nothing(matrix: ModuleType, tmp_path: Path):
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\ntouch begun\nexec sleep 60\n")
    uv.chmod(0o755)
    words = [sys.executable, str(SCRIPT), "--uv", str(uv), "--folder", "thrown", "--rows", "lock"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        while not (tmp_path / "begun").exists():
            assert process.poll() is None
            time.sleep(0.01)
        assert (tmp_path / "thrown").is_dir()
        process.terminate()
    assert process.returncode == 143
    assert not (tmp_path / "thrown").exists()
    assert not (tmp_path / "results").exists()


def test_a_cell_names_no_index_and_no_place_of_this_machine(matrix: ModuleType):
    told = f"Failed to fetch: `https://u:p@index.example/simple` into {Path.cwd()}/x\n| y"
    assert matrix.escaped(told) == "Failed to fetch: `(address) into ./x \\| y"


def test_settings_of_pip_reach_uv_and_those_of_a_pytest_around_do_not(
    matrix: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTEST_ADDOPTS", "-x")
    monkeypatch.setattr(matrix, "pip_settings", lambda: {"UV_FIND_LINKS": "/wheels"})
    given = json.loads(
        matrix.output(
            [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
        )
    )
    assert given["UV_FIND_LINKS"] == "/wheels"
    assert "PYTEST_ADDOPTS" not in given


def test_an_unknown_row_and_a_second_run_are_refused_in_one_line(
    matrix: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["matrix", "--rows", "newst"])
    assert matrix.main() == 2
    assert "no row 'newst'; expected some of lowest, " in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["matrix", "--rows", "lock"])
    with Path("pyproject.toml").open("rb") as held:
        matrix.fcntl.flock(held, matrix.fcntl.LOCK_EX)
        assert matrix.main() == 2
    assert "another `make matrix` runs in this checkout" in capsys.readouterr().err
