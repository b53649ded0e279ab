"""What do the workflows put before people: which baselines, which versions to merge?

The steps of ``.github/workflows/baseline.yml`` and ``upgrade.yml`` that talk to GitHub. Standard
library, git and gh only, since they may push. What a step needs stands in its environment.

    make baseline-source         RUN_ID: must be a finished run of perf.yml of this repository, no
                                 fork's; writes source.json
    make baseline-pull-request   REASON: takes the baselines in accepted/, and nothing else of it,
                                 commits them to a branch and opens a pull request
    make upgrade-proposal        NEWEST, COMPARE: how the jobs ended; what they left lies in found/.
                                 All is well: one pull request that moves constraints.txt, opened
                                 or brought up to date. Else: one issue for each case that is worse,
                                 and one for all else; what is gone is closed
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

WORKFLOW = ".github/workflows/perf.yml"
SOURCE = Path("source.json")  # not in results/: what a run uploaded is unpacked there
ACCEPTED = Path("accepted")
FOUND = Path("found")
LOCK = Path("constraints.txt")
PIN = re.compile(r"(#[^\n]*|[a-z0-9][a-z0-9.-]*==[A-Za-z0-9.!]+( ; [a-zA-Z0-9_.'<>=!*() ]+)?)?")
UPGRADE_BRANCH = "perfline/upgrade"
UPGRADE_TITLE = "Upgrade to the newest versions"
ISSUE_TITLE = "The newest versions do not pass"
CASE_TITLE = f"{ISSUE_TITLE}: "
CASE = re.compile(r"[a-z0-9][a-z0-9-]{0,29}")
PASSED = ("ok", "improved")
RESULTS = ("success", "failure", "skipped")
BASELINE = re.compile(r"baselines/(?!published/)[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9-]*\.json")
FACTS = ("html_url", "event", "head_branch", "head_sha", "conclusion", "run_started_at")
BOT = "github-actions[bot]"
BOT_MAIL = "41898282+github-actions[bot]@users.noreply.github.com"
BODY_LIMIT = 60_000  # characters; GitHub takes 65,536
BY_GH = "!gh auth git-credential"  # the token goes from gh to git, through no file


class RefusedError(Exception):
    """One line for the log: what is wrong, and what to do."""


def main() -> int:
    """Run the step that is named; 2 and one line on stderr where it cannot be done."""
    steps = {"source": source, "propose": propose, "upgrade": upgrade}
    try:
        if sys.argv[1:] not in [[name] for name in steps]:
            raise RefusedError(f"expected one of {', '.join(steps)}")
        steps[sys.argv[1]]()
    except RefusedError as problem:
        print(f"proposals: error: {problem}", file=sys.stderr)
        return 2
    return 0


def source() -> None:
    """Check where the record comes from before it is downloaded."""
    run_id, repository = needed("RUN_ID"), needed("GITHUB_REPOSITORY")
    if not re.fullmatch("[0-9]{1,20}", run_id):
        raise RefusedError(f"RUN_ID is {run_id[:40]!r}; expected the number in the run's address")
    run = json.loads(output("gh", "api", f"repos/{repository}/actions/runs/{run_id}"))
    if problem := wrong_with(run, repository):
        raise RefusedError(f"run {run_id}: {problem}")
    facts = {"run_id": run_id, **{name: str(run.get(name)) for name in FACTS}}
    SOURCE.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print("\n".join(f"{name}: {text}" for name, text in facts.items()))


def wrong_with(run: dict[str, object], repository: str) -> str | None:
    """Say why no record of this run may be accepted; None where it may."""
    path = str(run.get("path")).partition("@")[0]
    if path != WORKFLOW:
        return f"is of {path}; only runs of {WORKFLOW} hold records, name one of those"
    for key in ("repository", "head_repository"):  # the head is None where the fork was deleted
        of = run.get(key)
        name = of.get("full_name") if isinstance(of, dict) else None
        if name != repository:
            return f"its {key} is {name or 'gone'}, not {repository}; forks are never accepted"
    if run.get("status") != "completed":
        return f"is {run.get('status')}; wait for its end"
    if run.get("conclusion") not in ("success", "failure"):  # a first record fails: `missing`
        return f"ended as {run.get('conclusion')}; start it again and name the new run"
    return None


def propose() -> None:
    """Commit the accepted baselines to a branch of their own and open the pull request."""
    reason, base = line(needed("REASON")), needed("GITHUB_REF_NAME")
    try:
        facts = json.loads((ACCEPTED / SOURCE).read_text(encoding="utf-8"))
        table = (ACCEPTED / "results" / "update.txt").read_text(encoding="utf-8")
    except OSError as problem:
        lost = f"{problem.filename} cannot be read ({problem.strerror})"
        raise RefusedError(f"{lost}; look at the job before this one") from problem
    if not re.fullmatch("[0-9]{1,20}", str(facts["run_id"])):
        raise RefusedError(f"{SOURCE}: run_id is not a number; look at the job before this one")
    facts["html_url"] = address(facts["run_id"])
    paths = taken()
    status = output("git", "status", "--porcelain", "--untracked-files=all", "--", *paths)
    changed = [text[3:] for text in status.splitlines()]
    if not changed:
        raise RefusedError("the accepted baselines are those of the repository: nothing to propose")
    branch = f"perfline/baseline-{facts['run_id']}-{needed('GITHUB_RUN_ID')}"
    title = f"Baselines of {', '.join(sorted({Path(path).stem for path in changed}))}: {reason}"
    push(branch, changed, title, facts["html_url"])
    body = written(ACCEPTED, text_of(facts, reason, table))
    create = ("gh", "pr", "create", "--base", base, "--head", branch)
    run(*create, "--title", title[:200], "--body-file", body)


def push(branch: str, paths: list[str], title: str, text: str, *options: str) -> None:
    """Commit these files, and nothing else, to a new branch and push it."""
    run("git", "switch", "--quiet", "--create", branch)
    run("git", "add", "--", *paths)
    identity = ("-c", f"user.name={BOT}", "-c", f"user.email={BOT_MAIL}")
    run("git", *identity, "commit", "--quiet", "-m", title[:200], "-m", text)
    credentials = ("-c", "credential.helper=", "-c", f"credential.helper={BY_GH}")
    target = f"HEAD:refs/heads/{branch}"
    run("git", *credentials, "push", "--quiet", *options, "origin", target)


def written(folder: Path, text: str) -> str:
    """Write a text beside what it is of, and into the job's summary; return its path."""
    folder.mkdir(exist_ok=True)
    body = folder / "body.md"
    body.write_text(text, encoding="utf-8")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(text)
    return str(body)


