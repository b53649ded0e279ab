"""Which versions of Python, torch and transformers does perfline work with?

    make matrix                  every row, one environment after the other, each thrown away
    make matrix ROWS=newest      some rows; the others stay as the table has them
    make matrix ROWS=resolved    no environment: does the lock resolve where nothing is run?

A row resolves and installs versions with uv, measures the case `tiny` and runs the contract tests
of the module that holds what perfline uses of torch's and transformers' insides. The result is
docs/versions.md; answers and notices of each row lie in results/matrix. Status 1: a row failed.
Needs the standard library and uv only.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from perfline.environments import installers
from perfline.environments.installers import Uv

PAGE = Path("docs/versions.md")
KEPT = Path("results/matrix")  # ROW.json: all that a row found
LOCK = Path("constraints.txt")
PROJECT = Path("pyproject.toml")
CONTRACT = Path("tests/unit/engines/test_upstream.py")
SUITE = ("tests/accuracy", "tests/perf", "-m", "perf or accuracy", "--cases=tiny")
EXTRAS = ("parallel", "report")
OLDEST = "3.11"
NEWEST = "newest"  # of the Pythons in pyproject.toml, the newest that has an interpreter here
LIMIT_S = 3600  # of one command
MARGIN_FRACTION, MARGIN_LOGITS = 0.01, 0.001  # a record keeps three digits of a margin
FAILS = {"regressed", "incomparable", "invalid"}
BEGIN, END = "<!-- {}: made by `make matrix` -->", "<!-- {}: end -->"
PACKAGES = ("Python", "torch", "transformers", "pytest")
HEADER = ("row", *PACKAGES, "result", "answers", "new notices", "date")


@dataclass(frozen=True)
class Row:
    """One environment.

    Attributes:
        requirements: what is asked of it beside pyproject.toml.
        base: ``lock``: exactly that; ``prefer``: that, but for what the requirements change;
            ``lowest``: the lowest versions that pyproject.toml allows; ``newest``: the newest.
    """

    name: str
    base: str
    requirements: tuple[str, ...] = ()
    python: str = OLDEST


ROWS = (
    Row("lowest", "lowest"),
    Row("transformers-4.57", "prefer", ("transformers==4.57.*",)),
    Row("transformers-5.0", "prefer", ("transformers==5.0.*",)),
    Row("transformers-5.17", "prefer", ("transformers==5.17.*",)),
    Row("lock", "lock"),
    Row("torch-2.11", "prefer", ("torch==2.11.*",)),
    Row("torch-2.15", "prefer", ("torch==2.15.*",)),
    Row("newest", "newest", python=NEWEST),
)
RESOLVED = "resolved"
PLATFORMS = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux ARM": "aarch64-manylinux_2_28",
    "macOS 14 ARM": "aarch64-apple-darwin",
    "Windows": "x86_64-pc-windows-msvc",
}


@dataclass
class Result:
    """What one row found; what it did not get to is empty.

    Attributes:
        failure: the first line that says what failed; empty where the row passed.
        remark: what a reader should know of a row that passed.
        answers: {engine: {question: [letter, margin]}}.
        notices: ``source: text`` of every notice in the record.
    """

    row: str
    date: str
    versions: dict[str, str] = field(default_factory=dict)
    failure: str = ""
    remark: str = ""
    answers: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


class FailedError(Exception):
    """A command failed: its first telling line."""


def main() -> int:
    """Run the rows that are named, writing the page after each; 1 where one failed."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="make matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--uv", default="uv", help="the program (default: uv)")
    parser.add_argument("--folder", type=Path, default=Path(".venv-matrix"), help="thrown away")
    parser.add_argument(
        "--rows", default="", metavar="A,B", help=f"of {', '.join(names)}, resolved"
    )
    args = parser.parse_args()
    asked = [name.strip() for name in args.rows.split(",") if name.strip()] or [*names, RESOLVED]
    if unknown := [name for name in asked if name not in (*names, RESOLVED)]:
        return refused(
            f"ROWS: no row {unknown[0]!r}; expected some of {', '.join(names)}, resolved"
        )
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda given, frame: sys.exit(128 + given))  # through every `finally`
    with PROJECT.open("rb") as held:
        try:
            fcntl.flock(
                held, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # ends with the process, however it ends
        except BlockingIOError:
            return refused("another `make matrix` runs in this checkout; wait for its end")
        return run_rows(args.uv, args.folder.resolve(), asked)


def refused(reason: str) -> int:
    print(f"matrix: error: {reason}", file=sys.stderr)
    return 2


def run_rows(uv: str, folder: Path, asked: Sequence[str]) -> int:
    """Run each row in ``folder`` and put it into the page at once; 1 where one failed."""
    failed = []
    for row in (row for row in ROWS if row.name in asked):
        print(f"\n== {row.name}", flush=True)
        result = ran(uv, folder, row)
        save(result)
        failed += [row.name] if result.failure else []
        print(f"== {row.name}: {outcome(result)}", flush=True)
        write_page("rows", table(HEADER, cells()))
    if RESOLVED in asked:
        lines, problems = resolved(uv)
        failed += problems
        write_page(RESOLVED, lines)
    print(f"\n{PAGE}: {'failed: ' + ', '.join(failed) if failed else 'all passed'}")
    return 1 if failed else 0


def ran(uv: str, folder: Path, row: Row) -> Result:
    """Make the row's environment, run everything in it, throw it away."""
    result = Result(row.name, datetime.now(UTC).strftime("%Y-%m-%d"))
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    try:
        python = installed(uv, folder, row)
        result.versions = json.loads(output([str(python), "-c", VERSIONS]))
        measure(folder, python, result)
        pytest(folder, python, ["--noconftest", str(CONTRACT), "-q"])
        if flips(result, load("lock")):
            raise FailedError(f"other answers than the lock's: {compared(result, load('lock'))}")
    except FailedError as problem:
        result.failure = str(problem)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


VERSIONS = """
import importlib.metadata as m, json, platform
names = ("torch", "transformers", "pytest")
print(json.dumps({"Python": platform.python_version(), **{n: m.version(n) for n in names}}))
"""


def installed(uv: str, folder: Path, row: Row) -> Path:
    """Resolve the row's versions and install them; return the environment's interpreter."""
    python = interpreter(uv, row.python)
    requirements, pins = folder / "requirements.txt", folder / "pins.txt"
    requirements.write_text("\n".join(row.requirements), encoding="utf-8")
    command = [uv, "pip", "compile", "--quiet", "--python", python, "--no-header", "--no-annotate"]
    command += [word for extra in EXTRAS for word in ("--extra", extra)]
    command += ["--output-file", str(pins), str(PROJECT), str(requirements)]
    if row.base == "lowest":
        command += ["--resolution", "lowest-direct"]
    elif row.base == "lock":
        command += ["--constraints", str(LOCK)]
    elif row.base == "prefer":  # uv keeps the pins of an older output that still fit
        lines = LOCK.read_text(encoding="utf-8").splitlines()
        torch = [line for line in lines if line.startswith("torch==")]
        own = any(text.startswith("torch") for text in row.requirements)
        pins.write_text("\n".join(line for line in lines if line not in torch), encoding="utf-8")
        # As a constraint, since that takes a local build of the same version, too.
        (folder / "torch.txt").write_text("" if own else "\n".join(torch), encoding="utf-8")
        command += ["--constraints", str(folder / "torch.txt")]
    output(command)
    environment = folder / "venv"
    output([uv, "venv", "--quiet", "--python", python, str(environment)])
    into = [uv, "pip", "install", "--quiet", "--python", str(environment / "bin" / "python")]
    output([*into, "-r", str(pins)])
    output([*into, "--no-deps", "-e", "."])
    return environment / "bin" / "python"


def interpreter(uv: str, wanted: str) -> str:
    """Return the path of an interpreter on this machine."""
    for version in reversed(pythons()) if wanted == NEWEST else [wanted]:
        with contextlib.suppress(FailedError):
            return output(
                [uv, "python", "find", "--system", "--no-project", version], quiet=True
            ).strip()
    raise FailedError(f"no interpreter for Python {wanted} here")


def pythons() -> list[str]:
    """Return the Pythons that pyproject.toml names, oldest first."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    found = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    return sorted(found, key=lambda text: int(text[2:]))


def measure(folder: Path, python: Path, result: Result) -> None:
    """Run the suite; put the record's answers and notices into the result."""
    record = folder / "run.json"
    command = [*SUITE, f"--results={record}", f"--baselines={folder / 'baselines'}"]
    try:
        pytest(folder, python, command)
    except FailedError as problem:
        if not record.exists() or not only_timings_disturbed(read(record)):
            raise FailedError(first_error(record) or str(problem)) from None
        result.remark = "timings disturbed"
    found = read(record)
    result.answers = {
        engine: dict(questions(held)) for engine, held in found["cases"]["tiny"]["accuracy"].items()
    }
    if not result.answers:
        raise FailedError("the record holds no answers")
    result.notices = sorted({notice_line(notice) for notice in all_notices(found)})


def first_error(record: Path) -> str:
    """Return the first error that a record holds: it says more than the test's name."""
    cases = read(record)["cases"].values() if record.exists() else ()
    return next((error for case in cases for error in case["errors"]), "")[:200]


def only_timings_disturbed(record: Mapping[str, Any]) -> bool:
    """Whether the suite failed for another process on this machine alone: not a version's doing."""
    (case,) = record["cases"].values()
    failing = [verdict for verdict in case["verdicts"] if verdict["word"] in FAILS]
    disturbed = all(
        v["word"] == "invalid"
        and v["metric"].startswith("p_")
        and "compiled" not in v.get("reason", "")
        for v in failing
    )
    return bool(failing) and disturbed and not case["errors"] and not record["partial"]


def questions(held: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    for subject, columns in held["subjects"].items():
        margins = columns["margins"].split()
        for index, pair in enumerate(zip(columns["letters"], map(float, margins), strict=True)):
            yield f"{subject}/{index}", list(pair)


def all_notices(record: Mapping[str, Any]) -> list[Any]:
    """Return the record's notices, those of its cases too; records of older perflines have none."""
    places = [record, *record["cases"].values()]
    return [notice for place in places for notice in place.get("notices") or []]


def notice_line(notice: Any) -> str:
    """Return ``source: text``, the same whatever its counts are."""
    if not isinstance(notice, dict):
        return " ".join(str(notice).split())
    return " ".join(f"{notice.get('source', 'not known')}: {notice.get('text', '')}".split())


def compared(result: Result, lock: Result | None) -> str:
    """Say whether the answers are those of the lock's row, to rounding."""
    if not result.answers:
        return "none"
    if result.row == "lock":
        return "the reference"
    if lock is None or not lock.answers:
        return "not compared: run ROWS=lock, too"
    if {e: set(q) for e, q in result.answers.items()} != {
        e: set(q) for e, q in lock.answers.items()
    }:
        return "other engines or questions"
    moved = sum(
        letter == old_letter and abs(margin - old_margin) > allowed
        for letter, margin, old_letter, old_margin, allowed in pairs(result, lock)
    )
    flipped = flips(result, lock)
    return f"{flipped} flips, {moved} margins moved" if flipped or moved else "same"


def flips(result: Result, lock: Result | None) -> int:
    """How many questions have another answer than in the lock's row, beyond rounding."""
    if lock is None or result.row == "lock":
        return 0
    return sum(
        letter != old_letter and margin + old_margin > allowed  # on the other side of zero
        for letter, margin, old_letter, old_margin, allowed in pairs(result, lock)
    )


def pairs(result: Result, lock: Result) -> Iterator[tuple[str, float, str, float, float]]:
    """Of every question that both answered: letter and margin, the lock's, and what may differ."""
    for engine, given in result.answers.items():
        for question, (letter, margin) in given.items():
            if question in lock.answers.get(engine, {}):
                old_letter, old_margin = lock.answers[engine][question]
                allowed = MARGIN_LOGITS + MARGIN_FRACTION * old_margin
                yield letter, margin, old_letter, old_margin, allowed


def outcome(result: Result) -> str:
    """Say in a table's cell how the row ended."""
    if result.failure:
        return f"**failed**: {result.failure}"
    return f"passed ({result.remark})" if result.remark else "passed"


def cells() -> list[list[str]]:
    """Return the rows of the table; what was not run in this checkout stays as the page has it."""
    old = {line[0]: line for line in rows_of(section("rows"))}
    lock, table = load("lock"), []
    for row in ROWS:
        result = load(row.name)
        if result is not None and result.date >= old.get(row.name, [""])[-1]:
            known = lock.notices if lock and row.name != "lock" else []
            new = [notice for notice in result.notices if notice not in known]
            table.append(
                [
                    row.name,
                    *(result.versions.get(name, "-") for name in PACKAGES),
                    outcome(result),
                    compared(result, lock),
                    "; ".join(new) or ("none" if result.answers else "-"),
                    result.date,
                ]
            )
        elif row.name in old:
            table.append(old[row.name])
    return [[escaped(cell) for cell in line] for line in table]


def escaped(cell: str) -> str:
    """Return a text that stays in its cell and names no index and no place of this machine."""
    text = "".join(c if c.isprintable() else " " for c in cell).replace("\\|", "|")
    text = re.sub(r"\w+://\S+", "(address)", text).replace(str(Path.cwd()), ".")
    return text.replace("|", "\\|").replace("<", "&lt;")


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines)]


