"""What is run in fp32, and what comes of it."""

from __future__ import annotations

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
