from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from perfline.baselines import accept, baseline
from perfline.baselines.accept import AGAIN
from perfline.baselines.baseline import Baseline, Figure, Published
from perfline.baselines.proposal import Candidate, Terms, measured_baseline
from perfline.errors import BaselineError
from perfline.gates.verdict import Gate, Settled, Verdict, Word
from perfline.measure.record import CaseRecord
from perfline.metrics import Metric
from perfline.tasks.reference import PromptReference, Reference
from samples import (
    MACHINE,
    WORKLOAD,
    answers,
    case_record,
    metrics,
    packaged,
    record,
    speed,
    verdict,
)

RUN = Path("results/run.json")
PATH = Path("baselines") / MACHINE / "tiny.json"
PLAIN = Terms(reason="torch 2.13")
ADD = Terms(reason="spread", add=True)
ACCEPT = Terms(reason="known", accept_regression=True)


def stored(**changes: Any) -> Baseline:
    """A baseline of one session, as ``case_record()`` measured it a day before."""
    before = record(created="2026-11-21T10:00:00Z")
    held = measured_baseline(before, before.cases["tiny"], "first")
    return dataclasses.replace(held, **changes)


def held(tok_per_s: float, sessions: int = 1) -> Baseline:
    """A baseline of sessions that differ by 0.01 %."""
    made = [
        candidate(case_record(metrics=metrics(tok_per_s * (1 + i / 1e4)))).new.sessions[0]
        for i in range(sessions)
    ]
    return stored(sessions=tuple(made))


def candidate(measured: CaseRecord | None = None, old: Baseline | None = None) -> Candidate:
    measured = measured or case_record()
    new = measured_baseline(record(measured), measured, "torch 2.13")
    return Candidate(RUN, PATH, measured, packaged(), old, new)


def only_problem(measured: CaseRecord, old: Baseline | None = None, terms: Terms = PLAIN) -> str:
    (line,) = accept.problems(candidate(measured, old), terms)
    start = "results/run.json: case 'tiny': "
    assert line.startswith(start)
    return line.removeprefix(start)


def test_what_is_stored_is_what_is_judged_and_the_compile_time() -> None:
    new = candidate().new

    (session,) = new.sessions
    assert sorted(session.metrics) == [
        "compile_time",
        "graph_breaks",
        "graphs",
        "mem",
        "p_infer_core",
        "p_val_core",
    ]
    assert session.metrics["p_infer_core"] == speed("p_infer_core", 1000.0)
    assert session.reason == "torch 2.13"
    assert session.date == "2026-11-22T10:00:00Z"
    assert session.commit == "abc123456789"
    assert session.context == {"torch": "2.13.0"}
    assert session.workload == WORKLOAD
    assert (new.machine, new.case, new.dtype) == (MACHINE, "tiny", "fp32")
    assert new.case_digest == packaged().digest()
    assert sorted(new.accuracy) == ["eager", "inductor"]
    assert new.accuracy["eager"] == answers(reason="torch 2.13")


def test_accuracy_alone_stores_no_session() -> None:
    measured = case_record(metrics={"acc_val": Metric("acc_val", 0.7, "fraction", "higher")})

    new = candidate(measured).new

    assert new.sessions == ()
    assert accept.problems(candidate(measured), PLAIN) == []


def test_a_first_run_is_accepted_although_its_baseline_is_missing() -> None:
    measured = case_record(
        verdicts=(verdict("p_infer_core", "missing"), verdict("acc_val", "missing", "published"))
    )

    assert accept.problems(candidate(measured), PLAIN) == []
    assert accept.notes(candidate(measured), PLAIN) == ["new: there was no baseline"]


def test_the_same_speed_is_accepted() -> None:
    measured = case_record(verdicts=(verdict("p_infer_core", "ok"),))

    assert accept.problems(candidate(measured, held(1001.0, 3)), PLAIN) == []


def test_a_partial_record_is_refused() -> None:
    lines = accept.record_problems(RUN, record(partial=True), ["tiny"], "why")

    assert lines == [
        "results/run.json: is partial: the session was interrupted before its end; "
        "run pytest again to the end"
    ]


def test_a_case_that_was_not_measured_gets_the_nearest_name() -> None:
    whole = record(case_record(), case_record("llama3-8b", "dummy"))

    assert accept.record_problems(RUN, whole, ["tinny", "other"], "why") == [
        "results/run.json: case 'tinny' was not measured; did you mean 'tiny'? "
        "(measured: tiny, llama3-8b)",
        "results/run.json: case 'other' was not measured (measured: tiny, llama3-8b)",
    ]


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_an_empty_reason_is_refused(reason: str) -> None:
    assert accept.record_problems(RUN, record(), ["tiny"], reason) == [
        "results/run.json: --reason is empty; say why this run is the new normal"
    ]


