"""Does each engine still generate as many tokens a second, as soon, and the right ones?

pytest -m decode --cases tiny
"""

from __future__ import annotations

import pytest

from perfline.engines.device import synchronized_timer

pytestmark = [pytest.mark.perf, pytest.mark.decode]


@pytest.mark.benchmark(group="decode", timer=synchronized_timer)
def test_decode(case, engine_name):
    decoded = case.decode(engine_name)
    case.check(case.judge_decode(decoded))
