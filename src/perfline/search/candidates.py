"""Which commits, versions or days lie between the good end and the bad one, and how is each made?

The first candidate is the good end, the last the bad one. Commits are those of ``git rev-list
--first-parent``: what was merged is one step. Versions are what the package index has today, days
are all from one date to another. Whatever is wrong with the request is told here, before anything
is measured.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.version import InvalidVersion, Version

from perfline.compare.model import Side, SideName
from perfline.compare.sides import SCRATCH, git, resolve, work_tree
from perfline.engines.environment import git_commit
from perfline.environments import installers, making
from perfline.errors import SearchError
from perfline.search.probe import Environment

Say = Callable[[str], None]
SideOf = Callable[[SideName], Side]
_NEEDS = ("torch", "transformers", "numpy", "yaml")
_SHORT = 12  # digits of a commit


@dataclass(frozen=True)
class Candidate:
    """One of the candidates; ``subject`` and ``date`` are a commit's own."""

    environment: Environment
    subject: str = ""
    date: str = ""

    @property
    def name(self) -> str:
        """A commit in short, a version or a day."""
        return self.environment.name


def commits(root: Path, good: str, bad: str, made: Callable[[str], SideOf]) -> list[Candidate]:
    """The commits of the repository at ``root`` from ``good`` to ``bad``, both included.

    ``made`` takes a full commit. SearchError for ends between which there is nothing to look for,
    WorkerError where git does not know one.
    """
    ends = [resolve(root, ref, name) for ref, name in ((good, "--good"), (bad, "--bad"))]
    if ends[0] == ends[1]:
        raise SearchError(f"--good {good} and --bad {bad} are one commit, {ends[0][:_SHORT]}")
    base = git(root, "merge-base", *ends).stdout.strip()
    if not base:
        raise SearchError(
            f"--good {good} and --bad {bad} have no common ancestor; expected --good to be an "
            "ancestor of --bad (in a shallow clone: `git fetch --unshallow`)"
        )
    if base == ends[1]:
        raise SearchError(f"--bad {bad} comes before --good {good}: is it the other way round?")
    if base != ends[0]:
        raise SearchError(
            f"--good {good} is no ancestor of --bad {bad}: they parted at {base[:_SHORT]}; if that "
            "is good, name it with --good"
        )
    shown = ("--format=%H%x00%cs%x00%s", "--first-parent", "--reverse")
    said = git(root, "log", *shown, f"{ends[0]}..{ends[1]}").stdout
    first = git(root, "log", "-1", "--format=%H%x00%cs%x00%s", ends[0]).stdout
    found = []
    for line in (first + said).splitlines():
        commit, date, subject = line.split("\0", 2)
        found.append(Candidate(Environment(commit[:_SHORT], made(commit)), subject, date))
    return found


def versions(
    python: Path, package: str, ends: tuple[str, str], pre: bool, side: SideOf, say: Say
) -> list[Candidate]:
    """The released versions of a package from one to another, both included, oldest first."""
    try:
        good, bad = (Version(text) for text in ends)
    except InvalidVersion as error:
        raise SearchError(f"--package {package}: {error}; expected such as 5.17.0") from error
    if good == bad:
        raise SearchError(f"--good and --bad are one version of {package}, {good}")
    if good > bad:
        raise SearchError(
            f"--good {ends[0]} is newer than --bad {ends[1]}: is it the other way round?"
        )
    wanted = pre or good.is_prerelease or bad.is_prerelease
    released = installers.versions(python, package, wanted)
    known = [Version(text) for text in released]
    for option, end in (("--good", good), ("--bad", bad)):
        if end not in known:
            raise SearchError(
                f"{option} {end}: the index has no such version of {package} for {python} (it has "
                f"{released[0]} to {released[-1]}; --pre asks for pre-releases)"
            )
    flag = "--pre " if wanted else ""
    between = [text for text, each in zip(released, known, strict=True) if good <= each <= bad]
    requests = {text: f"{flag}{package}=={text}" for text in between}
    return [Candidate(Environment(text, asked(side, requests[text], say))) for text in between]