@pytest.mark.parametrize("terms", [PLAIN, ADD, ACCEPT])
def test_a_test_without_a_result_is_refused_whatever_is_said(terms: Terms) -> None:
    measured = case_record(errors=("test_throughput[tiny]: out of memory",))

    assert only_problem(measured, terms=terms) == (
        "a test ended without a result (test_throughput[tiny]: out of memory); fix it, then "
        "run pytest again"
    )


@pytest.mark.parametrize("terms", [PLAIN, ADD, ACCEPT])
def test_an_invalid_run_is_refused_whatever_is_said(terms: Terms) -> None:
    measured = case_record(
        verdicts=(verdict("p_infer_core", "invalid", reason="clocks throttled"),)
    )

    assert only_problem(measured, terms=terms) == (
        "p_infer_core invalid: clocks throttled; run pytest again undisturbed"
    )


@pytest.mark.parametrize("terms", [PLAIN, ADD, ACCEPT])
def test_accuracy_below_the_published_is_refused_whatever_is_said(terms: Terms) -> None:
    fallen = verdict(
        "acc_val",
        "regressed",
        "published",
        change_pp=-3.0,
        limit="-1.00 pp",
        reason="3.00 pp below",
    )

    assert only_problem(case_record(verdicts=(fallen,)), terms=terms) == (
        "acc_val regressed -3.00 pp (limit -1.00 pp): 3.00 pp below; wrong answers are never a "
        "baseline, fix them"
    )


def test_a_compiled_engine_that_answers_otherwise_is_refused_whatever_is_said() -> None:
    flipped = verdict(
        "flips_eager_inductor", "regressed", "paired", unit="count", baseline=0, measured=2
    )

    assert only_problem(case_record(verdicts=(flipped,)), terms=ACCEPT) == (
        "flips_eager_inductor regressed +2 (limit ); wrong answers are never a baseline, fix them"
    )


@pytest.mark.parametrize(
    ("fallen", "old"),
    [
        (verdict("p_infer_core", "regressed", "published"), None),
        (verdict("p_infer_core", "regressed", "baseline"), stored()),
        (verdict("acc_infer", "regressed", "baseline"), stored()),
        (verdict("mem", "regressed", "baseline", unit="GiB"), stored()),
    ],
    ids=["published-speed", "speed", "accuracy", "memory"],
)
@pytest.mark.parametrize("add", [False, True])
def test_a_regression_needs_the_flag(fallen: Any, old: Baseline | None, add: bool) -> None:
    measured = case_record(verdicts=(fallen,))
    with_flag = Terms("known", add=add, accept_regression=True)

    assert only_problem(measured, old, Terms("why", add=add)) == (
        f"{fallen.metric} regressed; fix it, or accept it with --accept-regression"
    )
    assert accept.problems(candidate(measured, old), with_flag) == []


def test_an_unsure_speed_may_be_added_but_not_replace() -> None:
    noisy = verdict("p_infer_core", "unsure", reason="too noisy to tell")
    measured = case_record(verdicts=(noisy,))

    assert only_problem(measured, stored()) == (
        "p_infer_core unsure: too noisy to tell; gather sessions with --add, or replace the "
        "baseline with --accept-regression"
    )
    assert accept.problems(candidate(measured, stored()), ADD) == []
    assert accept.problems(candidate(measured, stored()), ACCEPT) == []


def test_unsure_answers_are_not_added_either() -> None:
    measured = case_record(verdicts=(verdict("acc_infer", "unsure", reason="2 flips"),))

    assert only_problem(measured, stored(), ADD) == (
        "acc_infer unsure: 2 flips; replace the baseline with --accept-regression"
    )


def test_unsure_against_a_baseline_of_elsewhere_does_not_keep_the_first_one_out() -> None:
    measured = case_record(verdicts=(verdict("p_infer_core", "unsure"),))

    assert accept.problems(candidate(measured, None), PLAIN) == []


def test_a_baseline_of_an_older_definition_is_replaced_and_it_is_said() -> None:
    old = stored(case_digest="sha256:0123456789abcdef")
    measured = case_record(verdicts=(verdict("p_infer_core", "incomparable"),))
    chosen = candidate(measured, old)

    assert accept.problems(chosen, PLAIN) == []
    assert accept.notes(chosen, PLAIN) == [
        "replaced: the stored baseline is of another definition of the case "
        f"(sha256:0123456789abcdef -> {packaged().digest()}, fp32 -> fp32)"
    ]
    assert accept.merged(chosen, PLAIN) == chosen.new


def test_a_session_is_not_added_to_an_older_definition() -> None:
    old = stored(case_digest="sha256:0123456789abcdef")

    with pytest.raises(BaselineError) as raised:
        accept.merged(candidate(case_record(), old), ADD)

    assert str(raised.value).startswith(
        f"{PATH}: the baseline's case_digest is sha256:0123456789abcdef, the run's is"
    )


