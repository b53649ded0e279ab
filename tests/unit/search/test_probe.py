from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fake_workers import FakeLauncher, Script, answers, fidelity, noisy, pair, ready, workload
from perfline.compare import sequential
from perfline.compare.model import Side, SideName
from perfline.engines.engine import Fingerprint
from perfline.errors import InstallError, SearchError, WorkerError
from perfline.search import probe
from perfline.search.probe import Environment, Finding, Live, terms
from samples import packaged

TERMS = terms(0.02, 48, probes=8)


def environment(name: str, error: Exception | None = None) -> Environment:
    def side(of: SideName) -> Side:
        if error is not None:
            raise error
        return Side(of, Path("/venvs/x/bin/python"), ref=name)

    return Environment(name, side)


GOOD, OTHER = environment("aaa"), environment("bbb")


def live(launcher: FakeLauncher, metric: str = "core_time", **changes: Any) -> Live:
    @contextmanager
    def launchers(sides: tuple[Side, Side]) -> Iterator[Any]:
        assert [side.name for side in sides] == ["baseline", "candidate"]
        yield lambda workload: launcher

    whole = Live(
        packaged(),
        workload(),
        probe.sought(metric),
        launchers,
        say=lambda line: None,
        progress=lambda found: "",
    )
    return replace(whole, **changes)


def found(launcher: FakeLauncher, metric: str = "core_time", **changes: Any) -> Finding:
    return live(launcher, metric, **changes)(GOOD, OTHER, TERMS)


def test_what_is_surely_slower_is_bad_and_its_comparison_is_kept() -> None:
    slower = found(pair(1.0, 1.25, sd=0.01))

    assert (slower.word, slower.pairs) == ("bad", 14)  # the first look that can be so sure
    assert slower.low is not None
    assert slower.high is not None
    assert slower.estimate is not None
    assert 0.2 < slower.low < slower.estimate < slower.high
    assert slower.change.startswith("+2")
    comparison = slower.comparisons["tiny"]
    assert (comparison.alpha, comparison.ok_alpha) == (TERMS.alpha, TERMS.ok_alpha)


def test_equals_are_good() -> None:
    same = found(pair(1.0, 1.0, sd=0.002))

    assert (same.word, same.pairs) == ("good", 14)


def test_good_asks_for_its_share_of_the_error_too() -> None:
    """With the 1 % of ``perfline compare`` it would be good after ten pairs."""
    assert found(pair(1.0, 1.0)).pairs == 14


def test_what_is_faster_is_good_but_where_that_is_what_is_sought() -> None:
    faster = found(pair(1.25, 1.0, sd=0.01))
    assert (faster.word, faster.reason) == ("good", "improved")

    sought = found(pair(1.0, 1.25, sd=0.01), better=True)  # the sides are swapped: B is faster
    assert sought.word == "bad"
    assert sought.estimate is not None
    assert sought.low is not None
    assert sought.low < sought.estimate < 0
    assert sought.change == "-19.9 %"


def test_what_cannot_be_told_within_the_budget_is_unsure() -> None:
    edge = live(pair(1.0, 1.015, sd=0.08))(GOOD, OTHER, replace(TERMS, max_pairs=14))

    assert (edge.word, edge.pairs) == ("unsure", 14)


@pytest.mark.parametrize("error", [WorkerError("candidate: crashed"), WorkerError("candidate: x")])
def test_what_does_not_load_is_skipped(error: Exception) -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.fails = {0: error}

    skipped = found(launcher)

    assert (skipped.word, skipped.reason) == ("skipped", str(error))


def test_what_cannot_be_installed_is_skipped() -> None:
    broken = environment("ccc", InstallError("pip says:\n  no such version"))

    skipped = live(pair(1.0, 1.0))(GOOD, broken, TERMS)

    assert (skipped.word, skipped.reason) == ("skipped", "pip says: no such version")


def test_a_good_end_that_fails_ends_the_search() -> None:
    launcher = pair(1.0, 1.0)
    launcher.baseline.fails = {3: WorkerError("baseline: crashed")}
    with pytest.raises(WorkerError, match="baseline: crashed"):
        found(launcher)
    with pytest.raises(InstallError):
        live(pair(1.0, 1.0))(environment("ccc", InstallError("no")), OTHER, TERMS)


def test_a_restless_device_is_unsure_and_no_reason_to_skip() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.faults = lambda launch, turn: ("throttled",)

    assert found(launcher).word == "unsure"


@pytest.mark.parametrize(
    ("metric", "worse", "change"),
    [
        ("mem", Script(memory_gib=3.0), "2 -> 3"),
        ("graphs", Script(ready=ready(graphs=5)), "2 -> 5"),
        ("graph_breaks", Script(ready=ready(graph_breaks=1)), "0 -> 1"),
        ("recompiles", Script(ready=ready(recompiles=2)), "0 -> 2"),
        ("flips", Script(answers=answers({3: "A", 4: "B"})), "2 flips"),
        ("letter_logprobs", Script(answers=answers(shift=1.0)), "1.382"),
        ("fidelity", Script(fidelity=fidelity(kl=1e-3)), "0 -> 0.001"),
        ("acc", Script(answers=answers(dict.fromkeys(range(60), "A"))), "1 -> 0.775"),
        ("prompt_tokens", Script(ready=ready(tokens=1090)), "1000 -> 1090"),
    ],
)
def test_a_metric_without_noise_takes_one_launch_of_each(
    metric: str, worse: Script, change: str
) -> None:
    launcher = FakeLauncher(Script(), worse)

    bad = found(launcher, metric)

    assert (bad.word, bad.change) == ("bad", change)
    assert launcher.started == {"baseline": 0, "candidate": 0}
    assert found(FakeLauncher(), metric).word == "good"


