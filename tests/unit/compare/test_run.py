from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from fake_workers import (
    FakeLauncher,
    Script,
    answers,
    fidelity,
    last,
    pair,
    plan,
    ready,
    sides,
    states,
    with_side,
    workload,
)
from perfline.compare import gates, sequential
from perfline.compare import run as compare
from perfline.compare.model import FidelityNumbers, Turn
from perfline.compare.pair import TURN_S, turns_for
from perfline.compare.record import CaseComparison, FidelityRecord
from perfline.errors import CaseError, DeviceMemory, EngineError, WorkerError
from samples import packaged

CALLS = ("start", "wait", "answers", "fidelity", "close")


def words(found: CaseComparison) -> dict[str, str]:
    return {verdict.metric: verdict.word for verdict in found.verdicts}


def test_a_quarter_slower_regresses_at_the_first_look() -> None:
    found = last(pair(1.0, 1.25, sd=0.01))

    assert found.word == "regressed"
    assert len(found.pairs) == 10
    assert found.verdicts[0].change_fraction == pytest.approx(0.25, abs=0.01)
    assert found.ended


def test_a_quarter_faster_is_improved() -> None:
    found = last(pair(1.25, 1.0, sd=0.01))

    assert found.verdicts[0].word == "improved"
    assert found.verdicts[0].change_fraction == pytest.approx(-0.2, abs=0.01)


def test_equals_are_ok_once_the_margin_is_ruled_out() -> None:
    found = last(pair(1.0, 1.0, sd=0.005))

    assert found.word == "ok"
    assert found.decision is not None
    assert found.decision.p_margin <= 0.01


def test_a_slowdown_at_the_edge_is_unsure_at_the_cap_and_says_what_would_settle_it() -> None:
    found = last(pair(1.0, 1.012, sd=0.06), plan(max_pairs=14))

    assert (found.word, len(found.pairs)) == ("unsure", 14)
    assert found.decision is not None
    assert found.decision.to_settle is not None
    assert f"about {found.decision.to_settle} launch pairs" in found.verdicts[0].reason


def test_every_pair_is_yielded_and_the_first_look_is_after_ten() -> None:
    found = states(pair(1.0, 1.5))

    assert [len(state.pairs) for state in found] == list(range(1, 11))
    assert [state.ended for state in found] == [False] * 9 + [True]
    assert found[3].verdicts[0].word == "unsure"
    assert found[3].verdicts[0].reason == "not decided yet; launch pairs that count: 4"


def test_rounds_alternate_and_the_first_after_each_switch_is_dropped() -> None:
    launcher = pair(1.0, 1.0)
    steps = compare.run(plan(rounds=4), launcher, print)

    first = next(steps)

    assert launcher.rounds == "AABBBAAABBBAA"  # a A b B B a A A b B B a A
    assert len(first.pairs[0].baseline.rounds) == len(first.pairs[0].candidate.rounds) == 4
    assert len(first.pairs[0].baseline.dropped) == 3
    assert len(first.pairs[0].candidate.dropped) == 2
    launcher.log.clear()
    assert next(steps).pairs[1].first == "candidate"
    assert launcher.rounds == "BBAAABBBAAABB"


def test_a_round_is_the_sum_of_its_turns_in_each_of_which_both_run_the_same_part() -> None:
    launcher = pair(1.0, 1.0)
    for script in (launcher.baseline, launcher.candidate):
        script.ready = ready(pass_s=3.5 * TURN_S, parts=16, tokens=300)

    first = next(compare.run(plan(rounds=1), launcher, print)).pairs[0]

    assert launcher.rounds == "AABBBAAABBBAAABBBAA"  # as if each turn were a round
    passes = [Turn(part=part, parts=3) for part in (0, 1, 2, 0, 1, 2)]  # 0.2 s are asked for
    assert launcher.turns[1::3] == [*passes]
    assert launcher.turns[2::3] == [*passes]
    assert first.turns == 6
    assert [each.tokens for each in first.baseline.rounds] == [600]
    assert [each.tokens for each in first.baseline.dropped] == [400]