def test_a_record_of_another_definition_than_the_yaml_is_refused() -> None:
    measured = case_record(digest="sha256:0123456789abcdef")

    line = only_problem(measured, terms=ACCEPT)

    assert line.startswith("measured another definition of the case than ")
    assert line.endswith(
        f"tiny.yaml has now (sha256:0123456789abcdef, now {packaged().digest()}); run pytest "
        "again, or restore the YAML"
    )


def test_random_weights_have_a_digest_of_their_own() -> None:
    assert accept.problems(candidate(case_record(weights="dummy")), PLAIN) == []
    swapped = dataclasses.replace(case_record(weights="dummy"), weights="real")
    assert "measured another definition" in only_problem(swapped)


def test_nothing_measured_is_nothing_to_store() -> None:
    assert only_problem(case_record(metrics={}, accuracy={})) == (
        "has nothing that a baseline holds; run `pytest -m 'perf or accuracy'`"
    )


def test_too_few_rounds_are_refused_unless_they_are_a_full_pass() -> None:
    few = {"p_infer_core": speed("p_infer_core", 1000.0, rounds=2)}
    once = {"p_infer_core": speed("p_infer_core", 1000.0, rounds=1)}
    full = WORKLOAD | {"full_pass": True}

    assert only_problem(case_record(metrics=few), terms=ACCEPT) == (
        "p_infer_core was timed in 2 rounds, 7 were asked for; run pytest again"
    )
    assert accept.problems(candidate(case_record(metrics=once, workload=full)), PLAIN) == []


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        (Metric("mem", 0.0, "GiB", "lower"), "0 GiB"),
        (Metric("p_infer_core", 5.0, "tok/s", "higher", (5.0,) * 6 + (0.0,)), "0 tok/s"),
        (Metric("graphs", -1.0, "count", "lower"), "-1 count"),
    ],
)
def test_zero_is_no_measurement(metric: Metric, shown: str) -> None:
    measured = case_record(metrics=metrics() | {metric.name: metric})

    assert only_problem(measured, stored(), ACCEPT) == (
        f"{metric.name} holds {shown}: no measurement; run pytest again"
    )


def test_the_file_of_today_is_judged_too() -> None:
    """Two runs found no baseline; the first was stored, and the second is twice as slow."""
    measured = case_record(metrics=metrics(500.0), verdicts=(verdict("p_infer_core", "missing"),))

    lines = accept.problems(candidate(measured, held(1000.0)), ADD)

    assert [line.split(": ")[2] for line in lines] == [
        "p_infer_core regressed -50.0 % (limit -32.6 %)",
        "p_val_core regressed -50.0 % (limit -32.6 %)",
    ]
    assert accept.problems(candidate(measured, held(1000.0)), ACCEPT) == []


def test_answers_that_got_worse_than_the_file_of_today_are_refused() -> None:
    fallen = {"eager": answers(wrong=range(60)), "inductor": answers()}

    line = only_problem(case_record(accuracy=fallen), stored())

    assert line.startswith("acc_val regressed -15.00 pp")
    assert line.endswith("fix it, or accept it with --accept-regression")


def test_more_memory_or_graphs_than_the_file_of_today_are_refused() -> None:
    grown = metrics() | {
        "mem": Metric("mem", 3.0, "GiB", "lower"),
        "graph_breaks": Metric("graph_breaks", 1.0, "count", "lower"),
    }

    lines = accept.problems(candidate(case_record(metrics=grown), stored()), PLAIN)

    assert [line.split(": ")[2] for line in lines] == [
        "mem regressed +100.0 % (limit +16.7 %)",
        "graph_breaks regressed +1 (limit +0)",
    ]


@pytest.mark.parametrize("terms", [PLAIN, ADD, ACCEPT])
@pytest.mark.parametrize("old", [None, held(1000.0)], ids=["first", "stored"])
@pytest.mark.parametrize("speed", [500.0, 1000.0])
def test_a_speed_that_was_timed_beside_others_is_refused_whatever_is_said(
    terms: Terms, old: Baseline | None, speed: float
) -> None:
    notes = {"cpu_waited_fraction_infer": 0.4, "cpu_waited_fraction_val": 0.1}
    timed = metrics(1000.0) | {"p_infer_core": metrics(speed)["p_infer_core"]}

    assert only_problem(case_record(metrics=timed, notes=notes), old, terms) == (
        "other processes took 40 % (cpu_waited_fraction_infer) of the CPU during the timed rounds "
        "(at most 10 % may be); run again on an idle machine"
    )


