from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from perfline.compare.model import Side, SideName
from perfline.compare.sides import make_side
from perfline.environments import installers, making
from perfline.environments.making import Made
from perfline.errors import InstallError, SearchError, WorkerError
from perfline.search import candidates
from wheels import interpreter, wheel

PYTHON = Path(sys.executable)


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """Three commits on main; a fourth that merges two of another branch."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for number in range(3):
        (folder / "file").write_text(str(number))
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", f"change {number}")
    git(folder, "checkout", "-q", "-b", "side")
    for number in range(2):
        git(folder, "commit", "-q", "--allow-empty", "-m", f"side {number}")
    git(folder, "checkout", "-q", "main")
    git(folder, "merge", "-q", "--no-ff", "-m", "merge side", "side")
    return folder


def made(commit: str) -> candidates.SideOf:
    return lambda of: Side(of, PYTHON, ref=commit)


def plain(of: SideName) -> Side:
    return make_side(of)


def test_commits_are_those_of_the_first_parents_oldest_first(history: Path):
    found = candidates.commits(history, "HEAD~2", "HEAD", made)

    assert [each.subject for each in found] == ["change 1", "change 2", "merge side"]
    assert found[-1].name == git(history, "rev-parse", "--short=12", "HEAD")
    assert len(found[0].date) == len("2026-11-26")
    assert found[0].environment.side("candidate").ref == git(history, "rev-parse", "HEAD~2")


@pytest.mark.parametrize(
    ("good", "bad", "problem"),
    [
        ("HEAD", "main", "--good HEAD and --bad main are one commit"),
        ("HEAD", "HEAD~2", "--bad HEAD~2 comes before --good HEAD: is it the other way round"),
        ("apart", "HEAD", "--good apart is no ancestor of --bad HEAD: they parted at"),
        ("alone", "HEAD", "have no common ancestor"),
        ("nowhere", "HEAD", "--good: git knows no commit 'nowhere'"),
        ("HEAD~2", "--all", "--bad: git knows no commit '--all'"),
    ],
)
def test_ends_without_a_way_between_them_are_refused(
    history: Path, good: str, bad: str, problem: str
):
    git(history, "checkout", "-q", "-b", "apart", "HEAD~2")
    git(history, "commit", "-q", "--allow-empty", "-m", "elsewhere")
    git(history, "checkout", "-q", "--orphan", "alone")
    git(history, "commit", "-q", "-m", "begin anew")
    git(history, "checkout", "-q", "main")
    with pytest.raises((SearchError, WorkerError), match=problem):
        candidates.commits(history, good, bad, made)


def test_a_directory_without_git_is_told(tmp_path: Path):
    with pytest.raises(WorkerError, match="is in no git work tree"):
        candidates.commits(tmp_path, "a", "b", made)


def test_a_work_tree_that_every_comparison_runs_has_to_be_clean(history: Path):
    candidates.check_clean(history)
    candidates.check_clean(history.parent)  # no git: nothing to tell
    (history / "file").write_text("other")
    with pytest.raises(SearchError, match="has changes that are not committed"):
        candidates.check_clean(history)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local index of one package, and nothing else."""
    folder = tmp_path / "wheels"
    for version in ("1.0", "1.1", "1.2rc1", "1.10", "2.0"):
        wheel(folder, "local-pkg", version)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def versions(good: str, bad: str, pre: bool = False) -> list[str]:
    return [
        each.name
        for each in candidates.versions(PYTHON, "local-pkg", (good, bad), pre, plain, print)
    ]


def test_versions_are_the_released_ones_in_their_order(index: Path):
    assert versions("1.0", "1.10") == ["1.0", "1.1", "1.10"]
    assert versions("1.0", "1.10", pre=True) == ["1.0", "1.1", "1.2rc1", "1.10"]
    assert versions("1.2rc1", "2.0") == ["1.2rc1", "1.10", "2.0"]


@pytest.mark.parametrize(
    ("good", "bad", "problem"),
    [
        ("1.0", "1.0.0", "are one version of local-pkg"),
        ("2.0", "1.0", "is newer than --bad 1.0: is it the other way round"),
        ("1.0", "3.0", r"--bad 3.0: the index has no such version of local-pkg .*1.0 to 2.0"),
        ("1.01x", "2.0", "Invalid version: '1.01x'; expected such as 5.17.0"),
    ],
)
def test_versions_that_are_not_there_are_refused(index: Path, good: str, bad: str, problem: str):
    with pytest.raises(SearchError, match=problem):
        versions(good, bad)


