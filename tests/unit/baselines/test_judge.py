"""By which stored file is each number judged, and what is said where it cannot be?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fakes
from perfline.baselines import baseline, judge
from perfline.baselines.baseline import Baseline, Figure, Published, Session
from perfline.baselines.judge import Against
from perfline.baselines.proposal import measured_baseline
from perfline.engines.engine import CompileCounts, Fingerprint, Generated
from perfline.engines.environment import Environment
from perfline.gates.accuracy import OtherToken
from perfline.gates.verdict import Verdict
from perfline.measure import fidelity, throughput
from perfline.measure.accuracy import AccuracyPass
from perfline.measure.decode import Decoded, DecodeRound, Form
from perfline.measure.throughput import Ready, Round, Timings
from perfline.metrics import Metric
from perfline.tasks.reference import Reference
from samples import MACHINE, WORKLOAD, answers, given, packaged, record

CASE = packaged()  # 7 rounds, fp32
LETTERS = replace(CASE, mmlu=replace(CASE.mmlu, scoring="letters"))
HERE = Environment(MACHINE, "Test CPU", "cpu", {})
ACC = Metric("acc_val", 0.5, "fraction", "higher")
OTHERWISE = "the case has changed"
READY = Ready(1.0, 1.0, CompileCounts(graphs=1), CompileCounts(), 1)


def stored(**changes: Any) -> Baseline:
    """A baseline that holds nothing but ``changes``."""
    whole = measured_baseline(record(), record().cases["tiny"], "first")
    return replace(whole, **({"accuracy": {}, "sessions": ()} | changes))


def against(held: Baseline | None = None, **changes: Any) -> Against:
    return Against(Path("b.json"), held, None, shown="b.json", **changes)


def one_rank(held: Baseline | None, mismatch: str = "") -> Against:
    return Against(Path("one.json"), held, None, mismatch, "one.json")


def session(*metrics: Metric, workload: Any = WORKLOAD) -> Session:
    found = {metric.name: metric for metric in metrics}
    return Session("2026-11-22", None, "first", {}, workload, found)


def by_name(verdicts: list[Verdict]) -> dict[str, Verdict]:
    return {verdict.metric: verdict for verdict in verdicts}


def told(verdict: Verdict) -> tuple[str, str, str, str, str]:
    return verdict.metric, verdict.word, verdict.gate, verdict.unit, verdict.reason


# --- which files


def test_random_weights_have_a_baseline_of_their_own(tmp_path: Path) -> None:
    paths = [judge.against(tmp_path, HERE, CASE, weights).path for weights in ("real", "dummy")]
    assert [path.name for path in paths] == ["tiny.json", "tiny-dummy.json"]


def test_the_published_figures_are_found_beside_the_machines() -> None:
    baselines = Path(__file__).parents[3] / "baselines"
    published = judge.against(baselines, HERE, packaged("llama3-8b"), "real").published
    assert published is not None
    assert published.case == "llama3-8b"


def test_messages_show_paths_as_they_are_until_told_how(tmp_path: Path) -> None:
    found = judge.against(tmp_path, HERE.of_ranks(["node"] * 8), CASE, "real")
    assert found.one_rank is not None
    assert found.shown == str(tmp_path / f"{MACHINE}-x8" / "tiny.json")
    short = found.relative(lambda path: f"<{path.parent.name}>")
    assert short.one_rank is not None
    assert (short.shown, short.one_rank.shown) == (f"<{MACHINE}-x8>", f"<{MACHINE}>")


def test_a_task_that_an_option_put_first_is_a_way_out_beside_the_yaml(tmp_path: Path) -> None:
    held = stored(case_digest="sha256:0123456789abcdef", accuracy={"eager": answers()})
    baseline.save(baseline.path(tmp_path, MACHINE, "tiny", dummy=False), held)
    found = judge.against(tmp_path, HERE, replace(CASE, tasks_named_in="--tasks"), "real")
    assert found.mismatch.endswith(
        ": accept it anew, or restore tiny.yaml, or name the same task first in --tasks"
    )


# --- answers


@pytest.mark.parametrize(
    ("asked_of", "looks", "limit"),
    [(200, 1, "-3.62 pp"), (200, 2, "-1.83 pp"), (14042, 2, "-0.92 pp")],
    ids=["at once", "sequential", "more than are stored"],
)
def test_a_sequential_run_has_the_margins_of_all_questions_that_it_is_on_its_way_to(
    asked_of: int, looks: int, limit: str
) -> None:
    done = AccuracyPass(given(n=100), asked_of, "plain", looks=looks)
    held = against(stored(accuracy={"eager": answers()}))
    (found,) = judge.accuracy_against_baseline(CASE, "eager", ACC, done, held)
    assert found.limit == limit


def test_answers_that_the_plain_path_gives_as_well_are_held_to_the_published_figure() -> None:
    published = Published("tiny", "a paper", None, "fp32", {"acc_val": Figure(0.8, "fraction")})
    done = AccuracyPass(given(), 400, "shared-prefix", reference=given())
    (found,) = judge.accuracy_against_published(CASE, ACC, done, published)
    assert (found.gate, found.word, found.baseline) == ("published", "regressed", 0.8)
    assert found.limit == "-5.00 pp"  # of 400 questions
    broken = replace(done, path="plain", counts=CompileCounts(graphs=2))
    (found,) = judge.accuracy_against_published(CASE, ACC, broken, published)
    reason = "2 graph(s) were compiled after the warm-up of the plain path"
    assert told(found) == ("acc_val", "invalid", "published", "fraction", reason)


@pytest.mark.parametrize(("case", "seen"), [(CASE, "A"), (LETTERS, "B")])
def test_answers_are_scored_as_the_case_says(case: Any, seen: str) -> None:
    both = replace(given(1, n=1), argmax_letter="A")  # the letters alone say B
    assert judge.scored(case, "eager", both).answers == seen


def test_measured_answers_are_stored_with_their_margins_and_where_they_came_from() -> None:
    both = replace(given(1, n=2), argmax_letter="-B")
    found = judge.stored_answers(both, "2026-11-22", "abc1234", {"torch": "2.13.0"})
    assert found is not None
    assert (found.letters, found.argmax, found.labels) == ("BB", "-B", "AB")
    assert found.margins == (5.0, 5.0)
    assert (found.date, found.commit, found.reason) == ("2026-11-22", "abc1234", "measured")
    assert found.context == {"torch": "2.13.0"}
    no_logits = replace(both, letter_logits=np.full((2, 4), np.nan, np.float32))
    found = judge.stored_answers(no_logits, "2026-11-22", None, {})
    assert found is not None
    assert found.margins is None
    assert judge.stored_answers(replace(both, labels=None), "2026-11-22", None, {}) is None


# --- throughput


def timings(name: str = "inductor", rounds: int = 7, **changes: Any) -> Timings:
    """1000 tok/s."""
    whole = Timings(
        engine=name,
        ready=READY,
        rounds=tuple(Round(1000, 1.0, 1.25) for _ in range(rounds)),
        answers=given(n=8),
        timed=CompileCounts(),
        peak_memory_gib=1.0,
        waited_fraction=None,
        flops=None,
    )
    return replace(whole, **changes)


def of_throughput(
    timed: Timings, held: Against, workload: Any = WORKLOAD, where: Environment = HERE
) -> dict[str, Verdict]:
    found = {metric.name: metric for metric in throughput.metrics(timed, 1e6, None)}
    verdicts = judge.throughput(CASE, timed, found, workload, where, held)
    return {f"{verdict.metric} {verdict.gate}": verdict for verdict in verdicts}


FIGURES = {
    "p_infer_core": Figure(2000.0, "tok/s"),
    "p_infer_whole": Figure(800.0, "tok/s"),
    "mem": Figure(9.0, "GiB"),
}
PUBLISHED = Published("tiny", "a paper", MACHINE, "fp32", FIGURES)


def test_speeds_are_judged_by_published_ones_of_this_device_and_dtype() -> None:
    found = of_throughput(timings(), replace(against(), published=PUBLISHED))
    published = {name: each.word for name, each in found.items() if each.gate == "published"}
    assert published == {"p_infer_core published": "regressed", "p_infer_whole published": "ok"}
    assert found["p_infer_core published"].limit == "-5.0 %"


@pytest.mark.parametrize(
    ("changes", "mismatch"),
    [
        ({"device": "h100"}, ""),
        ({"dtype": "fp16"}, ""),
        ({"metrics": {"mem": FIGURES["mem"]}}, ""),
        ({}, OTHERWISE),
    ],
    ids=["device", "dtype", "no speed", "case"],
)
def test_figures_of_something_else_judge_no_speed(changes: Any, mismatch: str) -> None:
    held = replace(against(mismatch=mismatch), published=replace(PUBLISHED, **changes))
    assert {each.gate for each in of_throughput(timings(), held).values()} == {"baseline"}


def test_a_graph_compiled_while_timing_names_the_two_ways_out() -> None:
    (found,) = of_throughput(timings(timed=CompileCounts(graphs=2)), against()).values()
    assert (found.metric, found.word) == ("p_infer_core", "invalid")
    assert found.reason == (
        "2 graph(s) were compiled inside the timed region: raise throughput.sample so that "
        "warm-up meets every shape, or see TORCH_LOGS=recompiles"
    )


def test_another_definition_is_told_of_every_metric() -> None:
    found = of_throughput(timings(), against(mismatch=OTHERWISE)).values()
    assert {(each.word, each.reason) for each in found} == {("incomparable", OTHERWISE)}
    names = {"p_infer_core", "p_infer_whole", "mem", "graphs", "graph_breaks", "recompiles"}
    assert {each.metric for each in found} == names


def test_a_metric_of_another_unit_does_not_compare() -> None:
    metric = Metric("score", 3.0, "x", "higher", (3.0,) * 3, own=True)
    held = against(stored(sessions=(session(replace(metric, unit="points")),)))
    (found,) = judge.own_metric(CASE, metric, WORKLOAD, held)
    assert (found.metric, found.word) == ("score", "incomparable")
    assert found.reason.startswith("the baseline holds it in points (higher), this run in x")


@pytest.mark.parametrize(
    ("full", "shown"),
    [(False, "a sample of 32 questions"), (True, "a full pass of 32 questions")],
)
def test_other_prompts_do_not_compare_and_both_are_told(full: bool, shown: str) -> None:
    metric = Metric("score", 3.0, "x", "higher", (3.0,) * 3, own=True)
    held = against(stored(sessions=(session(metric),)))
    other = {"questions": 32, "tokens": 4500, "full_pass": full}
    (found,) = judge.own_metric(CASE, metric, other, held)
    assert (found.metric, found.word) == ("score", "incomparable")
    assert found.reason == (
        "the baseline was timed over a sample of 64 questions, 9000 tokens, this run over "
        f"{shown}, 4500 tokens"
    )


def test_a_metric_of_the_user_s_own_is_judged_unless_it_is_for_information() -> None:
    metric = Metric("score", 3.0, "x", "higher", (3.0,) * 3, own=True)
    (found,) = judge.own_metric(CASE, metric, WORKLOAD, against(stored()))
    assert (found.word, found.reason) == ("missing", "no stored value in b.json")
    held = against(stored(sessions=(session(metric),)))
    assert judge.own_metric(CASE, metric, WORKLOAD, held)[0].word == "ok"
    assert judge.own_metric(CASE, replace(metric, direction="info"), WORKLOAD, held) == []


# --- the answers to the timed prompts


@pytest.mark.parametrize(
    ("engine", "reference", "names"),
    [
        ("inductor", given(n=8), ["flips"]),
        ("mine", given(n=8), ["flips_mine"]),
        ("inductor", None, []),
        ("eager", given(n=8), []),
    ],
    ids=["compiled", "one's own", "eager does not run", "eager"],
)
def test_an_engine_s_answers_are_paired_with_the_eager_one_s(
    engine: str, reference: Any, names: list[str]
) -> None:
    for wrong, word in ((0, "ok"), (1, "regressed")):
        timed = timings(engine, answers=given(wrong, n=8))
        found = judge.same_answers(CASE, timed, reference, against(stored()))
        assert [(each.metric, each.word) for each in found] == [(name, word) for name in names]


OF_ONE = one_rank(stored(accuracy={"inductor": answers()}))


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (against(stored(accuracy={"inductor": answers()})), ""),
        (against(one_rank=OF_ONE), "; stored answers of one.json"),
        (against(stored(), one_rank=OF_ONE), "; stored answers of one.json"),
    ],
)
def test_timed_answers_are_paired_with_the_stored_ones(held: Against, said: str) -> None:
    timed = timings(answers=given(wrong=80))
    (found,) = judge.same_answers(CASE, timed, None, held)
    assert (found.metric, found.word) == ("acc_infer_timed", "regressed")
    assert found.reason.endswith(f": margins scaled to 0.92 and 1.84 pp{said}")
    assert judge.same_answers(CASE, replace(timed, answers=given()), None, held)[0].word == "ok"


def test_timed_answers_to_another_task_are_paired_with_those_to_it() -> None:
    case = replace(CASE, tasks=("ceval",))
    held = against(stored(accuracy={"inductor": answers(), "infer_ceval": answers()}))
    (found,) = judge.same_answers(case, timings(), None, held)
    assert found.metric == "acc_infer_ceval_timed"


@pytest.mark.parametrize(
    ("held", "labels"),
    [
        (against(), True),
        (against(stored(accuracy={"inductor": answers()}), mismatch=OTHERWISE), True),
        (against(one_rank=replace(OF_ONE, mismatch=OTHERWISE)), True),
        (against(stored(accuracy={"inductor": answers()})), False),
    ],
    ids=["nothing stored", "other case", "other case of one rank", "random weights"],
)
def test_timed_answers_that_do_not_compare_are_left_to_the_accuracy_test(
    held: Against, labels: bool
) -> None:
    shown = given() if labels else replace(given(), labels=None)
    assert judge.same_answers(CASE, timings(answers=shown), None, held) == []


# --- decode


def decoded(step_s: float = 1e-3, rounds: int = 7, **changes: Any) -> Decoded:
    once = Generated(np.zeros((1, 4), np.int64), 0.01, (step_s,) * 3, 0.01 + 3 * step_s)
    whole = Decoded(
        engine="inductor",
        forms=(Form("", (np.zeros((1, 8), np.int64),), 64),),
        tokens=4,
        static=True,
        ready=READY,
        rounds=(DecodeRound({"": (once,)}, once.whole_s),) * rounds,
        timed=CompileCounts(),
        peak_memory_gib=1.0,
        waited_fraction=None,
        streamed=None,
        bandwidth=None,
    )
    return replace(whole, **changes)


DECODE = against(stored(sessions=(session(*decoded().metrics()),)))


def of_decode(found: Decoded, held: Against = DECODE) -> dict[str, Verdict]:
    return by_name(judge.decode(CASE, found, WORKLOAD, held))


def test_decode_is_judged_by_speed_first_token_memory_and_what_was_compiled() -> None:
    words = {name: each.word for name, each in of_decode(decoded()).items()}
    counts = ("graphs_decode", "graph_breaks_decode", "recompiles_decode")
    assert words == dict.fromkeys(("decode", "ttft", "mem_decode", *counts), "ok")
    assert of_decode(decoded(step_s=2e-3))["decode"].word == "regressed"
    assert of_decode(decoded(), against())["ttft"].reason == "no stored value in b.json"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"timed": CompileCounts(graphs=2)},
            "2 graph(s) were compiled inside the timed region: see TORCH_LOGS=recompiles",
        ),
        (
            {"streamed": 2_000_000, "bandwidth": 1e9},
            "a step would read 200 % of the memory bandwidth measured here (at most 110 % can be): "
            "tokens were not computed, a cache held the weights, or another process slowed the "
            "measurement of the bandwidth",
        ),
    ],
    ids=["compiled", "faster than memory"],
)
def test_a_decode_that_cannot_be_true_is_no_measurement(changes: Any, reason: str) -> None:
    (found,) = judge.decode(CASE, decoded(**changes), WORKLOAD, DECODE)
    assert told(found) == ("decode", "invalid", "baseline", "tok/s", reason)


def test_decode_needs_the_rounds_that_the_device_did_not_spoil() -> None:
    lacking = of_decode(decoded(rounds=6))["decode"]
    assert lacking.word == "unsure"
    assert lacking.reason == "too few samples: 6 rounds, 7 were asked for"
    assert of_decode(decoded(rounds=6, thrown_out=("hot",)))["decode"].word == "ok"


def test_a_slow_decode_beside_other_processes_is_unsure() -> None:
    found = of_decode(decoded(step_s=2e-3, waited_fraction=0.5))["decode"]
    assert found.word == "unsure"
    assert found.reason.startswith("another process took 50 % of the CPU")


@pytest.mark.parametrize(("gap", "word"), [(5.0, "regressed"), (0.0, "ok")])
def test_generated_tokens_are_held_to_the_likeliest_ones(gap: float, word: str) -> None:
    other = OtherToken("single/0 token 1", 5, 7, gap, 5.0)
    found = of_decode(decoded(others=(other,), compared=12))["decode_flips"]
    assert found.word == word
    assert "of 12 generated tokens differ from the likeliest" in found.reason


# --- what runs


COUNTS = {"prompt_tokens": 900.0, "graphs": 1.0}
RAN = Fingerprint("p", "torch 9.9", COUNTS)
MORE = replace(RAN, counts={**COUNTS, "graphs": 2.0})
HELD = {"inductor": RAN, "inductor decode": RAN}
GRAPHS = session(
    Metric("graphs", 1, "count", "lower"), Metric("graphs_decode", 1, "count", "lower")
)
FELL = "fell off the fast path: graphs 1 -> 2"


def ran(found: Fingerprint, held: Against, timed: bool = True) -> dict[str, Verdict]:
    """Judge it as of a forward, and as of decoding."""
    forward = judge.what_runs("inductor", found, timed, held)
    return by_name(forward) | of_decode(decoded(fingerprint=found), held)


@pytest.mark.parametrize("name", ["fingerprint", "fingerprint_decode"])
def test_more_graphs_are_told_once(name: str) -> None:
    alone = ran(MORE, against(stored(fingerprints=HELD)))[name]
    assert told(alone) == (name, "regressed", "baseline", "count", FELL)
    beside = ran(MORE, against(stored(fingerprints=HELD, sessions=(GRAPHS,))))[name]
    assert (beside.word, beside.reason) == ("ok", "runs what it did")


def test_more_graphs_are_told_where_throughput_was_not_timed() -> None:
    held = against(stored(fingerprints=HELD, sessions=(GRAPHS,)))
    assert ran(MORE, held, timed=False)["fingerprint"].reason == FELL


@pytest.mark.parametrize("name", ["fingerprint", "fingerprint_decode"])
@pytest.mark.parametrize("own", [None, stored()])
def test_what_runs_is_held_to_one_rank_where_several_hold_none(name: str, own: Any) -> None:
    missing = ran(RAN, against(own, one_rank=one_rank(None)))[name]
    assert (missing.word, missing.reason) == ("missing", "no stored fingerprint in one.json")
    held = one_rank(stored(fingerprints=HELD))
    assert ran(MORE, against(own, one_rank=held))[name].reason == FELL
    own = stored(fingerprints=dict.fromkeys(HELD, MORE))
    assert ran(MORE, against(own, one_rank=held))[name].word == "ok"


@pytest.mark.parametrize("name", ["fingerprint", "fingerprint_decode"])
@pytest.mark.parametrize(
    "held",
    [
        against(stored(fingerprints=HELD), mismatch=OTHERWISE),
        against(one_rank=one_rank(stored(fingerprints=HELD), OTHERWISE)),
    ],
)
def test_what_another_definition_ran_does_not_compare(name: str, held: Against) -> None:
    found = ran(RAN, held)[name]
    assert told(found) == (name, "incomparable", "baseline", "count", OTHERWISE)


def test_an_engine_that_compiled_nothing_ran_something_else() -> None:
    held = against(stored(fingerprints=HELD))
    (found,) = judge.what_runs("eager", RAN, True, held, "no compiler here")
    reason = "no compiler here"
    assert told(found) == ("fingerprint_val", "invalid", "baseline", "count", reason)


# --- the model's numbers


NUMBERS = fidelity.measure(fakes.FakeLogits(), ("eager", "inductor"), fakes.prompts(4))
FACTS = {"weights": "sha256:now"}


def reference(**context: Any) -> Baseline:
    told = {"weights": "sha256:now", **context}
    return stored(reference=Reference("2026-11-22", None, "first", told, NUMBERS.prompts))


def numbers(held: Against, **changes: Any) -> dict[str, Verdict]:
    return by_name(judge.model_numbers(replace(NUMBERS, **changes), FACTS, held))


def test_the_same_numbers_are_ok_by_every_way_and_by_the_file() -> None:
    found = numbers(against(reference()))
    assert {name: each.word for name, each in found.items()} == {
        "fidelity_ways": "ok",
        "fidelity": "ok",
    }
    assert found["fidelity"].reason.endswith("in the mean of 4 prompts")


@pytest.mark.parametrize("held", [None, stored()])
def test_numbers_that_are_stored_nowhere_are_missing(held: Any) -> None:
    found = numbers(against(held))["fidelity"]
    assert (found.word, found.reason) == ("missing", "no stored fp32 numbers in b.json")


def test_numbers_of_one_rank_do_for_several() -> None:
    later = fidelity.measure(fakes.FakeLogits(damage=1e-2), ("eager",), fakes.prompts(4))
    held = against(stored(), one_rank=one_rank(reference()))
    assert numbers(held)["fidelity"].word == "ok"
    assert by_name(judge.model_numbers(later, FACTS, held))["fidelity"].word == "regressed"


def test_other_weights_are_told_beside_the_numbers() -> None:
    found = numbers(against(reference(weights="sha256:then")))["fidelity"]
    assert found.reason.endswith("; the weights changed, too (sha256:then -> sha256:now)")


def test_a_way_that_ran_and_gives_way_now_is_regressed() -> None:
    held = against(reference(**{judge.WAYS: "inductor plain, eager shared"}))
    without = {"eager shared": "it keeps a state", "inductor shared": "no"}
    found = numbers(held, without=without)["fidelity"]
    assert found.word == "regressed"
    assert found.reason.startswith("eager shared gives way: it keeps a state (it ran when")
    assert numbers(against(reference()), without=without)["fidelity"].word == "ok"


@pytest.mark.parametrize(
    "held",
    [
        against(reference(), mismatch=OTHERWISE),
        against(stored(), one_rank=one_rank(reference(), OTHERWISE)),
    ],
)
def test_numbers_of_another_definition_do_not_compare_and_the_ways_do(held: Against) -> None:
    found = numbers(held, first_layers=2)
    assert told(found["fidelity"]) == ("fidelity", "incomparable", "baseline", "nats", OTHERWISE)
    assert found["fidelity_ways"].word == "ok"
    assert found["fidelity_ways"].reason.endswith(
        "; of the first 2 layers at most (fidelity.layers)"
    )


@pytest.mark.parametrize(
    ("held", "run", "told"),
    [
        (None, 2, "all layers, and the first 2"),
        (2, None, "the first 2 layers, and all"),
        (3, 2, "the first 3 layers, and the first 2"),
    ],
)
def test_numbers_of_other_layers_do_not_compare(held: Any, run: Any, told: str) -> None:
    context = {} if held is None else {judge.FIRST_LAYERS: held}
    found = numbers(against(reference(**context)), first_layers=run)["fidelity"]
    assert found.word == "incomparable"
    assert found.reason == (
        f"b.json holds the numbers of {told} were run (fidelity.layers): accept a run anew"
    )


def test_numbers_of_the_same_first_layers_compare_and_it_is_said() -> None:
    for found in numbers(against(reference(**{judge.FIRST_LAYERS: 2})), first_layers=2).values():
        assert found.word == "ok"
        assert found.reason.endswith("; of the first 2 layers at most (fidelity.layers)")


def test_an_engine_that_compiled_nothing_was_held_to_itself() -> None:
    (found,) = judge.model_numbers(replace(NUMBERS, uncompiled="no compiler"), FACTS, against())
    assert told(found) == ("fidelity_ways", "invalid", "paired", "nats", "no compiler")


def test_drift_is_judged_of_each_engine_by_what_rounding_costs() -> None:
    usual, large = (1e-4,) * 4, (1e-2,) * 4
    drift = fidelity.Drift({"eager": usual, "inductor": large}, {"batch": usual}, usual)
    found = numbers(against(reference()), drift=drift)
    assert [*found] == ["fidelity_ways", "drift_val", "drift_infer", "fidelity"]
    assert (found["drift_val"].word, found["drift_infer"].word) == ("ok", "regressed")
    assert found["drift_infer"].reason.endswith("; in all prompts alike")
