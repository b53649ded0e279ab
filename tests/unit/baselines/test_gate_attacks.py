"""What a gate has to withstand: poisoned baselines, creep, renamed cases, odd samples.

Every attack goes the way that a person goes: a run is judged against the stored baseline, its
record is written, and ``perfline baselines update`` is asked to accept it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import ENVIRONMENT, FakeClock, FakeEngine, FakeLoadedCase, prompts
from perfline.baselines import baseline, judge
from perfline.baselines.proposal import Terms
from perfline.cases.case import GatesSpec, load_cases
from perfline.cli import baselines as baselines_cli
from perfline.engines.device import Device
from perfline.engines.engine import CompileCounts
from perfline.engines.environment import Environment
from perfline.engines.telemetry import RoundHealth
from perfline.errors import BaselineError
from perfline.gates import performance, verdict
from perfline.gates.verdict import Verdict, Word
from perfline.measure import record, throughput
from perfline.measure.case_run import CaseRun
from perfline.measure.record import CaseRecord, Record
from perfline.measure.throughput import Ready, Round, Timings
from perfline.metrics import Metric

CASE = """
case: {name}
model: {{case_dir: x, weight_dir: y, precision: fp32, nominal_parameters: 1.0e+6}}
throughput: {{sample: 8, rounds: 5, min_round_s: 0.001}}
gates: {{throughput_margin_fraction: 0.02, throughput_session_sd_fraction: 0.0008,
  memory_floor_mib: 0}}