def test_the_side_that_begins_a_part_is_the_other_one_in_the_next_round() -> None:
    launcher = pair(1.0, 1.0)
    for script in (launcher.baseline, launcher.candidate):
        script.ready = ready(pass_s=0.25, parts=2)

    next(compare.run(plan(rounds=2), launcher, print))

    # Two parts: A B | B A, then B A | A B, each after a switch once more.
    assert launcher.rounds == "AABBBAA" + "BBAAABB"
    parts = [turn.part for turn in launcher.turns]
    assert parts == [0] * 4 + [1] * 3 + [0] * 4 + [1] * 3


def test_a_few_prompts_that_got_much_slower_weigh_as_they_do_in_a_pass() -> None:
    launcher = pair(1.0, 1.0)
    for script in (launcher.baseline, launcher.candidate):
        script.ready = ready(pass_s=10.5 * TURN_S, parts=10, tokens=1000)
    launcher.candidate.token_s = lambda *_: 3e-5 if launcher.turns[-1].part == 9 else 1e-5

    found = last(launcher, plan(max_pairs=10))

    assert found.word == "regressed"
    assert found.verdicts[0].change_fraction == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("pass_s", "repeats", "parts", "expected"),
    [
        (10.0, 1, 1, [Turn(1)]),  # it cannot be cut
        (0.001, 500, 1, [Turn(500)]),
        (0.0, 1, 8, [Turn(1)]),  # it took no time that a clock sees
        (3.5, 1, 8, [Turn(part=part, parts=3) for part in range(3)]),
        (10.0, 1, 4, [Turn(part=part, parts=4) for part in range(4)]),  # a prompt each
        (2.0, 2, 8, [Turn(part=part, parts=2) for part in (0, 1)] * 2),
        (1.9, 2, 8, [Turn(1)] * 2),
        (0.3, 10, 8, [Turn(4), Turn(4), Turn(2)]),
        (0.3, 8, 8, [Turn(4), Turn(4)]),
    ],
)
def test_turns_are_as_short_as_they_may_be(
    pass_s: float, repeats: int, parts: int, expected: list[Turn]
) -> None:
    faster = ready(pass_s=pass_s * TURN_S / 2, parts=parts)
    slower = ready(pass_s=pass_s * TURN_S, parts=64)
    assert turns_for(repeats, faster, slower) == expected


@pytest.mark.parametrize("alternate", [False, True])
def test_both_are_timed_on_the_same_cores(alternate: bool) -> None:
    launcher = pair(1.0, 1.0)
    found = last(launcher, plan(max_pairs=10, alternate=alternate))
    log = [line for line in launcher.log if line.startswith(("hold", "round"))]
    for name in "AB":
        own = [line for line in log if line.split()[1] == name]
        assert own[:2] == [f"hold {name} 1", f"round {name}"]
        assert own.count(f"hold {name} 1") == 10
    assert {launch.cores for pair in found.pairs for launch in (pair.baseline, pair.candidate)} == {
        (7,)
    }


@pytest.mark.parametrize(
    ("changes", "settings", "threads"),
    [
        ({}, (("engine.cpu_threads", "3"),), 3),
        ({"ranks": 2}, (), 0),
        ({"engine": "my:Own"}, (), 0),
    ],
)
def test_more_threads_are_given_to_both_and_what_is_not_known_is_not_held(
    changes: dict[str, Any], settings: tuple[tuple[str, str], ...], threads: int
) -> None:
    candidate = with_side("candidate", settings=settings)
    asked = plan(sides=candidate, workload=workload(**changes), max_pairs=10)
    launcher = pair(1.0, 1.0)
    last(launcher, asked)
    assert {line for line in launcher.log if line.startswith("hold")} == {
        f"hold A {threads}",
        f"hold B {threads}",
    }


