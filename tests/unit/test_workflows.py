"""Are the workflows hardened, and do the scripts that they rest on refuse what they must?"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import actions
from perfline.cli import doctor

SCRIPT = actions.REPOSITORY / "scripts" / "proposals.py"
HOOK = actions.REPOSITORY / "scripts" / "runner_job_started.sh"
MAKEFILE = actions.REPOSITORY / "Makefile"
FILES = sorted(path.name for path in actions.WORKFLOWS.glob("*.yml"))
HERE = "owner/perfline"


def jobs() -> list[Any]:
    found = [
        (file, name, job) for file in FILES for name, job in actions.load(file)["jobs"].items()
    ]
    return [pytest.param(job, id=f"{file}-{name}") for file, name, job in found]


def test_these_are_the_workflows():
    assert FILES == ["baseline.yml", "ci.yml", "perf.yml", "upgrade.yml"]


@pytest.mark.parametrize("job", jobs())
def test_a_job_has_a_limit_and_names_its_permissions(job):
    assert 0 < job["timeout-minutes"] <= 180
    assert job["permissions"]["contents"] in ("read", "write")


def test_no_permission_is_given_beyond_the_jobs():
    assert [actions.load(file)["permissions"] for file in FILES] == [{}] * len(FILES)


def test_only_the_job_that_opens_pull_requests_can_write():
    can_write = [
        (file, name)
        for file in FILES
        for name, job in actions.load(file)["jobs"].items()
        if "write" in job["permissions"].values()
    ]
    assert can_write == [("baseline.yml", "pull-request"), ("upgrade.yml", "propose")]


@pytest.mark.parametrize(
    ("file", "job", "target"),
    [
        ("baseline.yml", "pull-request", "baseline-pull-request"),
        ("upgrade.yml", "propose", "upgrade-proposal"),
    ],
)
def test_what_can_write_installs_nothing(file, job, target):
    steps = actions.load(file)["jobs"][job]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [f"make {target}"]
    recipe = re.search(rf"(?m)^{target}:\n((?:\t.*\n)+)", MAKEFILE.read_text())
    assert recipe is not None
    assert re.fullmatch(r"\t\$\(PYTHON\) scripts/proposals.py [a-z]+\n", recipe[1])


def test_quick_shares_one_baseline_among_all_machines_of_one_architecture(tmp_path):
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "pytest"
    stub.write_text('#!/bin/sh\necho "$PERFLINE_MACHINE $ATEN_CPU_CAPABILITY $*"\n')
    stub.chmod(0o755)
    (tmp_path / "installed-test").touch()
    os.utime(
        tmp_path / "installed-test", (2**32 - 1, 2**32 - 1)
    )  # `make setup` finds its work done
    given = {
        "PATH": os.environ["PATH"],
        "PERFLINE_MACHINE": "mine",
        "ATEN_CPU_CAPABILITY": "avx512",
    }
    command = ["make", "--silent", "quick", f"VENV={tmp_path}"]
    done = subprocess.run(
        command, cwd=actions.REPOSITORY, env=given, capture_output=True, text=True, check=True
    )
    both = f"any-{platform.machine()} avx2 tests/accuracy tests/perf -m quick --cases "
    assert [line.startswith(both) for line in done.stdout.splitlines()] == [True, True]


@pytest.mark.parametrize("job", jobs())
def test_every_action_is_pinned_by_its_commit(job):
    for step in job["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"])


@pytest.mark.parametrize("file", FILES)
def test_every_pin_says_its_version_and_one_action_has_one_pin(file):
    text = (actions.WORKFLOWS / file).read_text()
    pins = re.findall(r"uses: (\S+)@(\S+)(?: # (v\d+\.\d+\.\d+))?$", text, re.MULTILINE)
    assert len(pins) == text.count("uses:")
    assert all(version for _, _, version in pins)
    assert len({(name, pin, version) for name, pin, version in pins}) == len({p[0] for p in pins})


@pytest.mark.parametrize("job", jobs())
def test_a_step_is_one_make_target_without_anything_filled_in(job):
    for step in job["steps"]:
        if "run" in step:
            assert re.fullmatch(r"make [a-z-]+", step["run"])


@pytest.mark.parametrize("job", jobs())
def test_no_secret_but_the_token_and_that_only_where_it_is_used(job):
    assert "secrets." not in json.dumps(job)
    holders = [step["name"] for step in job["steps"] if "github.token" in json.dumps(step)]
    assert set(holders) <= {
        "Is it a finished run of perf.yml, of this repository?",
        "Get its record",
        "Push a branch, open a pull request",
        "Tell people",
    }
    assert "github.token" not in json.dumps(job.get("env", {}))


def pull_request(head: str | None, label: str = "perf") -> dict[str, Any]:
    repo = None if head is None else {"full_name": head}
    return {"label": {"name": label}, "pull_request": {"head": {"repo": repo}}}


EVENTS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "nightly": ("schedule", {}, True),
    "nightly in a fork": ("schedule", {"repository": {"fork": True}}, False),
    "by hand": ("workflow_dispatch", {"repository": {"fork": False}}, True),
    "labelled": ("pull_request", pull_request(HERE), True),
    "labelled otherwise": ("pull_request", pull_request(HERE, "bug"), False),
    "of a fork": ("pull_request", pull_request("someone/perfline"), False),
    "of a deleted fork": ("pull_request", pull_request(None), False),
}


@pytest.mark.parametrize(("event", "payload", "runs"), EVENTS.values(), ids=EVENTS)
def test_perf_runs_no_code_of_forks(event: str, payload: dict[str, Any], runs: bool):
    for job in actions.load("perf.yml")["jobs"].values():
        github = {"event_name": event, "event": payload, "repository": HERE}
        contexts = {"github": github, "success": lambda: True}
        assert actions.condition(job["if"], contexts) is runs


def test_a_push_to_a_labelled_pull_request_starts_nothing():
    assert actions.load("perf.yml")["on"]["pull_request"] == {"types": ["labeled"]}


def test_these_are_on_the_machine_and_no_two_jobs_share_it():
    for file in FILES:
        for name, job in actions.load(file)["jobs"].items():
            if "self-hosted" in job["runs-on"]:
                assert (file, name) in [("perf.yml", "measure"), ("upgrade.yml", "compare")]
                assert job["concurrency"] == {
                    "group": "perfline-gpu",
                    "cancel-in-progress": False,
                    "queue": "max",
                }


@pytest.mark.parametrize("status", ["success", "failure"])
def test_what_was_measured_is_kept_and_the_machine_cleaned_whatever_came_before(status):
    (job,) = actions.load("perf.yml")["jobs"].values()
    contexts = {
        "always": lambda: True,
        "success": lambda: status == "success",
        "hashFiles": lambda path: "hash",
    }
    ran = [
        s["name"] for s in job["steps"] if actions.condition(s.get("if"), contexts) and "if" in s
    ]
    assert ran == ["The page", "Keep the record", "Keep the page", "Leave nothing behind"]
    assert job["steps"][-1]["run"] == "make clean"


@pytest.mark.parametrize(
    ("fork", "branch", "variable", "runs"),
    [
        (False, "main", "", ["newest"]),
        (False, "main", "yes", ["newest", "compare"]),
        (True, "main", "yes", []),
        (False, "someones-branch", "yes", []),
    ],
)
def test_an_upgrade_is_looked_at_on_the_default_branch_and_on_a_gpu_where_there_is_one(
    fork, branch, variable, runs
):
    jobs = actions.load("upgrade.yml")["jobs"]
    event = {"repository": {"default_branch": "main", "fork": fork}}
    contexts = {"github": {"ref_name": branch, "event": event}, "success": lambda: True}
    contexts["vars"] = {"PERFLINE_GPU": variable}
    found = [n for n in ("newest", "compare") if actions.condition(jobs[n]["if"], contexts)]
    assert found == runs
    results = {name: {"result": "failure" if name in runs else "skipped"} for name in jobs}
    contexts |= {"always": lambda: True, "needs": results}
    assert actions.condition(jobs["propose"]["if"], contexts) is bool(runs)


def test_a_baseline_is_accepted_on_the_default_branch_only():
    job = actions.load("baseline.yml")["jobs"]["update"]
    github = {"ref_name": "main", "event": {"repository": {"default_branch": "main"}}}
    assert actions.condition(job["if"], {"github": github, "success": lambda: True})
    github["ref_name"] = "someones-branch"
    assert not actions.condition(job["if"], {"github": github, "success": lambda: True})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'a' == 'A' && 'x' || 'y'", "x"),
        ("!github.none && (github.n != 'b' || false)", True),
        ("github.none || 'it''s'", "it's"),
    ],
)
def test_the_emulated_expressions_are_those_of_github(text, value):
    assert actions.evaluate(text, {"github": {"n": "b2"}}) == value


RUN = {
    "path": ".github/workflows/perf.yml@refs/heads/main",
    "status": "completed",
    "conclusion": "failure",
    "repository": {"full_name": HERE},
    "head_repository": {"full_name": HERE},
    "html_url": "https://github.com/owner/perfline/actions/runs/17",
    "event": "schedule",
    "head_branch": "main",
    "head_sha": "0" * 40,
    "run_started_at": "2026-11-22T02:17:00Z",
}


def checked(
    folder: Path, run: dict[str, Any], run_id: str = "17"
) -> subprocess.CompletedProcess[str]:
    """``make baseline-source`` with a ``gh`` that answers with ``run``."""
    (folder / "bin").mkdir()
    gh = folder / "bin" / "gh"
    gh.write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\ncat {folder}/run.json\n')
    gh.chmod(0o755)
    (folder / "run.json").write_text(json.dumps(run))
    return subprocess.run(
        [sys.executable, SCRIPT, "source"],
        cwd=folder,
        env={
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "RUN_ID": run_id,
            "GITHUB_REPOSITORY": HERE,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_source_of_a_record_is_written_down(tmp_path: Path):
    done = checked(tmp_path, RUN)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text() == f"api repos/{HERE}/actions/runs/17\n"
    facts = json.loads((tmp_path / "source.json").read_text())
    assert (facts["run_id"], facts["conclusion"]) == ("17", "failure")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"path": ".github/workflows/ci.yml"}, "is of .github/workflows/ci.yml"),
        ({"head_repository": {"full_name": "someone/perfline"}}, "forks are never accepted"),
        ({"head_repository": None}, "head_repository is gone"),
        ({"repository": {"full_name": "someone/perfline"}}, "forks are never accepted"),
        ({"status": "in_progress"}, "wait for its end"),
        ({"conclusion": "cancelled"}, "ended as cancelled"),
    ],
)
def test_the_record_of_another_run_is_refused_in_one_line(tmp_path: Path, change, reason):
    done = checked(tmp_path, {**RUN, **change})
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_run_id_that_is_none_is_refused_before_anything_is_asked(tmp_path: Path):
    done = checked(tmp_path, RUN, "17/../../../user")
    assert done.returncode == 2
    assert "RUN_ID is '17/../../../user'" in done.stderr
    assert not (tmp_path / "asked").exists()


@pytest.fixture
def accepted(tmp_path: Path) -> Path:
    """A clone whose ``accepted/`` holds a baseline, and what has no place there."""
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    for command in (
        ["git", "init", "--quiet", "--bare", "--initial-branch=main", origin],
        ["git", "clone", "--quiet", origin, clone],
        [
            *("git", "-C", clone, "-c", "user.name=t", "-c", "user.email=t@example.org"),
            *("commit", "--quiet", "--allow-empty", "--message=first"),
        ],
    ):
        subprocess.run(command, check=True, capture_output=True)
    facts = {**{key: str(value) for key, value in RUN.items()}, "run_id": "17"}
    files = {
        "baselines/gpu/llama3-8b.json": "{}",
        "baselines/published/tiny.json": "{}",
        "baselines/gpu/notes.txt": "",
        ".github/workflows/own.yml": "on: push",
        "source.json": json.dumps(facts),
        "results/update.txt": "p_infer_core  9 -> 10  ```` @everyone",
    }
    for name, text in files.items():
        (clone / "accepted" / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / "accepted" / name).write_text(text)
    (clone / "accepted/baselines/gpu/passwd.json").symlink_to("/etc/passwd")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gh").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tmp_path / "bin/gh").chmod(0o755)
    return clone


def proposed(clone: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """``make baseline-pull-request``."""
    environment = {
        "PATH": f"{clone.parent / 'bin'}:{os.environ['PATH']}",
        "HOME": str(clone.parent),
        "REASON": "torch\n2.13",
        "GITHUB_REF_NAME": "main",
        "GITHUB_RUN_ID": "18",
        "GITHUB_REPOSITORY": "owner/perfline",
        **variables,
    }
    return subprocess.run(
        [sys.executable, SCRIPT, "propose"],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_only_baselines_get_into_the_pull_request(accepted: Path):
    done = proposed(accepted)
    assert done.returncode == 0, done.stderr
    shown = ["git", "show", "--name-only", "--format=%s", "perfline/baseline-17-18"]
    text = subprocess.run(
        shown, cwd=accepted.parent / "origin", check=True, capture_output=True, text=True
    ).stdout
    assert text == "Baselines of llama3-8b: torch 2.13\n\nbaselines/gpu/llama3-8b.json\n"
    assert "--title Baselines of llama3-8b: torch 2.13" in (accepted.parent / "asked").read_text()


def test_the_table_stays_text_in_the_pull_request(accepted: Path):
    proposed(accepted)
    body = (accepted / "accepted" / "body.md").read_text()
    assert "`````text\np_infer_core  9 -> 10  ```` @everyone\n`````\n" in body


def test_the_address_of_the_run_is_made_here_and_not_read(accepted: Path):
    source = accepted / "accepted" / "source.json"
    source.write_text(json.dumps({**json.loads(source.read_text()), "html_url": "x\n# closes #1"}))
    assert proposed(accepted).returncode == 0
    body = (accepted / "accepted" / "body.md").read_text()
    assert "closes" not in body
    assert body.startswith("Accepts what https://github.com/owner/perfline/actions/runs/17 has")


@pytest.mark.parametrize(
    ("remove", "variables", "reason"),
    [
        ("baselines", {}, "accepted: holds no baseline"),
        ("results", {}, "update.txt cannot be read"),
        ("source.json", {}, "source.json cannot be read"),
        (None, {"REASON": " "}, "REASON is not set"),
    ],
)
def test_what_cannot_be_proposed_is_one_line(accepted: Path, remove, variables, reason):
    if remove is not None:
        lost = accepted / "accepted" / remove
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    done = proposed(accepted, **variables)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_gh_one_line_says_so(accepted: Path):
    (accepted.parent / "bin" / "gh").unlink()
    (accepted.parent / "bin" / "git").symlink_to(str(shutil.which("git")))
    done = proposed(accepted, PATH=str(accepted.parent / "bin"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "`gh` is not installed" in done.stderr


def test_a_baseline_that_is_there_already_is_not_proposed(accepted: Path):
    assert proposed(accepted).returncode == 0
    done = proposed(accepted, GITHUB_RUN_ID="19")
    assert (done.returncode, "nothing to propose" in done.stderr) == (2, True)


NEW_PINS = """\
# Made by `make lock`
torch==2.15.0
triton==3.9.0 ; python_full_version == '3.15.*' and sys_platform == 'linux'
"""
GH = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with (here / "asked.jsonl").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if "list" in sys.argv:
    print((here / "open.json").read_text())
"""