def test_contention_does_not_keep_answers_out() -> None:
    notes = {"cpu_waited_fraction_infer": 0.4, "cpu_waited_fraction_val": 0.4}

    assert accept.problems(candidate(case_record(metrics={}, notes=notes)), PLAIN) == []


PUBLISHED = Published("tiny", "a paper", None, "fp32", {"acc_infer": Figure(0.8, "fraction")})


@pytest.mark.parametrize("terms", [PLAIN, ADD, ACCEPT])
@pytest.mark.parametrize("wrong", [400, 120])
def test_answers_below_the_published_are_refused_though_the_record_holds_no_verdict(
    terms: Terms, wrong: int
) -> None:
    fallen = case_record(accuracy={"inductor": answers(wrong=range(wrong))})
    chosen = dataclasses.replace(candidate(fallen), published=PUBLISHED)

    (line,) = accept.problems(chosen, terms)

    below = 80 - 100 * (400 - wrong) / 400
    assert f"case 'tiny': acc_infer regressed -{below:.2f} pp (limit -5.00 pp): " in line
    assert line.endswith("; wrong answers are never a baseline, fix them")


def test_answers_near_the_published_and_those_without_a_figure_are_accepted() -> None:
    near = case_record(
        accuracy={"inductor": answers(wrong=range(95)), "eager": answers(wrong=range(300))}
    )
    chosen = dataclasses.replace(candidate(near), published=PUBLISHED)

    assert accept.problems(chosen, PLAIN) == []


def test_answers_below_a_published_figure_that_is_not_judged_are_accepted() -> None:
    fallen = case_record(accuracy={"inductor": answers(wrong=range(400))})
    shown = Figure(0.8, "fraction", "another framework", judged=False)
    published = dataclasses.replace(PUBLISHED, metrics={"acc_infer": shown})

    assert accept.problems(dataclasses.replace(candidate(fallen), published=published), PLAIN) == []


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (
            dataclasses.replace(speed("p_infer_core", 1000.0), value=2000.0),
            "p_infer_core is 2000 tok/s, the median of its rounds 1000",
        ),
        (
            dataclasses.replace(speed("p_val_core", 500.0), direction="info"),
            "p_val_core is tok/s info (expected tok/s higher)",
        ),
        (Metric("mem_val", 1.5, "MiB", "lower"), "mem_val is MiB lower (expected GiB lower)"),
        (Metric("mem", 1.5, "GiB", "higher"), "mem is GiB higher (expected GiB lower)"),
        (Metric("graphs", 2.0, "GiB", "lower"), "graphs is GiB lower (expected count lower)"),
        (
            Metric("recompiles", 2.0, "count", "info"),
            "recompiles is count info (expected count lower)",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Metric) else "",
)
def test_an_edited_metric_is_refused_whatever_is_said(metric: Metric, said: str) -> None:
    measured = case_record(metrics=metrics() | {metric.name: metric})

    assert only_problem(measured, terms=ACCEPT) == (
        f"{said}: the record was edited; run pytest again"
    )


@pytest.mark.parametrize(("name", "gate"), [("p_infer_core", "baseline"), ("mem", "baseline")])
def test_a_verdict_of_another_number_is_refused(name: str, gate: Gate) -> None:
    metric = metrics()[name]
    told = verdict(name, "ok", gate, measured=metric.value, unit=metric.unit)
    assert accept.problems(candidate(case_record(verdicts=(told,))), PLAIN) == []

    told = dataclasses.replace(told, measured=metric.value * 1.01)
    line = only_problem(case_record(verdicts=(told,)), terms=ACCEPT)

    assert line == (
        f"{name} is {metric.value:g} {metric.unit}, and its verdict is of {told.measured:g}: the "
        "record was edited; run pytest again"
    )


def test_a_value_that_is_its_median_but_for_rounding_is_accepted() -> None:
    rounded = dataclasses.replace(speed("p_infer_core", 1000.0), value=1000.0005)

    measured = case_record(metrics=metrics() | {"p_infer_core": rounded})

    assert accept.problems(candidate(measured), PLAIN) == []


def test_fewer_questions_than_stored_are_refused() -> None:
    fewer = {"eager": answers(n=100), "inductor": answers(n=400)}

    assert only_problem(case_record(accuracy=fewer), stored()) == (
        f"eager answered 100 questions where {PATH} holds 400; ask all of them, or drop the "
        "others with --accept-regression"
    )
    assert accept.problems(candidate(case_record(accuracy=fewer), stored()), ACCEPT) == []


def test_a_metric_that_was_guarded_is_not_dropped_in_silence() -> None:
    eager_only = {"p_val_core": speed("p_val_core", 500.0)}

    assert only_problem(case_record(metrics=eager_only), stored()) == (
        f"p_infer_core, mem, graphs, graph_breaks of {PATH} was not measured; run all of "
        "`pytest -m perf`, or drop it with --accept-regression"
    )


