from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_workers import FakeLauncher, Script, answers, last, noisy, pair, plan, sides
from perfline import jsonfile
from perfline.compare import record
from perfline.compare.model import Round
from perfline.compare.record import (
    AnswersRecord,
    CaseComparison,
    Comparison,
    LaunchRecord,
    PairRecord,
    shown_env,
)
from perfline.errors import RecordError


def compared(launcher: FakeLauncher | None = None) -> CaseComparison:
    return last(launcher or pair(1.0, 1.25, sd=0.01), plan(rounds=3, max_pairs=10))


def whole(*cases: CaseComparison, **changes: Any) -> Comparison:
    found = {case.case: case for case in cases or (compared(),)}
    made = Comparison("2026-11-22T10:00:00Z", False, "perfline compare tiny", found)
    return dataclasses.replace(made, **changes)


def launch(core_s: list[float], faults: dict[int, str] | None = None) -> LaunchRecord:
    rounds = tuple(
        Round(1.7e9 + i, 1000, s, 2 * s, faults=(faults[i],) if faults and i in faults else ())
        for i, s in enumerate(core_s)
    )
    return LaunchRecord(1.0, 1.0, 1.0, 1.0, 0.1, 1, 0, 0, None, rounds, (), (1,))


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    launcher = FakeLauncher(
        Script(token_s=noisy(), joules=3.5, memory_gib=None),
        Script(
            token_s=noisy(seed=2),
            answers=answers(wrong={3: "A"}),
            faults=lambda launch, turn: ("throttled",) * (launch == 2),
        ),
    )
    found = dataclasses.replace(compared(launcher), notes=("whole launches in turn",))
    comparison = whole(found, dataclasses.replace(compared(), case="other"), partial=True)

    record.save(tmp_path / "compare.json", comparison)

    assert record.load(tmp_path / "compare.json") == comparison
    assert comparison.cases["tiny"].pairs[2].void != ""


def test_a_comparison_that_has_not_begun_survives_its_file(tmp_path: Path) -> None:
    from perfline.compare import run as compare

    comparison = whole(compare.begin(plan()), partial=True)

    record.save(tmp_path / "compare.json", comparison)

    assert record.load(tmp_path / "compare.json") == comparison


def test_ranks_are_kept_and_one_process_is_written_as_ever(tmp_path: Path) -> None:
    path, found = tmp_path / "compare.json", whole().cases["tiny"]
    for ranks, written in ((1, False), (4, True)):
        comparison = whole(dataclasses.replace(found, ranks=ranks))
        record.save(path, comparison)
        assert record.load(path) == comparison
        assert ('"ranks"' in path.read_text()) == written


def test_answers_to_several_tasks_are_kept_and_to_one_are_written_as_ever(tmp_path: Path) -> None:
    path, found = tmp_path / "compare.json", whole().cases["tiny"]
    more = {"ceval": AnswersRecord(100, 90, 60, 0.5, 0.1, 1e-4)}
    for told in ({}, more):
        comparison = whole(dataclasses.replace(found, more_answers=told))
        record.save(path, comparison)
        assert record.load(path) == comparison
        assert ('"more_answers"' in path.read_text()) == bool(told)


def test_the_file_repeats_the_log_ratio_for_people(tmp_path: Path) -> None:
    comparison = whole()
    record.save(tmp_path / "compare.json", comparison)

    (found,) = json.loads((tmp_path / "compare.json").read_text())["cases"].values()

    shown = [entry["log_ratio"] for entry in found["pairs"]]
    assert shown == comparison.cases["tiny"].log_ratios()


def test_saving_leaves_nothing_but_the_record(tmp_path: Path) -> None:
    record.save(tmp_path / "results/compare.json", whole())
    record.save(tmp_path / "results/compare.json", whole(partial=True))

    assert [path.name for path in (tmp_path / "results").iterdir()] == ["compare.json"]


def test_a_round_of_turns_is_their_sum_and_what_one_does_not_tell_is_not_told() -> None:
    health = {"sm_clock_mhz": 1410, "temperature_c": 50, "power_w": 300.0}
    first = Round(1.0, 10, 1.0, 1.0, waited_fraction=0.0, joules=5.0, health=health)
    health = {"sm_clock_mhz": 1300, "temperature_c": 60, "power_w": 340.0}
    second = Round(9.0, 30, 2.0, 3.0, 0.5, joules=7.0, faults=("hot",), health=health)
    expected = {"sm_clock_mhz": 1300, "temperature_c": 60, "power_w": 330.0}
    assert Round.of_turns([first, second]) == Round(
        1.0, 40, 3.0, 4.0, 0.375, joules=12.0, faults=("hot",), health=expected
    )
    assert Round.of_turns([second]) is second
    silent = dataclasses.replace(second, joules=None, waited_fraction=None, health={})
    told = Round.of_turns([first, silent])
    assert (told.joules, told.waited_fraction, told.health) == (None, None, {})
    assert told.faults == ("hot",)


