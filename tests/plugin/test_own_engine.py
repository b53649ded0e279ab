"""An engine of the user's own, named ``module:Class``, is measured and judged as ours are."""

from __future__ import annotations

import json
import re

import pytest

ENGINE = """
import json
from pathlib import Path

from conftest import CLOCK


class MyEngine:
    def __init__(self, case, weights):
        self.script = json.loads(Path("script.json").read_text()).get("mine", {})

    def forward(self, batch, head):
        CLOCK.now += self.script.get("token_s", 1e-4) * len(batch.ids)
        return batch

    def answer(self, output):
        wrong = output.id in self.script.get("wrong", [])
        return " " + chr(ord(output.label) + 1) if wrong else " " + output.label


class WithAll(MyEngine):
    def begin(self, prompts, head):
        self.head = head

    def prepare(self, prompt):
        return prompt

    def synchronize(self):
        pass

    def letter_logits(self, output):
        return [float(output.label == letter) for letter in "ABCD"]

    def compiled_graphs(self):
        return 0

    def flops(self, tokens, head):
        return 1e6 * tokens

    def reset_peak_memory(self):
        self.peak = 0.0

    def peak_memory_gib(self):
        return self.peak + 2.5
"""
BOTH = "--engines=eager,mine:MyEngine"


@pytest.fixture
def own(suite):
    (suite.root / "mine.py").write_text(ENGINE)
    return suite


def names(suite) -> set[str]:
    return set(suite.record()["cases"]["fake"]["metrics"])


def test_it_is_measured_judged_and_accepted_beside_ours(own):
    own.script(prompts=400)
    result = own.run(BOTH)
    result.assert_outcomes(skipped=6)
    result.stdout.fnmatch_lines(["*test_throughput[[]fake-myengine[]]*"])
    assert {"p_val_core", "p_myengine_core", "p_myengine_whole", "acc_myengine"} <= names(own)
    assert {"p_infer_core", "mem_myengine", "acc_myengine_letters"}.isdisjoint(names(own))
    assert own.words()["flips_myengine.paired"] == "ok"
    assert own.update() == 0
    own.run(BOTH, "--strict-verdicts", "-k", "stored or throughput").assert_outcomes(
        passed=4, deselected=2
    )
    assert {"p_myengine_core.baseline", "acc_myengine.baseline"} <= set(own.words())
    own.script(prompts=400, mine={"token_s": 1.3e-4})
    result = own.run(BOTH, "-m", "perf")
    result.assert_outcomes(passed=1, failed=1, deselected=4)
    result.stdout.fnmatch_lines(["*p_myengine_core regressed -23.1 %*"])
    own.script(prompts=400, mine={"wrong": [f"even/{i}" for i in range(40)]})
    result = own.run(BOTH, "-k", "stored")
    result.assert_outcomes(passed=1, failed=1, deselected=4)
    result.stdout.fnmatch_lines(["*acc_myengine regressed*"])


def test_what_settles_it_runs_the_same_engine(own):
    own.run("--engines=mine:MyEngine", "-m", "perf")
    assert own.update() == 0
    conftest = own.root / "conftest.py"
    now = "type(ENVIRONMENT)('fake-cpu', 'Fake CPU', 'cpu', {'commit': 'def5678', 'torch': '9.9'})"
    conftest.write_text(conftest.read_text().replace("return ENVIRONMENT", f"return {now}"))
    own.script(mine={"token_s": 1.3e-4})
    result = own.run("--engines=mine:MyEngine", "-m", "perf")
    command = "perfline compare fake --baseline-ref abc1234 --engine mine:MyEngine --case-dir=cases"
    result.stdout.fnmatch_lines([f"*hint: to settle it: {command}"])


def test_flips_against_eager_are_regressed_where_eager_runs_beside_it(own):
    own.script(mine={"wrong": ["odd/1", "odd/3", "odd/5", "odd/7", "even/0", "even/2", "even/4"]})
    own.run(BOTH, "-m", "perf").assert_outcomes(failed=1, skipped=1, deselected=4)
    assert own.words()["flips_myengine.paired"] == "regressed"
    own.run("--engines=mine:MyEngine", "-m", "perf").assert_outcomes(skipped=1, deselected=2)
    assert "flips_myengine.paired" not in own.words()