def test_both_start_at_once_and_are_gone_before_the_next_pair() -> None:
    launcher = pair(1.0, 1.0)
    steps = compare.run(plan(rounds=3), launcher, print)
    next(steps)
    next(steps)

    calls = [line for line in launcher.log if not line.startswith(("round", "hold"))]
    assert calls[:4] == ["start A", "start B", "wait A", "wait B"]
    assert calls[4:8] == ["answers A", "answers B", "fidelity A", "fidelity B"]
    assert calls[8:10] == ["close B", "close A"]
    assert calls[10:] == ["start B", "start A", "wait B", "wait A", "close A", "close B"]


def test_the_slower_side_s_round_lasts_the_case_s_minimum() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.ready = ready(pass_s=0.07)

    found = next(compare.run(plan(), launcher, print))

    assert found.repeats == 3  # 0.2 s in passes of 0.07 s
    assert found.pairs[0].baseline.rounds[0].tokens == 3000
    assert found.pairs[0].candidate.rounds[0].tokens == 3000


def test_a_launch_pair_s_number_is_the_median_over_its_kept_round_pairs() -> None:
    def spiky(launch: int, turn: int) -> float:
        return 1e-5 * (1.1 if turn != 4 else 9.0)  # one stray round

    launcher = FakeLauncher(Script(token_s=lambda launch, turn: 1e-5), Script(token_s=spiky))

    found = next(compare.run(plan(), launcher, print))

    assert found.pairs[0].log_ratio() == pytest.approx(math.log(1.1))
    assert max(found.pairs[0].round_log_ratios()) == pytest.approx(math.log(9))


def test_rounds_follow_the_measured_spreads_after_four_pairs_and_stay() -> None:
    found = states(pair(1.0, 1.0, sd=0.05), plan(max_pairs=10))

    kept = [len(p.baseline.rounds) for p in found[-1].pairs]
    assert kept[:4] == [6] * 4
    assert kept[4:] == [found[-1].rounds] * 6
    assert found[3].rounds_reason.startswith("Kalibera-Jones: log ratios spread by ")
    assert found[2].rounds_reason == "to begin with"


def test_rounds_that_are_asked_for_stay() -> None:
    found = last(pair(1.0, 1.0, sd=0.05), plan(max_pairs=10, rounds=5))

    assert {len(p.candidate.rounds) for p in found.pairs} == {5}
    assert found.rounds_reason == "asked for"


def test_a_faulty_round_goes_with_its_pair() -> None:
    launcher = pair(1.0, 1.0)
    launcher.baseline.faults = lambda launch, turn: ("throttled",) if turn == 1 else ()

    found = next(compare.run(plan(), launcher, print))

    assert found.pairs[0].void == ""
    assert len(found.pairs[0].kept) == 5
    assert found.pairs[0].faults == ("throttled",)


def test_a_pair_with_too_many_faulty_rounds_does_not_count() -> None:
    launcher = pair(1.0, 1.2)
    launcher.candidate.faults = lambda launch, turn: ("throttled",) * (launch == 2 and turn < 5)

    found = last(launcher)

    assert found.pairs[2].void == "3 of 6 round pairs thrown out: throttled"
    assert (len(found.pairs), len(found.counted), found.word) == (11, 10, "regressed")
    assert found.pairs[2].log_ratio() is None


def test_too_many_void_pairs_are_invalid() -> None:
    launcher = pair(1.0, 1.2)
    launcher.candidate.faults = lambda launch, turn: ("throttled",)

    found = last(launcher)

    assert (found.word, len(found.pairs)) == ("invalid", 4)
    assert found.problem.startswith("4 of 4 launch pairs do not count (6 of 6 round pairs")
    assert found.verdicts[0].measured is None


def test_a_quarter_of_void_pairs_is_invalid_where_pairs_are_few() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.faults = lambda launch, turn: ("throttled",) * (launch in (1, 3))

    found = last(launcher, plan(max_pairs=5))

    assert found.word == "invalid"
    assert "2 of 7 launch pairs do not count" in found.problem