def test_interleaved_pairs_take_the_median_of_ratios_whole_launches_the_ratio_of_medians() -> None:
    a, b = launch([1.0, 2.0, 3.0]), launch([2.0, 2.0, 9.0])
    in_turn = PairRecord("baseline", True, 9.0, 8.0, a, b)

    assert in_turn.log_ratio() == pytest.approx(math.log(2))  # of log 2, log 1, log 3
    assert in_turn.log_ratio("whole_s") == pytest.approx(math.log(2))
    assert dataclasses.replace(in_turn, interleaved=False).log_ratio() == pytest.approx(0.0)
    assert dataclasses.replace(in_turn, void="throttled").log_ratio() is None


def test_a_fault_on_either_side_throws_the_pair_of_rounds_out() -> None:
    a, b = launch([1.0, 1.0, 1.0], {0: "hot"}), launch([2.0, 3.0, 4.0], {2: "foreign"})
    found = PairRecord("baseline", True, 9.0, 8.0, a, b)

    assert [(x.core_s, y.core_s) for x, y in found.kept] == [(1.0, 3.0)]
    assert found.faults == ("hot", "foreign")


@given(st.lists(st.tuples(*[st.floats(0.01, 100)] * 2), min_size=1, max_size=9))
def test_swapping_the_sides_mirrors_the_number(seconds: list[tuple[float, float]]) -> None:
    a, b = (launch([pair[column] for pair in seconds]) for column in (0, 1))
    found = PairRecord("baseline", True, 1.0, 1.0, a, b)
    mirrored = PairRecord("candidate", True, 1.0, 1.0, b, a)

    assert mirrored.log_ratio() == pytest.approx(-(found.log_ratio() or 0), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("HF_TOKEN", False),
        ("AWS_SECRET_ACCESS", False),
        ("DB_PASSWORD", False),
        ("OPENAI_API_KEY", False),
        ("OMP_NUM_THREADS", True),
        ("TORCHINDUCTOR_MAX_AUTOTUNE", True),
        ("MONKEY", True),
    ],
)
def test_values_that_look_secret_stay_out_of_files(name: str, shown: bool) -> None:
    assert shown_env({name: "v"}) == {name: "v" if shown else "(not recorded)"}


def _set(*keys: str | int, value: object) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


def _drop(*keys: str | int) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


ROUND = ("cases", "tiny", "pairs", 0, "baseline", "rounds", 0)


