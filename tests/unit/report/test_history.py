"""A folder of records as a table, and what changed when."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from perfline.cli.history import add_history
from perfline.engines.environment import Environment
from perfline.errors import PerflineError, RecordError
from perfline.metrics import Metric
from perfline.report import history
from perfline.report.text import WIDTH
from samples import MACHINE, case_record, metrics, record, saved, speed, verdict


def perfline(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_history(parser.add_subparsers())
    args = parser.parse_args(["history", *words])
    return args.run_command(args)


def on(day: int, torch: str = "2.13.0", commit: str = "abc123456789", **changes):
    """A record of one day of November."""
    whole = {"created": f"2026-11-{day:02d}T10:00:00Z"} | changes
    case = whole.pop("case", case_record())
    machine = whole.pop("machine", MACHINE)
    context = {"torch": torch, "commit": commit}
    environment = Environment(machine, "Test CPU", "cpu", context)
    return record(case, environment=environment, **whole)


def keep(directory: Path, *found) -> Path:
    for number, each in enumerate(found):
        saved(directory, each, f"{number:03d}.json")
    return directory


def fast(value: float, **changes):
    return case_record(metrics=metrics(value), **changes)


# The table


def test_the_table_has_a_row_a_session_oldest_first(tmp_path):
    bad = fast(900.0, verdicts=(verdict("p_infer_core", "regressed"),))
    good = fast(1000.0, verdicts=(verdict("p_infer_core", "ok"),))
    keep(tmp_path, on(2, "2.14.0", "def4567890ab-dirty", case=bad), on(1, case=good))
    assert history.text(history.scan(tmp_path)).splitlines() == [
        f"tiny on {MACHINE} (fp32, real weights)",
        "date (UTC)  commit    torch   p_infer_core  acc_infer   mem  verdict",
        "                                     tok/s          %   GiB",
        "2026-11-01  abc1234   2.13.0          1000      70.00  1.50  ok",
        "2026-11-02  def4567*  2.14.0         900.0      70.00  1.50  regressed",
    ]


def test_sessions_of_one_day_show_their_time(tmp_path):
    keep(tmp_path, on(1), on(1, created="2026-11-01T23:59:59Z"))
    assert "\n2026-11-01 23:59  abc1234" in history.text(history.scan(tmp_path))


def test_folders_are_read_to_the_bottom_and_what_is_broken_is_named(tmp_path):
    keep(tmp_path / "a" / "b", on(1))
    (tmp_path / "torn.json").write_text('{"schema": 1,')
    (tmp_path / "old.json").write_text('{"schema": 0}')
    (tmp_path / ".run.json.1.tmp.json").write_text("being written")
    (tmp_path / "journal.jsonl").write_text("{}")
    found = history.scan(tmp_path)
    assert len(found.rows) == 1
    assert [line.split(":")[0] for line in found.broken] == [
        str(tmp_path / "old.json"),
        str(tmp_path / "torn.json"),
    ]
    told = "".join(history.text(found).split())  # wrapped
    assert f"broken,leftout:{tmp_path}/torn.json:istornornotJSON" in told


def test_comparisons_exports_and_copies_are_counted_and_left_out(tmp_path):
    keep(tmp_path, on(1), on(1))
    (tmp_path / "compare.json").write_text('{"schema": 1, "kind": "compare"}')
    (tmp_path / "bencher.json").write_text('{"tiny": {}}')
    (tmp_path / "bigger.json").write_text("[]")
    found = history.scan(tmp_path)
    assert (len(found.rows), found.copies, found.comparisons, found.others) == (1, 1, 1, 2)
    assert found.broken == ()
    assert history.text(found).endswith(
        "1 record of perfline compare left out\n2 other JSON files left out\n"
        "1 copy of a session left out"
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"partial": True}, "partial"),
        ({"case": case_record(errors=("test_x: lost",))}, "error"),
        ({"case": case_record(verdicts=())}, "missing"),
        ({"case": case_record(verdicts=(verdict("mem", "improved"),))}, "improved"),
    ],
)
def test_the_verdict_is_one_word(tmp_path, changes, word):
    keep(tmp_path, on(1, **changes))
    (row,) = history.scan(tmp_path).rows
    assert row.verdict == word


def test_what_was_disturbed_is_no_number(tmp_path):
    disturbed = case_record(verdicts=(verdict("p_infer_core", "invalid"),))
    keep(tmp_path, on(1, case=disturbed), on(2))
    lines = history.text(history.scan(tmp_path)).splitlines()
    assert lines[3].split() == ["2026-11-01", "abc1234", "2.13.0", "70.00", "invalid"]
    assert len(lines[4].split()) == 7


def test_machines_weights_and_definitions_have_tables_of_their_own(tmp_path):
    keep(
        tmp_path,
        on(1),
        on(2, machine="nvidia-h100-80gb-hbm3"),
        on(3, case=case_record(digest="sha256:new")),
        on(4, case=case_record(weights="dummy")),
    )
    text = history.text(history.scan(tmp_path))
    headings = [line for line in text.splitlines() if line.startswith(("tiny", "  definition"))]
    assert headings == [
        f"tiny on {MACHINE} (fp32, dummy weights)",
        f"tiny on {MACHINE} (fp32, real weights)",
        f"  definition {case_record().digest}",
        f"tiny on {MACHINE} (fp32, real weights)",
        "  definition sha256:new",
        "tiny on nvidia-h100-80gb-hbm3 (fp32, real weights)",
    ]


def test_every_line_keeps_to_80_columns(tmp_path):
    wide = {f"p_metric_number_{i}": speed(f"p_metric_number_{i}", 9999.0) for i in range(9)}
    word = (verdict("mem", "incomparable"),)
    keep(tmp_path, on(1, "2.13.0+cu130", case=case_record(metrics=wide, verdicts=word)))
    text = history.text(history.scan(tmp_path), sorted(wide))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert all(name in text for name in wide)
    assert text.count("2026-11-01") == 4


def test_a_metric_that_a_group_lacks_has_no_column(tmp_path):
    keep(tmp_path, on(1, case=case_record(metrics={"mem": Metric("mem", 1.5, "GiB", "lower")})))
    assert "p_infer_core" not in history.text(history.scan(tmp_path))


def test_an_empty_folder_says_how_records_get_there(tmp_path, capsys):
    assert perfline(str(tmp_path)) == 0
    assert capsys.readouterr().out.startswith("no record here yet; pytest writes one")


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(RecordError, match="is no directory of records"):
        perfline(str(tmp_path / "nowhere"))


def test_cases_and_metrics_are_chosen_by_name(tmp_path, capsys):
    keep(tmp_path, on(1), on(1, case=case_record("llama3-8b")))
    assert perfline(str(tmp_path), "--case", "tiny", "--metric", "compile_time,p_val_core") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [
        *("date", "(UTC)", "commit", "torch", "compile_time", "p_val_core", "verdict")
    ]
    assert len(lines) == 4
    with pytest.raises(RecordError, match=r"no record holds case 'big' \(there: llama3-8b, tiny\)"):
        perfline(str(tmp_path), "--case", "big")
    with pytest.raises(RecordError, match=r"no record holds metric 'speed' \(there: acc_infer, "):
        perfline(str(tmp_path), "--metric", "speed")


def test_pandas_reads_the_json(tmp_path, capsys):
    import pandas as pd

    keep(tmp_path, on(1), on(2, partial=True))
    (tmp_path / "torn.json").write_text("{")
    assert perfline(str(tmp_path), "--json") == 0
    data = json.loads(capsys.readouterr().out)
    frame = pd.json_normalize(data["rows"])
    assert list(frame["metrics.p_infer_core.value"]) == [1000.0, 1000.0]
    assert list(frame["partial"]) == [False, True]
    assert frame.loc[0, "metrics.mem.unit"] == "GiB"
    assert len(data["broken"]) == 1


# The trend


@pytest.fixture
def otava(monkeypatch):
    """Otava, scripted: the change points of the next series, as (index, p-value)."""
    script = SimpleNamespace(points=[], seen=[])

    def compute_change_points(series, window_len, max_pvalue, min_magnitude):
        script.seen.append((list(series), window_len, max_pvalue, min_magnitude))
        points = [
            SimpleNamespace(index=index, stats=SimpleNamespace(pvalue=p))
            for index, p in script.points
        ]
        return points, []

    module = ModuleType("otava.analysis")
    module.compute_change_points = compute_change_points
    monkeypatch.setitem(sys.modules, "otava", ModuleType("otava"))
    monkeypatch.setitem(sys.modules, "otava.analysis", module)
    return script


def step(directory: Path, before: int = 3, after: int = 3) -> history.History:
    fasts = [on(d, case=fast(1000.0)) for d in range(1, 1 + before)]
    slows = [
        on(d, "2.14.0", "def4567890ab", case=fast(960.0))
        for d in range(1 + before, 1 + before + after)
    ]
    return history.scan(keep(directory, *fasts, *slows))


def test_a_change_is_told_with_size_date_and_what_else_changed(tmp_path, otava):
    otava.points = [(3, 0.00021)]
    found = history.trend(step(tmp_path), ["p_infer_core"])
    (change,) = found.changes
    assert (change.before, change.after, change.sessions) == (1000.0, 960.0, (3, 3))
    assert (change.word, change.size) == ("worse", "-4.0 %")
    text = history.trend_text(found)
    assert " ".join(text.split()).startswith(
        f"trend: 1 found in 1 series tiny on {MACHINE}: p_infer_core worse -4.0 % "
        "(1000 -> 960.0 tok/s) from 2026-11-04 10:00 on, last before 2026-11-03 10:00; "
        "3 sessions before, 3 after, p 0.0002; commit abc1234 -> def4567; torch 2.13.0 -> 2.14.0 "
        "Read with care: Otava tests the split that fits best"
    )
    assert text.replace("\n", " ").endswith("settles it. This is no gate.")
    assert max(map(len, text.splitlines())) <= WIDTH


def test_otava_is_asked_at_its_defaults(tmp_path, otava):
    found = history.trend(step(tmp_path), ["p_infer_core"])
    assert otava.seen == [([1000.0] * 3 + [960.0] * 3, 50, 0.001, 0.0)]
    assert history.trend_text(found).startswith("trend: no change found in 1 series\n")


def test_judged_metrics_are_looked_at_unless_some_are_named(tmp_path, otava):
    kept = step(tmp_path)
    assert history.trend(kept).series == 6  # of eight: compile_time and load_time are not judged
    assert history.trend(kept, ["compile_time"]).series == 1


def test_counts_need_no_otava_for_each_step_is_a_change(tmp_path, otava):
    graphs = [1, 1, 1, 2, 2, 1]
    cases = [case_record(metrics={"graphs": Metric("graphs", n, "count", "lower")}) for n in graphs]
    kept = history.scan(keep(tmp_path, *(on(d, case=c) for d, c in enumerate(cases, start=1))))
    found = history.trend(kept)
    assert [(c.word, c.size, c.sessions, c.p_value) for c in found.changes] == [
        ("worse", "+1", (3, 2), None),
        ("better", "-1", (2, 1), None),
    ]
    assert otava.seen == []
    assert "torch, driver and all other versions unchanged" in " ".join(
        history.trend_text(found).split()
    )


def test_what_does_not_compare_is_another_series(tmp_path, otava):
    short = fast(500.0, workload={"questions": 8})
    other = [on(d, case=short) for d in range(11, 16)]
    broken = [on(20, case=fast(1.0), partial=True)]
    invalid = [on(21, case=fast(1.0, verdicts=(verdict("p_infer_core", "invalid"),)))]
    same = [on(d, case=fast(1000.0)) for d in range(1, 6)]
    kept = history.scan(keep(tmp_path, *same, *other, *broken, *invalid))
    assert history.trend(kept, ["p_infer_core"]).series == 2
    assert [values for values, *_ in otava.seen] == [[1000.0] * 5, [500.0] * 5]


def test_accuracy_of_other_questions_is_another_series(tmp_path, otava):
    def asked(n: int):
        named = Metric("acc_infer_questions", n, "questions", "info")
        return case_record(metrics={**metrics(), "acc_infer_questions": named})

    days = [on(d, case=asked(780 if d < 6 else 40)) for d in range(1, 9)]
    found = history.trend(history.scan(keep(tmp_path, *days)), ["acc_infer"])
    assert (found.series, found.short) == (1, 1)


def test_accuracy_changes_in_percentage_points():
    (row,) = history.History((history_row(),)).rows
    change = history.Change("acc_infer", "fraction", "higher", 0.652, 0.64, (9, 9), 1e-9, row, row)
    assert (change.size, change.word) == ("-1.20 pp", "worse")
    assert "p < 0.0001" in history.trend_text(history.Trend((change,), 1, 0))
    unjudged = dataclasses.replace(change, direction="info")
    assert unjudged.word == "changed"


def history_row() -> history.Row:
    return history.Row(Path("run.json"), "2026-11-01T10:00:00Z", MACHINE, case_record(), {}, False)


def test_few_sessions_are_not_looked_at(tmp_path, otava):
    text = history.trend_text(history.trend(step(tmp_path, 2, 2), ["p_infer_core"]))
    assert text == (
        "trend: no series of at least 5 sessions, so none was looked at\n"
        "  1 series of fewer than 5 sessions not looked at"
    )


def test_the_trend_follows_the_table_and_is_in_the_json(tmp_path, otava, capsys):
    otava.points = [(3, 0.0)]
    step(tmp_path)
    assert perfline(str(tmp_path), "--trend", "--metric", "p_infer_core") == 0
    assert "\n\ntrend: 1 found in 1 series\n" in capsys.readouterr().out
    assert perfline(str(tmp_path), "--trend", "--json") == 0
    found = json.loads(capsys.readouterr().out)["trend"]
    first = next(c for c in found["changes"] if c["metric"] == "p_infer_core")
    assert (first["before"], first["after"], first["word"]) == (1000.0, 960.0, "worse")
    assert (first["commit_before"], first["commit_after"]) == ("abc123456789", "def4567890ab")


def test_without_the_extra_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "otava", None)
    monkeypatch.delitem(sys.modules, "otava.analysis", raising=False)
    step(tmp_path)
    with pytest.raises(
        PerflineError, match=r"which is not installed .* with: pip install apache-otava$"
    ):
        perfline(str(tmp_path), "--trend")


def test_otava_itself_finds_the_step_and_leaves_a_steady_series_alone(tmp_path):
    pytest.importorskip("otava.analysis", reason="needs the extra 'trend' (apache-otava)")
    noise = random.Random(1)
    days = []
    for day in range(1, 25):
        level = 1000.0 if day <= 12 else 970.0
        measured = metrics(level * (1 + noise.gauss(0, 0.003)))
        measured["p_val_core"] = speed("p_val_core", 500.0 * (1 + noise.gauss(0, 0.003)))
        days.append(
            on(day, "2.13.0" if day <= 12 else "2.14.0", case=case_record(metrics=measured))
        )
    found = history.trend(history.scan(keep(tmp_path, *days)))
    (change,) = found.changes
    assert (change.metric, change.word) == ("p_infer_core", "worse")
    assert change.row.created == "2026-11-13T10:00:00Z"
    assert -0.035 < change.after / change.before - 1 < -0.025


# What a record of somebody else's may hold

HOSTILE = "a\x1b]0;x\x07\n::error::b\u202e"


def test_only_printable_characters_reach_the_terminal(tmp_path, otava, capsys):
    for day, speed_ in enumerate([1000.0] * 3 + [900.0] * 3, 1):
        case = fast(speed_, dtype=f"fp32{HOSTILE}", digest=HOSTILE)
        found = on(day, f"2.13{HOSTILE}", HOSTILE, case=case, machine=f"m{HOSTILE}")
        saved(tmp_path, dataclasses.replace(found, created=f"2026-{HOSTILE}{day}"), f"{day}.json")
    (tmp_path / f"z{HOSTILE}.json").write_text("{")
    assert perfline(str(tmp_path), "--trend") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("::") for line in lines)
    assert any(line.startswith(r"tiny on ma\x1b]0;x\x07\n::error::b") for line in lines)
    with pytest.raises(RecordError) as raised:
        perfline(str(tmp_path), "--case", HOSTILE)
    assert str(raised.value).isprintable()
    with pytest.raises(RecordError) as raised:
        perfline(str(tmp_path), "--metric", HOSTILE)
    assert str(raised.value).isprintable()
    with pytest.raises(RecordError) as raised:
        perfline(str(tmp_path / HOSTILE))
    assert str(raised.value).isprintable()


def test_json_escapes_what_a_terminal_obeys(tmp_path, capsys):
    saved(tmp_path, on(1, machine="m\x9b31m\u202e"), "\udcff.json")
    assert perfline(str(tmp_path), "--json") == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    (row,) = json.loads(printed)["rows"]
    assert row["machine"] == "m\x9b31m\u202e"
    assert row["file"] == str(tmp_path / "\udcff.json")


def test_what_is_broken_is_told_in_80_columns(tmp_path):
    (tmp_path / f"{'long' * 40}.json").write_text("{")
    text = history.text(history.scan(tmp_path))
    lines = text[text.index("broken, left out: ") :].splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert all(line.startswith("  ") for line in lines[1:])
    assert "long" * 40 in "".join(line.strip() for line in lines)