def test_a_crash_is_a_finding_and_never_a_time() -> None:
    launcher = pair(1.0, 1.0)
    told = "candidate: crashed (signal 11) for a round of 4 passes; its stderr ends:\n  Segfault"
    launcher.candidate.round_fails = {3: WorkerError(told)}

    found = last(launcher)

    assert (found.word, len(found.pairs)) == ("invalid", 3)
    assert found.problem == told
    assert found.verdicts[0].reason.startswith("candidate: crashed (signal 11)")
    assert "\n" not in found.verdicts[0].reason
    assert launcher.live == set()


def test_logits_that_are_no_numbers_are_a_finding() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.round_fails = {0: EngineError("inductor: logits are not finite")}

    found = last(launcher)

    assert found.word == "invalid"
    assert found.pairs == ()


def test_a_round_of_no_time_is_refused() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.token_s = lambda launch, turn: 0.0

    found = last(launcher)

    assert found.word == "invalid"
    assert "told of a round of 4000 tokens in 0 s" in found.problem


def test_an_interrupt_closes_both_workers() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.round_fails = {1: KeyboardInterrupt()}
    steps = compare.run(plan(), launcher, print)

    assert len(next(steps).pairs) == 1
    with pytest.raises(KeyboardInterrupt):
        next(steps)

    assert launcher.live == set()


def test_what_does_not_fit_twice_is_launched_in_turn() -> None:
    launcher = pair(1.0, 1.25)
    launcher.fits_once = True
    said: list[str] = []

    found = list(compare.run(plan(rounds=3), launcher, said.append))[-1]

    assert len(said) == 1
    assert said[0].startswith("A and B do not fit on the device at once (A: 16.1 GiB are needed")
    assert found.notes == (said[0],)
    assert (found.word, len(found.pairs)) == ("regressed", 10)
    assert not any(p.interleaved for p in found.pairs)
    assert launcher.rounds[:16] == "AAAABBBBBBBBAAAA"  # A B B A, each its first round dropped
    assert launcher.live == set()


def test_whole_launches_on_demand() -> None:
    launcher = pair(1.0, 1.0)

    found = next(compare.run(plan(rounds=3, alternate=True), launcher, print))

    assert launcher.rounds == "AAAABBBB"
    order = [line for line in launcher.log if not line.startswith(("round", "hold"))]
    assert order == [f"{call} {side}" for side in "AB" for call in CALLS]
    assert found.pairs[0].log_ratio() == pytest.approx(0.0)


def test_a_side_that_does_not_fit_by_itself_is_invalid() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.fails = dict.fromkeys(range(9), DeviceMemory("B: 90 GiB are needed"))

    found = last(launcher)

    assert (found.word, found.problem) == ("invalid", "B: 90 GiB are needed")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"machine": "fake-cpu"}, "A ran on fake-gpu, B on fake-cpu"),
        ({"facts": {"weights": "sha256:x", "mmlu": "sha256:q"}}, "the weights differ: A has"),
        ({"facts": {"weights": "sha256:w"}}, "the mmlu differ: A has sha256:q, B has unknown"),
        ({"prompts_digest": "sha256:o"}, "the timed prompts differ"),
    ],
)
def test_sides_that_do_other_work_are_not_timed(changes: dict[str, Any], names: str) -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.ready = ready(**changes)

    found = last(launcher)

    assert found.word == "incomparable"
    assert found.problem.startswith(names)
    assert launcher.rounds == ""


def test_a_side_that_changes_on_the_way_ends_it() -> None:
    launcher = pair(1.0, 1.0)
    steps = compare.run(plan(), launcher, print)
    next(steps)
    launcher.baseline.ready = ready(context={"torch": "2.14.0"})

    found = next(steps)

    assert found.word == "incomparable"
    assert found.problem.startswith("the baseline changed while it was compared")


def test_code_that_is_edited_on_the_way_ends_it() -> None:
    launcher = pair(1.0, 1.0)
    steps = compare.run(plan(), launcher, print)
    next(steps)
    now = {"torch": "2.13.0", "commit": "abc1234-dirty", "uncommitted": "0123456789ab"}
    launcher.candidate.ready = ready(context=now)

    found = next(steps)

    assert (found.word, found.ended) == ("incomparable", True)
    assert found.problem.startswith("the candidate changed while it was compared")


