"""Does each engine still take as many prompt tokens a second, in as much memory, and run the same?

pytest -m perf --cases tiny
"""

from __future__ import annotations

import pytest

from perfline.engines.device import synchronized_timer

pytestmark = pytest.mark.perf


@pytest.mark.benchmark(group="throughput", timer=synchronized_timer)
def test_throughput(case, engine_name):
    timings = case.time(engine_name)
    case.check(case.judge_timings(timings))


@pytest.mark.quick
@pytest.mark.fingerprint
def test_fingerprint(case, engine_name):
    found = case.fingerprint(engine_name)
    case.check(case.judge_fingerprint(engine_name, found))
