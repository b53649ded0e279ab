from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fake_workers import FakeLauncher, Script, fidelity, noisy, ready
from perfline.cli import bisect as bisect_cli
from perfline.cli import main as cli
from perfline.compare.model import Side
from perfline.environments import installers, making
from perfline.environments.making import Made
from perfline.errors import InstallError, WorkerError
from perfline.search import record

OUT = Path("results/bisect.json")
COMMITS = 9


def git(*words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Machine:
    """Scripted launches by what a side is: a commit's number, or the version that it installs.

    Attributes:
        slower: (number) -> how many times A's time it takes.
        fails: numbers whose launches crash; ``stopped``: after how many comparisons Ctrl-C comes.
    """

    def __init__(self) -> None:
        self.slower: Callable[[int], float] = lambda number: 1.0
        self.graphs: Callable[[int], int] = lambda number: 2
        self.wrong: Callable[[int], bool] = lambda number: False  # computes something else
        self.fails: set[int] = set()
        self.stopped = 99
        self.pairs: list[tuple[int, int]] = []
        self.numbers: dict[str, int] = {}

    def number(self, side: Side) -> int:
        return self.numbers[side.ref or side.python.name]

    def script(self, side: Side, seed: int) -> Script:
        number = self.number(side)
        fails = {0: WorkerError(f"{side.name}: crashed")} if number in self.fails else {}
        return Script(
            ready=ready(graphs=self.graphs(number)),
            token_s=noisy(self.slower(number), 0.004, seed),
            fails=fails,
            fidelity=fidelity(kl=1e-3 * self.wrong(number)),
        )

    @contextmanager
    def launchers(self, sides: tuple[Side, Side], timeout_s: float) -> Iterator[Any]:
        if len(self.pairs) == self.stopped:
            raise KeyboardInterrupt
        self.pairs.append((self.number(sides[0]), self.number(sides[1])))
        a, b = (self.script(side, seed) for seed, side in enumerate(sides))
        yield lambda workload: FakeLauncher(a, b)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine in a repository of nine commits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    git("init", "-q", "-b", "main")
    (tmp_path / ".gitignore").write_text("results/\n")
    found = Machine()
    for number in range(COMMITS):
        (tmp_path / "code.py").write_text(f"# {number}\n")
        git("add", "-A")
        git("commit", "-q", "-m", f"change {number}")
        found.numbers[git("rev-parse", "HEAD")] = number
    monkeypatch.setattr(bisect_cli, "launchers", found.launchers)
    return found


def run(*words: str) -> int:
    return cli.main(["bisect", "tiny", *words])


def commits(*words: str) -> int:
    return run("--good", f"HEAD~{COMMITS - 1}", "--bad", "HEAD", *words)


def test_the_first_bad_commit_is_named_with_all_that_is_known(
    machine: Machine, capsys: pytest.CaptureFixture[str]
):
    machine.slower = lambda number: 1.06 if number >= 5 else 1.0

    assert commits("--markdown", "summary.md") == 1

    shown = capsys.readouterr()
    name, parent = (git("rev-parse", "--short=12", f"HEAD~{n}") for n in (3, 4))
    lines = shown.out.splitlines()
    assert lines[0] == f"tiny inductor core_time: first bad commit: {name}"
    assert lines[1].endswith("change 5")
    assert f"{name} against its parent {parent}: +6." in " ".join(shown.out.split())
    assert all(len(line) <= 80 for line in lines if not line.startswith("next:"))
    assert lines[-1] == (
        f"next: perfline compare tiny --baseline-ref {parent} --candidate-ref {name} --explain"
    )
    assert machine.pairs == [(0, 8), (0, 4), (0, 6), (0, 5), (4, 5)]
    assert f"first bad commit: {name}" in Path("summary.md").read_text()
    found = record.load(OUT)
    assert (found.partial, found.named, len(found.probes)) == (False, (name,), 5)
    assert found.answer == f"first bad commit: {name}"
    assert found.probes[0].finding.comparisons["tiny"].pairs
    assert "pair 14:" in shown.err


def test_without_a_difference_it_says_so_and_exits_0(
    machine: Machine, capsys: pytest.CaptureFixture[str]
):
    assert commits() == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "is no worse than the good one: there is nothing to find" in shown
    assert machine.pairs == [(0, 8)]


def test_what_became_better_is_looked_for_when_asked(
    machine: Machine, capsys: pytest.CaptureFixture[str]
):
    machine.slower = lambda number: 1.0 if number >= 3 else 1.06
    assert commits() == 0
    assert "--improved finds where it became so" in " ".join(capsys.readouterr().out.split())
    assert commits("--improved") == 1
    shown = capsys.readouterr().out
    assert f"first better commit: {git('rev-parse', '--short=12', 'HEAD~5')}" in shown
    assert "-5." in shown


def test_a_commit_that_crashes_is_skipped(machine: Machine, capsys: pytest.CaptureFixture[str]):
    machine.slower = lambda number: 1.06 if number >= 7 else 1.0
    machine.fails = {4, 2}
    assert commits() == 1
    shown = capsys.readouterr().out
    assert f"first bad commit: {git('rev-parse', '--short=12', 'HEAD~1')}" in shown
    assert "skipped" in shown


def test_the_commit_that_computes_something_else_is_named(
    machine: Machine, capsys: pytest.CaptureFixture[str]
):
    machine.wrong = lambda number: number >= 5

    assert commits("--metric", "fidelity") == 1

    shown = " ".join(capsys.readouterr().out.split())
    name = git("rev-parse", "--short=12", "HEAD~3")
    assert f"tiny inductor fidelity: first bad commit: {name}" in shown
    assert machine.pairs == [(0, 8), (0, 4), (0, 6), (0, 5), (4, 5)]
    found = record.load(OUT)
    assert [probe.finding.pairs for probe in found.probes] == [1] * 5
    words = {v.metric: v.word for v in found.probes[0].finding.comparisons["tiny"].verdicts}
    assert words["fidelity_infer"] == "regressed"


def test_a_metric_without_noise_takes_one_launch_a_commit(
    machine: Machine, capsys: pytest.CaptureFixture[str]
):
    machine.graphs = lambda number: 2 + (number >= 6)
    assert commits("--metric", "graphs") == 1
    shown = capsys.readouterr().out
    assert f"first bad commit: {git('rev-parse', '--short=12', 'HEAD~2')}" in shown
    assert "2 -> 3" in shown
    assert all(probe.finding.pairs == 1 for probe in record.load(OUT).probes)


def test_ctrl_c_leaves_a_partial_record_and_the_same_command_goes_on(
    machine: Machine, capsys: pytest.CaptureFixture[str]
):
    machine.slower = lambda number: 1.06 if number >= 5 else 1.0
    machine.stopped = 2
    assert commits() == 130
    shown = capsys.readouterr().out
    assert "not decided, after 2 comparisons" in shown
    assert "next: perfline bisect tiny --good 'HEAD~8' --bad HEAD" in shown
    found = record.load(OUT)
    assert (found.partial, found.named, len(found.probes)) == (True, (), 2)

    machine.stopped = 99
    assert commits() == 1
    assert machine.pairs == [(0, 8), (0, 4), (0, 6), (0, 5), (4, 5)]
    assert "goes on behind 2 comparisons measured before" in capsys.readouterr().err


def test_another_request_does_not_go_on(machine: Machine):
    machine.slower = lambda number: 1.06 if number >= 5 else 1.0
    machine.stopped = 1
    assert commits() == 130
    machine.stopped = 3
    assert commits("--margin", "3") == 130
    assert machine.pairs == [(0, 8), (0, 8), (0, 4)]


def test_a_good_end_that_crashes_is_an_error_before_anything_is_measured(
    machine: Machine, capsys: pytest.CaptureFixture[str]
):
    machine.fails = {0}
    assert commits() == 2
    assert capsys.readouterr().err.splitlines()[-1] == "perfline: error: baseline: crashed"
    machine.fails = {8}
    assert commits() == 2
    assert "cannot be measured: candidate: crashed" in capsys.readouterr().err
    assert record.load(OUT).partial


def test_changes_that_are_not_committed_are_told(
    machine: Machine, capsys: pytest.CaptureFixture[str]
):
    Path("code.py").write_text("other")
    assert commits() == 0
    assert "notice: changes that are not committed are in no commit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--good", "nowhere", "--bad", "HEAD"], "--good: git knows no commit 'nowhere'"),
        (["--good", "HEAD", "--bad", "HEAD"], "are one commit"),
        (["--good", "HEAD~1", "--bad", "HEAD", "--metric", "speed"], "is no metric that a"),
        (["--good", "HEAD~1", "--bad", "HEAD", "--max-pairs", "8"], "expected at least 9"),
        (["--good", "HEAD~1", "--bad", "HEAD", "--pre"], "--pre: is of --package"),
        (["--good", "HEAD~1", "--bad", "HEAD", "--install", "x"], "--install: is of --repo"),
        (["--good", "1", "--bad", "2", "--repo", "nowhere"], "nowhere: is no directory"),
        (["--good", "1", "--bad", "2", "--repo", ".", "--package", "x"], "name one of them"),
        (["--good", "HEAD~1", "--bad", "HEAD", "--python", "/none"], "no interpreter /none"),
        (["--good", "HEAD~1", "--bad", "HEAD", "--markdown", str(OUT)], "name two files"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_measured(
    machine: Machine, capsys: pytest.CaptureFixture[str], words: list[str], problem: str
):
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line
    assert machine.pairs == []
    assert not OUT.exists()


def test_a_dirty_tree_is_refused_where_every_comparison_would_run_it(
    machine: Machine, capsys: pytest.CaptureFixture[str]
):
    Path("code.py").write_text("other")
    for words in (["--good", "1", "--bad", "2", "--package", "x"], ["--repo", "."]):
        assert run("--good", "HEAD~1", "--bad", "HEAD", *words) == 2
        assert "has changes that are not committed" in capsys.readouterr().err


def test_an_index_out_of_reach_is_told_in_pips_words(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def unreachable(base: Path, package: str, pre: bool) -> list[str]:
        raise InstallError("pip says:\n  connection refused")

    monkeypatch.setattr(installers, "versions", unreachable)
    assert run("--package", "x", "--good", "1", "--bad", "2") == 2
    assert "connection refused" in capsys.readouterr().err
    assert not OUT.exists()


@pytest.fixture
def released(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Versions 1.0 to 1.8 of a package; installing one makes a side whose number is its minor."""

    def make(base: Path, requests: tuple[str, ...], option: str, say: object, known: None) -> Made:
        version = requests[-1].rpartition("==")[2]
        if version == "1.4":
            raise InstallError(f"{option}: pip says:\n  no matching distribution")
        machine.numbers[f"python-{version}"] = int(version.partition(".")[2])
        return Made(Path(f"/made/python-{version}"))

    def versions(base: Path, package: str, pre: bool) -> list[str]:
        return [f"1.{n}" for n in range(COMMITS)]

    monkeypatch.setattr(making, "make", make)
    monkeypatch.setattr(installers, "versions", versions)
    return machine


def test_the_first_bad_version_of_a_package(released: Machine, capsys: pytest.CaptureFixture[str]):
    released.slower = lambda number: 1.06 if number >= 6 else 1.0

    assert run("--package", "some-pkg", "--good", "1.0", "--bad", "1.8") == 1

    shown = capsys.readouterr().out
    assert shown.startswith("tiny inductor core_time: first bad version: 1.6\n")
    assert "skipped" in shown  # 1.4 cannot be installed
    assert "  what differs between them: some-pkg==1.5 -> some-pkg==1.6\n" in shown
    assert shown.splitlines()[-1] == (
        "next: perfline compare tiny --baseline-install some-pkg==1.5 "
        "--candidate-install some-pkg==1.6 --explain"
    )


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        ("core_time", ["--explain"]),
        ("graphs", ["--explain"]),
        ("ttft", ["--workload", "decode"]),
        ("decode_flips", ["--workload", "decode"]),
        ("flips", []),
        ("acc_ceval", []),
        ("fidelity", []),
    ],
)
def test_the_comparison_that_comes_next_shows_the_metric(metric: str, options: list[str]):
    assert bisect_cli.explaining(metric) == options


def test_a_good_end_that_cannot_be_installed_is_an_error(
    released: Machine, capsys: pytest.CaptureFixture[str]
):
    assert run("--package", "some-pkg", "--good", "1.4", "--bad", "1.8") == 2
    assert "no matching distribution" in capsys.readouterr().err
    assert released.pairs == []


def test_the_command_in_the_record_does_the_same_again(machine: Machine):
    words = ["--metric", "mem", "--improved", "--env", "API_KEY=x", "--set", "engine.mode=default"]
    words += ["--max-pairs", "20", "--margin", "3", "--dummy-weights", "--python", sys.executable]
    args = cli._parser().parse_args(["bisect", "tiny", "--good", "a", "--bad", "b", *words])
    args.data_dir = None
    again = bisect_cli.command(args)
    assert "API_KEY=(not recorded)" in again
    for word in ("--metric mem", "--improved", "--max-pairs 20", "--margin 3", "--dummy-weights"):
        assert word in again
    assert again.startswith("perfline bisect tiny --good a --bad b ")
