"""Does each engine still take as many prompt tokens a second, in as much memory?

pytest -m perf --cases tiny
"""

from __future__ import annotations

import pytest

from perfline.engines.device import synchronized_timer

pytestmark = pytest.mark.perf


@pytest.mark.benchmark(group="throughput", timer=synchronized_timer)
def test_throughput(line, engine_name):
    timings = line.time(engine_name)
    line.check(line.judge_timings(timings))