def test_adding_less_than_is_stored_drops_nothing() -> None:
    less = case_record(
        metrics={"p_val_core": speed("p_val_core", 501.0)}, accuracy={"eager": answers(n=100)}
    )
    added = candidate(less, stored())

    assert accept.problems(added, ADD) == []
    result = accept.merged(added, ADD)
    assert result.values("p_infer_core") == (1000.0,)
    assert len(result.accuracy["eager"].ids) == 400
    # The metric that only the older session has is still guarded.
    assert only_problem(case_record(metrics=less.metrics), result).startswith("p_infer_core, mem")


def test_replacing_several_sessions_by_one_is_said() -> None:
    chosen = candidate(case_record(), held(1000.0, sessions=3))

    assert accept.notes(chosen, PLAIN) == [
        "replaced: sessions 3 -> 1",
        "the spread between sessions is measured anew; --add keeps them",
    ]
    assert len(accept.merged(chosen, PLAIN).sessions) == 1


def test_adding_keeps_sessions_and_answers() -> None:
    measured = case_record(
        metrics=metrics(1002.0), accuracy={"eager": answers(wrong=[0]), "inductor": answers()}
    )
    chosen = candidate(measured, held(1000.0, sessions=3))

    result = accept.merged(chosen, ADD)

    assert accept.notes(chosen, ADD) == [
        "added: sessions 3 -> 4",
        "the stored answers stay (--add adds throughput only)",
    ]
    assert [round(v, 1) for v in result.values("p_infer_core")] == [1000.0, 1000.1, 1000.2, 1002.0]
    assert result.accuracy["eager"] == answers(reason="first")


def test_answers_that_are_ok_are_not_replaced_or_small_losses_would_add_up() -> None:
    measured = case_record(accuracy={"eager": answers(wrong=[0]), "inductor": answers()})
    chosen = candidate(measured, held(1000.0))
    assert [v.word for v in accept.current(chosen) if v.metric == "acc_val"] == ["ok"]

    assert accept.merged(chosen, PLAIN).accuracy["eager"] == answers(reason="first")
    on_purpose = accept.merged(chosen, ACCEPT).accuracy["eager"]
    assert on_purpose == answers(wrong=[0], reason="torch 2.13")


def test_the_same_run_is_not_added_twice() -> None:
    with pytest.raises(BaselineError, match=f"^{PATH}: tiny: the session of 2026-11-22"):
        accept.merged(candidate(case_record(), candidate().new), ADD)


def test_adding_what_improved_is_said_to_widen_the_spread() -> None:
    measured = case_record(metrics=metrics(2000.0))

    notes = accept.notes(candidate(measured, held(1000.0)), ADD)

    assert notes[-1] == (
        "p_val_core, p_infer_core improved: replace the baseline (without --add) if the code got "
        "faster, else the change counts as spread"
    )


def test_another_workload_is_replaced_and_it_is_said() -> None:
    measured = case_record(metrics=metrics(500.0), workload=WORKLOAD | {"questions": 32})
    chosen = candidate(measured, held(1000.0))

    assert accept.problems(chosen, PLAIN) == []
    assert accept.notes(chosen, PLAIN) == [
        "replaced: sessions 1 -> 1",
        "the workload has changed: nothing timed before still compares",
    ]


def test_a_dirty_commit_is_said() -> None:
    measured = case_record(accuracy={})
    whole = record(measured)
    whole.environment.context["commit"] = "abc123456789-dirty"
    new = measured_baseline(whole, measured, "why")
    chosen = dataclasses.replace(candidate(measured), new=new)

    assert accept.notes(chosen, PLAIN)[-1] == (
        "measured with uncommitted changes: nobody can check that commit out"
    )


def test_what_is_accepted_survives_the_file(tmp_path: Path) -> None:
    new = candidate().new
    path = baseline.path(tmp_path, MACHINE, "tiny", dummy=False)

    baseline.save(path, new)

    assert baseline.load(path) == new


def test_answers_that_improved_are_stored() -> None:
    worse = {name: answers(wrong=range(60), reason="first") for name in ("eager", "inductor")}
    chosen = candidate(case_record(), stored(accuracy=worse))
    assert {v.word for v in accept.current(chosen) if v.metric == "acc_val"} == {"improved"}

    assert accept.merged(chosen, PLAIN).accuracy["eager"] == answers(reason="torch 2.13")


def test_a_name_that_is_half_the_same_is_offered_and_an_empty_record_says_so() -> None:
    (line,) = accept.record_problems(RUN, record(), ["tidy-ab"], "why")
    assert line.endswith("'tidy-ab' was not measured; did you mean 'tiny'? (measured: tiny)")
    (line,) = accept.record_problems(RUN, record(cases={}), ["tiny"], "why")
    assert line.endswith("case 'tiny' was not measured (measured: nothing)")