def upgrade() -> None:
    """Open the pull request or the issue, or bring the one that is open up to date."""
    newest, compare = needed("NEWEST"), needed("COMPARE")
    if newest not in RESULTS or compare not in RESULTS:
        raise RefusedError(f"the jobs ended as {newest} and {compare}: start the workflow again")
    found = findings(newest, compare)
    if found:
        body = written(FOUND, upgrade_text("The newest versions do not pass.", newest, compare))
        for title in found:
            publish("issue", open_one("issue", title), title, body)
    close_gone(found, newest, compare)
    if found:
        return
    if compare == "skipped":
        print("the newest versions pass; no GPU has judged them (docs/runner.md), so none moves")
    elif moved_lock():
        text = "Moves the lock to the newest versions: as fast as before, with the same answers."
        push(
            UPGRADE_BRANCH, [str(LOCK)], UPGRADE_TITLE, address(needed("GITHUB_RUN_ID")), "--force"
        )
        body = written(FOUND, upgrade_text(text, newest, compare))
        branches = ("--head", UPGRADE_BRANCH, "--base", needed("GITHUB_REF_NAME"))
        publish("pr", open_one("pr", UPGRADE_TITLE, *branches), UPGRADE_TITLE, body, *branches)
    else:
        print(f"{LOCK} has the newest versions already: nothing to propose")


def findings(newest: str, compare: str) -> list[str]:
    """Return the titles of the issues of today: a case that is worse has its own."""
    cases = [name for name, passed in compared_cases() if not passed] * (compare == "failure")
    other = newest == "failure" or (compare == "failure" and not cases)
    return [ISSUE_TITLE] * other + [f"{CASE_TITLE}{case}" for case in cases]


def compared_cases() -> list[tuple[str, bool]]:
    """Return the cases of the comparison's record, and whether each passed."""
    try:
        cases = json.loads(found_text("results/compare.json") or "{}").get("cases", {})
        return [
            (name, all(verdict["word"] in PASSED for verdict in case["verdicts"]))
            for name, case in cases.items()
            if CASE.fullmatch(name)
        ]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []  # torn, or of a job that was stopped: the general issue tells it


def close_gone(found: list[str], newest: str, compare: str) -> None:
    """Close our issues whose finding is gone; what was not looked at today stays open."""
    gone = {f"{CASE_TITLE}{case}" for case, passed in compared_cases() if passed}
    for number, title in opened("issue"):
        if title == ISSUE_TITLE:
            over = newest == "success" and title not in found
        else:
            over = title in gone or (title.startswith(CASE_TITLE) and compare == "success")
        if over:
            where = address(needed("GITHUB_RUN_ID"))
            run("gh", "issue", "close", str(number), "--comment", f"Gone in {where}")


def opened(kind: str, *options: str) -> list[tuple[int, str]]:
    """Return number and title of the open ones that we have opened."""
    ours = ("--state", "open", "--app", "github-actions", "--limit", "200")
    listed = json.loads(output("gh", kind, "list", *ours, *options, "--json", "number,title"))
    return [(each["number"], each["title"]) for each in listed]


def open_one(kind: str, title: str, *options: str) -> int | None:
    """Return the number of the open one that we have opened; None where there is none."""
    found = [number for number, held in opened(kind, *options) if held == title]
    return min(found) if found else None


