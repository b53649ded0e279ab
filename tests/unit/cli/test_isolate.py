"""``perfline isolate`` from its options to what it says and leaves, over scripted launches."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from fake_workers import FakeLauncher, Script, last, noisy, pair, ready
from perfline.cli import isolate as isolate_cli
from perfline.cli import main as cli
from perfline.compare import record as comparisons
from perfline.compare.model import Side
from perfline.compare.record import Comparison
from perfline.environments import making
from perfline.errors import InstallError, WorkerError
from perfline.gates.verdict import Verdict
from perfline.search import candidates, record
from wheels import interpreter, told, wheel

OUT = Path("results/isolate.json")
SCRIPT = Path(__file__).parents[3] / "scripts" / "isolate_regressed.py"


class Machine:
    """Scripted launches by what a side is: versions of its packages, and its variables.

    Attributes:
        slower: (versions and variables) -> how many times A's time it takes.
        stopped: after how many comparisons Ctrl-C comes; ``compared``: what they were.
    """

    def __init__(self) -> None:
        self.slower: Callable[[dict[str, str]], float] = lambda held: 1.0
        self.tokens: Callable[[dict[str, str]], int] = lambda held: 1000
        self.fails: Callable[[dict[str, str]], bool] = lambda held: False
        self.stopped = 99
        self.compared: list[dict[str, str]] = []

    def held(self, side: Side) -> dict[str, str]:
        found = making.installed(side.python)
        return {**found, **side.env, **dict(side.settings), "code": side.ref or ""}

    def script(self, side: Side, seed: int) -> Script:
        held = self.held(side)
        error = {0: WorkerError(f"{side.name}: crashed")} if self.fails(held) else {}
        return Script(
            ready=ready(tokens=self.tokens(held)),
            token_s=noisy(self.slower(held), 0.002, seed),
            fails=error,
        )

    @contextmanager
    def launchers(self, sides: tuple[Side, Side], timeout_s: float) -> Iterator[Any]:
        if len(self.compared) == self.stopped:
            raise KeyboardInterrupt
        self.compared.append(self.held(sides[1]))
        a, b = (self.script(side, seed) for seed, side in enumerate(sides))
        yield lambda workload: FakeLauncher(a, b)


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A has alpha 1 and beta 1 and tools, B 2 and 2, where alpha and its part are tied."""
    folder = tmp_path_factory.mktemp("environments")

    def made(version: str) -> Path:
        needs = {"transformers": [f"tokenizers=={version}", "numpy"]}
        return interpreter(
            folder / f"v{version}",
            *(
                wheel(folder, name, version, requires=needs.get(name, ()))
                for name in ("transformers", "tokenizers", "numpy")
            ),
        )

    return made("1"), made("2")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = Machine()
    monkeypatch.setattr(isolate_cli, "launchers", found.launchers)
    monkeypatch.setattr(candidates, "_NEEDS", ("json",))

    def none(base: Path) -> None:
        raise InstallError("neither uv nor pip is there")

    monkeypatch.setattr(making, "find_installer", none)
    return found


@pytest.fixture
def isolate(environments: tuple[Path, Path]) -> Callable[..., int]:
    a, b = (str(python) for python in environments)

    def run(*words: str) -> int:
        return cli.main(
            ["isolate", "tiny", "--baseline-python", a, "--candidate-python", b, *words]
        )

    return run


