"""Files that an earlier commit wrote (79e3f3f, before the rooms) are read as they were.

``tests/data/v1``: a session's record of ``tiny``, the baseline accepted from it, and a comparison.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from perfline.baselines import baseline
from perfline.cases.case import load_cases
from perfline.cli.main import main
from perfline.compare import record as comparison_record
from perfline.measure import record

V1 = Path(__file__).parents[1] / "data" / "v1"
STORED = V1 / "baselines/cpu-amd-epyc-2-cores-avx2/tiny.json"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(V1, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def test_a_record_and_its_baseline_are_read():
    (case,) = load_cases(["tiny"])
    found, stored = record.load(V1 / "run.json").cases["tiny"], baseline.load(STORED)
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert (values["acc_infer"], values["graphs"]) == (637 / 780, 1)
    assert stored.case_digest == case.digest("real")
    kept = {name: metric.value for name, metric in stored.sessions[0].metrics.items()}
    assert kept
    assert kept.items() <= values.items()


def test_what_is_written_again_is_the_same_byte_for_byte(tmp_path: Path):
    again = tmp_path / STORED.relative_to(V1)
    found = baseline.load(again)
    again.unlink()
    baseline.save(again, found)
    assert again.read_bytes() == STORED.read_bytes()
    comparison_record.save(tmp_path / "compare2.json", comparison_record.load(V1 / "compare.json"))
    assert (tmp_path / "compare2.json").read_bytes() == (V1 / "compare.json").read_bytes()


def test_a_record_written_again_has_numbers_for_counts_and_the_notices_of_today(tmp_path: Path):
    """A session writes a count as ``55``; a metric that was read is a number, ``55.0``."""
    counts = r'(?m)^( +"(?:value|measured|baseline)": \d+)(,?)$'
    first = re.sub(counts, r"\1.0\2", (V1 / "run.json").read_text())
    first = first.replace('\n "partial"', '\n "notices": [],\n "partial"')  # v1 had none yet
    for source, target in ((V1 / "run.json", "again.json"), (tmp_path / "again.json", "3.json")):
        record.save(tmp_path / target, record.load(source))
        assert (tmp_path / target).read_text() == first


def test_the_record_is_set_against_the_baseline(capsys: pytest.CaptureFixture[str]):
    assert main(["baselines", "diff", "tiny", "--run", "run.json"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"p_infer_core +tok/s +3394 +3394 +\+0.0 %", said)
    assert "eager answers: 0 of 780 flipped" in said


def test_the_baseline_is_shown(capsys: pytest.CaptureFixture[str]):
    assert main(["baselines", "show", "tiny", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["case"], shown["sessions"][0]["commit"]) == ("tiny", "79e3f3ffa89e")


def test_a_comparison_knows_the_answers_to_one_task():
    found = comparison_record.load(V1 / "compare.json").cases["tiny"]
    assert found.answers is not None
    assert (found.answers.questions, found.answers.candidate_correct) == (200, 159)
    assert found.more_answers == {}


def test_record_and_comparison_are_reported(capsys: pytest.CaptureFixture[str]):
    assert main(["report", "--format=markdown", "run.json", "compare.json"]) == 0
    said = capsys.readouterr().out
    assert "81.67" in said
    assert "compared cases: 1 unsure" in said