def publish(kind: str, number: int | None, title: str, body: str, *options: str) -> None:
    """Open it, or put the new text into the open one."""
    if number is None:
        run("gh", kind, "create", *options, "--title", title, "--body-file", body)
    else:
        run("gh", kind, "edit", str(number), "--body-file", body)


def moved_lock() -> bool:
    """Copy the new lock into the work tree; False where it is the one that is there."""
    found = FOUND / LOCK
    if found.is_symlink() or not found.is_file():
        raise RefusedError(f"{found} is not there; look at the job that compares")
    text = found.read_text(encoding="utf-8")
    if wrong := [each for each in text.split("\n") if not PIN.fullmatch(each)]:
        raise RefusedError(f"{found}: {wrong[0][:80]!r}: expected NAME==VERSION ; MARKER")
    if text == LOCK.read_text(encoding="utf-8"):
        return False
    LOCK.write_text(text, encoding="utf-8")
    return True


def upgrade_text(first: str, newest: str, compare: str) -> str:
    """Return the text of the pull request or issue; what the jobs wrote stands in fences."""
    lines = [first, "", f"Measured by {address(needed('GITHUB_RUN_ID'))}.", ""]
    page = found_text("docs/versions.md").splitlines()
    row = [text for text in page if re.match(r"\| (row|newest) ", text)]
    isolated = filter(None, [found_text("results/isolate.md")])
    for title, result, text in (
        ("`make matrix ROWS=newest`", newest, "\n".join(row)),
        (
            "`perfline compare`, the lock against the newest",
            compare,
            found_text("results/upgrade.md"),
        ),
        *(("`perfline isolate`: which package did it", "", text) for text in isolated),
        ("Pins that move", "", found_text("results/changed.txt")),
    ):
        lines += [f"{title}: {result}" if result else title, ""]
        lines += [fenced(text[: BODY_LIMIT // 4]), ""] if text.strip() else ["(nothing)", ""]
    lines += [
        "To look at it by hand: `make lock ARGS=--upgrade`, `make matrix ROWS=lock,newest`.",
        "",
    ]
    return "\n".join(lines)


def found_text(name: str) -> str:
    """Return what a job left; empty where it left nothing."""
    path = FOUND / name
    return path.read_text(encoding="utf-8") if path.is_file() and not path.is_symlink() else ""


def address(run_id: str) -> str:
    """Return the page of a run of this repository, whatever a file says of it."""
    server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
    return f"{server}/{needed('GITHUB_REPOSITORY')}/actions/runs/{run_id}"


def taken() -> list[str]:
    """Copy the accepted baselines into the work tree; return their paths. Nothing else counts."""
    paths = []
    for found in sorted(ACCEPTED.rglob("*")):
        path = found.relative_to(ACCEPTED).as_posix()
        plain = found.is_file() and not found.is_symlink()
        if plain and BASELINE.fullmatch(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, path)
            paths.append(path)
    if not paths:
        raise RefusedError(f"{ACCEPTED}: holds no baseline; look at the job before this one")
    return paths


def text_of(facts: dict[str, str], reason: str, table: str) -> str:
    """Return the pull request's text; what others wrote stands in fences, where it stays text."""
    measured = {
        "reason": reason,
        "measured by": f"run {facts['run_id']} ({facts['event']}, ended as {facts['conclusion']})",
        "code": f"{facts['head_branch']}, commit {facts['head_sha']}",
        "begun": facts["run_started_at"],
        "accepted by": os.environ.get("GITHUB_ACTOR", "not known"),
    }
    return "\n".join(
        [
            f"Accepts what {facts['html_url']} has measured.",
            "",
            fenced("\n".join(f"{name:<12} {line(text)}" for name, text in measured.items())),
            "",
            "Old -> new:",
            "",
            fenced(table[:BODY_LIMIT]),
            "",
            "Checks do not start by themselves on a pull request that Actions has opened: close it "
            "and open it again.",
            "",
        ]
    )


def fenced(text: str) -> str:
    """Return a block of code whose fence is longer than any in the text."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}text\n{text.rstrip()}\n{ticks}"


def line(text: str) -> str:
    """Return a text as one printable line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def needed(name: str) -> str:
    """Return a variable of the environment; RefusedError where it is empty."""
    if value := os.environ.get(name, "").strip():
        return value
    raise RefusedError(f"{name} is not set; this runs in .github/workflows")


def run(*command: str) -> None:
    """Run a command whose output belongs into the log."""
    _done(command, None)


def output(*command: str) -> str:
    """Return what a command prints."""
    return _done(command, subprocess.PIPE)


def _done(command: tuple[str, ...], stdout: int | None) -> str:
    shown = " ".join(command[:3])
    try:
        done = subprocess.run(command, stdout=stdout, text=True, check=False)
    except FileNotFoundError as problem:
        raise RefusedError(f"`{command[0]}` is not installed here") from problem
    if done.returncode:
        raise RefusedError(f"`{shown} ...` ended with {done.returncode}; its message is above")
    return done.stdout or ""


if __name__ == "__main__":
    sys.exit(main())