def test_replacing_two_sessions_is_said_as_well() -> None:
    assert "the spread between sessions is measured anew; --add keeps them" in accept.notes(
        candidate(case_record(), held(1000.0, sessions=2)), PLAIN
    )


def reference(reason: str, *prompts: str) -> Reference:
    told = PromptReference("0123", {"5": "7:-0.6931 *:-0.6931"})
    return Reference("2026-11-22", None, reason, {}, dict.fromkeys(prompts, told))


def numbers(word: Word, metric: str = "fidelity", gate: Gate = "baseline") -> Verdict:
    return verdict(metric, word, gate, unit="nats")


@pytest.mark.parametrize(
    ("prompts", "verdicts"),
    [
        ("ab", ()),
        ("a", (numbers("ok"),)),
        ("ab", (numbers("ok"), numbers("missing"))),
        ("ab", (numbers("regressed", "fidelity_ways", "paired"), numbers("ok"))),
        ("ab", (numbers("regressed", gate="paired"),)),
        ("", ()),
    ],
    ids=["not judged", "ok", "ok and missing", "ways part", "another gate", "not computed"],
)
def test_stored_numbers_stay_or_small_drifts_would_add_up(prompts: str, verdicts: Any) -> None:
    new = reference("new", *prompts) if prompts else None
    measured = case_record(reference=new, verdicts=verdicts)
    held = reference("first", "a", "b")
    assert accept.merged(candidate(measured, stored(reference=held)), ACCEPT).reference == held


@pytest.mark.parametrize(
    ("changes", "prompts", "word"),
    [
        ({"reference": None}, "ab", "missing"),
        ({}, "ab", "regressed"),
        ({}, "ab", "incomparable"),
        ({}, "abc", "missing"),
        ({"case_digest": "sha256:0123456789abcdef"}, "ab", "ok"),
    ],
    ids=["none yet", "regressed", "other layers", "more prompts", "other definition"],
)
def test_new_numbers_are_stored_where_the_old_ones_would_not_do(
    changes: Any, prompts: str, word: Word
) -> None:
    old = stored(**({"reference": reference("first", "a", "b")} | changes))
    measured = case_record(reference=reference("new", *prompts), verdicts=(numbers(word),))
    found = accept.merged(candidate(measured, old), ACCEPT).reference
    assert found == reference("torch 2.13", *prompts)


def test_the_first_numbers_of_a_case_are_stored() -> None:
    found = accept.merged(candidate(case_record(reference=reference("new", "a"))), PLAIN)
    assert found.reference == reference("torch 2.13", "a")


CEVAL = {"eager": answers(reason="first"), "val_ceval": answers(), "val_cmmlu": answers()}
ABSENT = {"ceval": "no questions in data/ceval"}
OLDER = "sha256:0123456789abcdef"


def test_stored_answers_to_a_task_whose_questions_are_absent_stay_and_it_is_said() -> None:
    chosen = candidate(case_record(not_asked=ABSENT), stored(accuracy=CEVAL))
    assert accept.problems(chosen, PLAIN) == []
    assert accept.notes(chosen, PLAIN) == [
        "replaced: sessions 1 -> 1",
        "val_ceval: the stored answers stay: the questions are absent, none asked",
    ]
    assert {"val_ceval", "val_cmmlu"} <= set(accept.merged(chosen, PLAIN).accuracy)


def test_what_was_asked_after_all_is_not_said_to_be_absent() -> None:
    asked = case_record(accuracy=CEVAL, not_asked=ABSENT)
    assert accept.notes(candidate(asked, stored(accuracy=CEVAL)), PLAIN) == [
        "replaced: sessions 1 -> 1"
    ]


def test_answers_go_with_an_older_definition_and_it_is_said() -> None:
    old = stored(accuracy=CEVAL, case_digest=OLDER)
    assert accept.notes(candidate(case_record(), old), PLAIN)[1:] == [
        "val_ceval, val_cmmlu: the stored answers go, with the case's older definition"
    ]


@pytest.mark.parametrize(
    "left_out",
    [{"not_asked": ABSENT}, {"tasks": ("mmlu",)}],
    ids=["absent", "not named by --tasks"],
)
def test_answers_of_an_older_definition_do_not_go_unasked(left_out: Any) -> None:
    measured, old = case_record(**left_out), stored(accuracy=CEVAL, case_digest=OLDER)
    both = dataclasses.replace(packaged(), tasks=("mmlu", "ceval"))
    chosen = dataclasses.replace(candidate(measured, old), case=both)
    (line,) = accept.problems(chosen, PLAIN)
    assert line.endswith(
        f"the answers val_ceval of {PATH} would go with the case's older definition, and their "
        "questions were not asked; ask them, or drop those answers with --accept-regression"
    )
    assert accept.problems(chosen, ACCEPT) == []
    same = dataclasses.replace(chosen, old=stored(accuracy=CEVAL))
    assert accept.problems(same, PLAIN) == []