def test_an_index_without_the_package_or_out_of_reach_is_told_in_pips_words(
    index: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(InstallError, match=r"(?s)pip says:.*No matching distribution found"):
        candidates.versions(PYTHON, "no-such-pkg", ("1", "2"), False, plain, print)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(InstallError, match=r"(?s)pip says:.*(refused|No matching)"):
        candidates.versions(PYTHON, "no-such-pkg", ("1", "2"), False, plain, print)


def test_without_pip_versions_cannot_be_listed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(installers, "_answer", lambda command: None)
    with pytest.raises(InstallError, match=r"no pip is there to ask .*install pip"):
        installers.versions(PYTHON, "torch", pre=False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What the environment maker was asked for."""
    found: list[tuple[str, ...]] = []

    def make(base: Path, requests: tuple[str, ...], option: str, say: object, known: None) -> Made:
        found.append(requests)
        return Made(Path("/made/python"))

    monkeypatch.setattr(making, "make", make)
    return found


def test_a_version_is_installed_when_its_side_is_made(index: Path, asked: list[tuple[str, ...]]):
    found = candidates.versions(PYTHON, "local-pkg", ("1.0", "2.0"), True, plain, print)
    assert asked == []
    side = found[1].environment.side("candidate")
    assert (side.python, asked) == (Path("/made/python"), [("--pre local-pkg==1.1",)])


class _Uv:
    name = "uv"


def uv(base: Path) -> _Uv:
    return _Uv()


def test_days_are_all_from_one_to_another_with_what_the_index_had_then(
    tmp_path: Path, asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(installers, "find_installer", uv)
    python = interpreter(tmp_path / "base", *[wheel(tmp_path, n, "1.0") for n in ("b-b", "a-a")])

    found = candidates.days(python, ("2026-09-29", "2026-10-01"), plain, print)

    assert [each.name for each in found] == ["2026-09-29", "2026-09-30", "2026-10-01"]
    found[1].environment.side("baseline")
    assert asked == [("--exclude-newer 2026-09-30T23:59:59Z a-a b-b",)]


@pytest.mark.parametrize(
    ("good", "bad", "problem"),
    [
        ("2026-10-01", "2026-10-01", "is not before --bad"),
        ("2026-10-02", "2026-10-01", "is not before --bad"),
        ("2026-02-30", "2026-10-01", "--good 2026-02-30: is no day"),
    ],
)
def test_days_in_no_order_are_refused(good: str, bad: str, problem: str):
    with pytest.raises(SearchError, match=problem):
        candidates.days(PYTHON, (good, bad), plain, print)


def test_days_need_uv(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(installers, "find_installer", lambda base: installers.Pip(("pip",)))
    with pytest.raises(SearchError, match="days need uv, and pip is what is here"):
        candidates.days(PYTHON, ("2026-09-01", "2026-09-03"), plain, print)


def test_what_looks_like_a_day():
    assert [candidates.is_day(text) for text in ("2026-09-01", "v1.4", "2026-9-1")] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("request_text", "wanted"),
    [
        (".", "{tree}"),
        ("pip install -e .", "{tree}"),
        ("./kernels numpy<3", "{tree}/kernels numpy<3"),
        ("--no-index .", "--no-index {tree}"),
    ],
)
def test_a_commit_of_another_repository_is_installed_from_its_own_tree(
    history: Path,
    monkeypatch: pytest.MonkeyPatch,
    request_text: str,
    wanted: str,
):
    commit = git(history, "rev-parse", "HEAD~2")
    seen: list[str] = []

    def make(
        base: Path, requests: tuple[str, ...], option: str, say: object, known: tuple[Path, str]
    ) -> Made:
        tree = git(history, "worktree", "list", "--porcelain").split("worktree ")[2].split()[0]
        assert (known[0].resolve(), known[1]) == (Path(tree).resolve(), f"{history} {commit}")
        assert requests == (wanted.format(tree=Path(tree).resolve()),)
        seen.append((Path(tree) / "file").read_text())
        return Made(Path("/made/python"))

    monkeypatch.setattr(making, "make", make)
    made = candidates.from_tree(history, commit, request_text, plain, print)
    side, again = made("candidate"), made("baseline")

    assert (again.name, again.python) == ("baseline", side.python)
    assert (seen, side.python) == (["1"], Path("/made/python"))
    assert side.install == (f"project {commit[:12]}",)
    assert len(git(history, "worktree", "list").splitlines()) == 1


def test_an_interpreter_that_lacks_what_a_side_imports_is_told(tmp_path: Path):
    candidates.check_needs(PYTHON)
    bare = interpreter(tmp_path / "bare")
    with pytest.raises(SearchError, match="bin/python lacks torch, transformers, numpy, yaml"):
        candidates.check_needs(bare)