def test_what_it_can_do_is_measured(own):
    result = own.run("--engines=mine:WithAll")
    assert {"mem_withall", "acc_withall_letters", "load_time"} <= names(own)
    result.stdout.fnmatch_lines(["*mem_withall *GiB *2.50"])
    assert own.update() == 0


def test_the_case_names_it_and_the_option_overrides_the_case(own):
    own.case("fake", "engines: [mine:MyEngine]\n")
    own.case("other", "engines: [inductor]\n")
    result = own.run("-m", "perf", "-v", cases="fake,other")
    result.assert_outcomes(skipped=2, deselected=4)
    result.stdout.fnmatch_lines(["*[[]fake-myengine[]] SKIPPED*", "*[[]other-inductor[]] SKIPPED*"])
    own.run("-m", "perf", "--engines=eager", cases="fake,other").assert_outcomes(
        skipped=2, deselected=4
    )


def test_baselines_of_cases_without_the_key_stay_as_they_are(own):
    own.run()
    assert own.update() == 0
    stored = (own.root / "baselines" / "fake-cpu" / "fake.json").read_text()
    digest = json.loads(stored)["case_digest"]
    own.case("fake", "engines: [mine:MyEngine]\n")
    own.run("-m", "perf")
    assert own.record()["cases"]["fake"]["digest"] == digest