def test_answers_to_other_questions_do_not_compare_and_it_is_said() -> None:
    chosen = candidate(case_record(), stored(accuracy={"eager": answers(n=300)}))
    assert accept.notes(chosen, PLAIN)[-1] == (
        "acc_val: 100 of 400 questions are not in the baseline, such as sky/300 and sky/301"
    )


def settled(compared: Word = "ok", first: Word = "regressed", **changes: Any) -> Verdict:
    """What a comparison said after the gate had found 500 tok/s against 1000."""
    told = Settled(first, compared, 60.0, "compare.json")
    (judged,) = (v for v in accept.current(slow()) if v.metric == "p_infer_core")
    changes = {"word": compared, "reason": "a comparison", "settled": told} | changes
    return dataclasses.replace(judged, **changes)


def slow(*verdicts: Verdict) -> Candidate:
    timed = metrics(1000.0) | {"p_infer_core": speed("p_infer_core", 500.0)}
    return candidate(case_record(metrics=timed, verdicts=verdicts), stored())


def test_what_a_comparison_settled_in_the_session_is_not_judged_by_the_gate_again() -> None:
    found = settled()
    assert found in accept.current(slow(found))
    assert accept.problems(slow(found), PLAIN) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"metric": "p_val_core", "measured": 500.0},
        {"gate": "published"},
        {"baseline": 900.0},
        {"measured": 501.0},
        {"first": "unsure"},
        {"settled": None},
    ],
    ids=["metric", "gate", "stored anew", "number", "another word", "not settled"],
)
def test_a_comparison_settles_nothing_but_what_it_compared(changes: Any) -> None:
    words = {v.metric: v.word for v in accept.current(slow(settled(**changes)))}
    assert words["p_infer_core"] == "regressed"


@pytest.mark.parametrize(
    ("waited", "rounds", "reason"),
    [
        (
            0.5,
            7,
            "another process took 50 % of the CPU during the timed rounds: run again on an idle "
            "machine",
        ),
        (0.0, 5, "too few samples: 5 rounds, 7 were asked for"),
    ],
    ids=["beside others", "too few rounds"],
)
def test_what_was_timed_badly_is_unsure_by_the_file_of_today(
    waited: float, rounds: int, reason: str
) -> None:
    timed = metrics(1000.0) | {"p_infer_core": speed("p_infer_core", 500.0, rounds)}
    measured = case_record(metrics=timed, notes={"cpu_waited_fraction_infer": waited})
    found = accept.current(candidate(measured, stored()))
    (judged,) = (v for v in found if v.metric == "p_infer_core")
    assert (judged.word, judged.reason) == ("unsure", reason)


def test_a_full_pass_is_judged_by_the_file_of_today_though_it_is_one_round() -> None:
    full = WORKLOAD | {"full_pass": True}
    one = case_record(metrics=metrics(rounds=1), workload=full)
    old = candidate(one).new
    assert {v.word for v in accept.current(candidate(one, old))} == {"ok"}


def test_an_unsure_speed_that_was_accepted_on_purpose_becomes_the_anchor() -> None:
    timed = metrics(999.0) | {"p_infer_core": speed("p_infer_core", 650.0)}
    chosen = candidate(case_record(metrics=timed), stored())
    assert {v.metric for v in accept.current(chosen) if v.word == "unsure"} == {"p_infer_core"}
    assert [*accept.merged(chosen, ACCEPT).anchors] == ["p_val_core"]


def test_what_was_lost_since_it_was_last_accepted_on_purpose_is_said() -> None:
    assert accept.notes(candidate(case_record(metrics=metrics(900.0)), stored()), PLAIN)[1:] == [
        "p_val_core: -10.0 % since what was accepted on 2026-11-21, which stays the anchor",
        "p_infer_core: -10.0 % since what was accepted on 2026-11-21, which stays the anchor",
    ]


def test_an_invalid_run_beside_other_processes_is_told_both() -> None:
    measured = case_record(
        notes={"cpu_waited_fraction_infer": 0.4},
        verdicts=(
            verdict("p_infer_core", "invalid", reason="2 graph(s) were compiled"),
            verdict("p_infer_whole", "regressed"),
            verdict("acc_val", "regressed"),
        ),
    )
    lines = [line.split(": ", 2)[2] for line in accept.problems(candidate(measured), PLAIN)]
    assert lines[0].startswith("other processes took 40 % ")
    assert lines[1:] == [
        "p_infer_core invalid: 2 graph(s) were compiled; run pytest again undisturbed",
        "acc_val regressed; fix it, or accept it with --accept-regression",
    ]


