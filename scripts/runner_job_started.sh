#!/usr/bin/env bash
# May this job run on this machine? The runner asks before every job's first step
# (ACTIONS_RUNNER_HOOK_JOB_STARTED, docs/runner.md) and starts no job where the answer is not 0.
#
# A copy that root owns, outside of what jobs can write, is what keeps code of forks away: the `if`
# in perf.yml says the same, and a fork's pull request may edit that file. The runner gives a hook
# none of the `env:` of a workflow. Allowed: perf.yml and upgrade.yml of the repository whose
# owner/name stands in the file `repository` beside this one, and no event of a fork.
set -euo pipefail
exec python3 -I - "$(dirname "$0")/repository" <<'PYTHON'
import json
import os
import sys

repository = os.environ.get("GITHUB_REPOSITORY", "")
workflow = os.environ.get("GITHUB_WORKFLOW_REF", "").partition("@")[0]
event = os.environ.get("GITHUB_EVENT_NAME", "")


def refuse(reason):
    sys.exit(f"::error::this machine runs no such job: {reason}")


try:
    with open(sys.argv[1], encoding="utf-8") as file:
        allowed = file.read().strip()
except OSError as problem:
    refuse(f"{sys.argv[1]} cannot be read ({problem.strerror}); write owner/name into it")
if "/" not in allowed or repository != allowed:
    refuse(f"it is of {repository or 'no repository'}; {sys.argv[1]} allows {allowed or 'none'}")
if workflow not in [f"{allowed}/.github/workflows/{name}.yml" for name in ("perf", "upgrade")]:
    refuse(f"it is of the workflow {workflow or '(not known)'}, not of perf.yml or upgrade.yml")
if event not in ("schedule", "workflow_dispatch", "pull_request"):
    refuse(f"the event is {event or '(not known)'}")
if event == "pull_request":
    with open(os.environ["GITHUB_EVENT_PATH"], encoding="utf-8") as file:
        pull = json.load(file)["pull_request"]
    head = (pull["head"]["repo"] or {}).get("full_name")
    if head != allowed:
        refuse(f"its code is of {head or 'a deleted fork'}")
PYTHON
