"""Two machines, each with a torchrun of its own, as docs/parallel.md starts them.

Each is a set of the kernel's namespaces: its own network, host name, processes and /etc/hosts,
joined by one cable (a veth pair). A user namespace gives the right to make them, without root; the
process namespace takes everything in it along when it ends, however the test does.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from doc_pages import commands
from fork_server import python
from together import TOGETHER

REPOSITORY = Path(__file__).parents[2]
PAGE = "docs/parallel.md"
QUESTIONS = 48
ADDRESSES = {"node-a": "10.77.0.1", "node-b": "10.77.0.2"}
LOOPBACK = "127.0.0.1 localhost\n"
# Everything below one process, which ends with what started it: nothing can be left.
HOST = "unshare --user --map-root-user --net --uts --mount --pid --fork --mount-proc --kill-child"
LIMIT_S = 120
RIGHTS = "hostname node-a && mount --bind /dev/null /etc/hosts && ip link add name eth0 type veth"
NODE = """
set -e
name=$1 address=$2
hostname $name
mount --bind $name.hosts /etc/hosts
ip link set lo up
if [ $name = node-b ]; then ip link add name eth0 type veth peer name eth0 netns 1; fi
timeout 10 sh -c 'until ip link show eth0; do sleep 0.05; done' > /dev/null 2>&1
ip address add $address/24 dev eth0
ip link set eth0 up
status=0
sh $name.torchrun || status=$?
echo $status > $name.status
"""
BOTH = """
unshare --net --uts --mount sh node.sh node-b 10.77.0.2 > node-b.out 2> node-b.err &
sh node.sh node-a 10.77.0.1 > node-a.out 2> node-a.err
wait
"""
TOLD = """
import socket


def damaged():
    (HERE / "host").write_text(socket.gethostname())
"""
FAILING = """
from perfline.errors import EngineError


def damaged():
    raise EngineError("logits of 3 of 8 prompts are not finite")