@pytest.mark.parametrize("old", [None, stored(accuracy={}), stored(case_digest=OLDER)])
def test_fewer_answers_than_one_rank_gave_name_its_baseline(old: Any) -> None:
    fewer = candidate(case_record(accuracy={"eager": answers(n=100)}), old)
    (line,) = accept.problems(dataclasses.replace(fewer, one_rank=stored()), PLAIN)
    assert "eager answered 100 questions where the baseline of one rank holds 400" in line


def test_another_workload_guards_nothing_that_was_timed() -> None:
    other = WORKLOAD | {"questions": 32}
    less = case_record(metrics={"p_val_core": speed("p_val_core", 1.0)}, workload=other)
    assert accept.problems(candidate(less, stored()), PLAIN) == []


def test_a_metric_that_was_judged_is_not_made_information_in_silence() -> None:
    score = Metric("score", 3.0, "x", "higher", (3.0,) * 3, own=True)
    old = candidate(case_record(metrics=metrics() | {"score": score})).new
    measured = case_record(
        metrics=metrics() | {"score": dataclasses.replace(score, direction="info")}
    )
    assert only_problem(measured, old) == (
        f"score of {PATH} would not be judged any more (it is 'info' now); record it as before, or "
        "drop it with --accept-regression"
    )
    assert accept.problems(candidate(measured, old), ACCEPT) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("decode", "decode_infer"),
        ("decode_b8_val", "decode_val"),
        ("decode_c2048", "decode_infer"),
        ("ttft_val", "decode_val"),
    ],
)
def test_a_decode_that_was_timed_beside_others_is_refused(name: str, kind: str) -> None:
    unit, direction = ("s", "lower") if name.startswith("ttft") else ("tok/s", "higher")
    timed = dataclasses.replace(speed(name, 100.0), unit=unit, direction=direction)
    notes = {f"cpu_waited_fraction_{kind}": 0.6}
    measured = case_record(metrics=metrics() | {name: timed}, notes=notes)
    assert only_problem(measured).startswith(
        f"other processes took 60 % (cpu_waited_fraction_{kind}) of the CPU"
    )


def test_a_paired_verdict_may_show_the_farthest_of_several_numbers() -> None:
    paired = verdict("mem", "ok", "paired", measured=99.0, unit="GiB")
    rounded = verdict("mem", "ok", measured=1.5 * (1 + 5e-7), unit="GiB")
    edited = verdict("p_infer_core", "ok", measured=2000.0)
    assert accept.problems(candidate(case_record(verdicts=(paired, rounded))), PLAIN) == []
    line = only_problem(case_record(verdicts=(paired, edited)))
    assert line.startswith("p_infer_core is 1000 tok/s, and its verdict is of 2000")


def test_throughput_over_another_first_task_is_refused_with_the_two_ways_out() -> None:
    line = only_problem(case_record(digest=OLDER, tasks=("ceval", "mmlu")))
    assert line.startswith("measured with --tasks=ceval,mmlu, and throughput is timed over the")
    assert line.endswith(
        "tiny.yaml has mmlu first; name that first, or write the tasks into the YAML"
    )


def test_numbers_alone_are_something_to_store() -> None:
    alone = case_record(metrics={}, accuracy={}, reference=reference("new", "a"))
    assert accept.problems(candidate(alone), PLAIN) == []


@pytest.mark.parametrize(
    ("asked", "cure"), [(2, "raise throughput.rounds, then run pytest again"), (3, AGAIN)]
)
def test_a_case_that_asks_for_too_few_rounds_is_to_ask_for_more(asked: int, cure: str) -> None:
    few = candidate(case_record(metrics={"p_infer_core": speed("p_infer_core", 1.0, rounds=2)}))
    case = dataclasses.replace(
        few.case, throughput=dataclasses.replace(few.case.throughput, rounds=asked)
    )
    (line,) = accept.problems(dataclasses.replace(few, case=case), PLAIN)
    assert line.endswith(f"p_infer_core was timed in 2 rounds, 3 are needed; {cure}")


def test_information_and_what_the_file_of_today_does_not_hold_alike_are_not_judged() -> None:
    score = Metric("score", 3.0, "x", "higher", (3.0,) * 3, own=True)
    mine = {"score": score, "new": dataclasses.replace(score, name="new")}
    points = {"score": dataclasses.replace(score, unit="points")}
    old = candidate(case_record(metrics=metrics() | points)).new
    found = accept.current(candidate(case_record(metrics=metrics() | mine), old))
    timed = {"p_val_core", "p_infer_core", "mem", "graphs", "graph_breaks"}
    assert {v.metric for v in found} == {"acc_val", "acc_infer", *timed}
