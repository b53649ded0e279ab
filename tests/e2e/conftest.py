"""The sessions that are started here measure, though this one may share its work with others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _a_process_of_its_own() -> Iterator[None]:
    """perfline refuses to measure in a worker of xdist, and what starts here would pass for one.

    One thread each: two processes that share two cores would wait for theirs by spinning, and
    inductor's kernels, which hold the number of threads, are the same for all.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
