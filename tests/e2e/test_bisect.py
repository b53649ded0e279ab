"""A made history, by real processes: killed on the way, gone on with, and the commit is named."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from fork_server import python

# One more operator in every forward: the fingerprint sees it, whatever the machine does.
CODE = """
import torch
from perfline.engines.torch_engine import TorchEngine

forward = TorchEngine.forward


def longer(self, batch, head):
    for _ in range({more}):
        torch.arange(3).flip(0)
    return forward(self, batch, head)


TorchEngine.forward = longer
"""
COMMAND = [sys.executable, "-m", "perfline", "bisect", "tiny", "--good", "HEAD~1", "--bad", "HEAD"]
COMMAND += ["--metric", "fingerprint", "--engine", "eager", "--import", "made"]
COMMAND += ["--set", "throughput.sample=8"]


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_killed_search_goes_on_and_names_the_commit(tmp_path: Path):
    command = [*COMMAND, "--python", python()]
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / ".gitignore").write_text("results/\n")
    for number in range(2):
        (tmp_path / "made.py").write_text(f"# {number}\n{CODE.format(more=number)}")
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-q", "-m", f"change {number}")
    record = tmp_path / "results" / "bisect.json"

    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as killed:
        while killed.poll() is None:
            if record.exists() and json.loads(record.read_text())["probes"]:
                killed.kill()
            time.sleep(0.05)
        assert killed.stderr is not None
        said = killed.stderr.read()
    assert killed.returncode == -9, said
    assert json.loads(record.read_text())["partial"]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 1, done.stdout + done.stderr
    name = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert done.stdout.startswith(f"tiny eager fingerprint: first bad commit: {name}\n")
    assert "goes on behind 1 comparison measured before" in done.stderr
    found = json.loads(record.read_text())
    assert (found["partial"], found["named"]) == (False, [name])
    assert [probe["role"] for probe in found["probes"]] == ["ends", "step"]
    assert "aten::flip 0 -> 1" in found["probes"][0]["finding"]["reason"]
    assert len(git(tmp_path, "worktree", "list").splitlines()) == 1
