"""A suite of its own in a temporary directory, run in this process with a scripted engine."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path

import hypothesis.strategies  # noqa: F401
import pytest
import scipy.special  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import perfline
import perfline.engines.hf  # and torch
import perfline.plugin.ranks  # and all that measures; tests patch it

# A module that is first imported in a run inside a test is dropped with it: every test would import
# it anew, and one of C (torch) that is dropped can end the process at the next garbage collection.
for plugin in metadata.entry_points(group="pytest11"):
    plugin.load()

REPOSITORY = Path(__file__).parents[2]
CONFTEST = """
import json
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import DEVICE, ENVIRONMENT, FakeClock, FakeEngine, FakeLoadedCase, FakeLogits, prompts
from perfline.engines.own_engine import OwnEngines


CLOCK = FakeClock()


def note(text):
    with Path("opened.log").open("a") as log:
        log.write(f"{text}\\n")


def opened(case, device, data_dir, weights):
    script = json.loads(Path("script.json").read_text())
    for name in script.pop("raise", []):
        from perfline import errors

        command = ["hf download x"] if name == "MissingData" else []
        raise getattr(errors, name)(f"scripted {name}", *command)
    engines = {}
    for name in ("eager", "inductor"):
        settings = {**script.get("both", {}), **script.get(name, {})}
        settings["wrong"] = frozenset(settings.get("wrong", ()))
        settings["nan"] = frozenset(settings.get("nan", ()))
        engines[name] = FakeEngine(name, CLOCK, **settings)
    own = OwnEngines(case)
    for name in [each for each in case.engine_names if each not in engines]:
        engines[name] = own.engine(name, None, device)
    made = FakeLoadedCase(engines, prompts(script.get("prompts", 40)))
    made.numbers = FakeLogits(**script.get("numbers", {}))
    made.decode = script.get("decode", {})
    made.no_decode = script.get("no_decode", "")
    absent = script.get("absent", {})
    for name in case.task_names[1:]:
        if name in absent:
            made.absent[name] = absent[name]
        else:
            made.more[name] = [replace(each, task=name) for each in made.prompts]
    note(f"open {case.id}")
    close = made.close
    made.close = lambda: (note(f"close {case.id}"), close())
    return made


@pytest.fixture(scope="session")
def perfline_opener():
    return opened


@pytest.fixture(scope="session")
def perfline_environment():
    return ENVIRONMENT


@pytest.fixture(scope="session")
def perfline_device():
    return DEVICE


@pytest.fixture(scope="session")
def perfline_clock():
    return CLOCK
"""
CASE = """
case: {id}
model: {{case_dir: x, weight_dir: y, precision: fp32, nominal_parameters: 1.0e+6}}
throughput: {{sample: 8, rounds: 5, min_round_s: 0.001}}
fidelity: {{prompts: 0}}
fingerprint: false
"""
GATES = "gates: {throughput_session_sd_fraction: 0.005}\n"


class Suite:
    """tests/perf and tests/accuracy with a scripted engine: write a script, run, look."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.root = pytester.path
        pytester.makeconftest(CONFTEST)
        pytester.makeini("[pytest]\nfilterwarnings = error\n")
        (self.root / "tests").mkdir()
        for name in ("perf/test_throughput.py", "accuracy/test_mmlu.py"):
            target = self.root / "tests" / Path(name).name
            target.write_text((REPOSITORY / "tests" / name).read_text())
        self.case("fake")
        self.script()

    def case(self, name: str, extra: str = GATES) -> None:
        """Write a case of that id; without more, two sessions differ by 0.5 % or so."""
        (self.root / "cases").mkdir(exist_ok=True)
        (self.root / "cases" / f"{name}.yaml").write_text(CASE.format(id=name) + extra)

    def default(self, line: str, name: str = "fake") -> Suite:
        """Leave a line of the case out, so that it asks what a case does by default."""
        path = self.root / "cases" / f"{name}.yaml"
        text = path.read_text()
        assert f"{line}\n" in text
        path.write_text(text.replace(f"{line}\n", ""))
        return self

    def baseline(self, name: str = "fake") -> dict[str, object]:
        """What is stored of a case."""
        (path,) = self.root.glob(f"baselines/*/{name}.json")
        return json.loads(path.read_text())

    def script(self, **script: object) -> None:
        """Say what the engines do from now on."""
        (self.root / "script.json").write_text(json.dumps(script))

    def run(
        self, *arguments: str, cases: str = "fake", no_reraise: bool = False
    ) -> pytest.RunResult:
        """Run the suite in this process; ``no_reraise`` keeps its Ctrl-C to itself."""
        given = [f"--cases={cases}", "--case-dir=cases", "-p", "no:cacheprovider", "-rs"]
        if no_reraise:
            return self.pytester.runpytest_subprocess(*given, *arguments)
        return self.pytester.runpytest_inprocess(*given, *arguments)

    def update(self, *arguments: str, case: str = "fake") -> int:
        """``perfline baselines update``."""
        from perfline.cli.main import main

        return main(["baselines", "update", case, "--case-dir=cases", "--reason=test", *arguments])

    def record(self) -> dict[str, object]:
        """The record as it stands."""
        return json.loads((self.root / "results" / "run.json").read_text())

    def words(self, case: str = "fake") -> dict[str, str]:
        """{metric.gate: word} of the record's verdicts."""
        verdicts = self.record()["cases"][case]["verdicts"]
        return {f"{v['metric']}.{v['gate']}": v["word"] for v in verdicts}


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    # For runs in a subprocess: this very perfline, and the scripted engine.
    paths = (Path(perfline.__file__).parents[1], REPOSITORY / "tests")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # it would refuse to measure there
    # Engine and clock are scripted: what else this machine does must not be seen.
    monkeypatch.setattr("perfline.measure.throughput.cpu_contention", lambda: None)
    monkeypatch.setattr("perfline.measure.decode.cpu_contention", lambda: None)
    return Suite(pytester)
