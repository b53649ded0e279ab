"""Several ranks are a machine of their own, but for answers: those depend on no number of ranks."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import samples
from fakes import DEVICE
from perfline.baselines import accept, baseline, judge
from perfline.baselines.proposal import Candidate, Terms, measured_baseline
from perfline.cli import main as cli
from perfline.engines.engine import CompileCounts
from perfline.engines.environment import Environment
from perfline.errors import EngineError, RecordError
from perfline.measure import record as records
from perfline.measure.accuracy import AccuracyOptions, AccuracyPass
from perfline.measure.case_run import CaseRun
from perfline.metrics import Metric
from perfline.plugin.session import Options, Session, Tools
from perfline.report.markdown import markdown
from perfline.report.text import session_lines
from samples import (
    MACHINE,
    WORKLOAD,
    answers,
    case_record,
    given,
    metrics,
    packaged,
    record,
    saved,
    verdict,
)

ONE = Environment(MACHINE, "Test CPU", "cpu", {"torch": "2.13.0"})
EIGHT = ONE.of_ranks(["node-a"] * 8)
PLAIN = Terms(reason="first")


def test_the_layout_is_part_of_the_machine():
    assert (EIGHT.machine, EIGHT.layout) == (f"{MACHINE}-x8", "x8")
    both = ONE.of_ranks(["node-a", "node-b"] * 8)
    assert (both.machine, both.layout) == (f"{MACHINE}-2-nodes-x16", "2-nodes-x16")
    assert {each.one_rank for each in (ONE, EIGHT, both)} == {MACHINE}
    assert both.of_ranks(["node-a"] * 8) == EIGHT


def test_a_record_keeps_the_layout_and_one_of_one_process_does_not_know_the_word(tmp_path: Path):
    path = saved(tmp_path, record(environment=EIGHT))
    assert records.load(path).environment == EIGHT
    path = saved(tmp_path, record(environment=ONE))
    assert records.load(path).environment == ONE
    assert "layout" not in path.read_text()


def store(root: Path, environment: Environment, **changes: object) -> Path:
    """A baseline of that environment, as ``case_record()`` measured it."""
    whole = record(case_record(**changes), environment=environment)
    held = measured_baseline(whole, whole.cases["tiny"], "first")
    path = baseline.path(root, environment.machine, "tiny", dummy=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    baseline.save(path, held)
    return path


def asked(wrong: int = 0) -> AccuracyPass:
    return AccuracyPass(given(wrong), 400, "plain")


def test_a_fault_of_the_fast_path_names_the_plain_one(tmp_path):
    against = judge.against(tmp_path, EIGHT, packaged(), "real")
    done = replace(asked(), path="shared-prefix")
    reasons = [
        judge.accuracy_against_baseline(packaged(), "eager", METRIC, each, against)[0].reason
        for each in (
            replace(done, counts=CompileCounts(graphs=1)),
            replace(done, reference=given(wrong=1)),
            replace(asked(), counts=CompileCounts(graphs=1)),
        )
    ]
    assert [reason.endswith("; run again with --plain") for reason in reasons] == [1, 1, 0]


METRIC = Metric("acc_val", 0.5, "fraction", "higher")


def verdict_of(root: Path, wrong: int = 0):
    against = judge.against(root, EIGHT, packaged(), "real").relative(str)
    (found,) = judge.accuracy_against_baseline(packaged(), "eager", METRIC, asked(wrong), against)
    return found


def test_answers_of_one_rank_do_where_the_layout_has_none_and_the_file_is_named(tmp_path: Path):
    of_one = store(tmp_path, ONE)
    assert verdict_of(tmp_path).word == "ok"
    assert verdict_of(tmp_path).reason.endswith(f"; stored answers of {of_one}")
    assert verdict_of(tmp_path, wrong=20).word == "regressed"
    of_eight = store(tmp_path, EIGHT, accuracy={})
    assert verdict_of(tmp_path).reason.endswith(f"; stored answers of {of_one}")
    store(tmp_path, EIGHT, accuracy={"eager": answers(wrong=range(20))})
    assert verdict_of(tmp_path, wrong=20).word == "ok"  # its own are stored: those count
    assert str(of_eight.parent) not in verdict_of(tmp_path, wrong=20).reason
    assert str(of_one) not in verdict_of(tmp_path, wrong=20).reason


def test_without_any_stored_answers_both_places_are_named(tmp_path: Path):
    found = verdict_of(tmp_path)
    assert found.word == "missing"
    assert found.reason == (
        f"no stored answers in {tmp_path / f'{MACHINE}-x8' / 'tiny.json'} or "
        f"{tmp_path / MACHINE / 'tiny.json'}"
    )


def test_answers_of_one_rank_to_another_definition_do_not_compare(tmp_path: Path):
    store(tmp_path, ONE, digest="sha256:0000")
    found = verdict_of(tmp_path)
    assert found.word == "incomparable"
    assert "the case has changed since the baseline was accepted" in found.reason


def test_a_failure_over_answers_shows_the_baseline_that_they_are_of(tmp_path: Path):
    of_one = store(tmp_path, ONE)
    options = Options(
        None, tmp_path, tmp_path, False, False, "real", AccuracyOptions(), None, Path()
    )
    session = Session(options, EIGHT)
    session._against["tiny"] = judge.against(tmp_path, EIGHT, packaged(), "real").relative(str)
    session._case_runs["tiny"] = SimpleNamespace(loaded=SimpleNamespace(facts={}))
    session._cases["tiny"] = case_record()
    lost = verdict_of(tmp_path, wrong=20)
    assert f"  baseline  {of_one} (2026-11-22)" in session.failure(packaged(), [lost])
    slower = verdict("p_infer_core", "missing")
    of_eight = tmp_path / EIGHT.machine / "tiny.json"
    assert f"none yet; it would be {of_eight}" in session.failure(packaged(), [slower, lost])


def test_throughput_of_one_rank_is_no_baseline_for_eight(tmp_path: Path):
    store(tmp_path, ONE)
    against = judge.against(tmp_path, EIGHT, packaged(), "real")
    assert against.stored is None
    assert against.path == tmp_path / f"{MACHINE}-x8" / "tiny.json"


def candidate(one_rank: baseline.Baseline | None, **changes: object) -> Candidate:
    measured = case_record(**changes)
    whole = record(measured, environment=EIGHT)
    new = measured_baseline(whole, measured, "first")
    path = Path("baselines") / EIGHT.machine / "tiny.json"
    return Candidate(Path("run.json"), path, measured, packaged(), None, new, one_rank=one_rank)


def test_what_lost_answers_against_one_rank_is_not_accepted_for_eight(tmp_path: Path):
    one = baseline.load(store(tmp_path, ONE))
    assert accept.problems(candidate(one), PLAIN) == []
    worse = {"eager": answers(wrong=range(20)), "inductor": answers()}
    (line,) = accept.problems(candidate(one, accuracy=worse), PLAIN)
    assert "acc_val regressed -5.00 pp" in line
    fewer = {"eager": answers(n=300)}
    (line,) = accept.problems(candidate(one, accuracy=fewer), PLAIN)
    assert "eager answered 300 questions where the baseline of one rank holds 400" in line
    loosened = dataclasses.replace(PLAIN, accept_regression=True)
    assert accept.problems(candidate(one, accuracy=worse), loosened) == []


def test_metrics_of_several_ranks_are_accepted_as_they_are_written():
    beside = {
        "p_infer_core_per_device": Metric("p_infer_core_per_device", 125.0, "tok/s", "info"),
        "p_infer_whole_one_rank": Metric("p_infer_whole_one_rank", 130.0, "tok/s", "info"),
        "scaling_efficiency_infer": Metric("scaling_efficiency_infer", 0.96, "fraction", "info"),
    }
    found = candidate(None, metrics=metrics() | beside)
    assert accept.problems(found, PLAIN) == []
    stored = found.new.sessions[0].metrics
    assert stored["scaling_efficiency_infer"].value == 0.96
    assert "p_infer_core_per_device" not in stored
    edited = dataclasses.replace(beside["p_infer_whole_one_rank"], direction="higher")
    found = candidate(None, metrics=metrics() | {edited.name: edited})
    assert "expected tok/s info" in accept.problems(found, PLAIN)[0]


def test_a_straggler_is_told_in_the_terminal_and_in_markdown():
    finding = "rank 3 on node-b is 6.2 % slower than the median of the other ranks"
    whole = record(case_record(notes={"straggler_infer": finding}), environment=EIGHT)
    assert f"  p_infer: {finding}" in session_lines(whole, {}, {}, "", {})
    text = markdown(samples.inputs(whole))
    assert f"- **straggler**: p_infer: {finding}" in text.splitlines()


def test_the_command_writes_the_layout_s_file_and_leaves_that_of_one_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    of_one = store(Path("baselines"), ONE)
    before = of_one.read_bytes()
    saved(tmp_path, record(environment=EIGHT))
    words = ("baselines", "update", "tiny", "--run", "run.json", "--reason", "first")
    assert cli.main(words) == 0, capsys.readouterr().err
    held = baseline.load(Path("baselines") / EIGHT.machine / "tiny.json")
    assert (held.machine, dict(held.sessions[0].workload)) == (EIGHT.machine, WORKLOAD)
    assert of_one.read_bytes() == before
    worse = {"eager": answers(wrong=range(20)), "inductor": answers()}
    (Path("baselines") / EIGHT.machine / "tiny.json").unlink()
    saved(tmp_path, record(case_record(accuracy=worse), environment=EIGHT))
    assert cli.main(words) == 2
    assert "acc_val regressed" in capsys.readouterr().err


def test_a_journal_belongs_to_the_machine_of_one_rank():
    def nothing(*arguments: object) -> object:
        raise EngineError("not opened here")

    options = Options(None, Path(), Path(), False, False, "real", AccuracyOptions(), None, Path())
    tools = [
        Tools(nothing, each, DEVICE, lambda: 0.0, None, print)  # type: ignore[arg-type]
        for each in (ONE, EIGHT)
    ]
    runs: list[CaseRun] = [each.case_run(packaged(), object(), options) for each in tools]  # type: ignore[arg-type]
    assert runs[0].software == runs[1].software
    assert runs[0].software["machine"] == MACHINE


@pytest.mark.parametrize("layout", ["../x2", "x9", "x", "8"])
def test_a_layout_that_is_none_or_another_than_the_machine_s_is_refused(tmp_path: Path, layout):
    path = tmp_path / "run.json"
    records.save(path, record(case_record(), environment=EIGHT))
    assert records.load(path).environment.one_rank == MACHINE
    path.write_text(path.read_text().replace('"layout": "x8"', f'"layout": "{layout}"'))
    with pytest.raises(RecordError, match=r"environment.layout' is .*the record was edited"):
        records.load(path)


def test_ranks_that_the_machine_s_name_does_not_tell_are_no_measurement():
    (line,) = accept.problems(candidate(None, notes={"throughput_ranks_infer": 4}), PLAIN)
    assert f"timed on 4 ranks, and is of machine {EIGHT.machine}: the record was edited" in line


def test_ranks_that_took_each_other_s_cores_are_told_to_be_fewer():
    notes = {"throughput_ranks_infer": 8, "cpu_waited_fraction_infer": 0.6}
    (line,) = accept.problems(candidate(None, notes=notes), PLAIN)
    assert "other processes or ranks took 60 % " in line
    assert line.endswith("; run again on an idle machine, with no more ranks than cores")