@pytest.mark.parametrize(
    "key", ["gates.memory_fraction", "compare.margin_fraction", "throughput.rounds"]
)
def test_a_setting_that_would_have_no_effect_is_refused(key: str) -> None:
    made = plan()
    value = "3" if "rounds" in key else "0.5"
    side = dataclasses.replace(made.sides["candidate"], settings=((key, value),))
    with pytest.raises(CaseError, match=f"--set {key}: is no setting of a side"):
        compare.begin(dataclasses.replace(made, sides={**made.sides, "candidate": side}))


def test_settings_that_change_the_work_are_incomparable_before_any_launch() -> None:
    found = compare.begin(
        plan(sides=with_side("candidate", settings=(("throughput.sample", "32"),)))
    )

    assert (found.word, found.ended) == ("incomparable", True)
    assert found.problem.startswith("'throughput.sample' is 64 on A and 32 on B")


def test_settings_that_change_the_work_on_both_sides_are_fine() -> None:
    both = {
        name: dataclasses.replace(side, settings=(("throughput.head", "last"),))
        for name, side in sides().items()
    }

    assert compare.begin(plan(sides=both)).problem == ""


def test_a_wrong_setting_is_refused_before_any_launch() -> None:
    wrong = plan(sides=with_side("candidate", settings=(("engine.mod", "default"),)))

    with pytest.raises(CaseError, match=r"key 'engine.mod' is not known"):
        compare.begin(wrong)


def test_faster_but_wrong_is_regressed() -> None:
    launcher = pair(1.25, 1.0)
    launcher.candidate.answers = answers(wrong={i: "ABCD"[(i + 1) % 4] for i in range(40)})

    found = last(launcher)

    assert words(found)["core_time"] == "improved"
    assert words(found)["acc_infer"] == "regressed"
    assert found.word == "regressed"
    assert len(next(v for v in found.verdicts if v.metric == "acc_infer").flips) == 40


def test_the_questions_are_asked_once() -> None:
    launcher = pair(1.0, 1.2)

    found = last(launcher)

    assert launcher.log.count("answers A") == launcher.log.count("answers B") == 1
    assert found.answers is not None
    assert (found.answers.questions, found.answers.candidate_correct) == (200, 200)


TWO = dataclasses.replace(packaged(), tasks=("mmlu", "ceval"))


def of_two_tasks(**of_b: Any) -> FakeLauncher:
    """Both sides answer 100 questions of a second task; B's launches as told."""
    launcher = pair(1.0, 1.0)
    launcher.baseline.more = launcher.candidate.more = {"ceval": answers(n=100)}
    launcher.candidate = dataclasses.replace(launcher.candidate, **of_b)
    return launcher


@pytest.mark.parametrize("alternate", [False, True])
def test_only_the_second_task_gets_worse_and_it_is_named(alternate: bool) -> None:
    wrong = {"ceval": answers(wrong={i: "ABCD"[(i + 1) % 4] for i in range(40)}, n=100)}
    launcher = of_two_tasks(more=wrong)

    found = last(launcher, plan(case=TWO, alternate=alternate))

    said = words(found)
    assert (found.word, said["acc_infer"], said["acc_infer_ceval"]) == (
        "regressed",
        "ok",
        "regressed",
    )
    (red,) = [verdict for verdict in found.verdicts if verdict.word == "regressed"]
    assert (red.metric, len(red.flips)) == ("acc_infer_ceval", 40)
    assert found.answers is not None
    assert found.answers.candidate_correct == 200
    kept = {
        name: (told.questions, told.candidate_correct) for name, told in found.more_answers.items()
    }
    assert kept == {"ceval": (100, 60)}
    asked = [line for line in launcher.log if line.startswith("answers")]
    assert sorted(asked) == ["answers A", "answers A ceval", "answers B", "answers B ceval"]


