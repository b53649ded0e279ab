"""perf.yml, baseline.yml and upgrade.yml: every step in order, in a clone of this tree.

A first run finds no baseline and fails, since it is strict; its record becomes one through a pull
request. ``gh`` is a stub that notes what it is asked; git is real, and pushes to the origin. Of
upgrade.yml, uv and the comparison are stubs, too: they need a network, and other versions.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest

import actions
from tinier import make_small

HERE = "owner/perfline"
SHA = "0123456789abcdef0123456789abcdef01234567"
REASON = 'first $(touch pwned) `touch pwned` "; touch pwned; # $(shell touch pwned) ```'
ADDOPTS = "-p no:cacheprovider --questions=20 --verify=2 --engines=eager"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def committed(folder: Path) -> Path:
    """This work tree, as it is now, as the only commit of a repository."""
    names = git(actions.REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, names.split("\0")):
        if (actions.REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(actions.REPOSITORY / name, folder / name)
    make_small(folder / "src" / "perfline")
    shutil.rmtree(folder / "baselines", ignore_errors=True)
    shutil.copytree(actions.REPOSITORY / "baselines/published", folder / "baselines/published")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=all")
    return folder


def environment_made(folder: Path) -> None:
    """``make setup`` finds its work done: the packages are those of this interpreter."""
    folder.mkdir(exist_ok=True)
    (folder / "bin").symlink_to(sysconfig.get_path("scripts"))
    for extras in ("gpu-report", "report"):
        (folder / f"installed-{extras}").touch()  # newer than any file of the clone
        os.utime(folder / f"installed-{extras}", (2**32 - 1, 2**32 - 1))


def github_cli(folder: Path) -> None:
    """A ``gh`` that answers about the run 17 and notes everything else."""
    run = {
        "path": ".github/workflows/perf.yml",
        "status": "completed",
        "conclusion": "failure",
        "repository": {"full_name": HERE},
        "head_repository": {"full_name": HERE},
        "html_url": f"https://github.com/{HERE}/actions/runs/17",
        "event": "schedule",
        "head_branch": "main",
        "head_sha": SHA,
        "run_started_at": "2026-11-22T02:17:00Z",
    }
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "gh").write_text(
        f"""#!{sys.executable}
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
assert os.environ["GH_TOKEN"] == "a-token"
if sys.argv[1:] == ["api", "repos/{HERE}/actions/runs/17"]:
    print((here / "run.json").read_text())
else:
    (here / "asked.json").write_text(json.dumps(sys.argv[1:]))
    body = sys.argv[sys.argv.index("--body-file") + 1]
    (here / "body.md").write_text(pathlib.Path(body).read_text())
