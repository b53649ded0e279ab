"""What is run in fp32, and what comes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fakes
from perfline.errors import EngineError, NoFidelity, NoSharedPrefixes
from perfline.measure import fidelity

PROMPTS = fakes.prompts(16)


def test_positions_are_spread_and_hold_the_last_one():
    (prompt, short) = fakes.prompts(1, 100)[0], fakes.prompts(1, 5)[0]
    positions = fidelity.positions_of(prompt)
    assert len(positions) == fidelity.POSITIONS
    assert positions[-1] == 99
    assert max(np.diff(positions)) <= 7
    assert fidelity.positions_of(short) == [0, 1, 2, 3, 4]


def test_every_way_of_the_case_s_engines_is_run():
    both = fidelity.measure(fakes.FakeLogits(), ("eager", "inductor"), PROMPTS)
    assert set(both.ways) == {"eager shared", "inductor plain", "inductor shared"}
    assert set(both.variations) == {"attention", "batch", "rounding"}
    eager = fidelity.measure(fakes.FakeLogits(), ("eager",), PROMPTS, shared=False)
    assert eager.ways == {}
    assert [metric.name for metric in eager.metrics()] == ["fidelity_time"]


def test_what_a_model_does_not_have_is_left_out_and_said():
    class Plain(fakes.FakeLogits):
        def shared(self, name, prompts):
            raise NoSharedPrefixes("it keeps a state")

        def plain(self, name, prompt, positions, variation=None):
            if variation == "attention":
                raise NoFidelity("no other attention")
            return super().plain(name, prompt, positions, variation)

    found = fidelity.measure(Plain(), ("inductor",), PROMPTS)
    assert set(found.ways) == {"inductor plain"}
    assert found.without["eager shared"] == "it keeps a state"
    assert set(found.variations) == {"batch", "rounding"}


def test_what_is_not_finite_is_no_measurement():
    class Broken(fakes.FakeLogits):
        def shared(self, name, prompts):
            rows = super().shared(name, prompts)
            rows[3, 0] = np.nan
            return rows

    with pytest.raises(EngineError, match=r"question odd/1 in fp32 are not finite"):
        fidelity.measure(Broken(), ("eager",), PROMPTS)


def test_a_case_in_fp32_has_no_drift():
    found = fidelity.measure(fakes.FakeLogits(), ("eager", "inductor"), PROMPTS)
    assert (found.rounded, found.drift) == ((), None)


def test_drift_is_of_each_engine_and_each_prompt():
    off = {"rounded": 0.02, "eager": 0.02, "attention": 0.02, "batch": 0.02, "inductor": 0.06}
    numbers = fakes.FakeLogits(dtype=off)
    found = fidelity.measure(numbers, ("inductor",), PROMPTS)
    with_drift = fidelity.with_drift(found, replace(numbers, own=True), ("inductor",), PROMPTS)
    drift = with_drift.drift
    assert set(drift.engines) == {"eager", "inductor"}
    assert set(drift.variations) == {"attention", "batch"}
    assert len(drift.rounded) == len(drift.engines["eager"]) == len(PROMPTS)
    sizes = {m.name: m.value for m in with_drift.metrics() if m.name.startswith("drift")}
    assert sizes["drift_val"] == pytest.approx(0.02, rel=0.1)  # rms of what was added
    assert sizes["drift_infer"] == pytest.approx(0.06, rel=0.1)
    assert fidelity.rms(drift.rounded) == pytest.approx(0.02, rel=0.1)


def test_drift_that_is_not_finite_names_the_dtype():
    numbers = fakes.FakeLogits(dtype=dict.fromkeys(("rounded", "attention", "batch"), 0.01))
    numbers.dtype["eager"] = np.inf
    found = fidelity.measure(numbers, ("eager",), PROMPTS)
    with pytest.raises(EngineError, match="in its own dtype are not finite"):
        fidelity.with_drift(found, replace(numbers, own=True), ("eager",), PROMPTS)