@pytest.fixture
def upgraded(tmp_path: Path) -> Path:
    """A clone with an older lock, whose ``found/`` holds what the jobs of upgrade.yml leave."""
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q", "--bare", "-b", "main", origin], check=True)
    subprocess.run([*git, "clone", "-q", origin, clone], check=True, capture_output=True)
    (clone / "constraints.txt").write_text("torch==2.13.0\n")
    subprocess.run([*git, "add", "--all"], cwd=clone, check=True)
    subprocess.run([*git, "commit", "-qm", "first"], cwd=clone, check=True)
    files = {
        "constraints.txt": NEW_PINS,
        "docs/versions.md": "| row | result |\n| lock | x |\n| newest | passed ``` @all |\n",
        "results/changed.txt": "torch==2.15.0\n",
        "results/upgrade.md": "| core_time | ok |\ncloses #1\n",
        ".github/workflows/own.yml": "on: push",
    }
    for name, text in files.items():
        (clone / "found" / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / "found" / name).write_text(text)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gh").write_text(GH.format(python=sys.executable))
    (tmp_path / "bin/gh").chmod(0o755)
    (tmp_path / "bin/open.json").write_text("[]")
    return clone


def told(clone: Path, newest: str, compare: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    """``make upgrade-proposal``, and what it asked of ``gh``."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "upgrade"],
        cwd=clone,
        env={
            "PATH": f"{clone.parent / 'bin'}:{os.environ['PATH']}",
            "HOME": str(clone.parent),
            "NEWEST": newest,
            "COMPARE": compare,
            "GITHUB_REF_NAME": "main",
            "GITHUB_RUN_ID": "18",
            "GITHUB_REPOSITORY": HERE,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    asked = clone.parent / "bin" / "asked.jsonl"
    lines = asked.read_text().splitlines() if asked.exists() else []
    return done, [json.loads(line) for line in lines]


def test_an_upgrade_that_passes_is_one_pull_request_that_moves_the_lock_alone(upgraded: Path):
    done, (issues, listed, created) = told(upgraded, "success", "success")
    assert done.returncode == 0, done.stderr
    assert issues[:2] == ["issue", "list"]
    assert listed[:2] == ["pr", "list"]
    assert listed[listed.index("--app") + 1] == "github-actions"
    given = dict(zip(created[2::2], created[3::2], strict=True))
    assert created[:2] == ["pr", "create"]
    assert (given["--head"], given["--base"]) == ("perfline/upgrade", "main")
    shown = ["git", "show", "--name-only", "--format=%s", "perfline/upgrade"]
    origin = upgraded.parent / "origin"
    text = subprocess.run(shown, cwd=origin, check=True, capture_output=True, text=True).stdout
    assert text == "Upgrade to the newest versions\n\nconstraints.txt\n"
    body = (upgraded / given["--body-file"]).read_text()
    assert "```text\n| core_time | ok |\ncloses #1\n```" in body
    assert "````text\n| row | result |\n| newest | passed ``` @all |\n````" in body
    assert f"https://github.com/{HERE}/actions/runs/18" in body


def test_the_next_upgrade_brings_the_open_pull_request_up_to_date(upgraded: Path):
    assert told(upgraded, "success", "success")[0].returncode == 0
    subprocess.run(["git", "switch", "-q", "-"], cwd=upgraded, check=True)
    subprocess.run(["git", "branch", "-qD", "perfline/upgrade"], cwd=upgraded, check=True)
    (upgraded / "found/constraints.txt").write_text("torch==2.16.0\n")
    held = [{"number": 7, "title": "Upgrade to the newest versions"}]
    (upgraded.parent / "bin/open.json").write_text(json.dumps(held))
    done, asked = told(upgraded, "success", "success")
    assert done.returncode == 0, done.stderr
    assert asked[-1][:3] == ["pr", "edit", "7"]
    shown = ["git", "show", "perfline/upgrade:constraints.txt"]
    origin = upgraded.parent / "origin"
    text = subprocess.run(shown, cwd=origin, check=True, capture_output=True, text=True).stdout
    assert text == "torch==2.16.0\n"


@pytest.mark.parametrize(
    ("newest", "compare"), [("failure", "skipped"), ("failure", "success"), ("success", "failure")]
)
def test_an_upgrade_that_does_not_pass_is_one_issue(upgraded: Path, newest: str, compare: str):
    done, (listed, created, _) = told(upgraded, newest, compare)
    assert done.returncode == 0, done.stderr
    assert listed[:2] == ["issue", "list"]
    assert listed[listed.index("--app") + 1] == "github-actions"
    assert created[:4] == ["issue", "create", "--title", "The newest versions do not pass"]
    body = (upgraded / created[5]).read_text()
    assert f"`make matrix ROWS=newest`: {newest}" in body
    assert f"the lock against the newest: {compare}" in body
    assert "| core_time | ok |" in body


def test_the_open_issue_is_brought_up_to_date_and_another_is_left_alone(upgraded: Path):
    title = "The newest versions do not pass"
    held = [{"number": 3, "title": f"{title} here"}, {"number": 9, "title": title}]
    (upgraded.parent / "bin/open.json").write_text(json.dumps(held))
    shutil.rmtree(upgraded / "found")  # no job got as far as leaving anything
    done, asked = told(upgraded, "failure", "skipped")
    assert done.returncode == 0, done.stderr
    assert [words[:3] for words in asked if "list" not in words] == [["issue", "edit", "9"]]
    assert "(nothing)" in (upgraded / asked[1][4]).read_text()


TITLE = "The newest versions do not pass"


def compared(clone: Path, **words: str) -> None:
    """Leave a comparison's record, and what was isolated."""
    cases = {
        name.replace("_", "-"): {"verdicts": [{"metric": "mem", "word": "ok"}, {"word": word}]}
        for name, word in words.items()
    }
    (clone / "found/results/compare.json").write_text(json.dumps({"cases": cases}))
    (clone / "found/results/isolate.md").write_text("## transformers did it: +4.8 % ``` @all\n")


def test_each_case_that_is_worse_has_an_issue_with_what_did_it(upgraded: Path):
    compared(upgraded, llama3_8b="regressed", deepseek_7b="improved", tiny="unsure")
    done, asked = told(upgraded, "success", "failure")
    assert done.returncode == 0, done.stderr
    created = [words for words in asked if "create" in words]
    assert [words[3] for words in created] == [f"{TITLE}: llama3-8b", f"{TITLE}: tiny"]
    body = (upgraded / created[0][5]).read_text()
    assert "`perfline isolate`: which package did it" in body
    assert "````text\n## transformers did it: +4.8 % ``` @all\n````" in body


def test_an_issue_is_closed_when_its_finding_is_gone_and_no_other_is(upgraded: Path):
    compared(upgraded, llama3_8b="ok", deepseek_7b="regressed")
    titles = [TITLE, *(f"{TITLE}: {case}" for case in ("llama3-8b", "deepseek-7b", "other"))]
    held = [{"number": n, "title": title} for n, title in enumerate([*titles, "Another"], 1)]
    (upgraded.parent / "bin/open.json").write_text(json.dumps(held))
    done, asked = told(upgraded, "success", "failure")
    assert done.returncode == 0, done.stderr
    assert [words[:3] for words in asked if "list" not in words] == [
        ["issue", "edit", "3"],
        ["issue", "close", "1"],
        ["issue", "close", "2"],
    ]


@pytest.mark.parametrize(
    ("newest", "compare", "closed"),
    [
        ("success", "success", ["1", "2"]),
        ("success", "skipped", ["1"]),
        ("failure", "skipped", []),
        ("failure", "success", ["2"]),
    ],
)
def test_what_was_not_looked_at_stays_open(upgraded: Path, newest, compare, closed):
    held = [{"number": 1, "title": TITLE}, {"number": 2, "title": f"{TITLE}: tiny"}]
    (upgraded.parent / "bin/open.json").write_text(json.dumps(held))
    (upgraded / "found/constraints.txt").write_text("torch==2.13.0\n")
    done, asked = told(upgraded, newest, compare)
    assert done.returncode == 0, done.stderr
    assert [words[2] for words in asked if "close" in words] == closed


@pytest.mark.parametrize("text", ["{", "[]", '{"cases": {"tiny": 1}}', '{"cases": []}'])
def test_a_record_that_cannot_be_read_is_the_general_issue(upgraded: Path, text: str):
    (upgraded / "found/results/compare.json").write_text(text)
    done, asked = told(upgraded, "success", "failure")
    assert done.returncode == 0, done.stderr
    assert [words[3] for words in asked if "create" in words] == [TITLE]


@pytest.mark.parametrize(
    ("pins", "compare", "said"),
    [
        (NEW_PINS, "skipped", "no GPU has judged them"),
        ("torch==2.13.0\n", "success", "nothing to propose"),
    ],
)
def test_where_nothing_is_to_be_done_nothing_is_asked(upgraded: Path, pins, compare, said):
    (upgraded / "found/constraints.txt").write_text(pins)
    done, asked = told(upgraded, "success", compare)
    assert (done.returncode, [words[:2] for words in asked]) == (0, [["issue", "list"]])
    assert said in done.stdout


@pytest.mark.parametrize(
    ("pins", "results", "said"),
    [
        (None, ("success", "success"), "found/constraints.txt is not there"),
        ("torch @ https://x.example/t.whl\n", ("success", "success"), "expected NAME==VERSION"),
        ("--index-url=https://x.example\n", ("success", "success"), "expected NAME==VERSION"),
        (NEW_PINS, ("cancelled", "success"), "start the workflow again"),
    ],
)
def test_a_lock_that_is_none_is_never_proposed(upgraded: Path, pins, results, said):
    (upgraded / "found/constraints.txt").unlink()
    if pins is not None:
        (upgraded / "found/constraints.txt").write_text(pins)
    done, asked = told(upgraded, *results)
    assert (done.returncode, [words for words in asked if "list" not in words]) == (2, [])
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_lock_of_today_could_be_proposed(upgraded: Path):
    today = (actions.REPOSITORY / "constraints.txt").read_text()
    (upgraded / "found/constraints.txt").write_text(today)
    assert told(upgraded, "success", "success")[0].returncode == 0


def hooked(
    folder: Path, event: str, payload: dict[str, Any], **variables: str
) -> subprocess.CompletedProcess[str]:
    """The runner's hook, installed in a folder that allows ``owner/perfline``."""
    (folder / "event.json").write_text(json.dumps(payload))
    (folder / "hook.sh").write_text(HOOK.read_text())
    environment = {
        "PATH": os.environ["PATH"],
        "GITHUB_EVENT_NAME": event,
        "GITHUB_EVENT_PATH": str(folder / "event.json"),
        "GITHUB_REPOSITORY": HERE,
        "GITHUB_WORKFLOW_REF": f"{HERE}/.github/workflows/perf.yml@refs/pull/3/merge",
        **variables,
    }
    return subprocess.run(
        ["bash", "-e", folder / "hook.sh"],  # as the runner starts it
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("event", "head", "variables", "refusal"),
    [
        ("schedule", None, {}, ""),
        ("workflow_dispatch", None, {}, ""),
        ("pull_request", HERE, {}, ""),
        ("pull_request", "someone/perfline", {}, "its code is of someone/perfline"),
        ("pull_request", None, {}, "its code is of a deleted fork"),
        ("pull_request_target", HERE, {}, "the event is pull_request_target"),
        ("schedule", None, {"GITHUB_REPOSITORY": "someone/perfline"}, "it is of someone/perfline"),
        (
            "schedule",
            None,
            {"GITHUB_WORKFLOW_REF": f"{HERE}/.github/workflows/ci.yml@refs/heads/x"},
            "not of perf.yml or upgrade.yml",
        ),
        (
            "schedule",
            None,
            {"GITHUB_WORKFLOW_REF": f"{HERE}/.github/workflows/upgrade.yml@refs/heads/main"},
            "",
        ),
    ],
)
def test_the_machine_itself_refuses_what_is_not_its_job(
    tmp_path: Path, event: str, head: str | None, variables: dict[str, str], refusal: str
):
    (tmp_path / "repository").write_text(f"{HERE}\n")
    done = hooked(tmp_path, event, pull_request(head), **variables)
    assert (done.returncode, refusal in done.stderr) == (1 if refusal else 0, True)


def test_a_machine_that_knows_no_repository_runs_nothing(tmp_path: Path):
    done = hooked(tmp_path, "schedule", {})
    assert done.returncode == 1
    assert "write owner/name into it" in done.stderr


def test_the_clock_commands_of_the_document_are_those_that_the_doctor_prints():
    text = (actions.REPOSITORY / "docs" / "runner.md").read_text()
    for command in doctor._lock_command(None).split("; "):
        assert f"$ {command} " in text