"""
    )
    (folder / "gh").chmod(0o755)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> actions.Machine:
    folder = tmp_path_factory.mktemp("actions")
    github_cli(folder / "bin")
    (folder / "jobs").mkdir()
    (folder / "weights").mkdir()
    github = {
        "event_name": "schedule",
        "event": {"repository": {"default_branch": "main"}},
        "repository": HERE,
        "ref_name": "main",
        "run_id": "18",
        "actor": "someone",
        "token": "a-token",
    }
    variables = {"PERFLINE_CASES": "tiny", "PERFLINE_DATA_DIR": str(folder / "weights")}
    return actions.Machine(
        folder=folder / "jobs",
        origin=committed(folder / "origin"),
        environment={
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "PYTHON": sys.executable,
            **{k: v for k, v in os.environ.items() if k == "TORCHINDUCTOR_CACHE_DIR"},
            "PYTHONPATH": "src",
            "PYTEST_ADDOPTS": ADDOPTS,
            "VENV": str(folder / "venv"),
        },
        contexts={"github": github, "inputs": {}, "vars": variables},
    )


@pytest.fixture(scope="module")
def measured(machine: actions.Machine) -> dict[str, actions.Step]:
    """All steps of perf.yml."""
    environment_made(Path(machine.environment["VENV"]))
    return {step.name: step for step in machine.run(actions.load("perf.yml"), "measure")}


@pytest.fixture(scope="module")
def proposed(
    machine: actions.Machine, measured: dict[str, actions.Step]
) -> dict[str, actions.Step]:
    """All steps of baseline.yml, for the record of perf.yml, on another machine."""
    inputs = {"run_id": "17", "cases": "tiny", "reason": REASON, "add": False}
    environment_made(venv := machine.folder.parent / "hosted")
    hosted = replace(
        machine,
        environment={**machine.environment, "VENV": str(venv)},
        contexts={**machine.contexts, "inputs": {**inputs, "accept_regression": False}},
    )
    workflow = actions.load("baseline.yml")
    steps = [step for job in ("update", "pull-request") for step in hosted.run(workflow, job)]
    machine.summary = hosted.summary
    return {step.name: step for step in steps}


def outcomes(steps: dict[str, actions.Step]) -> dict[str, str]:
    return {name: step.outcome for name, step in steps.items()}


def test_a_run_without_a_baseline_fails_and_keeps_what_it_measured(machine, measured):
    assert outcomes(measured) == {
        "actions/checkout": "success",
        "Install": "success",
        "Is the machine ready?": "success",
        "Measure and compare": "failure",  # strict: what was not compared is not green
        "The page": "success",
        "Keep the record": "success",
        "Keep the page": "success",
        "Leave nothing behind": "success",
    }, "\n".join(step.output for step in measured.values())
    assert "ready: 1 of 1 cases" in measured["Is the machine ready?"].output
    assert "missing" in measured["Measure and compare"].output


def test_its_artifacts_are_the_record_and_the_page(machine, measured):
    kept = {
        name: sorted(p.name for p in path.iterdir()) for name, path in machine.artifacts.items()
    }
    assert kept["perfline-record"] == ["benchmark.json", "junit.xml", "run.json"]
    assert kept["report.html"] == ["report.html"]
    record = json.loads((machine.artifacts["perfline-record"] / "run.json").read_text())
    assert list(record["cases"]) == ["tiny"]
    assert "missing" in (machine.artifacts["report.html"] / "report.html").read_text()


def test_its_summary_says_the_verdict(machine, measured):
    assert "missing" in machine.summary
    assert "p_val_core" in machine.summary


def test_it_leaves_nothing_behind(machine, measured):
    (workspace,) = machine.folder.glob("measure-*/workspace")
    left = git(workspace, "status", "--porcelain", "--ignored").splitlines()
    assert [line for line in left if not line.endswith("__pycache__/")] == []
    assert not Path(machine.environment["VENV"]).exists()


def test_the_record_becomes_a_baseline_through_a_pull_request(machine, proposed):
    assert set(outcomes(proposed).values()) == {"success"}, "\n".join(
        step.output for step in proposed.values()
    )
    branch = "perfline/baseline-17-18"
    changed = git(machine.origin, "diff", "--name-status", "main", branch).split("\n")
    ((status, path),) = [line.split("\t") for line in changed if line]
    assert (status, Path(path).name) == ("A", "tiny.json")
    stored = json.loads(git(machine.origin, "show", f"{branch}:{path}"))
    assert stored["throughput"]["sessions"][0]["reason"] == REASON
    subjects = stored["accuracy"]["eager"]["subjects"].values()
    assert sum(len(subject["letters"]) for subject in subjects) == 20


def test_the_pull_request_shows_old_and_new_and_whose_decision_it_was(machine, proposed):
    asked = json.loads((machine.folder.parent / "bin" / "asked.json").read_text())
    given = dict(zip(asked[2::2], asked[3::2], strict=True))
    assert asked[:2] == ["pr", "create"]
    assert (given["--base"], given["--head"]) == ("main", "perfline/baseline-17-18")
    assert given["--title"] == f"Baselines of tiny: {REASON}"
    body = (machine.folder.parent / "bin" / "body.md").read_text()
    assert re.search(r"p_val_core +tok/s +- +\d+", body)  # no old value, a new one
    assert f"reason       {REASON}" in body
    assert "run 17 (schedule, ended as failure)" in body
    assert f"main, commit {SHA}" in body
    assert "accepted by  someone" in body
    assert machine.summary.endswith(body)


def test_what_is_typed_into_the_form_stays_text(machine, proposed):
    assert not list(machine.folder.parent.rglob("pwned"))


def console(document: str) -> list[str]:
    """Commands behind ``$`` in a document's console blocks."""
    text = (actions.REPOSITORY / "docs" / document).read_text()
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_commands_of_the_runners_document_work(machine, proposed):
    """What docs/runner.md shows of make is a step above; what it shows of perfline runs here."""
    targets = {
        step["run"].split()[1]
        for name in actions.WORKFLOWS.glob("*.yml")
        for job in actions.load(name.name)["jobs"].values()
        for step in job["steps"]
        if "run" in step
    }
    (workspace,) = machine.folder.glob("update-*/workspace")
    shown = [shlex.split(command, comments=True) for command in console("runner.md")]
    assert {words[1] for words in shown if words[0] == "make"} <= targets
    ours = [words for words in shown if words[0] == "perfline"]
    assert ours
    for _, *words in ours:
        done = subprocess.run(
            [sys.executable, "-m", "perfline", *words],
            cwd=workspace,
            env=machine.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"perfline {shlex.join(words)}: {done.stdout}{done.stderr}"


UV = """#!{python}
# In place of uv: `pip compile` writes a newer torch into the lock; for a row it resolves nothing.
import pathlib, sys
words = sys.argv[1:]
if words[:2] == ["python", "find"]:
    sys.exit(print(sys.executable))
if "--universal" not in words:
    sys.exit("error: no network here")
output = pathlib.Path(words[words.index("--output-file") + 1])
output.write_text("torch==2.99.0\\nttt==1\\n")
"""
COMPARE = """#!{python}
# In place of `perfline compare`: notes what it was asked, writes a table, ends as it was told to.
import json, pathlib, sys
words, here = sys.argv[1:], pathlib.Path(__file__).parent
(here / "asked.json").write_text(json.dumps(words))
pathlib.Path(words[words.index("--markdown") + 1]).write_text("| core_time | verdict |\\n")
sys.exit(int((here / "status").read_text()))
"""
OPENED = """#!{python}
# In place of gh: nothing is open; what is created is kept, with its text.
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
assert os.environ["GH_TOKEN"] == "a-token"
if "list" in sys.argv:
    print("[]")
else:
    body = pathlib.Path(sys.argv[sys.argv.index("--body-file") + 1]).read_text()
    (here / "created.json").write_text(json.dumps([*sys.argv[1:], body]))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return committed(tmp_path_factory.mktemp("upgrade") / "tree")


@pytest.fixture
def upgrading(tmp_path: Path, tree: Path) -> actions.Machine:
    """A machine for upgrade.yml: its uv, ``perfline`` and gh are the programs above."""
    for folder in ("bin", "jobs", "venv/bin", "venv-uv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    programs = {"bin/gh": OPENED, "venv/bin/perfline": COMPARE, "venv-uv/bin/uv": UV}
    for name, text in programs.items():
        (tmp_path / name).write_text(text.format(python=sys.executable))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "venv/installed-gpu-report").touch()
    os.utime(tmp_path / "venv/installed-gpu-report", (2**32 - 1, 2**32 - 1))
    (tmp_path / "venv/bin/status").write_text("0")
    git(tmp_path, "clone", "--quiet", "--bare", str(tree), "origin")
    github = {
        "event_name": "schedule",
        "event": {"repository": {"default_branch": "main", "fork": False}},
        "repository": HERE,
        "ref_name": "main",
        "run_id": "18",
        "token": "a-token",
    }
    return actions.Machine(
        folder=tmp_path / "jobs",
        origin=tmp_path / "origin",
        environment={
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "LANG": "C.UTF-8",
            "PYTHON": sys.executable,
            "VENV": str(tmp_path / "venv"),
        },
        contexts={
            "github": github,
            "inputs": {},
            "vars": {"PERFLINE_GPU": "yes", "PERFLINE_CASES": "tiny,$(touch pwned)"},
        },
    )


def ended(steps: list[actions.Step]) -> str:
    """How a job of these steps ends."""
    if not steps:
        return "skipped"
    return "failure" if any(step.outcome == "failure" for step in steps) else "success"


def weekly(machine: actions.Machine, newest: str | None = None) -> dict[str, list[actions.Step]]:
    """The three jobs of upgrade.yml; ``newest``: how the first is said to have ended."""
    workflow, jobs = actions.load("upgrade.yml"), {}
    needs: dict[str, dict[str, str]] = {}
    for name in ("newest", "compare", "propose"):
        machine.contexts["needs"] = needs
        jobs[name] = machine.run(workflow, name)
        needs[name] = {"result": newest if name == "newest" and newest else ended(jobs[name])}
    return jobs


def created(machine: actions.Machine) -> list[str]:
    return json.loads((machine.folder.parent / "bin/created.json").read_text())


def test_newest_versions_that_pass_and_are_as_fast_move_the_lock(upgrading: actions.Machine):
    jobs = weekly(upgrading, newest="success")
    told = "\n".join(step.output for steps in jobs.values() for step in steps)
    assert (ended(jobs["compare"]), ended(jobs["propose"])) == ("success", "success"), told
    lock = git(upgrading.origin, "show", "perfline/upgrade:constraints.txt")
    assert lock.endswith("\ntorch==2.99.0\nttt==1\n")
    names = git(upgrading.origin, "diff", "--name-only", "main", "perfline/upgrade")
    assert names == "constraints.txt\n"
    words = created(upgrading)
    assert words[:2] == ["pr", "create"]
    assert "| core_time | verdict |" in words[-1]
    assert "torch==2.99.0" in words[-1]


def test_a_verdict_that_is_not_ok_is_an_issue_and_the_lock_stays(upgrading: actions.Machine):
    (upgrading.folder.parent / "venv/bin/status").write_text("1")
    jobs = weekly(upgrading, newest="success")
    assert (ended(jobs["compare"]), ended(jobs["propose"])) == ("failure", "success")
    assert created(upgrading)[:2] == ["issue", "create"]
    assert "| core_time | verdict |" in created(upgrading)[-1]
    assert "perfline/upgrade" not in git(upgrading.origin, "branch", "--list")


def test_a_row_that_fails_is_an_issue_where_there_is_no_gpu(upgrading: actions.Machine):
    upgrading.contexts["vars"] = {}
    jobs = weekly(upgrading)
    assert [ended(steps) for steps in jobs.values()] == ["failure", "skipped", "success"]
    assert created(upgrading)[:2] == ["issue", "create"]
    assert (
        "| newest | - | - | - | - | **failed**: error: no network here |" in created(upgrading)[-1]
    )


def test_what_is_compared_is_the_lock_with_the_pins_that_changed(upgrading: actions.Machine):
    binaries = upgrading.folder.parent / "venv/bin"
    workflow = actions.load("upgrade.yml")
    workflow["jobs"]["compare"]["steps"].pop()  # `make clean` takes the environment away
    steps = upgrading.run(workflow, "compare")
    assert ended(steps) == "success", "\n".join(step.output for step in steps)
    seen = json.loads((binaries / "asked.json").read_text())
    assert seen[:3] == ["compare", "tiny", "$(touch pwned)"]
    assert "--strict" in seen
    assert seen[seen.index("--candidate-install") + 1] == "-r results/changed.txt"
    changed = (upgrading.artifacts["perfline-upgrade"] / "results/changed.txt").read_text()
    assert changed == "torch==2.99.0\nttt==1\n"
    assert not list(upgrading.folder.parent.rglob("pwned"))
