"""The sessions that are started here measure, though this one may share its work with others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_worker_of_xdist() -> Iterator[None]:
    """perfline refuses to measure in a worker, and a process started here would pass for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)
        yield
