"""The comparison that settles a verdict on time: the baseline's code and packages, both."""

from __future__ import annotations

import pytest

from perfline.baselines.baseline import Baseline, Session
from perfline.baselines.settling import (
    Made,
    SideA,
    command,
    differences,
    job,
    noiseless,
    side_a,
)
from perfline.cases.case import ENGINE_NAMES
from perfline.gates.verdict import Settled, Verdict

PACKAGES = {"torch": "2.12.0", "transformers": "5.23.0"}
THEN = Made({"commit": "abc", "driver": "1"}, PACKAGES, {"OMP_NUM_THREADS": "4"})


def now(**changes: object) -> Made:
    """The same again, but for ``changes``; a None takes something away."""
    parts = []
    for name in ("context", "packages", "variables"):
        whole = {**getattr(THEN, name), **dict(changes.get(name, {}))}
        parts.append({key: text for key, text in whole.items() if text is not None})
    return Made(*parts)


def slow(metric: str = "p_infer_core", word: str = "regressed", gate: str = "baseline") -> Verdict:
    return Verdict(metric, word, gate, "tok/s", 100.0, None, 90.0, None, change_fraction=-0.1)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, SideA()),
        ({"context": {"commit": "def"}}, SideA(("--baseline-ref", "abc"))),
        (
            {"context": {"commit": "abc-dirty", "uncommitted": "x"}},
            SideA(("--baseline-ref", "abc")),
        ),
        ({"packages": {"torch": "2.13.0"}}, SideA(("--baseline-install", "torch==2.12.0"))),
        ({"packages": {"torch": None}}, SideA(("--baseline-install", "torch==2.12.0"))),
        ({"packages": {"flash-attn": "3.0"}}, SideA(lacking=("without flash-attn",))),
        (
            {"context": {"commit": "def"}, "packages": {"torch": "2.13.0", "transformers": "6"}},
            SideA(
                (
                    *("--baseline-ref", "abc"),
                    *("--baseline-install", "torch==2.12.0 transformers==5.23.0"),
                )
            ),
        ),
        (
            {"variables": {"OMP_NUM_THREADS": "2"}},
            SideA(("--baseline-env", "OMP_NUM_THREADS=4")),
        ),
        (
            {"variables": {"TORCHINDUCTOR_MAX_AUTOTUNE": "1"}},
            SideA(("--env", "TORCHINDUCTOR_MAX_AUTOTUNE=1"), ("TORCHINDUCTOR_MAX_AUTOTUNE",)),
        ),
        (
            {"variables": {"CUDA_VISIBLE_DEVICES": "1"}},
            SideA(lacking=("CUDA_VISIBLE_DEVICES unset -> 1, another card",)),
        ),
        ({"context": {"driver": "2"}}, SideA()),
    ],
)
def test_a_has_all_that_the_baseline_had(changes: dict[str, object], found: SideA):
    assert side_a(THEN, now(**changes)) == found


def test_an_older_baseline_tells_its_torch_alone_and_that_is_said():
    then = Made({"commit": "abc", "torch": "2.12.0", "transformers": "5.23.0"})
    here = now(context={"commit": "def", "torch": "2.13.0", "transformers": "5.23.0"})
    found = side_a(then, here)
    assert found.arguments == ("--baseline-ref", "abc", "--baseline-install", "torch==2.12.0")
    assert [text.split(",")[0] for text in found.lacking] == [
        "the packages beside torch and transformers",
        "the environment variables",
    ]


@pytest.mark.parametrize(
    ("context", "why"),
    [
        ({"commit": "abc-dirty", "uncommitted": "x"}, "changes that nobody committed"),
        ({}, "names no commit"),
    ],
)
def test_code_that_nobody_can_check_out_cannot_be_compared_with(context: dict[str, str], why: str):
    assert why in side_a(Made(context, {}, {}), Made({"commit": "def"}, {}, {})).impossible


def test_the_same_uncommitted_changes_are_the_same_code():
    made = Made({"commit": "abc-dirty", "uncommitted": "x"}, {"torch": "1"}, {})
    assert side_a(made, Made(made.context, {"torch": "2"}, {})) == SideA(
        ("--baseline-install", "torch==1")
    )


OWN = "my.kernels:Fast_One"