def days(python: Path, ends: tuple[str, str], side: SideOf, say: Say) -> list[Candidate]:
    """Every day from one to another: all packages as the index had them at the end of that day.

    SearchError without uv: pip keeps what is installed where it is newer.
    """
    first, last = (_day(text, name) for text, name in zip(ends, ("--good", "--bad"), strict=True))
    if first >= last:
        raise SearchError(f"--good {first} is not before --bad {last}; expected an earlier day")
    if (found := installers.find_installer(python).name) != "uv":
        raise SearchError(
            f"--good {first}: days need uv, and {found} is what is here: it goes back to no older "
            "version of what is installed; install uv"
        )
    names = " ".join(making.from_index(python))
    count = (last - first).days + 1
    dates = [first + datetime.timedelta(number) for number in range(count)]
    requests = {day.isoformat(): f"--exclude-newer {day}T23:59:59Z {names}" for day in dates}
    return [Candidate(Environment(day, asked(side, text, say))) for day, text in requests.items()]


def is_day(text: str) -> bool:
    """Whether ``text`` is written as a day is: ``2026-09-01``."""
    return len(text) == len("2026-09-01") and text.replace("-", "").isdecimal()


def _day(text: str, option: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError as error:
        raise SearchError(f"{option} {text}: is no day; expected such as 2026-09-01") from error


def asked(side: SideOf, request: str, say: Say) -> SideOf:
    """What makes ``side`` in an environment with ``request`` installed on top of its own."""

    def made(of: SideName) -> Side:
        return _installed(replace(side(of), install=(*side(of).install, request)), say)

    return made


def from_tree(root: Path, commit: str, request: str, side: SideOf, say: Say) -> SideOf:
    """What makes ``side`` with a repository's ``commit`` installed into its environment.

    ``request`` is as behind ``pip install``, from the commit's own directory; ``-e`` is dropped,
    since the work tree is gone once it is installed.
    """
    words = request.removeprefix("pip install").split()
    text = " ".join(word for word in words if word not in ("-e", "--editable")) or "."

    built: list[Path] = []  # once: the good end is asked for by every comparison

    def made(of: SideName) -> Side:
        if not built:
            built.append(build(of))
        return replace(side(of), python=built[0], install=(f"{root.name} {commit[:_SHORT]}",))

    def build(of: SideName) -> Path:
        prefix = SCRATCH.format(pid=os.getpid())
        with tempfile.TemporaryDirectory(prefix=prefix) as scratch:
            tree = Path(scratch) / "tree"
            with work_tree(root, commit, of, tree):
                wanted = " ".join(_inside(tree, word) for word in text.split())
                known = tree, f"{root} {commit}"
                return _installed(replace(side(of), install=(wanted,)), say, known).python

    return made


def _inside(tree: Path, word: str) -> str:
    """A word of a request, with a path from the tree on as a whole one."""
    there = tree / word.partition("[")[0]
    relative = word.startswith(".") or (there.exists() and not Path(word).is_absolute())
    return f"{(tree / word).resolve()}" if relative else word


def _installed(side: Side, say: Say, known: tuple[Path, str] | None = None) -> Side:
    made = making.make(side.python, side.install, f"--{side.name}-install", say, known)
    return replace(side, python=made.python)


def check_needs(python: Path) -> None:
    """SearchError where an interpreter lacks what a process under comparison imports."""
    code = (
        "import importlib.util as u, sys; "
        "print(*[name for name in sys.argv[1:] if u.find_spec(name) is None])"
    )
    done = subprocess.run(
        [str(python), "-c", code, *_NEEDS],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise SearchError(f"{python} cannot be asked for its packages: {last}")
    if lacking := done.stdout.split():
        raise SearchError(
            f"{python} lacks {', '.join(lacking)}, which perfline needs to measure there; install "
            "them, or name another interpreter"
        )


def check_clean(root: Path) -> None:
    """SearchError where the work tree, whose code every probe runs, differs from its commit."""
    commit = git_commit(root)
    if commit is not None and commit.endswith("-dirty"):
        raise SearchError(
            f"{root} has changes that are not committed, and every comparison of this search would "
            "run its code as it stands then; commit them, or `git stash`"
        )
