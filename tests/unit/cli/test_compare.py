from __future__ import annotations

import html
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fake_workers import FakeLauncher, answers, pair, ready
from perfline.cli import compare as compare_cli
from perfline.cli import main as cli
from perfline.cli.options import MAX_PAIRS
from perfline.compare import record, sides
from perfline.compare.sequential import LOOKS
from perfline.environments.making import Made
from perfline.errors import InstallError, RecordError, WorkerError


class Started:
    """What the command asked of the launchers."""

    def __init__(self) -> None:
        self.launchers: list[FakeLauncher] = []
        self.workloads: list[Any] = []
        self.sides: Any = ()
        self.timeout_s = 0.0
        self.ended = 0


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    """Scripted launches, in an empty directory; fill ``launchers`` with one for every case."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    found = Started()

    @contextmanager
    def launchers(sides: Any, timeout_s: float) -> Iterator[Any]:
        found.sides, found.timeout_s = sides, timeout_s

        def launcher_of(workload: Any) -> FakeLauncher:
            found.workloads.append(workload)
            return found.launchers[len(found.workloads) - 1]

        try:
            yield launcher_of
        finally:
            found.ended += 1

    monkeypatch.setattr(compare_cli, "launchers", launchers)
    return found


def run(*words: str) -> int:
    return cli.main(["compare", *words])


def other_case(directory: Path, name: str = "other") -> str:
    from perfline.cases.case import PACKAGED_CASES

    directory.mkdir(exist_ok=True)
    text = (PACKAGED_CASES / "tiny.yaml").read_text()
    (directory / f"{name}.yaml").write_text(text.replace("case: tiny", f"case: {name}"))
    return f"--case-dir={directory}"


def test_the_default_of_max_pairs_is_the_last_look() -> None:
    assert LOOKS[-1] == MAX_PAIRS


def test_a_slower_candidate_exits_1(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    started.launchers = [pair(1.0, 1.25, sd=0.01)]

    assert run("tiny") == 1

    shown = capsys.readouterr()
    assert shown.out.startswith("tiny inductor regressed +24.")
    progress = shown.err.splitlines()
    assert progress[0] == "tiny inductor, at most 90 launch pairs; B against A: nothing (A/A)"
    assert [line.split(":")[0] for line in progress[1:]] == [f"pair {n}" for n in range(1, 11)]
    found = record.load(Path("results/compare.json"))
    assert (found.partial, found.command) == (False, "perfline compare tiny")
    assert len(found.cases["tiny"].pairs) == 10
    assert started.launchers[0].log[-1] == "end"
    assert started.ended == 1


def test_equals_exit_0(started: Started) -> None:
    started.launchers = [pair(1.0, 1.0)]

    assert run("tiny", "--strict") == 0


@pytest.mark.parametrize(("flags", "status"), [((), 0), (("--strict",), 1)])
def test_unsure_fails_where_nothing_may_be_left_open(
    started: Started, flags: tuple[str, ...], status: int
) -> None:
    started.launchers = [pair(1.0, 1.012, sd=0.06)]

    assert run("tiny", "--max-pairs", "10", *flags) == status


def test_a_crash_exits_1(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    started.launchers = [pair(1.0, 1.0)]
    started.launchers[0].candidate.fails = {4: WorkerError("candidate: killed by signal 9")}

    assert run("tiny") == 1

    assert capsys.readouterr().out.startswith("tiny inductor invalid: candidate: killed by")
    assert len(record.load(Path("results/compare.json")).cases["tiny"].pairs) == 4


def test_ctrl_c_leaves_a_usable_record_and_the_story(
    started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    started.launchers = [pair(1.0, 1.25)]
    started.launchers[0].baseline.round_fails = {7: KeyboardInterrupt()}

    assert run("tiny", "--markdown", "summary.md") == 130

    shown = capsys.readouterr()
    assert shown.out.startswith("tiny inductor not decided: +25.0 %")
    assert "perfline: interrupted" in shown.err
    found = record.load(Path("results/compare.json"))
    assert (found.partial, len(found.cases["tiny"].pairs)) == (True, 7)
    assert "**Interrupted**" in Path("summary.md").read_text()
    assert started.launchers[0].live == set()
    assert started.ended == 1


def test_a_cancelled_job_ends_as_ctrl_c_does(
    started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    started.launchers = [pair(1.0, 1.25)]

    before = signal.getsignal(signal.SIGTERM)
    token_s = started.launchers[0].baseline.token_s
    started.launchers[0].baseline.token_s = lambda launch, turn: (
        signal.raise_signal(signal.SIGTERM) or 1.0 if launch == 3 else token_s(launch, turn)
    )

    assert run("tiny") == 130

    assert "not decided" in capsys.readouterr().out
    assert record.load(Path("results/compare.json")).partial
    assert signal.getsignal(signal.SIGTERM) == before
    assert started.ended == 1


def test_a_full_disk_still_tells_what_was_measured(
    started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started.launchers = [pair(1.0, 1.25)]
    save, saved = record.save, []

    def full(path: Path, comparison: object) -> None:
        saved.append(path)
        if len(saved) == 5:
            raise RecordError(f"{path}: cannot be written (No space left on device)")
        save(path, comparison)

    monkeypatch.setattr(record, "save", full)
    assert run("tiny") == 2
    shown = capsys.readouterr()
    assert shown.out.startswith("tiny inductor not decided: +25.0 %")
    assert "No space left on device" in shown.err


def test_an_old_record_does_not_pass_for_this_one(started: Started) -> None:
    started.launchers = [pair(1.0, 1.0)]
    run("tiny")
    started.workloads.clear()
    started.launchers[0].baseline.fails = {9: KeyboardInterrupt()}
    started.launchers[0].started.clear()
    started.launchers[0].baseline.fails = {0: KeyboardInterrupt()}

    assert run("tiny") == 130

    assert record.load(Path("results/compare.json")).cases["tiny"].pairs == ()


def test_no_older_file_stands_for_a_comparison_that_was_killed_while_it_installed(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    started.launchers = [pair(1.0, 1.0)]
    run("tiny", "--markdown", "own.md")

    def killed(*_: object) -> None:
        raise SystemExit(137)

    monkeypatch.setattr("perfline.cli.compare._installed", killed)
    with pytest.raises(SystemExit):
        run("tiny", "--markdown", "own.md", "--candidate-install", "six")

    found = record.load(Path("results/compare.json"))
    assert (found.partial, found.cases) == (True, {})
    assert not Path("own.md").exists()


def test_of_two_tasks_of_one_launcher_the_second_compares_nothing(
    started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "1")

    assert run("tiny") == 2

    assert "MPI started this as task 1 of 2 (PMI_RANK, PMI_SIZE)" in capsys.readouterr().err
    assert not Path("results/compare.json").exists()


def test_every_option_reaches_its_place(started: Started) -> None:
    started.launchers = [pair(1.0, 1.0)]
    Path("data").mkdir()
    words = [
        *("--baseline-python", sys.executable, "--candidate-ref", "v2"),
        *("--baseline-env", "A=1", "--env", "B=2", "--env", "C=x y"),
        *("--baseline-set", "engine.mode=default", "--set", "engine.mode=max-autotune"),
        *("--baseline-import", "one", "--import", "two", "--import", "three"),
        *("--engine", "eager", "--margin", "5", "--max-pairs", "12", "--rounds", "4"),
        *("--questions", "50", "--alternate", "--timeout", "60", "--dummy-weights"),
        *("--ranks", "4", "--data-dir", "data", "-o", "out/c.json"),
    ]

    assert run("tiny", *words) == 0

    a, b = started.sides
    assert (str(a.python), a.ref, dict(a.env), a.imports) == (
        sys.executable,
        None,
        {"A": "1"},
        ("one",),
    )
    assert (b.ref, dict(b.env), b.imports) == ("v2", {"B": "2", "C": "x y"}, ("two", "three"))
    assert a.settings == (("engine.mode", "default"),)
    assert b.settings == (("engine.mode", "max-autotune"),)
    (asked,) = started.workloads
    assert (asked.engine, asked.weights, asked.questions) == ("eager", "dummy", 50)
    assert asked.ranks == 4
    assert asked.data_dir == Path("data")
    assert started.timeout_s == 60
    found = record.load(Path("out/c.json"))
    case = found.cases["tiny"]
    assert (case.margin_fraction, case.looks, case.rounds) == (0.05, (10, 12), 4)
    assert case.ranks == 4
    assert not any(pair.interleaved for pair in case.pairs)


def test_the_command_in_the_record_does_the_same_again(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    started.launchers = [pair(1.0, 1.0), pair(1.0, 1.0)]
    Path("data dir").mkdir()
    words = [
        "tiny",
        *("--baseline-ref", "main", "--candidate-python", sys.executable),
        *("--baseline-env", "A=x y", "--env", "HF_TOKEN=hf_secret"),
        *("--set", "engine.mode=max-autotune", "--import", "two"),
        *("--candidate-install", "--pre torch", "--baseline-install", "-r old.txt"),
        *("--candidate-install", "--index-url https://me:hunter2@host/simple"),
        *("--engine", "eager", "--margin", "2.5", "--max-pairs", "12", "--rounds", "4"),
        *("--questions", "50", "--timeout", "60", "--alternate", "--strict", "--dummy-weights"),
        *("--ranks", "2"),
        *("--data-dir", "data dir", "--out", "c.json"),
    ]
    monkeypatch.setattr(sides, "make", lambda *given: Made(Path("/made/bin/python")))
    run(*words)

    command = record.load(Path("c.json")).command

    assert "hf_secret" not in command
    assert "hunter2" not in Path("c.json").read_text()
    again = shlex.split(command)
    assert again[:2] == ["perfline", "compare"]
    expected = [word.replace("hf_secret", "(not recorded)") for word in words]
    expected = [word.replace("me:hunter2", "***") for word in expected]
    assert sorted(again[2:]) == sorted(expected)


def test_what_is_asked_for_is_installed_beside_the_side_s_packages_and_every_version_is_told(
    started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []

    def make(base: Path, requests: object, option: str, say: Any) -> Made:
        asked.extend([base, requests, option])
        say(f"{option}: installed")
        return Made(Path("/made/bin/python"), ("a 1 -> 2",), ("b requires a<2",))

    monkeypatch.setattr(sides, "make", make)
    started.launchers = [pair(1.0, 1.0)]
    old = {"torch": "2.13.0", "a": "1", "gone": "1", "kept": "1"}
    new = {"torch": "2.13.0", "a": "2", "kept": "1", "new": "5"}
    started.launchers[0].baseline.ready = ready(packages=old)
    started.launchers[0].candidate.ready = ready(packages=new)

    assert run("tiny", "--candidate-install", "a==2", "--markdown", "summary.md") == 0

    assert asked == [Path(sys.executable), ("a==2",), "--candidate-install"]
    assert [str(side.python) for side in started.sides] == [sys.executable, "/made/bin/python"]
    shown = capsys.readouterr()
    assert shown.err.splitlines()[:2] == [
        "--candidate-install: installed",
        "tiny inductor, at most 90 launch pairs; B against A: + a==2",
    ]
    for text in (shown.out, Path("summary.md").read_text()):
        text = " ".join(html.unescape(text).replace("\\", "").split())
        assert "B against A: a 1 -> 2, gone 1 -> none, new none -> 5" in text
        assert "candidate: b requires a<2" in text
        assert "/made/bin/python, working tree, installed a==2" in text
    case = record.load(Path("results/compare.json")).cases["tiny"]
    assert (case.sides["candidate"].packages, case.sides["candidate"].install) == (new, ("a==2",))
    assert case.sides["baseline"].packages == old


def test_packages_are_no_part_of_a_record_where_nothing_was_installed(started: Started) -> None:
    started.launchers = [pair(1.0, 1.0)]
    started.launchers[0].candidate.ready = ready(packages={"a": "1"})

    assert run("tiny") == 0

    text = Path("results/compare.json").read_text()
    assert '"packages"' not in text
    assert '"install"' not in text


def test_requests_that_end_in_one_environment_are_told(
    started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sides, "make", lambda base, *given: Made(base))
    started.launchers = [pair(1.0, 1.0)]

    assert run("tiny", "--candidate-install", "transformers") == 0

    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert "makes no difference: both sides run in one environment" in " ".join(text.split())
    assert "B against A: nothing (A/A)" in shown.out


def test_what_cannot_be_installed_ends_before_anything_is_measured(
    started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(*given: object) -> Made:
        raise InstallError("--candidate-install 'a==99' cannot be installed; uv says:\n  none")

    monkeypatch.setattr(sides, "make", make)

    assert run("tiny", "--candidate-install", "a==99") == 2

    assert capsys.readouterr().err.splitlines() == [
        "perfline: error: --candidate-install 'a==99' cannot be installed; uv says:",
        "perfline: error:   none",
    ]
    assert started.workloads == []
    assert record.load(Path("results/compare.json")).partial


def test_a_job_cancelled_while_it_installs_ends_as_ctrl_c_does(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides, "make", lambda *given: signal.raise_signal(signal.SIGTERM))

    assert run("tiny", "--baseline-install", "a") == 130

    assert started.workloads == []


def test_explain_is_asked_for_and_stands_in_the_record(
    started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    started.launchers = [pair(1.0, 1.25)]

    assert run("tiny", "--explain", "--traces", "deep/traces") == 1

    shown = capsys.readouterr()
    problem = "B's perfline cannot profile, as it is older than --explain"
    assert f"not explained: {problem}" in shown.out
    assert "regressed; now profiled, to explain it: 30 rounds a side" in shown.err
    found = record.load(Path("results/compare.json"))
    assert found.command == "perfline compare tiny --traces deep/traces --explain"
    assert found.cases["tiny"].explanation is not None
    assert found.cases["tiny"].explanation.problem == problem
    assert list(Path("deep/traces").iterdir()) == []


def test_ctrl_c_while_it_explains_leaves_the_verdict(
    started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(turn: int) -> None:
        raise KeyboardInterrupt

    started.launchers = [pair(1.0, 1.25)]
    started.launchers[0].candidate.profile = interrupt

    assert run("tiny", "--explain") == 130

    assert capsys.readouterr().out.startswith("tiny inductor regressed +25.0 %")
    assert record.load(Path("results/compare.json")).cases["tiny"].ended
    assert started.launchers[0].live == set()


def test_traces_that_cannot_be_kept_end_it_before_anything_is_measured(
    started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tiny", "--traces", "there") == 2
    assert "--traces: keeps what --explain profiles; add --explain" in capsys.readouterr().err
    Path("file").write_text("")
    assert run("tiny", "--explain", "--traces", "file") == 2
    assert "file: cannot be made: File exists" in capsys.readouterr().err
    assert started.launchers == []


def test_several_cases_run_one_after_the_other_and_share_alpha(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = other_case(tmp_path / "cases")
    started.launchers = [pair(1.0, 1.25), pair(1.0, 1.0)]

    assert run("tiny", "other", "--dummy-weights", where) == 1

    shown = capsys.readouterr()
    cases = record.load(Path("results/compare.json")).cases
    assert [workload.case for workload in started.workloads] == ["tiny", "other"]
    assert [cases[name].word for name in ("tiny", "other")] == ["regressed", "ok"]
    assert cases["tiny"].alpha == pytest.approx(0.00083)
    assert cases["other"].alpha == pytest.approx(0.00166)  # handed on by the regressed one
    assert len(cases["tiny"].pairs) == 14
    assert "tiny pair 14: B +25.0 % [+25.0, +25.0], decided" in shown.err
    assert shown.out.startswith("tiny inductor regressed")
    assert "other inductor ok" in shown.out


def test_the_summary_goes_to_a_file_of_its_own_and_after_what_stands_in_github_s(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, before in (("own.md", ""), ("github.md", "# Tests\n")):
        Path(name).write_text("# Tests\n")
        started.launchers, started.workloads = [pair(1.0, 1.25)], []
        if name == "github.md":
            monkeypatch.setenv("GITHUB_STEP_SUMMARY", name)

        run("tiny", "--markdown", name)

        text = Path(name).read_text()
        assert text.startswith(f"{before}## perfline compare: tiny inductor regressed")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tinny",), "case 'tinny' is not known; did you mean 'tiny'?"),
        (("tiny", "--set", "engine.mod=x"), "key 'engine.mod' is not known"),
        (("tiny", "--baseline-python", "/no/such/python"), "no interpreter /no/such/python"),
        (("tiny", "--env", "A"), "expected KEY=VALUE"),
        (("tiny", "--engine", "triton"), "--engine names 'triton' (expected eager, inductor or"),
        (("tiny", "--candidate-install", "-e ."), "--candidate-install: takes no '-e'; expected"),
        (("tiny", "--candidate-install", "a\udcff"), "is no UTF-8; expected text"),
        (("tiny", "--out", "/proc/x/c.json"), "/proc/x/c.json: cannot be written"),
        (("tiny", "--markdown", "/proc/x/c.md"), "/proc/x/c.md: cannot be written"),
        (("tiny", "-o", "x.json", "--markdown", "x.json"), "is named by --out and by --markdown"),
        (("llama3-8b", "--data-dir", "."), "get it with: hf download"),
        (("tiny", "--data-dir", "nowhere"), "--data-dir=nowhere, which is not there; correct it"),
    ],
)
def test_wrong_input_is_one_line_before_any_process(
    started: Started, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert run(*words) == 2

    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("perfline: error: ")
    assert len(shown.splitlines()) == 1
    assert started.workloads == []


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("tiny", "--margin", "0"),
        ("tiny", "--margin", "100"),
        ("tiny", "--margin", "nan"),
        ("tiny", "--max-pairs", "0"),
        ("tiny", "--max-pairs", "501"),
        ("tiny", "--rounds", "2"),
        ("tiny", "--ranks", "0"),
        ("tiny", "--questions", "-1"),
        ("tiny", "--timeout", "x"),
    ],
)
def test_wrong_options_exit_2(started: Started, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as raised:
        run(*words)

    assert raised.value.code == 2
    assert started.workloads == []


@pytest.mark.parametrize("ranks", [(), ("--ranks", "6")])
def test_a_split_model_says_how_many_ranks_it_needs(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str], ranks: tuple[str, ...]
) -> None:
    where = other_case(tmp_path / "cases", "split")
    with (tmp_path / "cases" / "split.yaml").open("a") as file:
        file.write("\nparallel: {tensor: 4}\n")

    assert run("split", "--dummy-weights", where, *ranks) == 2

    number = ranks[-1] if ranks else "1"
    assert capsys.readouterr().err == (
        "perfline: error: case 'split' splits its model over 4 processes (parallel.tensor), and "
        f"--ranks is {number}: compare with --ranks 4, or a multiple of it\n"
    )
    assert started.workloads == []


def test_a_side_may_split_what_the_other_does_not(started: Started) -> None:
    started.launchers = [pair(1.0, 1.0)]

    assert run("tiny", "--ranks", "2", "--set", "parallel.tensor=2") == 0


def test_sides_that_do_other_work_never_start(
    started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    started.launchers = [pair(1.0, 1.0)]

    assert run("tiny", "--set", "throughput.sample=32") == 1

    assert capsys.readouterr().out.startswith("tiny inductor incomparable: 'throughput.sample'")
    assert started.launchers[0].started == {}


def test_wrong_answers_exit_1_however_fast(started: Started) -> None:
    started.launchers = [pair(1.25, 1.0)]
    started.launchers[0].candidate.answers = answers(
        wrong={i: "ABCD"[(i + 1) % 4] for i in range(40)}
    )

    assert run("tiny") == 1


def test_help_says_units_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, perfline.cli.main\n"
        "try:\n    perfline.cli.main.main(['compare', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted(set(sys.modules) & {'torch', 'transformers', 'pandas', 'scipy', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"
    shown = " ".join(done.stdout.split())
    assert (
        "in per cent (default: the case's compare.margin_fraction, 2 % where it has none)" in shown
    )


@pytest.mark.parametrize(("questions", "asked"), [("0", False), ("50", True)])
def test_no_questions_leave_out_what_is_computed_in_fp32_too(
    started: Started, questions: str, asked: bool
):
    launcher = pair(1.0, 1.0)
    started.launchers = [launcher]
    run("tiny", "--dummy-weights", "--questions", questions, "--max-pairs", "1")
    assert ("fidelity A" in launcher.log) == asked