def rows_of(lines: Sequence[str]) -> list[list[str]]:
    """Return the cells of a table's rows, without its header."""
    found = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in found[2:]]


def section(name: str) -> list[str]:
    """Return the lines between the page's markers of that name."""
    text = PAGE.read_text(encoding="utf-8")
    return text.partition(BEGIN.format(name))[2].partition(END.format(name))[0].splitlines()


def write_page(name: str, lines: Sequence[str]) -> None:
    """Put new lines between the page's markers, the whole file at once."""
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN.format(name))
    _, end, after = rest.partition(END.format(name))
    if not begin or not end:
        raise SystemExit(
            f"matrix: error: {PAGE}: expected the lines {BEGIN.format(name)!r} and "
            f"{END.format(name)!r}; put them back"
        )
    new = PAGE.with_suffix(".new")
    new.write_text("\n\n".join([before + begin, "\n".join(lines), end + after]), encoding="utf-8")
    new.replace(PAGE)


def resolved(uv: str) -> tuple[list[str], list[str]]:
    """Resolve the lock for every Python and platform; return the table's lines, what failed."""
    versions = pythons()
    places = [(version, platform) for version in versions for platform in PLATFORMS]

    def one(place: tuple[str, str]) -> str:
        command = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
        command += ["--python-version", place[0], "--python-platform", PLATFORMS[place[1]]]
        command += ["--only-binary", ":all:", "--constraints", str(LOCK), str(PROJECT)]
        command += [word for extra in EXTRAS for word in ("--extra", extra)]
        try:
            pins = output(command, quiet=True)
        except FailedError as problem:
            return f"**no**: {problem}"
        return ", ".join(re.findall(r"(?m)^((?:torch|transformers)==[^\s+]+)", pins))

    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(places, pool.map(one, places), strict=True))
    lines = [[v, *(escaped(found[v, platform]) for platform in PLATFORMS)] for v in versions]
    bad = [" on ".join(place) for place, text in found.items() if text.startswith("**")]
    return table(["Python", *PLATFORMS], lines), bad