@pytest.mark.parametrize("old", ["A", "B"])
def test_a_side_too_old_for_a_second_task_is_asked_the_first_alone(old: str) -> None:
    launcher = of_two_tasks()
    script = launcher.baseline if old == "A" else launcher.candidate
    script.ready = ready(by_task=False)

    found = last(launcher, plan(case=TWO))

    assert (found.word, words(found)["acc_infer"]) == ("missing", "ok")
    (absent,) = [verdict for verdict in found.verdicts if verdict.word == "missing"]
    assert absent.metric == "acc_infer_ceval"
    assert absent.reason.startswith(f"the perfline of {old} is too old to answer any task but")
    assert found.more_answers == {}
    assert f"answers {old} ceval" not in launcher.log


@pytest.mark.parametrize("changes", [{"weights": "dummy"}, {"questions": 0}])
def test_without_an_accuracy_the_first_task_alone_is_asked(changes: Any) -> None:
    launcher = of_two_tasks()

    found = last(launcher, plan(case=TWO, workload=workload(**changes)))

    assert "acc_infer_ceval" not in words(found)
    assert "answers A ceval" not in launcher.log


def test_sides_with_other_tasks_are_incomparable_before_any_launch() -> None:
    found = compare.begin(plan(sides=with_side("candidate", settings=(("tasks", "[ceval]"),))))

    assert (found.word, found.ended) == ("incomparable", True)
    assert found.problem.startswith("'tasks' is mmlu on A and ceval on B: set it on both sides")


def test_logits_beyond_rounding_leave_it_unsure_and_name_the_questions_it_takes() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.answers = answers(shift=0.01)
    launcher.candidate.fidelity = None

    found = last(launcher)

    assert words(found)["acc_infer"] == "ok"
    assert words(found)["fidelity_infer"] == "missing"
    assert words(found)["letter_logprobs"] == "unsure"
    reason = next(v.reason for v in found.verdicts if v.metric == "letter_logprobs")
    assert "log-probabilities differ by 1.4e-02 nats (rms; rounding explains 5.0e-04)" in reason
    assert "--questions 1474 lets the accuracy decide" in reason


def test_enough_questions_let_the_accuracy_decide() -> None:
    launcher = pair(1.0, 1.0)
    launcher.baseline.answers = answers(n=1474)
    launcher.candidate.answers = answers(n=1474, shift=0.01)
    launcher.baseline.fidelity = None

    assert words(last(launcher))["letter_logprobs"] == "ok"


def test_the_coarser_dtype_s_rounding_is_allowed() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.ready = ready(dtype="bf16")
    launcher.candidate.answers = answers(shift=0.01)
    own = {"rounded": (1.0, 1.2), "eager": (1.0, 1.1), "inductor": (1.0, 1.1)}
    launcher.candidate.fidelity = fidelity(kl=1e-3, drift=own)  # its weights are rounded

    found = last(launcher)

    assert words(found)["letter_logprobs"] == "ok"
    assert words(found)["drift_infer"] == "ok"
    assert "fidelity_infer" not in words(found)
    assert found.answers is not None
    assert found.answers.tolerance == 3e-2


def test_dummy_weights_have_no_accuracy_but_their_logits_compare() -> None:
    launcher = pair(1.0, 1.0)
    launcher.baseline.answers = answers(labels=False)
    launcher.candidate.answers = answers(wrong={7: "A"}, labels=False)

    found = last(launcher, plan(workload=workload(weights="dummy")))

    assert "acc_infer" not in words(found)
    assert words(found)["fidelity_infer"] == "ok"
    letters = next(v for v in found.verdicts if v.metric == "letter_logprobs")
    assert letters.word == "unsure"
    assert "1 of 200 answers differ and are no ties" in letters.reason
    assert [flip.id for flip in letters.flips] == ["sky/7"]


def test_a_is_the_reference_and_b_is_held_to_it_once() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.fidelity = fidelity(kl=1e-3, seconds=3.5)

    found = last(launcher)

    assert launcher.references == {"A": {}, "B": fidelity().references}
    assert launcher.log.count("fidelity A") == launcher.log.count("fidelity B") == 1
    assert (found.word, words(found)["fidelity_infer"]) == ("regressed", "regressed")
    assert "letter_logprobs" not in words(found)
    assert found.fidelity == FidelityRecord(2, 2.5, 3.5)


