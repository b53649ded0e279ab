"""Two sides are treated alike; a wrong interpreter or revision is one line; nothing is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from perfline.cases.case import load_cases
from perfline.compare import sides
from perfline.compare.model import Side
from perfline.compare.sides import Place, describe, find_python, make_side, places
from perfline.errors import WorkerError

HERE = Side("baseline", Path(sys.executable))
RUNS_NOT = "is no Python that runs: it said "


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository whose package ``thing`` says 1 at tag ``old``, 2 at HEAD, 3 in the work tree."""
    root = tmp_path / "project"
    package = root / "src" / "thing.py"
    package.parent.mkdir(parents=True)
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(root))
    for version in (1, 2):
        package.write_text(f"version = {version}")
        git(root, "add", ".")
        git(root, "commit", "--quiet", "-m", str(version))
        git(root, "tag", ("old", "new")[version - 1])
    package.write_text("version = 3")
    return root


def run(place: Place, code: str, **own: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=place.directory,
        env=place.environment(own),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines)))
    path.chmod(0o755)
    return path


def test_no_interpreter_given_is_this_one():
    assert find_python(None, "baseline") == Path(sys.executable)


def test_an_interpreter_is_a_file_a_directory_or_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    link = tmp_path / "venv" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to(sys.executable)
    (link.parent / "some-python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(link.parent))
    monkeypatch.chdir(tmp_path)
    # The link itself: what it leads to is outside of the virtual environment.
    assert find_python(str(link), "baseline") == link
    assert find_python("venv", "baseline") == link
    assert find_python("some-python", "baseline") == link.parent / "some-python"


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["echo 3 9"], "is Python 3.9; expected 3.11 or newer"),
        (["echo hello"], f"{RUNS_NOT}'hello'"),
        (["exit 0"], f"{RUNS_NOT}'nothing'"),
        (["echo 'libpython: not found' >&2", "exit 127"], f"{RUNS_NOT}'libpython: not found'"),
    ],
)
def test_what_is_no_fit_python_is_one_line(tmp_path: Path, lines: Sequence[str], problem: str):
    path = script(tmp_path / "python", *lines)
    with pytest.raises(WorkerError) as caught:
        find_python(str(path), "candidate")
    assert str(caught.value) == f"candidate: {path} {problem}"


def test_what_is_not_there_or_cannot_be_run_is_one_line(tmp_path: Path):
    with pytest.raises(WorkerError, match=r"^a: no interpreter /no/python; expected a Python"):
        find_python("/no/python", "a")
    with pytest.raises(WorkerError, match="holds no bin/python; expected a virtual environment"):
        find_python(str(tmp_path), "a")
    (tmp_path / "text").write_text("text")
    with pytest.raises(WorkerError, match=r"text cannot be run: Permission denied$"):
        find_python(str(tmp_path / "text"), "a")


def test_key_and_value_are_split_at_the_first_sign():
    side = make_side(
        "candidate",
        env=["A=1=2", "B="],
        settings=["engine.mode=max-autotune"],
        imports=["plug"],
        ref="main",
    )
    assert side == Side(
        "candidate",
        Path(sys.executable),
        "main",
        {"A": "1=2", "B": ""},
        (("engine.mode", "max-autotune"),),
        ("plug",),
    )


@pytest.mark.parametrize("text", ["A", "=1", " =1", "", "A=\0"])
def test_what_is_no_key_and_value_is_one_line(text: str):
    with pytest.raises(WorkerError, match=r"environment variable .* expected KEY=VALUE, such"):
        make_side("baseline", env=[text])
    with pytest.raises(WorkerError, match=r"setting .* expected KEY=VALUE, such as engine"):
        make_side("baseline", settings=[text])


def test_a_key_given_twice_is_refused():
    with pytest.raises(WorkerError, match="baseline: setting 'a' is given twice"):
        make_side("baseline", settings=["a=1", "a=2"])