def changed(folder: Path, change: Callable[[Any], None]) -> tuple[Path, Any]:
    """The file of a comparison, and what it holds after ``change``, yet to be written."""
    path = folder / "compare.json"
    record.save(path, whole())
    data = json.loads(path.read_text())
    change(data)
    return path, data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("command"), "key 'command' is missing (expected text)"),
        (_set("cases", "tiny", value=[]), "key 'cases.tiny' is [] (expected an object)"),
        (
            _set("cases", "tiny", "looks", value=[10, 0]),
            "key 'cases.tiny.looks.1' is 0 (expected",
        ),
        pytest.param(
            _set("cases", "tiny", "looks", value=[]),
            "key 'cases.tiny.looks' is empty (expected at least one)",
            id="no looks",
        ),
        (_set("cases", "tiny", "rounds", value=2.5), "key 'cases.tiny.rounds' is 2.5 (expected"),
        (_set("cases", "tiny", "alpha", value=0), "key 'cases.tiny.alpha' is 0 (expected"),
        (
            _set("cases", "tiny", "decision", "word", value="fine"),
            "key 'cases.tiny.decision.word' is \"fine\" (expected ok, improved, regressed, unsure ",
        ),
        (
            _set("cases", "tiny", "pairs", 0, "first", value="bas"),
            "key 'cases.tiny.pairs.0.first' is \"bas\" (expected baseline or candidate); did",
        ),
        (_set(*ROUND, "core_s", value=0), "key 'cases.tiny.pairs.0.baseline.rounds.0.core_s' is 0"),
        (
            _set(*ROUND, "tokens", value=0),
            "key 'cases.tiny.pairs.0.baseline.rounds.0.tokens' is 0",
        ),
        (
            _set(*ROUND, "core_s", value="1"),
            "key 'cases.tiny.pairs.0.baseline.rounds.0.core_s' is \"1\" (expected a number)",
        ),
        (_drop(*ROUND), "key 'cases.tiny.pairs.0.candidate.rounds' and baseline.rounds differ"),
        (
            _set("cases", "tiny", "sides", "candidate", "env", value={"A": 1}),
            "key 'cases.tiny.sides.candidate.env.A' is 1 (expected text)",
        ),
        (_drop("cases", "tiny", "sides", "baseline"), "key 'cases.tiny.sides.baseline' is missing"),
    ],
)
def test_a_broken_record_names_its_key(
    tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    path, data = changed(tmp_path, change)
    path.write_text(json.dumps(data))

    with pytest.raises(RecordError) as raised:
        record.load(path)

    assert str(raised.value).startswith(f"{path}: {message}")
    assert str(raised.value).endswith("; run perfline compare again")


def test_a_pair_that_counts_without_a_round_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    record.save(path, whole())
    data = json.loads(path.read_text())
    for measured in data["cases"]["tiny"]["pairs"][0]["baseline"]["rounds"]:
        measured["faults"] = ["throttled"]
    path.write_text(json.dumps(data))

    with pytest.raises(RecordError, match=r"pairs\.0\.void' is empty, yet no round pair"):
        record.load(path)


def test_an_edited_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    record.save(path, whole())
    path.write_text(path.read_text().replace('"title": "tiny', '"title": "other', 1))

    with pytest.raises(RecordError, match="was edited by hand"):
        record.load(path)


def test_a_session_s_record_is_no_comparison(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    jsonfile.write(path, {"schema": 1, "created": "x"}, RecordError)

    with pytest.raises(RecordError, match="is no record of perfline compare"):
        record.load(path)


def test_sides_that_are_asked_for_stand_in_the_record() -> None:
    found = compared()

    assert found.sides["baseline"].python == str(sides()["baseline"].python)
    assert found.sides["candidate"].machine == "fake-gpu"
    assert found.sides["candidate"].facts["weights"] == "sha256:w"


def _in_all_rounds(side: str, **values: float) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for found in data["cases"]["tiny"]["pairs"]:
            for measured in found[side]["rounds"]:
                measured |= values

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("cases", "tiny", "verdicts", value=[]), "tiny.verdicts' is empty"),
        (_set("cases", "tiny", "decision", "estimate", value=1e6), "decision.estimate' is 1e+06"),
        (_set("cases", "tiny", "decision", "low", value=-51), "decision.low' is -51"),
        (_set("cases", "tiny", "decision", "high", value=1e300), "decision.high' is 1e+300"),
        (_set("cases", "tiny", "alpha", value=1), "tiny.alpha' is 1"),
        (_set("cases", "tiny", "margin_fraction", value=1e-300), "margin_fraction' is 1e-300"),
        (_set("cases", "tiny", "verdicts", 0, "change_fraction", value=1e308), "is 1e+308"),
        (_in_all_rounds("candidate", core_s=1e300), "rounds.0.core_s' is 1e+300"),
        (_in_all_rounds("baseline", core_s=1e-300), "rounds.0.core_s' is 1e-300"),
        (_in_all_rounds("baseline", core_s=5e-324, tokens=10**15), "core_s' is 4.94066e-324"),
        (_in_all_rounds("baseline", whole_s=5e-324), "whole_s' is 4.94066e-324"),
        (_in_all_rounds("baseline", tokens=1e308), "tokens' is 1e+308"),
        (_in_all_rounds("candidate", waited_fraction=1e308), "waited_fraction' is 1e+308"),
        (_in_all_rounds("candidate", joules=-1.0), "joules' is -1"),
    ],
)
def test_what_nobody_measured_is_refused_though_its_digest_fits(
    tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    path, data = changed(tmp_path, change)
    del data["digest"]
    jsonfile.write(path, data | {"digest": jsonfile.digest(data)}, RecordError)

    with pytest.raises(RecordError) as raised:
        record.load(path)

    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("; run perfline compare again")


def test_no_energy_is_no_broken_record(tmp_path: Path) -> None:
    comparison = whole(compared(FakeLauncher(Script(joules=0.0), Script(joules=0.0))))
    record.save(tmp_path / "compare.json", comparison)

    assert record.load(tmp_path / "compare.json") == comparison


@pytest.mark.parametrize("keys", [("cases", "tiny"), ("unknown",)])
def test_a_deep_record_is_one_line_at_any_depth(tmp_path: Path, keys: tuple[str, ...]) -> None:
    path = tmp_path / "compare.json"
    record.save(path, whole())
    data = json.loads(path.read_text())
    _set(*keys, value="HERE")(data)
    text = json.dumps(data)

    for depth in (*range(850, 1000), 3000):  # it depends on Python and its stack what fails
        path.write_text(text.replace('"HERE"', "[" * depth + "]" * depth))
        with pytest.raises(RecordError, match=r"too deeply|cases\.tiny' is|edited by hand"):
            record.load(path)
