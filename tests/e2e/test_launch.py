"""Two real launches: in an environment without perfline, and in one with what it needs alone."""

from __future__ import annotations

import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest

from perfline.compare.launch import ProcessLauncher
from perfline.compare.model import Turn, Workload
from perfline.compare.sides import describe, make_side, places

# A worker's environment is there for the model, and may be an old one: as sitecustomize, this hides
# all packages but four, and what those need themselves.
BARE = """
import re, sys
from importlib import metadata
from pathlib import Path

needed, waiting = set(), ["torch", "transformers", "numpy", "pyyaml"]
while waiting:
    name = re.sub("[-_.]+", "-", waiting.pop()).lower()
    if name not in needed:
        needed.add(name)
        try:
            asked = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform or Python
            continue
        asked = [text for text in asked if "extra ==" not in text]
        waiting += [re.match("[-A-Za-z0-9_.]+", text)[0] for text in asked]
hidden = {
    top
    for top, names in metadata.packages_distributions().items()
    if not {re.sub("[-_.]+", "-", name).lower() for name in names} & needed
} - {"perfline"}
Path(__file__).with_name("hidden").write_text(" ".join(hidden))

class Finder:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in hidden:
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Finder, sys.meta_path)
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
    (tmp_path / "sitecustomize.py").write_text(BARE)
    workload = Workload("tiny", (), None, "real", "eager", questions=8)
    settings = ["throughput.sample=4"]
    a = make_side("baseline", settings=settings, env=[f"PYTHONPATH={tmp_path}"])
    b = make_side("candidate", str(other_python), settings=settings)
    with places((a, b), tmp_path) as found, ProcessLauncher(workload, found) as launcher:
        pending = [launcher.start(side) for side in (a, b)]
        workers = [each.wait_ready() for each in pending]
        ready = [worker.ready for worker in workers]
        rounds = [worker.round(Turn(2)) for _ in range(2) for worker in workers]
        answers = [worker.answers("mmlu") for worker in workers]
        peaks = [worker.peak_memory_gib() for worker in workers]

    hidden = set((tmp_path / "hidden").read_text().split())
    assert {"pytest", "pandas", "scipy", "tabulate", "hypothesis", "pluggy"} <= hidden
    assert not {"torch", "transformers", "numpy", "yaml", "tokenizers"} & hidden
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