@pytest.mark.parametrize("old", ["baseline", "candidate"])
def test_what_an_older_side_cannot_tell_is_missing_and_the_answers_are_judged(old: str) -> None:
    launcher = pair(1.0, 1.0)
    script = launcher.baseline if old == "baseline" else launcher.candidate
    script.fidelity = None

    found = last(launcher)

    assert (found.word, found.fidelity) == ("missing", None)
    assert (words(found)["letter_logprobs"], words(found)["acc_infer"]) == ("ok", "ok")
    side = "A" if old == "baseline" else "B"
    assert found.verdicts[-1].reason.startswith(f"the perfline of {side} is too old to tell")
    assert ("fidelity B" in launcher.log) == (side == "B")


@pytest.mark.parametrize("alternate", [False, True])
def test_fp32_that_does_not_fit_is_missing_and_not_invalid(alternate: bool) -> None:
    launcher = pair(1.0, 1.0)
    launcher.baseline.fidelity = FidelityNumbers(problem="28.0 GiB are needed")

    found = last(launcher, plan(alternate=alternate))

    assert (found.word, found.problem) == ("missing", "")
    assert found.verdicts[-1].reason.startswith("A: 28.0 GiB are needed; `fidelity: {prompts: 0}`")
    assert "fidelity B" not in launcher.log


def test_ranks_that_hold_one_model_between_them_compute_in_fp32_too() -> None:
    both = {
        key: dataclasses.replace(side, settings=(("parallel.tensor", "2"),))
        for key, side in sides().items()
    }
    found = last(pair(1.0, 1.0), plan(sides=both, workload=workload(ranks=2)))
    assert words(found)["fidelity_infer"] == "ok"


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"fidelity": False}, ()),
        ({"workload": workload(engine="my.module:Engine")}, ()),
        ({}, (("fidelity.prompts", "0"),)),
    ],
)
def test_fp32_is_left_out_where_it_is_not_asked_for(changes: Any, settings: Any) -> None:
    both = {k: dataclasses.replace(side, settings=settings) for k, side in sides().items()}
    launcher = pair(1.0, 1.0)

    found = last(launcher, plan(sides=both, **changes))

    assert "fidelity A" not in launcher.log
    assert [name for name in words(found) if name.startswith("fidelity")] == []
    assert words(found)["letter_logprobs"] == "ok"


def test_other_questions_are_incomparable() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.answers = answers(n=100)

    assert words(last(launcher))["letter_logprobs"] == "incomparable"


def test_no_questions_is_never_green() -> None:
    launcher = pair(1.0, 1.0)
    launcher.baseline.answers = launcher.candidate.answers = answers(n=0)

    found = last(launcher, plan(workload=workload(questions=0)))

    assert (words(found)["core_time"], found.word) == ("ok", "missing")


def test_memory_is_judged_as_in_the_suite() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.memory_gib = 2.3  # tiny allows 256 MiB

    found = last(launcher)

    assert words(found)["mem"] == "regressed"
    assert found.word == "regressed"


def test_memory_that_is_not_counted_is_absent() -> None:
    launcher = pair(1.0, 1.0)
    launcher.baseline.memory_gib = None

    assert "mem" not in words(last(launcher))


@pytest.mark.parametrize(
    ("changes", "settings", "expected"),
    [
        ({"graph_breaks": 1}, (), {"graphs": "ok", "graph_breaks": "regressed"}),
        ({"recompiles": 3}, (), {"graphs": "ok", "recompiles": "regressed"}),
        ({"graphs": 3}, (), {"graphs": "regressed"}),
        ({"graphs": 3, "context": {"torch": "2.14.0"}}, (), {"graphs": None, "recompiles": "ok"}),
        ({"graphs": 9}, (("engine.scope", "model"),), {"graphs": None, "graph_breaks": "ok"}),
    ],
)
def test_compile_health(
    changes: dict[str, Any], settings: Any, expected: dict[str, str | None]
) -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.ready = ready(**changes)

    found = last(launcher, plan(sides=with_side("candidate", settings=settings)))

    assert {name: words(found).get(name) for name in expected} == expected


