"""How is another revision of the code under test checked out, and never left behind?

Through ``git worktree``, detached, in a directory of the caller's. Submodules are not checked out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perfline.errors import WorkerError

# Set inside git hooks: they would point git at another repository than the one asked for.
GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
SCRATCH = "perfline-{pid}-"  # how the directory begins that a tree is made in
_TREE = re.compile(r"/perfline-(\d+)-[^/]+/[^/]+$")


@contextmanager
def work_tree(root: Path, ref: str, name: str, tree: Path) -> Iterator[str]:
    """Check ``ref`` out at ``tree``; yield its short commit; leave nothing behind.

    WorkerError, which starts with ``name``, where git does not know the ref. The place where a run
    killed in between leaves its tree is found, and cleared, by the process number in its name.
    """
    commit = _resolve(root, ref, name)
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


def _resolve(root: Path, ref: str, name: str) -> str:
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


def runs(pid: int) -> bool:
    """Whether a process of this machine has that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in ``root``; the caller looks at the exit status."""
    kept = {key: value for key, value in os.environ.items() if key not in GIT_PLACES}
    try:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**kept, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
            check=False,
        )
    except OSError as error:
        raise WorkerError(f"git cannot be run: {error.strerror}; install it for --*-ref") from error


def _last(text: str) -> str:
    return (text.strip() or "no message").splitlines()[-1]