@pytest.mark.parametrize(
    ("verdicts", "flags"),
    [
        ([slow()], ""),
        ([slow(word="unsure")], ""),
        ([slow("p_infer_whole")], ""),
        ([slow("p_val_core")], " --engine eager"),
        ([slow("p_fastone_core")], f" --engine {OWN}"),
        ([slow("decode")], " --workload decode"),
        ([slow("ttft_val")], " --engine eager --workload decode"),
    ],
)
def test_the_command_times_what_was_judged(verdicts: list[Verdict], flags: str):
    a = SideA(("--baseline-ref", "abc", "--baseline-install", "torch==1 numpy==2"))
    found = job(verdicts, [*ENGINE_NAMES, OWN])
    assert found is not None
    assert [*found.seconds] == [verdicts[0].metric]
    told = "perfline compare x --baseline-ref abc --baseline-install 'torch==1 numpy==2'"
    assert command("x", found, a, "--dummy-weights") == f"{told}{flags} --dummy-weights"


def test_a_variable_that_was_not_set_is_unset_for_both_and_set_for_b():
    found = job([slow()], ENGINE_NAMES)
    assert found is not None
    assert command("x", found, SideA(("--env", "K=1"), ("K",)), "") == (
        "env -u K perfline compare x --env K=1"
    )


@pytest.mark.parametrize(
    "verdict",
    [
        slow(word="ok"),
        slow(gate="published"),
        slow("mem"),
        slow("decode_b8"),
        slow("mine"),
        Verdict(
            "p_val_core", "regressed", "baseline", "tok/s", settled=Settled("unsure", "ok", 1, "r")
        ),
    ],
)
def test_what_no_comparison_times_or_what_is_settled_is_left(verdict: Verdict):
    assert job([verdict], ENGINE_NAMES) is None


def test_what_of_the_difference_is_not_on_a_is_told():
    here = now(context={"commit": "def", "driver": "2"}, packages={"torch": "2.13.0"})
    a = {"commit": "abc", "driver": "2"}
    assert differences(THEN, here, a, PACKAGES) == {"driver": "driver 1 -> 2"}
    assert differences(THEN, here, {**a, "driver": "1"}, here.packages or {}) == {
        "torch": "torch 2.12.0 -> 2.13.0"
    }
    assert differences(THEN, THEN, {}, {}) == {}


def test_a_baseline_is_what_its_last_session_was_made_with():
    session = Session("2026-11-01", "abc", "r", {"torch": "1"}, {}, {}, {"torch": "1"}, {})
    stored = Baseline("x", "cpu", "d", "fp32", sessions=(session,))
    assert Made.stored(stored) == Made({"torch": "1", "commit": "abc"}, {"torch": "1"}, {})
    assert Made.stored(Baseline("x", "cpu", "d", "fp32")) is None
    assert Made.stored(None) is None


@pytest.mark.parametrize(
    ("metrics", "engine"),
    [
        (("fidelity", "fidelity_ways"), "inductor"),
        (("fingerprint",), "inductor"),
        (("fingerprint_val",), "eager"),
        (("fingerprint_val", "fingerprint_decode"), "inductor"),
        (("fidelity_ways", "fingerprint_val"), "eager"),
    ],
)
def test_red_numbers_without_noise_are_looked_at_by_a_comparison(
    metrics: tuple[str, ...], engine: str
):
    red = [Verdict(name, "regressed", "baseline", "count") for name in metrics]
    found = noiseless(red, ENGINE_NAMES)
    assert found is not None
    shown = command("tiny", found, SideA(("--baseline-ref", "abc")), "")
    of = "" if engine == "inductor" else f" --engine {engine}"
    assert shown == f"perfline compare tiny --baseline-ref abc{of} --explain"


def test_what_explain_does_not_do_is_not_asked_of_it():
    red = Verdict("fingerprint_decode_val", "regressed", "baseline", "count")
    found = noiseless([red], ENGINE_NAMES)
    assert command("tiny", found, SideA(), "") == (
        "perfline compare tiny --engine eager --workload decode"
    )
    red = Verdict("fidelity", "regressed", "baseline", "nats")
    found = noiseless([red], ("eager", "module:Engine"))
    assert command("tiny", found, SideA(), "--ranks=2") == (
        "perfline compare tiny --engine eager --ranks=2"
    )


def test_ways_that_part_today_need_no_past():
    ways = Verdict("fidelity_ways", "regressed", "paired", "nats")
    other = Verdict("fingerprint", "ok", "baseline", "count")
    assert noiseless([ways, other], ENGINE_NAMES) is None