"""


@pytest.fixture(scope="module", autouse=True)
def _may() -> None:
    """Skip where this machine has no such namespaces, with what it said."""
    if sys.platform != "linux":
        pytest.skip("network namespaces are Linux's")
    absent = [tool for tool in ("unshare", "ip", "mount", "hostname") if not shutil.which(tool)]
    if absent:
        pytest.skip(f"`{absent[0]}` is not installed (util-linux, iproute2, hostname)")
    done = subprocess.run(
        [*HOST.split(), "sh", "-c", RIGHTS], capture_output=True, text=True, check=False, timeout=30
    )
    if done.returncode:
        line = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        pytest.skip(f"no namespaces for this user here (kernel, AppArmor or container): {line}")


@dataclass(frozen=True)
class Node:
    """How one torchrun ended; without a status where it did not."""

    status: int | None
    out: str
    err: str


def documented(node: str, **words: str) -> list[str]:
    """What docs/parallel.md has users type on a node, up to ``-m pytest``."""
    shown = [shlex.split(command.text.replace("\\\n", "")) for command in commands(PAGE)]
    (found,) = (
        command
        for command in shown
        if "--nnodes=2" in command and any("local-addr" in word for word in command) == bool(words)
    )
    options = found[1 : found.index("-m")]
    changed = {"--nproc-per-node": "1", **words}
    return [
        f"{name}={changed[name]}" if name in changed else option
        for option in options
        for name in [option.split("=")[0]]
    ]


def pytest_command(folder: Path) -> list[str]:
    return [
        *(
            "-m",
            "pytest",
            "-m",
            "accuracy",
            "-k",
            "eager",
            "-p",
            "damage",
            "-p",
            "no:cacheprovider",
        ),
        *("--cases=tiny", "--verify=2", f"--questions={QUESTIONS}"),
        *(f"--results={folder / 'run.json'}", f"--baselines={folder / 'baselines'}"),
        str(REPOSITORY / "tests" / "accuracy"),
    ]


def environment(folder: Path) -> dict[str, str]:
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def start(folder: Path, options: dict[str, list[str]], hosts: dict[str, str]) -> dict[str, Node]:
    """Run torchrun on both nodes; ``hosts`` is what each has in /etc/hosts."""
    (folder / "node.sh").write_text(NODE)
    for node in ADDRESSES:
        torchrun = [sys.executable, "-m", "torch.distributed.run", *options[node]]
        command = shlex.join([*torchrun, *pytest_command(folder)])
        (folder / f"{node}.torchrun").write_text(f"cd {shlex.quote(str(REPOSITORY))}\n{command}\n")
        (folder / f"{node}.hosts").write_text(hosts[node])
    with suppress(subprocess.TimeoutExpired):  # what the nodes said by then tells more
        subprocess.run(
            [*HOST.split(), "sh", "-c", BOTH],
            cwd=folder,
            env=environment(folder),
            check=False,
            timeout=LIMIT_S,
        )
    ended = {}
    for node in ADDRESSES:
        status = folder / f"{node}.status"
        out, err = ((folder / f"{node}.{name}").read_text() for name in ("out", "err"))
        ended[node] = Node(int(status.read_text()) if status.exists() else None, out, err)
    return ended


def measured(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())["cases"]["tiny"]


def answers(folder: Path) -> dict[str, dict[str, str]]:
    """What was answered; without margins, which depend in their last digit on the batches."""
    subjects = measured(folder)["accuracy"]["eager"]["subjects"]
    return {
        subject: {name: column for name, column in columns.items() if name != "margins"}
        for subject, columns in subjects.items()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "baselines" / "published", tmp_path / "baselines" / "published")
    return tmp_path


def test_two_nodes_answer_as_one_process_does(folder: Path):
    (folder / "damage.py").write_text("")
    alone = [python(), *pytest_command(folder)]
    subprocess.run(alone, cwd=REPOSITORY, env=environment(folder), check=True, timeout=120)
    expected = answers(folder)

    (folder / "damage.py").write_text(TOGETHER + TOLD)
    names = LOOPBACK + "".join(f"{address} {node}\n" for node, address in ADDRESSES.items())
    options = documented("node-a")
    nodes = start(folder, dict.fromkeys(ADDRESSES, options), dict.fromkeys(ADDRESSES, names))
    assert [node.status for node in nodes.values()] == [0, 0], nodes
    assert answers(folder) == expected
    given = measured(folder)["notes"]["accuracy_questions_by_rank_val"].split(", ")
    assert sum(map(int, given)) == QUESTIONS
    assert all(map(int, given))
    assert len(given) == 2
    assert (folder / "host").read_text() in ADDRESSES
    assert [node.out.count("test session starts") for node in nodes.values()].count(1) == 1
    assert min(nodes.values(), key=lambda node: len(node.out)).out == ""  # the other prints nothing


def test_nodes_that_know_no_names_meet_by_address_and_a_failing_rank_is_named(folder: Path):
    (folder / "damage.py").write_text(TOGETHER + FAILING)
    options = {
        node: documented(
            node,
            **{
                "--rdzv-endpoint": f"{ADDRESSES['node-a']}:29500",
                "--local-addr": address,
                "--rdzv-conf": f"is_host={int(node == 'node-a')}",
                "--max-restarts": "0",  # they would only say that it has ended
            },
        )
        for node, address in ADDRESSES.items()
    }
    hosts = {node: f"{LOOPBACK}127.0.1.1 {node}\n" for node in ADDRESSES}  # as Debian sets it up
    nodes = start(folder, options, hosts)
    assert [node.status for node in nodes.values()] == [1, 1], nodes
    line = "rank 1 on node-b: logits of 3 of 8 prompts are not finite"
    assert sum(line in node.out for node in nodes.values()) == 1, nodes
    assert line in json.dumps(measured(folder))