@pytest.mark.parametrize(
    ("named", "line"),
    [
        ("mein:MyEngine", "*--engines names 'mein:MyEngine': there is no module 'mein'; install*"),
        ("mine:MyEngin", "*mine has no class 'MyEngin'; did you mean 'mine:MyEngine'[?]"),
        ("bad:Silent", "*'bad:Silent': the class has no method 'answer'; docs/extending.md*"),
        ("bad:Narrow", "*the class is made by Narrow(case, weights), and takes other arguments*"),
        ("bad:Raises", "*bad:Raises(case, weights) failed: OSError: no server (*bad.py:15)"),
        ("broken:X", "*importing broken failed: ZeroDivisionError: division by zero (*"),
        ("needs:X", "*needs needs not_installed, which is not there"),
        ("leaves:X", "*importing leaves failed: SystemExit: 3 (*leaves.py:2)"),
        ("typo:X", "*importing typo failed: SyntaxError: * (*typo.py:2)"),
        ("bad:Heir", "*'bad:Heir': the class has no method 'answer'; docs/extending.md*"),
        ("bad:Exits", "*bad:Exits(case, weights) failed: SystemExit: no model (*bad.py:25)"),
        ("bad:Field", "*bad:Field: its attribute 'flops' is 3*; expected a method*"),
    ],
    ids=[
        *("no-module", "no-class", "no-method", "arguments", "raises", "broken", "needs", "exits"),
        *("syntax", "heir", "made-exits", "attribute"),
    ],
)
def test_a_wrong_name_is_one_line_that_says_where_it_stands(own, named: str, line: str):
    (own.root / "bad.py").write_text(
        "class Silent:\n"
        "    def __init__(self, case, weights): pass\n"
        "    def forward(self, batch, head): pass\n"
        "\n"
        "class Narrow:\n"
        "    def __init__(self, case): pass\n"
        "    def forward(self, batch, head): pass\n"
        "    def answer(self, output): pass\n"
        "\n"
        "class Raises:\n"
        "    forward = answer = print\n"
        "\n"
        "    def __init__(self, case, weights):\n"
        "        if case:\n"
        "            raise OSError('no server')\n"
        "\n"
        "from perfline import Engine\n"
        "class Heir(Engine):\n"
        "    def __init__(self, case, weights): pass\n"
        "    def forward(self, batch, head): pass\n"
        "\n"
        "class Exits:\n"
        "    forward = answer = print\n"
        "    def __init__(self, case, weights):\n"
        "        raise SystemExit('no model')\n"
        "\n"
        "class Field:\n"
        "    forward = answer = print\n"
        "    def __init__(self, case, weights):\n"
        "        self.flops = 3e9\n"
    )
    (own.root / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (own.root / "typo.py").write_text("x = 1\ndef f(:\n")
    (own.root / "broken.py").write_text("1 / 0\n")
    (own.root / "needs.py").write_text("import not_installed\n")
    result = own.run(f"--engines={named}", "-m", "perf")
    result.assert_outcomes(errors=1, deselected=2)
    result.stdout.fnmatch_lines([line])
    assert "Traceback" not in result.stdout.str()


@pytest.mark.parametrize(
    ("named", "line"),
    [
        ("eagre", "*--engines names 'eagre' (expected eager, inductor or module:Class); did you*"),
        ("a:B:C", "*--engines names 'a:B:C' (expected eager*"),
        ("", "*--engines names '' (expected eager*"),
        ("a:Val", "*--engines names 'a:Val', and metrics cannot be named after that class*"),
        ("a:My,b:My", "*names 'b:My' beside 'a:My': both would have the metrics of 'my'*"),
    ],
    ids=["mistyped", "two-colons", "empty", "taken", "twice"],
)
def test_a_name_that_is_none_is_told_before_anything_is_collected(own, named, line):
    result = own.run(f"--engines={named}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([line])


def test_an_answer_that_is_no_text_is_one_line(own):
    (own.root / "dumb.py").write_text(
        "from mine import MyEngine\n\nclass Dumb(MyEngine):\n    def answer(self, output):\n"
        "        return None\n"
    )
    result = own.run("--engines=dumb:Dumb", "-m", "perf")
    result.assert_outcomes(failed=1, deselected=2)
    result.stdout.fnmatch_lines(["dumb:Dumb: answer() gave None; expected text such as ' B'"])


@pytest.mark.parametrize(
    ("method", "code", "line"),
    [
        ("forward", "raise OSError('gone')", "bad:Bad: forward() failed: OSError: gone (*.py:5)"),
        ("forward", "raise SystemExit(0)", "bad:Bad: forward() failed: SystemExit: 0 (*.py:5)"),
        ("answer", "raise StopIteration", "bad:Bad: answer() failed: StopIteration: no mess*"),
        ("compiled_graphs", "return -1", "bad:Bad: compiled_graphs() gave -1; expected *"),
        ("letter_logits", "return [float('nan')] * 4", "bad: logits of 1 of 1 prompts are not *"),
        ("letter_logits", "return [1e39] * 4", "bad: logits of 1 of 1 prompts are not finite*"),
        ("peak_memory_gib", "return '2 GiB'", "bad:Bad: peak_memory_gib() gave '2 GiB'; expect*"),
    ],
    ids=["raises", "exits", "stops", "graphs", "nan", "overflow", "memory"],
)
def test_what_its_methods_do_wrongly_is_one_line(own, method, code, line):
    (own.root / "bad.py").write_text(
        "from mine import MyEngine\n\n"
        f"class Bad(MyEngine):\n    def {method}(self, *given):\n        {code}\n"
    )
    result = own.run("--engines=bad:Bad", "-m", "perf")
    result.assert_outcomes(failed=1, deselected=2)
    result.stdout.fnmatch_lines([line])
    assert "Traceback" not in result.stdout.str()
    assert "own_engine.py" not in result.stdout.str()
    assert own.words() == {}
    assert own.update() == 2


def test_an_engine_that_cannot_be_closed_is_a_notice_and_the_next_case_runs(own):
    (own.root / "bad.py").write_text(
        "from mine import MyEngine\n\nclass Bad(MyEngine):\n    def close(self):\n"
        "        raise OSError('gone')\n"
    )
    conftest = own.root / "conftest.py"
    closes = "made.close = lambda: (note(f'close {case.id}'), close(), own.close())"
    text, count = re.subn(r"made\.close = lambda: .*", closes, conftest.read_text())
    assert count == 1
    conftest.write_text(text)
    own.case("other", "engines: [inductor]\n")
    own.case("fake", "engines: [bad:Bad]\n")
    result = own.run("-m", "perf", cases="fake,other")
    result.assert_outcomes(skipped=2, deselected=4)
    result.stdout.fnmatch_lines(["notice: bad:Bad: close() failed: OSError: gone*"])
    (notice,) = (each["text"] for each in own.record()["notices"] if "close" in each["text"])
    assert notice.endswith("bad.py:5)")


def test_letters_are_not_scored_without_their_logits(own):
    own.case("fake", "mmlu: {scoring: letters}\nengines: [mine:MyEngine]\n")
    result = own.run("-m", "accuracy")
    result.assert_outcomes(errors=2, deselected=1)
    result.stdout.fnmatch_lines(["*cases/fake.yaml: key 'engines' names 'mine:MyEngine', and*"])