def save(result: Result) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    new = KEPT / f"{result.row}.new"
    new.write_text(json.dumps(asdict(result)), encoding="utf-8")
    new.replace(KEPT / f"{result.row}.json")


def load(row: str) -> Result | None:
    """Return what the row's last run found; None where it was not run here."""
    path = KEPT / f"{row}.json"
    return Result(**read(path)) if path.exists() else None


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def pytest(folder: Path, python: Path, words: Sequence[str]) -> None:
    """Run pytest in the row's environment, its output into the log; FailedError where it fails."""
    output([str(python), "-m", "pytest", "-p", "no:cacheprovider", *words], folder=folder)


def surroundings(folder: Path | None) -> dict[str, str]:
    """Return the environment of a command: pip's settings for uv, nothing of a pytest around it."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "PERFLINE_"))}
    own["PYTHONDONTWRITEBYTECODE"] = "1"
    if folder is not None:
        own["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    own["MACOSX_DEPLOYMENT_TARGET"] = "14.0"  # what torch's wheels are for; uv assumes an older one
    return {**own, "UV_PYTHON_DOWNLOADS": "never", **pip_settings()}


@cache
def pip_settings() -> dict[str, str]:
    """Return pip's settings as uv's variables, but for its constraints: a row says its versions."""
    found = Uv(("uv",), installers.pip_settings(Path(sys.executable))).environment
    return {name: text for name, text in found.items() if name != "UV_CONSTRAINT"}


def output(command: Sequence[str], *, folder: Path | None = None, quiet: bool = False) -> str:
    """Run a command and all that it starts; return its output, FailedError where it fails."""
    with subprocess.Popen(
        command,
        env=surroundings(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            text, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            raise FailedError(f"`{shown(command)}` did not end within {LIMIT_S} s") from None
        finally:  # also where this program is told to end
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        if not quiet:
            print(text, flush=True)
        raise FailedError(
            first_failure(text) or f"`{shown(command)}` ended with {process.returncode}"
        )
    return text


def shown(command: Sequence[str]) -> str:
    return " ".join([Path(command[0]).name, *command[1:3]])


def first_failure(text: str) -> str:
    """Return the first line that says what went wrong, at most 200 characters of it."""
    for pattern in (
        r"E  +\S.*",
        r"(?:FAILED|ERROR) .*",
        r" *(?:cause:|╰─▶) .*",
        r"[Ee]rror: .*",
        r" *\S.*",
    ):
        if found := re.search(rf"(?m)^{pattern}$", text):
            return " ".join(found[0].removeprefix("E ").split())[:200]
    return ""


if __name__ == "__main__":
    sys.exit(main())