def test_each_side_runs_its_own_revision(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # what is left behind is perfline's own
    old = replace(HERE, ref="old")
    as_it_is = Side("candidate", Path(sys.executable))
    code = "import os, thing; print(thing.version, os.getcwd())"
    with places((old, as_it_is), project) as found:
        a, b = found["baseline"], found["candidate"]
        assert run(a, code) == f"1 {a.directory.resolve()}"
        assert run(b, code) == f"3 {project}"
        assert a.commit == git(project, "rev-parse", "--short=12", "old")
        assert b.commit == git(project, "rev-parse", "--short=12", "HEAD") + "-dirty"
        assert git(a.directory, "rev-parse", "HEAD") == git(project, "rev-parse", "old")
    assert not a.directory.exists()
    assert git(project, "worktree", "list", "--porcelain").count("worktree ") == 1
    assert git(project, "status", "--porcelain") == "M src/thing.py"


def test_both_sides_may_be_the_same_revision(project: Path):
    sides = (replace(HERE, ref="old"), Side("candidate", Path(sys.executable), ref="old"))
    with places(sides, project) as found:
        directories = {place.directory for place in found.values()}
    assert len(directories) == 2


def test_a_subdirectory_stays_one(project: Path):
    inside = project / "src"
    with places((replace(HERE, ref="old"),), inside) as found:
        place = found["baseline"]
        assert place.directory.name == "src"
        assert place.project == place.directory  # no src in src
        assert run(place, "import thing; print(thing.version)") == "1"
    (project / "later").mkdir()
    with (
        pytest.raises(WorkerError, match="ref old has no such directory"),
        places((replace(HERE, ref="old"),), project / "later"),
    ):
        pass


def test_perfline_is_found_last_and_brings_nothing_with_it(tmp_path: Path):
    with places((HERE,), tmp_path) as found:
        place = found["baseline"]
        assert os.listdir(place.harness) == ["perfline"]  # noqa: PTH208
        code = "import perfline.compare.worker, sys; print(perfline.__file__)"
        assert Path(run(place, code)).parent.samefile(Path(sides.__file__).parents[1])
    assert not place.harness.exists()


def test_the_side_s_own_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", f"/inherited{os.pathsep}")
    monkeypatch.setenv("GIT_DIR", "/elsewhere")
    monkeypatch.setenv("KEPT", "yes")
    place = Place(tmp_path, tmp_path / "src", Path("/harness"), None)
    found = place.environment({"PYTHONPATH": "/own", "OMP_NUM_THREADS": "3"})
    assert found["PYTHONPATH"].split(os.pathsep) == [
        "/own",
        str(tmp_path / "src"),
        "/inherited",
        "/harness",
    ]
    assert (found["OMP_NUM_THREADS"], found["KEPT"]) == ("3", "yes")
    assert "GIT_DIR" not in found


@pytest.mark.parametrize("ref", ["no-such", "", "--help", "old:src/thing.py", "old..new", "a\nb"])
def test_a_revision_that_git_does_not_know_is_one_line(project: Path, ref: str):
    with (
        pytest.raises(WorkerError, match=r"^baseline: git knows no commit '.*'; see `git branch"),
        places((replace(HERE, ref=ref),), project),
    ):
        pass


def test_a_shallow_clone_says_what_to_fetch(project: Path, tmp_path: Path):
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{project}", "shallow")
    with (
        pytest.raises(WorkerError, match="shallow: `git fetch --unshallow --tags`"),
        places((replace(HERE, ref="old"),), tmp_path / "shallow"),
    ):
        pass


def test_a_directory_without_git_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with (
        pytest.raises(WorkerError, match=f"ref main: {tmp_path} is in no git work tree"),
        places((replace(HERE, ref="main"),), tmp_path),
    ):
        pass
    with places((HERE,), tmp_path) as found:
        assert found["baseline"].commit is None


def test_a_machine_without_git_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with (
        pytest.raises(WorkerError, match="git cannot be run: No such file or directory"),
        places((replace(HERE, ref="old"),), project),
    ):
        pass


def test_a_perfline_that_is_too_old_to_be_a_worker_is_told(project: Path):
    package = project / "src" / "perfline"
    package.mkdir()
    (package / "__init__.py").touch()
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "an old perfline")
    with (
        pytest.raises(WorkerError, match="the perfline of ref main is older than"),
        places((replace(HERE, ref="main"),), project),
    ):
        pass
    assert git(project, "worktree", "list", "--porcelain").count("worktree ") == 1


def test_a_failure_between_leaves_no_work_tree(project: Path):
    sides = (replace(HERE, ref="old"), Side("candidate", Path(sys.executable), ref="no-such"))
    with pytest.raises(WorkerError, match="candidate: git knows no"), places(sides, project):
        pass
    assert git(project, "worktree", "list", "--porcelain").count("worktree ") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, WorkerError])
def test_an_interrupt_leaves_no_work_tree(project: Path, error: type[BaseException]):
    with pytest.raises(error), places((replace(HERE, ref="old"),), project) as found:
        raise error
    assert not found["baseline"].directory.exists()
    assert git(project, "worktree", "list", "--porcelain").count("worktree ") == 1


