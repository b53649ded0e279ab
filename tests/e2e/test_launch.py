"""Two real launches of the embedded case, one in an environment that has no perfline."""

from __future__ import annotations

import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest

from perfline.compare.launch import ProcessLauncher
from perfline.compare.model import Workload
from perfline.compare.sides import describe, make_side, places

# What a worker must not need: a comparison's two environments are there for the model.
BARE = """
import sys
for name in ("pytest", "pandas", "scipy", "tabulate", "jinja2", "pynvml", "sklearn"):
    sys.modules[name] = None
"""


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    """A virtual environment with the packages of this one, but without its editable installs."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    here = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "here.pth").write_text("\n".join(here))
    return tmp_path / "venv"


def test_two_environments_measure_the_same(tmp_path: Path, other_python: Path):
    (tmp_path / "bare.py").write_text(BARE)
    workload = Workload("tiny", (), None, "real", "eager", questions=8)
    settings = ["throughput.sample=4"]
    a = make_side("baseline", settings=settings, env=[f"PYTHONPATH={tmp_path}"], imports=["bare"])
    b = make_side("candidate", str(other_python), settings=settings)
    with places((a, b), tmp_path) as found, ProcessLauncher(workload, found) as launcher:
        pending = [launcher.start(side) for side in (a, b)]
        workers = [each.wait_ready() for each in pending]
        ready = [worker.ready for worker in workers]
        rounds = [worker.round(2) for _ in range(2) for worker in workers]
        answers = [worker.answers() for worker in workers]
        peaks = [worker.peak_memory_gib() for worker in workers]

    assert b.python != Path(sys.executable)
    assert describe(a, b, (ready[0].context, ready[1].context)).startswith("interpreter ")
    for name in ("machine", "device", "facts", "digest", "prompts_digest", "tokens", "dtype"):
        assert getattr(ready[0], name) == getattr(ready[1], name), name
    assert ready[0].pid != ready[1].pid
    for done in rounds:
        assert done.tokens == 2 * ready[0].tokens
        assert 0 < done.core_s <= done.whole_s
        assert done.faults == ()
    assert len(answers[0].ids) == 8
    assert answers[0].ids == answers[1].ids
    assert np.array_equal(answers[0].letter_logits, answers[1].letter_logits)
    assert all(peak is None or 0.05 < peak < 4 for peak in peaks)