def test_the_group_that_did_it_is_named_and_the_next_command_explains_it(
    machine: Machine, isolate: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    machine.slower = lambda held: 1.06 if held["transformers"] == "2" else 1.0

    assert isolate("--env", "OMP_NUM_THREADS=1", "--markdown", "summary.md") == 1

    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("tiny inductor core_time: transformers did it: +6.")
    assert all(len(line) <= 80 for line in lines if not line.startswith("next:"))
    assert "transformers: transformers 1 -> 2, tokenizers 1 -> 2" in shown.out
    assert "OMP_NUM_THREADS: OMP_NUM_THREADS unset -> 1" in shown.out
    follow = lines[-1].removeprefix("next: ").split()
    assert follow[:3] == ["perfline", "compare", "tiny"]
    assert follow[-1] == "--explain"
    python = follow[follow.index("--candidate-python") + 1]
    code = "import transformers, tokenizers, numpy; print(transformers.version, numpy.version)"
    assert told(Path(python), code) == "2 1"
    assert "| all" in Path("summary.md").read_text()
    swapped = [
        (held["transformers"], held["tokenizers"], held["numpy"], held.get("OMP_NUM_THREADS"))
        for held in machine.compared
    ]
    b = ("2", "2", "2", "1")
    assert swapped == [b, b, b, ("2", "2", "1", None), ("1", "1", "2", None), ("1", "1", "1", "1")]
    assert "in a forward is not known" in " ".join(shown.out.split())
    kept = record.load(OUT)
    assert (kept.plan, kept.named, kept.partial) == ("isolate", ("transformers",), False)


def test_more_tokens_need_no_timing(
    machine: Machine, isolate: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    machine.tokens = lambda held: 1090 if held["tokenizers"] == "2" else 1000
    assert isolate() == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.endswith("record: results/isolate.json")  # nothing is there to be explained
    assert "innocent" not in shown
    assert "transformers (+9.0 % prompt tokens, 1000 -> 1090) did it: the timed prompts" in shown
    assert record.load(OUT).probes[0].finding.pairs == 0


def test_no_slower_is_status_0(
    machine: Machine, isolate: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    assert isolate() == 0
    assert "nothing to isolate: that B is worse by 2 % is ruled out" in capsys.readouterr().out
    assert len(machine.compared) == 2


def test_a_stopped_search_goes_on(
    machine: Machine, isolate: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    machine.slower = lambda held: 1.06 if held["numpy"] == "2" else 1.0
    machine.stopped = 3
    assert isolate() == 130
    shown = capsys.readouterr().out
    assert "interrupted: the record is partial" in shown
    assert [line.split()[0] for line in shown.splitlines()[2:4]] == ["moved", "all"]
    assert record.load(OUT).partial
    machine.stopped = 99
    assert isolate() == 1
    assert len(machine.compared) == 6  # what runs in a forward is asked again: it was not told
    said = capsys.readouterr().err
    assert "goes on behind 2 comparisons measured before" in said
    assert "\nB (tokens) against A: good, 1000 -> 1000 (measured before)\nB against A: bad" in said
    assert record.load(OUT).named == ("numpy",)
    assert isolate("--margin", "3") == 1  # another request begins anew
    assert len(machine.compared) == 11


def test_what_does_not_run_alone_is_moved_with_its_neighbour(
    machine: Machine, isolate: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    machine.slower = lambda held: 1.06 if held["numpy"] == "2" else 1.0
    machine.fails = lambda held: held["transformers"] == "2" and held["numpy"] == "1"
    assert isolate("--env", "X=1") == 1
    assert record.load(OUT).named == ("transformers + numpy",)
    follow = capsys.readouterr().out.splitlines()[-1].split()
    python = Path(follow[follow.index("--candidate-python") + 1])
    assert making.installed(python) == {"numpy": "2", "tokenizers": "2", "transformers": "2"}


def test_code_and_settings_are_groups_too(machine: Machine, tmp_path: Path):
    for words in (
        ["init", "-q"],
        ["-c", "user.name=t", "-c", "user.email=t@e", "commit", "-q", "--allow-empty", "-mone"],
        ["tag", "v1"],
    ):
        subprocess.run(["git", *words], check=True)
    machine.slower = lambda held: 1.06 if held["code"] == "v1" else 1.0
    words = ["--candidate-ref", "v1", "--set", "engine.mode=max-autotune"]
    assert cli.main(["isolate", "tiny", *words]) == 1
    found = record.load(OUT)
    assert found.named == ("code",)
    assert list(found.groups) == ["code", "engine.mode"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "A and B have the same packages, code, variables and settings: nothing to isolate"),
        (["--candidate-python", "/nowhere/python"], "candidate: no interpreter /nowhere/python"),
        (["--metric", "core_tme", "--env", "X=1"], "is no metric that a comparison judges"),
        (["--env", "X=1", "--max-pairs", "5"], "--max-pairs 5: cannot decide any of 1 comparisons"),
        (["--candidate-ref", "v99"], "ref v99: "),
    ],
    ids=["no-difference", "no-interpreter", "no-metric", "too-few-pairs", "no-ref"],
)
def test_wrong_input_is_one_error_before_anything_is_measured(
    machine: Machine, capsys: pytest.CaptureFixture[str], words: list[str], said: str
):
    assert cli.main(["isolate", "tiny", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert len(shown.err.splitlines()) == 1
    assert machine.compared == []
    assert not OUT.exists()


def test_an_environment_that_lacks_what_perfline_needs_is_refused(
    machine: Machine,
    isolate: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(candidates, "_NEEDS", ("json", "torch"))
    assert isolate() == 2
    assert "lacks torch, which perfline needs to measure there" in capsys.readouterr().err
    assert machine.compared == []


@pytest.mark.parametrize(
    ("worse", "metrics"),
    [
        ({"core_time": "regressed", "mem_infer": "regressed"}, ["core_time"]),
        ({"core_time": "ok", "mem_infer": "regressed"}, ["mem"]),
        ({"core_time": "unsure", "acc_infer": "improved"}, []),
        ({"whole_time": "regressed"}, []),
    ],
    ids=["slower", "bigger", "unsure", "unknown"],
)
def test_after_an_upgrade_what_is_regressed_is_isolated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worse: dict[str, str], metrics: list[str]
):
    spec = util.spec_from_file_location("isolate_regressed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)
    assert script.main() == 0  # nothing was compared
    verdicts = tuple(Verdict(name, word, "paired", "u") for name, word in worse.items())
    found = replace(last(pair(1, 1)), verdicts=verdicts)
    comparisons.save(script.COMPARED, Comparison("now", False, "perfline", {"tiny": found}))
    asked: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        asked.append(command[3:])
        Path(command[command.index("--markdown") + 1]).write_text("## torch did it\n")
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.main() == 0
    assert [words[words.index("--metric") + 1] for words in asked] == metrics
    assert [words[:2] for words in asked] == [["isolate", "tiny"]] * len(metrics)
    if metrics:
        assert cli._parser().parse_args(asked[0]).candidate_install == ["-r results/changed.txt"]
        assert script.FOUND.read_text() == "## torch did it\n"


def test_sides_that_do_different_work_are_refused_before_anything_is_made(
    capsys: pytest.CaptureFixture[str],
):
    assert cli.main(["isolate", "tiny", "--set", "throughput.sample=16", "--env", "X=1"]) == 2
    assert capsys.readouterr().err == (
        "perfline: error: case 'tiny': 'throughput.sample' is 64 on A and 16 on B: set it on both "
        "sides, or on neither (--baseline-set and --set)\n"
    )