def test_a_run_that_was_killed_is_cleared_by_the_next(project: Path):
    code = (
        "import sys; from pathlib import Path; from perfline.compare.model import Side\n"
        "from perfline.compare.sides import places\n"
        "side = Side('baseline', Path(sys.executable), ref='old')\n"
        "with places((side,), Path.cwd()) as found:\n"
        "    print(found['baseline'].directory, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().decode().strip())
        with places((replace(HERE, ref="old"),), project):
            assert left.exists()  # it is alive
        other.send_signal(signal.SIGKILL)
    assert left.exists()
    with places((replace(HERE, ref="old"),), project):
        assert not left.parent.exists()
    assert git(project, "worktree", "list", "--porcelain").count("worktree ") == 1


def test_a_tree_that_git_does_not_remove_is_removed(project: Path, tmp_path: Path):
    with sides.work_tree(project, "old", "baseline", tmp_path / "tree"):
        (tmp_path / "tree" / ".git").write_text("gitdir: /nowhere")
    assert not (tmp_path / "tree").exists()
    assert git(project, "worktree", "list", "--porcelain").count("worktree ") == 1


def test_hooks_of_the_repository_are_not_run(project: Path, tmp_path: Path):
    script(project / ".git" / "hooks" / "post-checkout", f"touch {tmp_path / 'ran'}")
    with places((replace(HERE, ref="old"),), project):
        assert not (tmp_path / "ran").exists()


def test_the_variables_of_a_git_hook_do_not_lead_astray(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    git(tmp_path, "init", "--quiet", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    with places((replace(HERE, ref="old"),), project) as found:
        assert run(found["baseline"], "import thing; print(thing.version)") == "1"


OTHER = Side("candidate", Path(sys.executable))
(TINY,) = load_cases(["tiny"])


@pytest.mark.parametrize(
    ("candidate", "old", "new", "text"),
    [
        (OTHER, {"torch": "2.13.0"}, {"torch": "2.13.0"}, "nothing (A/A)"),
        (
            replace(OTHER, python=Path("/b"), settings=(("engine.mode", "max-autotune"),)),
            {"torch": "2.12.0", "numpy": "2"},
            {"torch": "2.13.0", "numpy": "2", "triton": "3"},
            "torch 2.12.0 -> 2.13.0, triton none -> 3, engine.mode default -> max-autotune",
        ),
        (replace(OTHER, python=Path("/b")), {}, {}, f"interpreter {sys.executable} -> /b"),
        (
            replace(OTHER, install=("--pre torch",)),
            {"torch": "2"},
            {"torch": "2"},
            "nothing (A/A)",  # it was there already
        ),
        (
            replace(OTHER, python=Path("/b"), install=("--pre torch", "numpy")),
            {},
            {},
            "+ --pre torch numpy",
        ),
        (
            replace(OTHER, ref="v2"),
            {"commit": "aaa-dirty"},
            {"commit": "bbb"},
            "code working tree (aaa-dirty) -> v2 (bbb)",
        ),
        (
            replace(OTHER, ref="v2"),
            {"commit": "aaa"},
            {"commit": "aaa"},
            "code working tree -> v2 (the same commit aaa)",
        ),
        (replace(OTHER, ref="v2"), {}, {}, "code working tree -> v2"),
        (
            replace(OTHER, env={"X": "1"}, imports=("a", "b")),
            {},
            {},
            "X unset -> 1, imports none -> a b",
        ),
        (replace(OTHER, settings=(("engine.mode", "default"),)), {}, {}, "nothing (A/A)"),
        (
            replace(OTHER, settings=(("engine.dynamic", "false"), ("engine.cpu_threads", "null"))),
            {},
            {},
            "engine.dynamic true -> false, engine.cpu_threads 1 -> null",
        ),
    ],
)
def test_sides_are_described_by_how_they_differ(
    candidate: Side, old: dict[str, str], new: dict[str, str], text: str
):
    assert describe(HERE, candidate, (old, new), TINY) == text


def test_without_its_case_a_setting_is_as_the_case_says():
    changed = replace(OTHER, settings=(("engine.mode", "x"),))
    assert describe(HERE, changed) == "engine.mode as the case says -> x"


def test_a_work_tree_is_recognised_by_its_place():
    scratch = sides.SCRATCH.format(pid=12)
    found = sides._TREE.search(f"/tmp/{scratch}x_9/baseline")
    assert found is not None
    assert found.group(1) == "12"
    assert not re.search(sides._TREE, "/home/me/perfline-12/baseline/src")


def test_bytes_that_are_no_utf_8_are_one_line():
    with pytest.raises(WorkerError) as caught:
        make_side("baseline", env=["X=\udcff"])
    assert str(caught.value) == "baseline: environment variable 'X' is no UTF-8; expected text"
    with pytest.raises(WorkerError, match=r"baseline: setting 'a' is no UTF-8"):
        make_side("baseline", settings=["a=\udcff"])
    with pytest.raises(WorkerError, match=r"^baseline: interpreter '/v.udcff' is no UTF-8"):
        find_python("/v\udcff", "baseline")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"env": ["HF_TOKEN=hunter2\udcff"]}, "environment variable 'HF_TOKEN' is no UTF-8"),
        ({"env": ["HF_TOKEN=hunter2\0"]}, "environment variable 'HF_TOKEN'; expected KEY=VALUE"),
        ({"env": [" =hunter2"]}, "environment variable ' '; expected KEY=VALUE"),
        (
            {"install": ["a @ https://me:hunter2@example.org/\udcff"]},
            r"request 'a @ https://***@example.org/\udcff' is no UTF-8",
        ),
    ],
    ids=["env", "null", "no key", "login"],
)
def test_what_is_refused_is_shown_without_its_value(given: dict[str, list[str]], shown: str):
    with pytest.raises(WorkerError) as caught:
        make_side("baseline", **given)
    assert str(caught.value).startswith(f"baseline: {shown}")
    assert "hunter2" not in str(caught.value)


def test_a_home_that_is_not_there_is_one_line():
    with pytest.raises(WorkerError, match=r"^a: no interpreter ~nosuchuser/v: its ~ leads to no"):
        find_python("~nosuchuser/v", "a")