def test_the_accuracy_of_another_task_is_followed_by_its_name() -> None:
    case = replace(packaged(), tasks=("mmlu", "ceval"))
    worse = answers(dict.fromkeys(range(60), "A"), n=100)
    launcher = FakeLauncher(
        Script(more={"ceval": answers(n=100)}),
        Script(more={"ceval": worse}, answers=answers({1: "A"})),
    )

    def of(metric: str) -> Finding:
        by_name = probe.sought(metric, case.task_names)
        return replace(live(launcher, case=case), metric=by_name)(GOOD, OTHER, TERMS)

    bad = of("acc_ceval")

    assert (bad.word, bad.change) == ("bad", "1 -> 0.55")
    launcher.log.clear()
    assert of("acc").change == of("acc_mmlu").change == "1 -> 0.995"
    assert of("flips").change == "1 flips"
    assert "answers A ceval" not in launcher.log
    launcher.candidate.ready = ready(by_task=False)
    skipped = of("acc_ceval")
    assert skipped.word == "skipped"
    assert skipped.reason.startswith("acc_infer_ceval: the perfline of B is too old to answer")


def test_the_accuracy_of_a_task_is_not_that_of_one_whose_name_is_longer() -> None:
    case = replace(packaged(), tasks=("ceval", "mmlu"))
    worse = answers(dict.fromkeys(range(60), "A"), n=100)
    launcher = FakeLauncher(
        Script(more={"mmlu": answers(n=100)}),
        Script(more={"mmlu": worse}),
    )
    by_name = probe.sought("acc_mmlu", case.task_names)
    found = replace(live(launcher, case=case), metric=by_name)(GOOD, OTHER, TERMS)

    assert (found.word, found.change) == ("bad", "1 -> 0.55")


def test_where_a_count_went_down_is_found_when_asked() -> None:
    fewer = FakeLauncher(Script(ready=ready(graphs=1)), Script(ready=ready(graphs=5)))

    sought = found(fewer, "graphs", better=True)

    assert (sought.word, sought.change) == ("bad", "5 -> 1")


def test_a_fingerprint_is_bad_where_it_differs() -> None:
    stored = Fingerprint("p", "torch 2.13.0", {"graphs": 1}, {"aten::mm": 29})
    other = replace(stored, operators={"aten::mm": 32})

    same = found(
        FakeLauncher(Script(fingerprint=stored), Script(fingerprint=stored)), "fingerprint"
    )
    bad = found(FakeLauncher(Script(fingerprint=stored), Script(fingerprint=other)), "fingerprint")

    assert same.word == "good"
    assert bad.word == "bad"
    assert "aten::mm 29 -> 32" in bad.reason
    untold = found(FakeLauncher(Script(fingerprint=stored), Script()), "fingerprint")
    assert untold.word == "skipped"


def test_fp32_is_run_where_it_is_sought_alone() -> None:
    launcher = FakeLauncher(Script(), Script(fidelity=fidelity(kl=1e-3)))

    assert found(launcher, "graphs").word == "good"
    assert launcher.references == {}
    bad = found(launcher, "fidelity")
    assert "computes something else than A does" in bad.reason
    assert bad.pairs == 1


def test_drift_is_found_in_sixteen_bits_and_skipped_in_fp32() -> None:
    own = {"rounded": (1.0, 1.2), "eager": (1.0, 1.1), "inductor": (1.0, 1.2)}
    off = fidelity(drift={**own, "inductor": (90.0, 99.0)})
    launcher = FakeLauncher(Script(fidelity=fidelity(drift=own)), Script(fidelity=off))

    assert found(launcher, "drift").word == "bad"
    assert found(launcher, "fidelity").word == "good"
    assert found(FakeLauncher(), "drift").word == "skipped"


def test_a_side_that_cannot_tell_its_fp32_numbers_is_skipped() -> None:
    skipped = found(FakeLauncher(Script(), Script(fidelity=None)), "fidelity")

    assert skipped.word == "skipped"
    assert "the perfline of B is too old to tell" in skipped.reason


def test_memory_that_no_device_counts_is_skipped() -> None:
    launcher = FakeLauncher(Script(memory_gib=None), Script(memory_gib=None))

    assert "not measured" in found(launcher, "mem").reason


def test_decode_is_judged_where_it_is_sought() -> None:
    launcher = FakeLauncher(
        Script(first_s=lambda launch, turn: 0.5), Script(first_s=lambda launch, turn: 0.7)
    )
    launcher.baseline.token_s = noisy(1.0, 0.002)
    launcher.candidate.token_s = noisy(1.0, 0.002, seed=2)

    assert found(launcher, "ttft").word == "bad"


def test_an_unknown_metric_is_told() -> None:
    with pytest.raises(SearchError, match=r"did you mean 'graphs'"):
        probe.sought("graph")
    with pytest.raises(SearchError, match=r"acc_ceval: is no metric that a comparison judges"):
        probe.sought("acc_ceval", ["mmlu"])


def test_all_probes_and_looks_together_err_in_one_per_cent() -> None:
    found = terms(0.03, 48, probes=8)

    assert 8 * len(sequential.LOOKS) * found.alpha == pytest.approx(0.01)
    assert found.ok_alpha == found.alpha


def test_too_few_pairs_to_be_so_sure_are_refused() -> None:
    with pytest.raises(SearchError, match=r"--max-pairs 9: .*expected at least 10"):
        terms(0.03, 9, probes=8)
