"""``--settle``: a stored verdict on time is settled by a comparison, or stays and says why."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import fakes
from fake_workers import last, pair, plan
from perfline.compare import record
from perfline.compare.record import Comparison, SideRecord
from perfline.plugin.settle import Command, SettleError, run_compare

PACKAGES = {"torch": "9.9", "numpy": "2.0"}
THEN = dataclasses.replace(fakes.ENVIRONMENT, packages=PACKAGES, variables={"OMP_NUM_THREADS": "4"})
NEW_CODE = {"context": {"commit": "def5678"}}
PERF = ("-m", "perf", "--engines=inductor", "--settle=5")


@dataclass
class FakeCompare:
    """``perfline compare`` by script.

    Attributes:
        factor, sd: how much slower B is, and how much launches differ.
        a, packages, b, machine: what its sides tell that differs from what was asked for.
        fails: what it ends with, in place of a comparison.
        changes: of the record, before it is saved.
        takes_s: one comparison; ``took_s``: all so far.
    """

    factor: float = 1.0
    sd: float = 0.001
    a: dict[str, str] = field(default_factory=dict)
    b: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    machine: str = fakes.ENVIRONMENT.machine
    fails: Exception | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    takes_s: float = 0.0
    took_s: float = 0.0
    commands: list[Command] = field(default_factory=list)

    def __call__(self, command: Command) -> None:
        self.commands.append(command)
        self.took_s += self.takes_s
        with Path("opened.log").open("a") as log:
            log.write("compare\n")
        if self.fails is not None:
            raise self.fails
        found = last(pair(1.0, self.factor, sd=self.sd), plan(rounds=3, max_pairs=10))
        kind = "decode" if "--workload=decode" in command.arguments else "prefill"
        if kind == "decode":
            found = dataclasses.replace(found, workload=kind, beside={"first_s": found.decision})
        a, b = (found.sides[name] for name in ("baseline", "candidate"))
        ref = dict(zip(command.arguments, command.arguments[1:], strict=False))
        now = fakes.ENVIRONMENT.context
        old = {**now, "commit": ref.get("--baseline-ref", now["commit"]), **self.a}
        sides = {
            "baseline": self._side(a, old, self.packages),
            "candidate": self._side(b, {**now, **self.b}, {}),
        }
        found = dataclasses.replace(found, case="fake", sides=sides, **self.changes)
        out = next(each for each in command.arguments if each.startswith("--out="))
        made = Comparison("2026-11-26T12:00:00Z", False, "perfline compare fake", {"fake": found})
        record.save(command.directory / out.removeprefix("--out="), made)

    def _side(self, side: SideRecord, context: dict[str, str], packages: dict[str, str]) -> Any:
        told = {"context": context, "facts": {}, "packages": packages, "machine": self.machine}
        return dataclasses.replace(side, **told)


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> FakeCompare:
    found = FakeCompare()
    monkeypatch.setattr("perfline.plugin.settle.run_compare", found)
    return found


@pytest.fixture
def today(suite, compare, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """A baseline is accepted; then, something of the environment is another, and it is slower."""

    def change(slower: float = 1.1, **parts: dict[str, str | None]) -> None:
        new = {}
        for name, given in parts.items():
            whole = {**getattr(THEN, name), **given}
            new[name] = {key: text for key, text in whole.items() if text is not None}
        monkeypatch.setattr(fakes, "ENVIRONMENT", dataclasses.replace(THEN, **new))
        suite.script(inductor={"token_s": 1e-4 * slower})

    monkeypatch.setattr(fakes, "ENVIRONMENT", THEN)
    engines = getattr(request, "param", "inductor")
    suite.run("-m", "perf", f"--engines={engines}")
    assert suite.update() == 0
    return change


def core(suite) -> dict[str, Any]:
    """The verdict on throughput in the record."""
    found = suite.record()["cases"]["fake"]["verdicts"]
    return next(v for v in found if (v["metric"], v["gate"]) == ("p_infer_core", "baseline"))


def said(result: pytest.RunResult) -> str:
    return " ".join(result.stdout.str().split())


def test_new_code_that_is_no_slower_in_one_job_is_ok_and_both_words_are_kept(suite, today, compare):
    today(**NEW_CODE)
    result = suite.run(*PERF)
    result.assert_outcomes(passed=1)
    (command,) = compare.commands
    assert command.arguments[:4] == ("compare", "fake", "--baseline-ref", "abc1234")
    assert command.arguments[4:6] == ("--engine=inductor", "--workload=prefill")
    found = core(suite)
    assert found["word"] == "ok"
    assert found["change_fraction"] == pytest.approx(-0.09, abs=0.01)  # what was measured stays
    assert found["settled"]["first"] == "regressed"
    assert found["settled"]["compared"] == "ok"
    assert (suite.root / found["settled"]["record"]).is_file()
    assert suite.words()["p_infer_whole.baseline"] == "ok"
    text = said(result)
    assert "p_infer_core ok: first regressed: slower than chance allows" in text
    assert "compared with commit abc1234: ok, time" in text
    assert re.search(r"this verdict took \d+\.\d minutes of this device", text)
    assert "next: perfline compare" not in text


def test_the_settled_word_is_the_one_that_update_and_reports_take(suite, today, compare, capsys):
    from perfline.cli.main import main

    today(**NEW_CODE)
    suite.run(*PERF)
    capsys.readouterr()
    main(["report", "--format=markdown", "results/run.json"])
    assert "p_infer_core ok: first regressed" in capsys.readouterr().out
    main(["report", "--out=page.html", "results/run.json"])
    assert "p_infer_core ok: first regressed" in (suite.root / "page.html").read_text()
    assert suite.update() == 0
    held = suite.baseline()["throughput"]
    assert held["anchors"]["p_infer_core"]["metric"]["value"] == pytest.approx(1e4)  # it stays


def test_the_same_slower_run_is_not_accepted_without_a_comparison(suite, today, compare):
    today(**NEW_CODE)
    suite.run("-m", "perf", "--engines=inductor").assert_outcomes(failed=1)
    assert compare.commands == []
    assert suite.update() != 0


@pytest.mark.parametrize(
    ("slower", "factor", "sd", "first", "word"),
    [
        (1.1, 1.25, 0.001, "regressed", "regressed"),
        (1.015, 1.25, 0.001, "unsure", "regressed"),
        (1.015, 1.0, 0.001, "unsure", "ok"),
        (1.1, 0.8, 0.001, "regressed", "ok"),
        (1.1, 1.0, 0.2, "regressed", "regressed"),
        (1.015, 1.0, 0.2, "unsure", "unsure"),
    ],
    ids=[
        *("slower, both", "slower after all", "no slower", "faster is ok, never improved"),
        *("the comparison is unsure", "both are unsure"),
    ],
)
def test_what_each_word_becomes(suite, today, compare, slower, factor, sd, first, word):
    today(slower, **NEW_CODE)
    compare.factor, compare.sd = factor, sd
    result = suite.run(*PERF)
    found = core(suite)
    assert (found["settled"]["first"], found["word"]) == (first, word)
    outcome = {"regressed": "failed", "unsure": "skipped", "ok": "passed"}[word]
    result.assert_outcomes(**{outcome: 1})


@pytest.mark.parametrize("name", ["driver", "os", "runner", "threads"])
def test_what_a_shares_with_today_alone_clears_nothing_and_is_named(
    suite, today, compare, monkeypatch, name
):
    today(context={"commit": "def5678", name: "new"})
    suite.run(*PERF).assert_outcomes(failed=1)
    reason = core(suite)["reason"]
    assert f"not the code, not the packages: this machine, or its driver ({name} none" in reason
    assert core(suite)["settled"]["compared"] == "ok"


@pytest.mark.parametrize(
    ("parts", "packages", "lacks"),
    [
        ({"context": {"python": "3.14.0"}}, {}, "python none -> 3.14.0"),
        ({"context": {"cuda": "13.1"}}, {}, "cuda none -> 13.1"),
        ({"packages": {"numpy": "2.1"}}, {"torch": "9.9", "numpy": "2.1"}, "numpy 2.0 -> 2.1"),
        ({"packages": {"flash-attn": "3.0"}}, {}, "without flash-attn"),
        ({"variables": {"CUDA_VISIBLE_DEVICES": "1"}}, {}, "another card"),
    ],
)
def test_a_that_lacks_something_clears_nothing(suite, today, compare, parts, packages, lacks):
    parts.setdefault("context", {})["commit"] = "def5678"
    today(**parts)
    compare.packages = packages
    suite.run(*PERF).assert_outcomes(failed=1)
    assert "yet A is not all that the baseline was" in core(suite)["reason"]
    assert lacks in core(suite)["reason"]


def test_the_packages_and_the_variables_of_the_baseline_are_had(suite, today, compare):
    new = {"OMP_NUM_THREADS": "2", "TORCHINDUCTOR_MAX_AUTOTUNE": "1"}
    today(context={"commit": "def5678", "torch": "10"}, packages={"torch": "10"}, variables=new)
    compare.a, compare.packages = {"torch": "9.9"}, PACKAGES
    suite.run(*PERF).assert_outcomes(passed=1)
    (command,) = compare.commands
    told = " ".join(command.arguments)
    assert "--baseline-ref abc1234 --baseline-install torch==9.9" in told
    assert "--baseline-env OMP_NUM_THREADS=4 --env TORCHINDUCTOR_MAX_AUTOTUNE=1" in told
    assert command.unset == ("TORCHINDUCTOR_MAX_AUTOTUNE",)
    assert "commit abc1234 and its packages and its variables" in core(suite)["reason"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fails": SettleError("git knows no commit 'abc1234'")}, "git knows no commit"),
        ({"b": {"commit": "eee"}}, "B ran otherwise than this session: commit def5678 -> eee"),
        ({"machine": "other"}, "B ran otherwise than this session: machine"),
        ({"changes": {"problem": "A crashed", "ended": True}}, "A crashed"),
        ({"changes": {"ended": False}}, "ended before it was decided"),
    ],
)
def test_a_comparison_that_says_nothing_leaves_the_first_verdict(
    suite, today, compare, changes, why
):
    today(**NEW_CODE)
    for name, value in changes.items():
        setattr(compare, name, value)
    result = suite.run(*PERF)
    result.assert_outcomes(failed=1)
    found = core(suite)
    assert (found["word"], "settled" in found) == ("regressed", False)
    assert "; not settled: " in found["reason"]
    assert why in found["reason"]
    assert "to settle it: perfline compare fake --baseline-ref abc1234" in result.stdout.str()


def test_what_does_not_differ_is_not_compared(suite, today, compare):
    today(context={"driver": "2"})
    suite.run(*PERF).assert_outcomes(failed=1)
    assert compare.commands == []
    assert "this machine, its driver, or chance (driver none -> 2)" in core(suite)["reason"]


def test_code_that_was_not_committed_cannot_be_had(suite, today, compare):
    path = next(suite.root.glob("baselines/*/fake.json"))
    today(**NEW_CODE)
    from perfline.baselines import baseline

    held = baseline.load(path)
    session = dataclasses.replace(held.sessions[0], commit="abc1234-dirty")
    baseline.save(path, dataclasses.replace(held, sessions=(session,)))
    suite.run(*PERF).assert_outcomes(failed=1)
    assert compare.commands == []
    assert "changes that nobody committed" in core(suite)["reason"]


@pytest.mark.parametrize("today", ["eager,inductor"], indirect=True)
def test_the_time_is_that_of_the_session(suite, today, compare, monkeypatch):
    compare.takes_s = 400.0
    monkeypatch.setattr(fakes.FakeClock, "__call__", lambda self: self.now + compare.took_s)
    today(**NEW_CODE)
    suite.script(both={"token_s": 1.1e-4})
    suite.run("-m", "perf", "--settle=5").assert_outcomes(passed=1, failed=1)
    assert len(compare.commands) == 1
    reasons = [v["reason"] for v in suite.record()["cases"]["fake"]["verdicts"]]
    assert any("this verdict took 6.7 minutes" in text for text in reasons)
    assert any("the 5 minutes of --settle are used up" in text for text in reasons)


@pytest.mark.parametrize("today", ["eager,inductor"], indirect=True)
def test_the_model_makes_room_and_is_loaded_again_for_the_next_test(suite, today, compare):
    today(**NEW_CODE)
    suite.script(both={"token_s": 1.1e-4})
    (suite.root / "opened.log").unlink()
    suite.run("-m", "perf", "--settle=5").assert_outcomes(passed=2)
    log = (suite.root / "opened.log").read_text().splitlines()
    first = ["open fake", "close fake", "compare"]
    assert log == [*first, *first]


def test_a_test_that_goes_on_after_it_was_settled_has_its_model_again(suite, today, compare):
    (suite.root / "tests" / "test_more.py").write_text(
        "def test_more(case):\n"
        "    case.check(case.judge_timings(case.time('inductor')))\n"
        "    case.engine('inductor')\n"
    )
    today(**NEW_CODE)
    (suite.root / "opened.log").unlink()
    suite.run("--settle=5", "tests/test_more.py").assert_outcomes(passed=1)
    log = (suite.root / "opened.log").read_text().splitlines()
    assert log == ["open fake", "close fake", "compare", "open fake", "close fake"]


def test_small_steps_that_add_up_are_cleared_by_no_comparison_with_the_last(suite, today, compare):
    today(1.1, **NEW_CODE)
    suite.run(*PERF)
    assert suite.update() == 0  # the first session is the anchor now
    today(1.2, context={"commit": "fff0000"})
    compare.commands.clear()
    suite.run(*PERF).assert_outcomes(failed=1)
    assert "--baseline-ref def5678" in " ".join(compare.commands[0].arguments)
    assert "small steps add up" in core(suite)["reason"]
    assert core(suite)["settled"]["compared"] == "ok"


def test_without_the_option_the_comparison_is_the_next_command(suite, today, compare):
    today(context={"commit": "def5678", "torch": "10"}, packages={"torch": "10"})
    result = suite.run("-m", "perf", "--engines=inductor")
    command = "perfline compare fake --baseline-ref abc1234 --baseline-install torch==9.9"
    result.stdout.fnmatch_lines([f"next: to settle it: {command} --case-dir=cases"])
    assert compare.commands == []


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "nan", "inf"])
def test_minutes_are_a_number_above_0(suite, minutes):
    result = suite.run(f"--settle={minutes}")
    assert "expected minutes, a number above 0" in result.stderr.str()


def command(folder: Path, *arguments: str, limit_s: float = 60.0) -> Command:
    return Command(arguments, ("OMP_NUM_THREADS",), folder, limit_s)


def test_what_perfline_refuses_is_the_reason_that_is_told(tmp_path: Path):
    with pytest.raises(SettleError, match="nosuch"):
        run_compare(command(tmp_path, "compare", "nosuch"))


@pytest.fixture
def perfline_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a program in the place of ``python -m perfline``."""

    def write(program: str) -> None:
        (tmp_path / "perfline").mkdir()
        (tmp_path / "perfline" / "__init__.py").touch()
        (tmp_path / "perfline" / "__main__.py").write_text(program)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return write


def test_a_comparison_that_takes_too_long_is_ended(tmp_path: Path, perfline_is):
    perfline_is("import time\ntime.sleep(600)\n")
    with pytest.raises(SettleError, match="the time of --settle was over"):
        run_compare(command(tmp_path, "compare", "tiny", limit_s=0.5))


def test_that_b_is_slower_is_no_failure_and_what_is_unset_is_not_there(
    tmp_path: Path, perfline_is, monkeypatch
):
    perfline_is("import os, sys\nsys.exit(2 if 'OMP_NUM_THREADS' in os.environ else 1)\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_compare(command(tmp_path, "compare", "tiny"))
    with pytest.raises(SettleError, match="it ended with status 2"):
        run_compare(Command(("compare", "tiny"), (), tmp_path, 60.0))
