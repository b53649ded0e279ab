from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfline.errors import PerflineError, RecordError
from perfline.gates.verdict import Flip, Verdict
from perfline.measure import record as records
from samples import answers, case_record, record, saved, verdict


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    flip = Flip("sky/3", "D", "D", "A", 0.25)
    judged = Verdict(
        metric="acc_infer",
        word="regressed",
        gate="baseline",
        unit="fraction",
        baseline=0.7,
        measured=0.6,
        measured_error=0.01,
        change_pp=-10.0,
        limit="-0.25 pp",
        reason="1 right -> wrong",
        flips=(flip, Flip("sky/4", "A", "B", "C", None)),
    )
    whole = record(
        case_record(
            verdicts=(judged, verdict("p_val_core", "missing", reason="no stored value")),
            notes={"compile_cache": "cold", "cpu_waited_fraction_val": 0.01, "seen": None},
            errors=("test_a: EngineError: torch.compile failed", "test_b: out of memory"),
            accuracy={"eager": answers(wrong=[1, 5])},
        ),
        case_record("llama3-8b", "dummy"),
        partial=True,
    )

    assert records.load(saved(tmp_path, whole)) == whole


def test_errors_keep_their_order_beyond_ten(tmp_path: Path) -> None:
    lines = tuple(f"error {number}" for number in range(12))

    path = saved(tmp_path, record(case_record(errors=lines)))

    assert sorted(records.load(path).cases["tiny"].errors) == sorted(lines)


def test_saving_leaves_nothing_but_the_record(tmp_path: Path) -> None:
    saved(tmp_path / "results", record())
    saved(tmp_path / "results", record(partial=True))

    assert [path.name for path in (tmp_path / "results").iterdir()] == ["run.json"]
    assert records.load(tmp_path / "results/run.json").partial is True


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")

    with pytest.raises(RecordError) as raised:
        saved(tmp_path / "results", record())

    assert str(raised.value) == f"{tmp_path}/results/run.json: cannot be written: File exists"


def _set(*keys: str, value: object) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


def _drop(*keys: str) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("partial"), "key 'partial' is missing (expected true or false)"),
        (_set("partial", value=1), "key 'partial' is 1 (expected true or false)"),
        (_set("created", value=""), "key 'created' is \"\" (expected text)"),
        (_drop("environment", "machine"), "key 'environment.machine' is missing (expected text)"),
        (
            _set("environment", "context", "torch", value=[2]),
            "key 'environment.context.torch' is [2] (expected text)",
        ),
        (_set("cases", "tiny", value=[]), "key 'cases.tiny' is [] (expected an object)"),
        (_drop("cases", "tiny", "digest"), "key 'cases.tiny.digest' is missing (expected text)"),
        (
            _set("cases", "tiny", "metrics", "mem", "value", value="1.5"),
            "key 'cases.tiny.metrics.mem.value' is \"1.5\" (expected a number)",
        ),
        (
            _set("cases", "tiny", "accuracy", "eager", "subjects", "sky", "letters", value="AB"),
            "key 'cases.tiny.accuracy.eager.subjects.letters' and the other columns differ",
        ),
        (
            _set("cases", "tiny", "verdicts", value=[{"metric": "m", "word": "ok"}]),
            "key 'cases.tiny.verdicts.0.gate' is missing (expected published, baseline or paired)",
        ),
        (
            _set(
                "cases",
                "tiny",
                "verdicts",
                value=[{"metric": "m", "word": "unsur", "gate": "baseline"}],
            ),
            "key 'cases.tiny.verdicts.0.word' is \"unsur\" (expected ok, improved, regressed, "
            "unsure, missing, incomparable or invalid); did you mean 'unsure'?",
        ),
    ],
)
def test_a_broken_record_names_its_key(
    tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    path = saved(tmp_path, record())
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))

    with pytest.raises(PerflineError) as raised:
        records.load(path)

    # Where in a subject the columns differ is stored_answers.py's to say.
    shown = str(raised.value).replace("subjects.sky.letters", "subjects.letters")
    assert shown.startswith(f"{path}: {message}")
    assert str(raised.value).endswith("; run pytest again")
    assert isinstance(raised.value, RecordError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 1, "cre', "is torn or not JSON at line 1, column 15"),
        ("[]", "holds [] (expected a JSON object)"),
        ('{"schema": 1, "created": NaN}', "holds NaN, which is no number"),
        ('{"schema": 7}', "has schema 7, and this perfline reads schema 1"),
    ],
)
def test_a_file_that_is_no_record_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)

    with pytest.raises(RecordError) as raised:
        records.load(path)

    assert str(raised.value).startswith(f"{path}: {message}")


def test_no_record_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError) as raised:
        records.load(tmp_path / "run.json")

    assert str(raised.value) == f"{tmp_path}/run.json: is not there; run pytest again"