"""  # a quiet machine: 1.5 % is within the margin, 2 % is not
WORKLOAD = {"questions": 8, "tokens": 1000, "full_pass": False}
COMPILED = CompileCounts(graphs=1)
FULL = 5  # rounds that the case asks for


class Line:
    """A project with one case: runs of it, and its baseline."""

    def __init__(self, root: Path, name: str = "quiet") -> None:
        self.cases, self.baselines = root / "cases", root / "baselines"
        self.cases.mkdir()
        self.runs = 0
        self.record = root / "run.json"
        self.name(name)

    def name(self, name: str) -> None:
        """Give the case this name, and no other."""
        for old in self.cases.glob("*.yaml"):
            old.unlink()
        (self.cases / f"{name}.yaml").write_text(CASE.format(name=name))
        (self.case,) = load_cases([name], [self.cases])

    @property
    def path(self) -> Path:
        return baseline.path(self.baselines, ENVIRONMENT.machine, self.case.id, dummy=False)

    def run(
        self, tok_per_s: float, *, val: float = 500.0, gib: float = 8.0, rounds: int = FULL
    ) -> Word:
        """Measure and judge at this speed of the compiled engine; return the gravest word."""
        return verdict.worst(self.judged(tok_per_s, val=val, gib=gib, rounds=rounds))

    def judged(
        self,
        tok_per_s: float,
        *,
        val: float = 500.0,
        gib: float = 8.0,
        rounds: int = FULL,
        thrown_out: int = 0,
    ) -> list[Verdict]:
        """Measure and judge both engines, and write the record."""
        self.runs += 1
        against = judge.against(self.baselines, ENVIRONMENT, self.case, "real")
        metrics: dict[str, Metric] = {}
        verdicts = []
        for name, speed in (("eager", val), ("inductor", tok_per_s)):
            timed = timings(name, speed, gib, rounds, thrown_out)
            found = {m.name: m for m in throughput.metrics(timed, 1e6, None)}
            metrics |= found
            verdicts += judge.throughput(self.case, timed, found, WORKLOAD, ENVIRONMENT, against)
        notes = {f"rounds_thrown_out_{kind}": thrown_out for kind in ("val", "infer")}
        measured = CaseRecord(
            case=self.case.id,
            title=self.case.title,
            digest=self.case.digest(),
            dtype="fp32",
            weights="real",
            workload=WORKLOAD,
            metrics=metrics,
            verdicts=tuple(verdicts),
            notes=notes if thrown_out else {},
        )
        when = f"2026-11-{self.runs:02d}T10:00:00Z"
        record.save(self.record, Record(when, False, ENVIRONMENT, {self.case.id: measured}))
        return verdicts

    def update(self, *, add: bool = False, accept_regression: bool = False) -> None:
        """``perfline baselines update``; BaselineError where it refuses."""
        terms = Terms("test", add=add, accept_regression=accept_regression)
        baselines_cli.update(self.baselines, self.record, [self.case.id], [self.cases], terms)

    def accept(self, *speeds: float) -> None:
        """Start a baseline with sessions of these speeds."""
        for number, speed in enumerate(speeds):
            self.run(speed)
            self.update(add=number > 0, accept_regression=True)


def timings(name: str, tok_per_s: float, gib: float, rounds: int, thrown_out: int) -> Timings:
    chosen = prompts(8)
    engine = FakeEngine(name, FakeClock())
    answers = throughput.run_pass(engine, chosen, "all", engine.clock).answers
    spread = [1 + (i - (rounds - 1) / 2) / 1000 for i in range(rounds)]
    return Timings(
        engine=name,
        ready=Ready(1.0, 1.0, COMPILED, CompileCounts(), 1),
        rounds=tuple(Round(1000, 1000 / (tok_per_s * f), 1001 / (tok_per_s * f)) for f in spread),
        answers=answers,
        timed=CompileCounts(),
        peak_memory_gib=gib,
        waited_fraction=None,
        flops=None,
        thrown_out=("hot",) * thrown_out,
    )


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


def words(verdicts: Iterable[Verdict]) -> dict[str, Word]:
    return {v.metric: v.word for v in verdicts}


# --- poisoned baselines


@pytest.mark.parametrize("add", [False, True])
def test_a_refused_regression_fails_again_and_again(line: Line, add: bool) -> None:
    line.accept(1000.0)
    before = line.path.read_bytes()

    for _ in range(3):
        assert line.run(900.0) == "regressed"
        with pytest.raises(BaselineError, match="or accept it with --accept-regression"):
            line.update(add=add)
        assert line.path.read_bytes() == before
    assert line.run(1000.0) == "ok"


def test_a_record_whose_verdicts_were_edited_away_is_judged_anew(line: Line) -> None:
    line.accept(1000.0)
    line.run(900.0)
    whole = record.load(line.record)
    innocent = dataclasses.replace(whole.cases["quiet"], verdicts=())
    record.save(line.record, dataclasses.replace(whole, cases={"quiet": innocent}))

    with pytest.raises(BaselineError, match=r"p_infer_core regressed -10\.0 %"):
        line.update()


def test_a_regression_accepted_on_purpose_is_the_new_normal_and_says_so(line: Line) -> None:
    line.accept(1000.0)
    line.run(900.0)
    line.update(accept_regression=True)

    assert line.run(900.0) == "ok"
    assert line.run(850.0) == "regressed"
    held = baseline.load(line.path)
    assert (held.values("p_infer_core"), held.anchors) == ((900.0,), {})


# --- creep


STEPS = [1000 * 0.985**step for step in range(1, 7)]


def test_creep_against_a_pinned_baseline_is_seen_at_the_second_step(line: Line) -> None:
    line.accept(1000.0)

    assert [line.run(speed) for speed in STEPS] == ["ok", *["regressed"] * 5]


def test_each_step_of_creep_is_within_the_margin_of_the_one_before(line: Line) -> None:
    """What a gate without an anchor lets through: 8.7 % in six steps."""
    limits, run = line.case.gates, performance.Run()
    for before, after in zip([1000.0, *STEPS], STEPS, strict=False):
        metric = Metric("p_infer_core", after, "tok/s", "higher", (after,) * 3)
        assert (
            performance.against_sessions(metric, performance.Held([before]), limits, run).word
            == "ok"
        )


def test_creep_against_the_last_release_is_seen_by_the_anchor(line: Line) -> None:
    line.accept(1000.0)
    assert line.run(STEPS[0]) == "ok"
    line.update()

    (core,) = (v for v in line.judged(STEPS[1]) if v.metric == "p_infer_core")
    assert (core.word, core.baseline) == ("regressed", pytest.approx(1000.0))
    for speed in STEPS[1:]:
        assert line.run(speed) == "regressed"
        with pytest.raises(BaselineError, match="p_infer_core regressed"):
            line.update()
    assert baseline.load(line.path).values("p_infer_core") == (pytest.approx(985.0),)


def test_the_verdict_says_what_was_lost_and_since_when(line: Line) -> None:
    line.accept(1000.0)
    line.run(985.0)
    line.update()

    (core,) = (v for v in line.judged(985.0) if v.metric == "p_infer_core")
    assert core.word == "ok"
    assert core.reason.endswith("; -1.5 % since what was accepted on 2026-11-01")
    (core,) = (v for v in line.judged(970.0) if v.metric == "p_infer_core")
    assert core.headline == "p_infer_core regressed -3.0 % (limit -2.0 %)"
    assert core.reason.endswith("; against what was accepted on 2026-11-01: small steps add up")
    (core,) = (v for v in line.judged(955.0) if v.metric == "p_infer_core")
    assert core.headline == "p_infer_core regressed -3.0 % (limit -2.0 %)"  # of the last update
    assert core.reason.endswith("; -4.5 % since what was accepted on 2026-11-01")


def test_the_update_of_a_small_step_shows_the_sum(
    line: Line, capsys: pytest.CaptureFixture[str]
) -> None:
    line.accept(1000.0)
    line.run(985.0)
    line.update()

    assert (
        " p_infer_core: -1.5 % since what was accepted on 2026-11-01, which stays the anchor "
    ) in " ".join(capsys.readouterr().out.split())
    baselines_cli.show(line.baselines, [], as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "anchor unit accepted date reason" in shown
    assert "p_infer_core tok/s 1000 2026-11-01 test" in shown


def test_accepting_creep_on_purpose_moves_the_anchor(line: Line) -> None:
    line.accept(1000.0)
    line.run(985.0)
    line.update()
    line.run(970.0)
    line.update(accept_regression=True)

    assert "p_infer_core" not in baseline.load(line.path).anchors
    assert line.run(956.0) == "ok"
    line.update()
    assert line.run(942.0) == "regressed"


def test_an_improvement_moves_the_anchor_up(line: Line) -> None:
    line.accept(1000.0)
    assert line.run(1030.0) == "improved"
    line.update()

    assert line.run(1015.0) == "ok"
    line.update()
    assert line.run(1000.0) == "regressed"


def test_faster_in_small_steps_moves_the_anchor_as_well(line: Line) -> None:
    line.accept(1000.0)
    for speed in (1008.0, 1016.0):  # each is less than half the margin: ok
        line.run(speed)
        line.update()

    assert baseline.load(line.path).anchor("p_infer_core") == ((), "")
    assert line.run(996.0) == "regressed"


def test_an_improvement_of_one_metric_hides_no_creep_of_another(line: Line) -> None:
    line.accept(1000.0)
    assert line.run(1100.0, val=492.5) == "improved"
    line.update()

    assert words(line.judged(1200.0, val=485.0)) == {
        "p_val_core": "regressed",
        "p_val_whole": "regressed",
        "mem_val": "ok",
        "p_infer_core": "improved",
        "p_infer_whole": "improved",
        "mem": "ok",
        "graphs": "ok",
        "graph_breaks": "ok",
        "recompiles": "ok",
    }


def test_memory_does_not_creep_either(line: Line) -> None:
    line.accept(1000.0)
    assert line.run(1000.0, gib=8.07) == "ok"
    line.update()

    (mem,) = (v for v in line.judged(1000.0, gib=8.14) if v.metric == "mem")
    assert (mem.word, mem.baseline) == ("regressed", 8.0)


def test_creep_by_added_sessions_does_not_pass(line: Line) -> None:
    line.accept(1000.0, 1000.1, 999.9)
    assert line.run(STEPS[0]) == "ok"
    line.update(add=True)

    for speed in STEPS[1:]:
        assert line.run(speed) in ("unsure", "regressed")  # the step itself counts as spread now
        with pytest.raises(BaselineError):
            line.update(add=True)


def test_added_sessions_leave_an_anchor_where_it_is(line: Line) -> None:
    line.accept(1000.0)
    line.run(985.0)
    line.update()
    for speed in (984.5, 985.5):
        line.run(speed)
        line.update(add=True)

    held = baseline.load(line.path)
    assert len(held.values("p_infer_core")) == 3
    assert held.anchor("p_infer_core") == ((pytest.approx(1000.0),), "2026-11-01")
    assert line.run(970.0) == "regressed"


def test_the_sessions_that_were_gathered_become_the_anchor_together(line: Line) -> None:
    line.accept(1000.0, 1001.0, 999.0)
    line.run(990.0)
    line.update()

    anchor = baseline.load(line.path).anchors["p_infer_core"]
    assert anchor.metric.samples == pytest.approx((1000.0, 1001.0, 999.0))
    assert anchor.metric.value == pytest.approx(1000.0)
    assert anchor.date == "2026-11-03T10:00:00Z"


# --- a renamed case


def test_a_renamed_case_is_missing_and_its_old_baseline_named(
    line: Line, capsys: pytest.CaptureFixture[str]
) -> None:
    line.accept(1000.0)
    old = line.path
    line.name("renamed")

    word = line.run(500.0)

    assert word == "missing"
    assert verdict.skips(word, strict=False)
    assert verdict.fails(word, strict=True)
    capsys.readouterr()
    assert baselines_cli.check(line.baselines, [line.cases], strict=False) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert f"unused: {old}: there is no case 'quiet'; `perfline baselines remove quiet " in printed
    assert "has no baseline of case 'renamed'" in printed


def test_a_baseline_that_was_renamed_by_hand_is_refused(line: Line) -> None:
    line.accept(1000.0)
    old = line.path
    line.name("renamed")
    old.rename(line.path)

    with pytest.raises(BaselineError, match="holds the baseline of case 'quiet'"):
        line.run(1000.0)


def test_another_machine_is_missing_too(line: Line) -> None:
    line.accept(1000.0)
    elsewhere = Environment("other-cpu", "Other CPU", "cpu")

    against = judge.against(line.baselines, elsewhere, line.case, "real")

    assert against.stored is None


# --- samples that are all equal


@given(
    sessions=st.integers(1, 200),
    rounds=st.integers(3, 50),
    speed=st.floats(1.0, 1e6),
    prior=st.floats(1e-4, 0.2),
)
def test_no_spread_at_all_leaves_the_declared_one(
    sessions: int, rounds: int, speed: float, prior: float
) -> None:
    """The prior weighs as much as 2 sessions: n equal ones narrow it by sqrt(2 / (1 + n))."""
    spec = GatesSpec(throughput_session_sd_fraction=prior)
    metric = Metric("p_infer_core", speed, "tok/s", "higher", (speed,) * rounds)
    held = performance.Held([speed] * sessions)

    same = performance.against_sessions(metric, held, spec, performance.Run())

    assert same.word in ("ok", "unsure")
    assert same.measured_error == pytest.approx(0, abs=1e-9 * speed)
    assert same.baseline_error is not None
    degrees = 8 if sessions < 3 else 2
    least = prior * (degrees / (degrees + sessions - 1)) ** 0.5
    assert same.baseline_error / speed == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("sessions", [1, 3, 9, 30])
def test_equal_sessions_do_not_make_the_gate_infinitely_sharp(sessions: int) -> None:
    def word(change: float) -> Word:
        value = 1000 * (1 + change)
        metric = Metric("p_infer_core", value, "tok/s", "higher", (value,) * 5)
        held = performance.Held([1000.0] * sessions)
        return performance.against_sessions(metric, held, GatesSpec(), performance.Run()).word

    assert word(-0.004) != "regressed"
    assert word(0.004) != "improved"
    assert word(-0.06) == "regressed"


def test_equal_rounds_and_sessions_go_the_whole_way(line: Line) -> None:
    line.accept(1000.0)
    for _ in range(3):
        assert line.run(1000.0, rounds=FULL) == "ok"
        line.update()
    held = baseline.load(line.path)
    assert (held.values("p_infer_core"), held.anchors) == ((1000.0,), {})


# --- fewer samples than asked for


@pytest.mark.parametrize(("rounds", "kept"), [(4, "4"), (3, "3"), (2, "2"), (1, "1")])
def test_fewer_rounds_than_asked_for_are_no_verdict_and_no_baseline(
    line: Line, rounds: int, kept: str
) -> None:
    line.accept(1000.0)
    before = line.path.read_bytes()

    (core,) = (v for v in line.judged(1000.0, rounds=rounds) if v.metric == "p_infer_core")

    assert core.word == "unsure"
    assert core.reason.startswith(f"too few samples: {kept} rounds, 5 were asked for")
    for terms in ({}, {"add": True}, {"accept_regression": True}):
        with pytest.raises(BaselineError, match=f"was timed in {kept} rounds, 5 were asked for"):
            line.update(**terms)
    assert line.path.read_bytes() == before


def test_a_first_baseline_of_fewer_rounds_is_refused_too(line: Line) -> None:
    assert line.run(1000.0, rounds=4) == "missing"
    with pytest.raises(BaselineError, match="was timed in 4 rounds, 5 were asked for; run pytest"):
        line.update(accept_regression=True)
    assert not line.path.exists()


def test_fewer_rounds_hide_no_regression_by_being_few(line: Line) -> None:
    line.accept(1000.0)

    word = line.run(500.0, rounds=2)

    assert word == "unsure"
    assert verdict.fails(word, strict=True)


def test_a_round_that_the_device_spoilt_is_not_asked_for(line: Line) -> None:
    line.accept(1000.0)

    assert verdict.worst(line.judged(1000.0, rounds=4, thrown_out=1)) == "ok"
    line.update()


def test_a_run_that_the_device_spoilt_is_invalid_and_no_baseline(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "cpu_contention", lambda: None)
    opened = FakeLoadedCase({"inductor": FakeEngine("inductor", FakeClock())}, prompts(8))
    bench = CaseRun(
        line.case, opened, Device("cpu", "x", "x"), clock=opened.engines["inductor"].clock
    )
    hot = throughput.Watch()
    hot.end = lambda: RoundHealth(throttled="clocks throttled", readings=1)  # type: ignore[method-assign]
    monkeypatch.setattr("perfline.measure.case_run.watch", lambda _: nullcontext(hot))

    timed = bench.time("inductor", lambda timed_round, n: [timed_round() for _ in range(n)])
    against = judge.against(line.baselines, ENVIRONMENT, line.case, "real")
    (found,) = judge.throughput(
        line.case, timed, bench.metrics(), bench.workload, ENVIRONMENT, against
    )

    assert found.word == "invalid"
    assert found.reason.startswith("5 of 5 rounds were thrown out (at most 20 %, and 3 must be")


def test_memory_does_not_creep_by_added_sessions(line: Line) -> None:
    line.accept(1000.0)
    assert line.run(1000.0, gib=8.07) == "ok"
    line.update(add=True)

    assert line.run(1000.0, gib=8.14) == "ok"  # within 1 % of the largest that is held
    with pytest.raises(BaselineError, match="against the first session held: added steps add up"):
        line.update(add=True)
    line.update(add=True, accept_regression=True)
