"""The page and the Markdown say what pytest's exit status says: on every verdict, strict or not."""

from __future__ import annotations

import pytest

from perfline.baselines.suggestions import outcome
from perfline.gates.verdict import WORST_FIRST
from perfline.report import page
from perfline.report.markdown import markdown
from perfline.report.page_inputs import Places, gather

CHECK = """
from perfline.gates.verdict import Verdict

def test_it(case):
    case.check([Verdict("m", word, "baseline", "count") for word in ("ok", "{word}")])
"""


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("word", WORST_FIRST)
def test_the_exit_status_of_every_verdict(suite, word, strict):
    (suite.root / "tests" / "test_word.py").write_text(CHECK.format(word=word))
    flags = ["--strict-verdicts"] if strict else []
    status = int(suite.run("tests/test_word.py", *flags).ret)
    found = gather([suite.root / "results" / "run.json"], Places(suite.root / "baselines"))
    assert found.record is not None
    assert outcome(found.record, strict).failed == bool(status)
    for text in (page.html(found, strict=strict), markdown(found, strict=strict)):
        assert f"pytest exits {status}" in text
        assert f"perfline: {word}" in text


def test_an_error_is_exit_status_1_too(suite):
    suite.script(**{"raise": ["EngineError"]})
    assert int(suite.run("-m", "perf").ret) == 1
    found = gather([suite.root / "results" / "run.json"], Places(suite.root / "baselines"))
    assert "pytest exits 1" in page.html(found)