def test_eager_compiles_nothing() -> None:
    found = last(pair(1.0, 1.0), plan(workload=workload(engine="eager")))

    assert set(words(found)) == {"core_time", "mem_val", "acc_val", "fidelity_val"}


@pytest.mark.parametrize(
    ("cap", "looks"),
    [
        (90, sequential.LOOKS),
        (12, (10, 12)),
        (5, (5,)),
        (90, (10, 14, 18, 24, 36, 90)),
    ],
)
def test_the_cap_takes_the_place_of_the_last_look(cap: int, looks: tuple[int, ...]) -> None:
    assert plan(max_pairs=cap).looks == looks
    assert len(looks) * sequential.ALPHA < 0.01


def test_pairs_too_few_to_tell_are_unsure() -> None:
    found = last(pair(1.0, 1.5), plan(max_pairs=5))

    assert (found.word, len(found.pairs)) == ("unsure", 5)


def test_several_cases_share_alpha_and_regressed_ones_hand_theirs_on() -> None:
    assert compare.share(0.00166, 2, 0) == pytest.approx(0.00083)
    assert compare.share(0.00166, 2, 1) == pytest.approx(0.00166)
    assert compare.share(0.00166, 3, 1) == pytest.approx(0.00083)


def test_with_two_cases_ten_pairs_cannot_show_a_regression() -> None:
    found = last(pair(1.0, 1.25, sd=0.01), plan(alpha=compare.share(sequential.ALPHA, 2, 0)))

    assert (found.word, len(found.pairs)) == ("regressed", 14)


def test_an_early_case_gets_what_a_later_one_handed_on() -> None:
    p = sequential.decide([0.1] * 10, math.log(1.02), (10,)).p_slower  # 2^-10
    assert sequential.ALPHA / 2 < p < sequential.ALPHA
    half = plan(alpha=sequential.ALPHA / 2, max_pairs=10)
    early = last(pair(1.0, 1.25, sd=0.01), half)
    assert early.word == "unsure"
    late = dataclasses.replace(last(pair(1.0, 1.25), plan(max_pairs=10)), case="late")

    settled = compare.settle([early, late])

    assert [found.word for found in settled] == ["regressed", "regressed"]
    assert settled[0].alpha == sequential.ALPHA
    assert compare.settle([early, dataclasses.replace(early, case="late")])[0] == early


def test_the_first_verdict_is_always_that_on_time() -> None:
    seen = [state.verdicts[0].metric for state in states(pair(1.0, 1.0))]

    assert set(seen) == {gates.TIME}
    assert compare.begin(plan()).verdicts[0].word == "unsure"


def test_what_differs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.ready = ready(context={"torch": "2.14.0", "commit": "abc1234"})
    candidate = with_side("candidate", env={"HF_TOKEN": "hf_abc", "OMP_NUM_THREADS": "4"})

    found = next(compare.run(plan(sides=candidate), launcher, print))

    assert "torch 2.13.0 -> 2.14.0" in found.difference
    assert "OMP_NUM_THREADS unset -> 4" in found.difference
    assert "hf_abc" not in found.difference
    assert found.sides["candidate"].env["HF_TOKEN"] == "(not recorded)"


def role_swapped(make: Callable[[], FakeLauncher]) -> tuple[CaseComparison, CaseComparison]:
    launcher = make()
    swapped = FakeLauncher(launcher.candidate, launcher.baseline)
    return last(launcher), last(swapped)


def test_swapped_roles_give_the_mirrored_estimate() -> None:
    found, mirrored = role_swapped(lambda: pair(1.0, 1.25, sd=0.01))

    assert found.decision is not None
    assert mirrored.decision is not None
    assert mirrored.decision.estimate == pytest.approx(-(found.decision.estimate or 0), abs=0.005)
    assert (found.word, mirrored.word) == ("regressed", "improved")
