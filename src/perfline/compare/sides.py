"""Where does each side of ``perfline compare`` run: which interpreter, which code, which settings?

Both sides are treated alike: a side runs in a directory (the current one, or the same place in a
fresh work tree of its git revision), and finds the project under test in that directory's ``src``,
or in the directory itself where there is none. perfline comes last on its path.

A revision is checked out by ``git worktree``, detached, without submodules, and never left behind.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from perfline.cases.case import Case
from perfline.compare.model import Side, SideName
from perfline.engines.environment import GIT_PLACES, git_commit
from perfline.environments.installers import masked
from perfline.environments.making import make, runs
from perfline.errors import WorkerError

# Set inside git hooks: they would point git at another repository than the one asked for.
SCRATCH = "perfline-{pid}-"  # how the directory begins that a tree is made in
_TREE = re.compile(r"/perfline-(\d+)-[^/]+/[^/]+$")


@contextmanager
def work_tree(root: Path, ref: str, name: str, tree: Path) -> Iterator[str]:
    """Check ``ref`` out at ``tree``; yield its short commit; leave nothing behind.

    WorkerError, which starts with ``name``, where git does not know the ref. The place where a run
    killed in between leaves its tree is found, and cleared, by the process number in its name.
    """
    commit = resolve(root, ref, name)
    _sweep(root)
    try:
        # A repository's hooks are not part of its code: they might do anything after a checkout.
        quiet = ("-c", "core.hooksPath=/dev/null")
        made = git(root, *quiet, "worktree", "add", "--detach", str(tree), commit)
        if made.returncode != 0:
            raise WorkerError(f"{name}: git worktree add of {ref} failed: {_last(made.stderr)}")
        yield git(root, "rev-parse", "--short=12", commit).stdout.strip()
    finally:
        _remove(root, tree)


def resolve(root: Path, ref: str, name: str) -> str:
    """The full name of the commit ``ref``; WorkerError, which starts with ``name``, without one."""
    if git(root, "rev-parse", "--is-inside-work-tree").stdout.strip() != "true":
        raise WorkerError(f"{name}: ref {ref}: {root} is in no git work tree")
    found = None
    if ref and not ref.startswith("-"):
        found = git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if found is None or found.returncode != 0:
        hint = "see `git branch --all` and `git tag`"
        if git(root, "rev-parse", "--is-shallow-repository").stdout.strip() == "true":
            hint = "this clone is shallow: `git fetch --unshallow --tags`, then try again"
        raise WorkerError(f"{name}: git knows no commit {ref!r}; {hint}")
    return found.stdout.strip()


def _remove(root: Path, tree: Path) -> None:
    git(root, "worktree", "remove", "--force", str(tree))
    if tree.exists():  # git was stopped while it made it
        shutil.rmtree(tree, ignore_errors=True)
    git(root, "worktree", "prune")


def _sweep(root: Path) -> None:
    """Remove work trees of runs that were killed before they could do it."""
    for line in git(root, "worktree", "list", "--porcelain").stdout.splitlines():
        tree = Path(line.removeprefix("worktree "))
        found = _TREE.search(str(tree)) if line.startswith("worktree ") else None
        if found and not runs(int(found.group(1))):
            _remove(root, tree)  # prunes, too: where the tree is gone, its entry may not be
            shutil.rmtree(tree.parent, ignore_errors=True)


def sweep_scratch() -> None:
    """Remove what runs that were killed left in the directory for temporary files."""
    for left in Path(tempfile.gettempdir()).glob(SCRATCH.format(pid="*") + "*"):
        found = re.match(r"perfline-(\d+)-", left.name)
        if found and not runs(int(found.group(1))):
            shutil.rmtree(left, ignore_errors=True)


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in ``root``; the caller looks at the exit status."""
    kept = {key: value for key, value in os.environ.items() if key not in GIT_PLACES}
    try:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",  # of a file that is no UTF-8, or under another LANG
            env={**kept, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
            check=False,
        )
    except OSError as error:
        raise WorkerError(f"git cannot be run: {error.strerror}; install it for --*-ref") from error


def _last(text: str) -> str:
    return (text.strip() or "no message").splitlines()[-1]


OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Place:
    """Where the processes of one side run.

    Attributes:
        directory: their current directory.
        project: what holds the code under test: first on the path, after the side's own.
        harness: a directory with perfline alone in it: last on the path.
        commit: of the code under test; ``-dirty`` where files differ from it; None without git.
    """

    directory: Path
    project: Path
    harness: Path
    commit: str | None

    def environment(self, own: Mapping[str, str]) -> dict[str, str]:
        """All environment variables of a process; ``own`` are those that the side sets."""
        inherited = {key: value for key, value in os.environ.items() if key not in GIT_PLACES}
        path = [
            *own.get("PYTHONPATH", "").split(os.pathsep),
            str(self.project),
            *inherited.get("PYTHONPATH", "").split(os.pathsep),
            str(self.harness),
        ]
        return {**inherited, **own, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def make_side(
    name: SideName,
    python: str | None = None,
    ref: str | None = None,
    env: Sequence[str] = (),
    settings: Sequence[str] = (),
    imports: Sequence[str] = (),
    install: Sequence[str] = (),
) -> Side:
    """A side as the command line says it: ``env`` and ``settings`` as ``KEY=VALUE``.

    ``install`` is kept only: :func:`with_installed` makes its environment.
    WorkerError, in one line, for an interpreter that does not run and for what is no ``KEY=VALUE``.
    """
    for text in install:
        _check_text(text, "request", name)
    return Side(
        name=name,
        python=find_python(python, name),
        ref=ref,
        env=dict(_pairs(env, "environment variable", "OMP_NUM_THREADS=4", name)),
        settings=_pairs(settings, "setting", "engine.mode=max-autotune", name),
        imports=tuple(imports),
        install=tuple(install),
    )


def with_installed(
    sides: tuple[Side, Side], say: Callable[[str], None]
) -> tuple[tuple[Side, Side], tuple[str, ...]]:
    """The sides in the environments that they ask for, and what is to be noted of these.

    ``say`` takes lines for the user. InstallError where an environment cannot be made.
    """
    notes: list[str] = []
    found = []
    for side in sides:
        if side.install:
            made = make(side.python, side.install, f"--{side.name}-install", say)
            notes += [f"{side.name}: {problem}" for problem in made.problems]
            side = replace(side, python=made.python)
        found.append(side)
    a, b = found
    if (a.install or b.install) and a.python == b.python:
        notes.append(
            "what was to be installed makes no difference: both sides run in one environment"
        )
        say(notes[-1])
    return (a, b), tuple(notes)


def find_python(given: str | None, name: str) -> Path:
    """The interpreter that ``given`` means: a file, a virtual environment, or a command.

    None is this very interpreter. A link is kept as it is: a virtual environment's is one.
    """
    if given is None:
        return Path(sys.executable)
    _check_text(given, "interpreter", name)
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:  # no such user
        raise WorkerError(
            f"{name}: no interpreter {given}: its ~ leads to no home; expected a Python, or a "
            "virtual environment's directory"
        ) from error
    if path.is_dir():
        inside = [path / "bin" / "python", path / "Scripts" / "python.exe"]
        found = next((python for python in inside if python.is_file()), None)
        if found is None:
            raise WorkerError(
                f"{name}: {given} holds no bin/python; expected a virtual environment"
            )
        path = found
    elif not path.is_file():
        command = shutil.which(given)
        if command is None:
            raise WorkerError(
                f"{name}: no interpreter {given}; expected a Python, or a virtual environment's "
                "directory"
            )
        path = Path(command)
    path = path.absolute()
    _check_python(path, name)
    return path


@contextmanager
def places(sides: Sequence[Side], root: Path) -> Iterator[dict[SideName, Place]]:
    """Where each side runs; work trees that were made for it are gone at the end.

    ``root`` is the current directory. WorkerError, in one line, for a revision that git does not
    know.
    """
    sweep_scratch()
    with ExitStack() as ends:
        scratch = Path(
            ends.enter_context(tempfile.TemporaryDirectory(prefix=SCRATCH.format(pid=os.getpid())))
        )
        harness = scratch / "harness"
        harness.mkdir()
        # Not the directory that perfline is in: that may hold another torch.
        (harness / "perfline").symlink_to(Path(__file__).parents[1], target_is_directory=True)
        found: dict[SideName, Place] = {}
        for side in sides:
            directory, commit = root.absolute(), git_commit(root)
            if side.ref is not None:
                tree = scratch / side.name
                commit = ends.enter_context(work_tree(root, side.ref, side.name, tree))
                directory = tree / git(root, "rev-parse", "--show-prefix").stdout.strip()
                _check_tree(directory, side)
            source = directory / "src"
            project = source if source.is_dir() else directory
            found[side.name] = Place(directory, project, harness, commit)
        yield found


def describe(
    a: Side,
    b: Side,
    contexts: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
    case: Case | None = None,
) -> str:
    """How B differs from A, such as ``torch 2.12.0 -> 2.13.0``; ``nothing (A/A)``.

    ``contexts`` are those of the launches (``model.Ready``): what is in only one of them is shown
    as ``none`` in the other. ``case`` tells a setting that a side leaves as it is.
    """
    old, new = (dict(context) for context in contexts)
    commits = old.pop("commit", None), new.pop("commit", None)
    parts = [*_changes(old, new, "none")]
    if a.python != b.python and not parts:
        if a.install != b.install:
            before = f"{_words(a.install)} -> " if a.install else "+ "
            parts.append(f"{before}{_words(b.install)}")
        else:
            parts.append(f"interpreter {a.python} -> {b.python}")
    if a.ref != b.ref or commits[0] != commits[1]:
        parts.append(_refs(a.ref, b.ref, commits))
    ours, theirs = dict(a.settings), dict(b.settings)
    for key in {**ours, **theirs}:
        as_it_is = _setting(case, key)
        before, after = ours.get(key, as_it_is), theirs.get(key, as_it_is)
        if before != after:
            parts.append(f"{key} {before} -> {after}")
    parts += _changes(a.env, b.env, "unset")
    if a.imports != b.imports:
        parts.append(f"imports {_words(a.imports)} -> {_words(b.imports)}")
    return ", ".join(parts) or "nothing (A/A)"


def _words(given: Sequence[str]) -> str:
    return " ".join(given) or "none"


def _changes(old: Mapping[str, str], new: Mapping[str, str], absent: str) -> list[str]:
    keys = dict.fromkeys((*old, *new))
    return [
        f"{key} {old.get(key, absent)} -> {new.get(key, absent)}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _refs(old: str | None, new: str | None, commits: tuple[str | None, str | None]) -> str:
    before, after = (ref or "working tree" for ref in (old, new))
    if commits == (None, None):
        return f"code {before} -> {after}"
    if commits[0] == commits[1]:
        return f"code {before} -> {after} (the same commit {commits[0]})"
    return f"code {before} ({commits[0] or 'unknown'}) -> {after} ({commits[1] or 'unknown'})"


def _setting(case: Case | None, key: str) -> str:
    value: object = case
    for name in key.split("."):
        value = getattr(value, name, None)
    if case is None:
        return "as the case says"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _pairs(given: Sequence[str], what: str, example: str, name: str) -> tuple[tuple[str, str], ...]:
    pairs: dict[str, str] = {}
    for text in given:
        _check_text(text, what, name)
        key, sign, value = text.partition("=")
        if not sign or not key.strip() or "\0" in text:
            found = _head(text)
            raise WorkerError(f"{name}: {what} {found!r}; expected KEY=VALUE, such as {example}")
        if key in pairs:
            raise WorkerError(f"{name}: {what} '{key}' is given twice; expected it once")
        pairs[key] = value
    return tuple(pairs.items())


def _check_text(text: str, what: str, name: str) -> None:
    """Refuse bytes that are no UTF-8 (half surrogate pairs by now): no record could hold them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise WorkerError(f"{name}: {what} {_head(text)!r} is no UTF-8; expected text") from error


def _head(text: str) -> str:
    """``text`` up to its value, which may be a secret."""
    return masked(text).partition("=")[0]


def _check_python(path: Path, name: str) -> None:
    code = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run(
            [str(path), "-I", "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        version = tuple(map(int, done.stdout.split())) if done.returncode == 0 else ()
    except OSError as error:
        raise WorkerError(f"{name}: {path} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise WorkerError(f"{name}: {path} did not answer in 60 s; is it a Python?") from error
    except ValueError:
        version = ()
    if len(version) != 2:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise WorkerError(f"{name}: {path} is no Python that runs: it said {said[:200]!r}")
    if version < OLDEST_PYTHON:
        found, oldest = (".".join(map(str, numbers)) for numbers in (version, OLDEST_PYTHON))
        raise WorkerError(f"{name}: {path} is Python {found}; expected {oldest} or newer")


def _check_tree(directory: Path, side: Side) -> None:
    if not directory.is_dir():
        raise WorkerError(f"{side.name}: ref {side.ref} has no such directory as the current one")
    package = directory / "src" / "perfline"
    workers = (package / place / "worker.py" for place in ("compare", "ab"))  # ab: an older one
    if package.is_dir() and not any(path.is_file() for path in workers):
        raise WorkerError(
            f"{side.name}: the perfline of ref {side.ref} is older than `perfline compare`: it has "
            "no compare/worker.py; compare a newer ref"
        )
