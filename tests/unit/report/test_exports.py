"""What other services read: each export against its reader's own rules, and read by pandas."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import re
import tempfile
import threading
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from perfline import __version__
from perfline.cli.export import FORMATS, add_export
from perfline.engines.environment import Environment
from perfline.errors import RecordError
from perfline.metrics import Metric
from perfline.report import export_lm_eval, exports
from perfline.tasks.answers import StoredAnswers
from samples import MACHINE, answers, case_record, metrics, record, saved, speed, verdict

PATH = Path("results/run.json")


CORE = Metric("p_infer_core", 1000.0, "tok/s", "higher", (998.0, 999.0, 1000.0, 1001.0, 1002.0))


def perfline(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_export(parser.add_subparsers())
    args = parser.parse_args(["export", *words])
    return args.run_command(args)


def with_accuracy(value: float = 0.7, n: int = 400, **more: Metric) -> dict[str, Metric]:
    return {
        **metrics(),
        "p_infer_core": CORE,
        "acc_infer": Metric("acc_infer", value, "fraction", "higher"),
        "acc_infer_questions": Metric("acc_infer_questions", n, "questions", "info"),
        **more,
    }


def of(*cases, **changes) -> list[exports.Export]:
    return exports.exports(PATH, record(*cases, **changes))


def one(**changes) -> exports.Export:
    return of(case_record(**changes))[0]


# What may leave at all


def test_a_partial_record_is_refused():
    with pytest.raises(RecordError, match=r"is partial .* run pytest again"):
        of(partial=True)


def test_an_unknown_case_is_refused_with_those_that_are_there():
    with pytest.raises(RecordError, match=r"holds no case 'tini' \(there: tiny\)"):
        exports.exports(PATH, record(), ["tini"])


def test_a_record_of_nothing_is_refused():
    with pytest.raises(RecordError, match="holds no metric that could be exported"):
        of(case_record(metrics={}))


def test_a_name_that_could_lead_elsewhere_is_refused():
    bad = case_record()
    with pytest.raises(RecordError, match=r"case is '\.\./x'"):
        exports.exports(PATH, record(cases={"../x": bad}))


def test_a_date_that_is_none_is_refused():
    with pytest.raises(RecordError, match=r"key 'created' is 'yesterday' \(expected a date"):
        of(created="yesterday")


def test_what_was_disturbed_is_left_out_with_all_of_its_timed_region():
    timed = ["p_infer_core", "p_infer_whole", "mfu", "mfu_computed", "mem", "timed_time", "graphs"]
    timed += ["graph_breaks", "recompiles", "tokens_per_joule", "power"]
    eager = ["p_val_core", "p_val_whole", "mfu_val", "mfu_val_computed", "mem_val", "power_val"]
    before = ["load_time", "load_peak", "compile_time", "warmup_time", "tokens", "acc_infer"]
    every = {name: Metric(name, 1.0, "s", "info") for name in [*timed, *eager, *before, "e2e_time"]}
    found = one(metrics=every, verdicts=(verdict("p_infer_core", "invalid"),))
    assert sorted(found.metrics) == sorted(eager + before)
    found = one(metrics=every, verdicts=(verdict("p_val_core", "invalid"),))
    assert sorted(found.metrics) == sorted(timed + before)
    found = one(metrics=every, verdicts=(verdict("mem", "invalid"),))
    assert sorted(set(every) - set(found.metrics)) == ["mem"]


def test_an_invalid_accuracy_takes_its_details_along():
    found = one(metrics=with_accuracy(), verdicts=(verdict("acc_infer", "invalid"),))
    assert not any(name.startswith("acc_") for name in found.metrics)


# github-action-benchmark


def github_benchmarks(text: str) -> dict[str, dict]:
    """As github-action-benchmark 1.22 reads it, and what it needs to work with it later.

    ``src/extract.ts`` extractCustomBenchmarkResult: JSON.parse, then an array of which only these
    five keys are taken. ``interface BenchmarkResult``: name, unit: string, value: number; range,
    extra: string or absent. ``src/write.ts``: findAlerts and the charts find an entry by its name.
    """
    parsed = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(parsed, list)
    found = {}
    for entry in parsed:
        assert set(entry) <= {"name", "value", "unit", "range", "extra"}
        assert isinstance(entry["name"], str)
        assert entry["name"] not in ("", *found)
        assert isinstance(entry["unit"], str)
        assert isinstance(entry["value"], int | float)
        assert not isinstance(entry["value"], bool)
        assert all(isinstance(entry.get(key, ""), str) for key in ("range", "extra"))
        found[entry["name"]] = entry
    return found


def ratio(tool: str, before: float, now: float) -> float:
    """``src/write.ts`` getRatio: an alert is a ratio above the threshold."""
    if before == now == 0:
        return 1
    over, under = (before, now) if tool == "customBiggerIsBetter" else (now, before)
    return over / under if under else math.inf


def test_bigger_is_better_has_what_is_higher_better():
    found = github_benchmarks(
        exports.github_action_benchmark([one(metrics=with_accuracy())], "higher")
    )
    assert sorted(found) == [
        f"{MACHINE}/tiny/{m}" for m in ("acc_infer", "p_infer_core", "p_val_core")
    ]
    core = found[f"{MACHINE}/tiny/p_infer_core"]
    assert (core["value"], core["unit"], core["range"]) == (1000.0, "tok/s", "± 1.58114")
    assert core["extra"].splitlines() == [
        "±: standard deviation of 5 rounds in one session",
        "torch 2.13.0",
        "commit abc123456789",
    ]


def test_smaller_is_better_has_what_is_lower_better_and_a_measured_zero_is_a_number():
    found = github_benchmarks(exports.github_action_benchmark([one()], "lower"))
    assert {name.split("/")[-1]: entry["value"] for name, entry in found.items()} == {
        "mem": 1.5,
        "graphs": 2.0,
        "graph_breaks": 0.0,
    }
    assert "range" not in found[f"{MACHINE}/tiny/mem"]


@pytest.mark.parametrize(
    ("tool", "direction", "metric", "worse"),
    [
        ("customBiggerIsBetter", "higher", "p_infer_core", speed("p_infer_core", 900.0)),
        ("customSmallerIsBetter", "lower", "mem", Metric("mem", 2.0, "GiB", "lower")),
        (
            "customSmallerIsBetter",
            "lower",
            "graph_breaks",
            Metric("graph_breaks", 1, "count", "lower"),
        ),
    ],
)
def test_worse_is_worse_for_the_action_too(tool, direction, metric, worse):
    name = f"{MACHINE}/tiny/{metric}"
    before = github_benchmarks(exports.github_action_benchmark([one()], direction))[name]
    slow = one(metrics={**metrics(), metric: worse})
    after = github_benchmarks(exports.github_action_benchmark([slow], direction))[name]
    assert ratio(tool, before["value"], after["value"]) > 1.1


def test_accuracy_has_its_standard_error_and_the_verdict():
    found = one(metrics=with_accuracy(0.7, 400), verdicts=(verdict("acc_infer", "ok"),))
    entry = github_benchmarks(exports.github_action_benchmark([found], "higher"))[
        f"{MACHINE}/tiny/acc_infer"
    ]
    assert entry["range"] == f"± {math.sqrt(0.7 * 0.3 / 400):.6g}"
    assert entry["extra"].startswith("±: standard error, 400 questions\nverdict: ok\n")


def test_dummy_weights_have_a_chart_of_their_own():
    found = github_benchmarks(exports.github_action_benchmark([one(weights="dummy")], "higher"))
    assert f"{MACHINE}/tiny-dummy/p_infer_core" in found


def test_nothing_of_that_direction_is_an_error():
    found = one(metrics={"acc_infer": Metric("acc_infer", 0.7, "fraction", "higher")})
    with pytest.raises(RecordError, match="no metric of the record is better lower"):
        exports.github_action_benchmark([found], "lower")


def test_pandas_reads_the_action_s_files():
    import pandas as pd

    frame = pd.read_json(io.StringIO(exports.github_action_benchmark([one()], "higher")))
    values = frame.set_index("name")["value"]
    assert values[f"{MACHINE}/tiny/p_infer_core"] == 1000.0


# Bencher


def bencher_results(text: str) -> dict[str, dict]:
    """As bencher 0.6.12 reads it, adapter ``json``, BMF version 0.

    ``bencher_adapter/src/adapters/json/v0.rs``: HashMap<BenchmarkNameId, HashMap<MeasureNameId,
    JsonNewMetric>>; JsonNewMetric: value f64, lower_value and upper_value optional f64.
    ``bencher_valid``: benchmark_name.rs 1 to 1024 bytes, suffix ``-bencher-ignore`` mutes alerts;
    slug.rs at most 64, equal to its own slugify (a-z, 0-9, single hyphens inside).
    """
    parsed = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    for name, measures in parsed.items():
        assert 0 < len(name.encode()) <= 1024
        assert not name.endswith("-bencher-ignore")
        for measure, metric in measures.items():
            assert len(measure) <= 64
            assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", measure), measure
            assert "value" in metric
            assert set(metric) <= {"value", "lower_value", "upper_value"}
            assert all(type(number) in (int, float) for number in metric.values())
            low, high = metric.get("lower_value"), metric.get("upper_value")
            assert (low is None) == (high is None)
            assert low is None or low <= metric["value"] <= high
    return parsed


def test_bencher_has_every_metric_with_bounds_where_spread_is_known():
    found = bencher_results(exports.bencher([one(metrics=with_accuracy())]))
    assert found["tiny"]["p-infer-core-tok-per-s"] == {
        "value": 1000.0,
        "lower_value": pytest.approx(1000 - math.sqrt(2.5)),
        "upper_value": pytest.approx(1000 + math.sqrt(2.5)),
    }
    error = math.sqrt(0.7 * 0.3 / 400)
    assert found["tiny"]["acc-infer-fraction"]["lower_value"] == pytest.approx(0.7 - error)
    assert found["tiny"]["mem-gib"] == {"value": 1.5}
    assert found["tiny"]["compile-time-s"] == {"value": 9.5}


def test_bounds_of_a_fraction_stay_fractions():
    found = bencher_results(exports.bencher([one(metrics=with_accuracy(0.999, 10))]))
    assert found["tiny"]["acc-infer-fraction"]["upper_value"] == 1.0


@pytest.mark.parametrize(
    ("name", "unit", "shown"),
    [
        ("p_infer_core", "tok/s", "p_infer_core_tok_per_s"),
        ("mem", "GiB", "mem_gib"),
        ("mfu", "fraction", "mfu_fraction"),
        ("tokens", "tok", "tokens"),
        ("wait", "ms/tok", "wait_ms_per_tok"),
    ],
)
def test_the_unit_is_in_the_key(name, unit, shown):
    assert exports.key(Metric(name, 1.0, unit, "info")) == shown


def test_every_metric_that_perfline_knows_has_a_slug():
    known = [
        ("acc_infer_questions_per_s", "questions/s"),
        ("acc_infer_reuse_factor", "x"),
        ("tokens", "tok"),
        ("questions", "questions"),
        ("mfu_val_computed", "fraction"),
        ("recompiles", "count"),
        ("tokens_per_joule_val", "tok/J"),
        ("sm_clock", "MHz"),
        ("temperature", "C"),
    ]
    many = {name: Metric(name, 1.0, unit, "info") for name, unit in known}
    found = bencher_results(exports.bencher([one(metrics=many)]))
    assert len(found["tiny"]) == len(known)


def test_a_case_without_metrics_is_left_out():
    empty = case_record("llama3-8b", metrics={})
    assert list(bencher_results(exports.bencher(of(case_record(), empty)))) == ["tiny"]


def test_pandas_reads_bencher():
    import pandas as pd

    frame = pd.DataFrame(json.loads(exports.bencher([one()]))["tiny"]).T
    assert frame.loc["p-infer-core-tok-per-s", "value"] == 1000.0
    assert pd.isna(frame.loc["mem-gib", "lower_value"])


# vLLM and TensorRT-LLM


def decoded(**more: float) -> exports.Export:
    """4 tokens behind a prompt: the first in 10 ms, the others in 2 ms each."""
    values = {"decode": 500.0, "ttft": 0.01, "itl_p50": 0.0019, "itl_p99": 0.004, **more}
    found = {name: Metric(name, value, "x", "info") for name, value in values.items()}
    return one(metrics=found, notes={"decode_tokens": 4})


def test_decode_by_vllm_s_names():
    both = decoded(decode_b8=1000.0, ttft_b8=0.03, decode_val=250.0)
    lines = [json.loads(line) for line in exports.serving([both], "vllm").splitlines()]
    assert lines == [
        {
            **{"date": "2026-11-22T10:00:00Z", "label": "inductor", "model_id": "tiny"},
            **{"max_concurrency": 1, "output_throughput": 250.0, "mean_ttft_ms": 10.0},
            **{"mean_tpot_ms": 2.0, "median_itl_ms": 1.9, "p99_itl_ms": 4.0},
        },
        {
            **{"date": "2026-11-22T10:00:00Z", "label": "inductor_b8", "model_id": "tiny"},
            **{"max_concurrency": 8, "output_throughput": 592.593, "mean_ttft_ms": 30.0},
            "mean_tpot_ms": 8.0,
        },
        {  # its first token was not timed: nothing is said of it
            **{"date": "2026-11-22T10:00:00Z", "label": "eager", "model_id": "tiny"},
            **{"max_concurrency": 1, "mean_tpot_ms": 4.0},
        },
    ]


def test_decode_by_tensorrt_llm_s_names():
    (line,) = exports.serving([decoded(decode=800.0)], "trtllm").splitlines()
    found = json.loads(line)
    assert found["engine"] == {"model": "tiny", "backend": "inductor", "dtype": "fp32"}
    assert found["streaming_metrics"] == {
        **{"token_output_speed_tok_s": 800.0, "avg_ttft_ms": 10.0, "avg_tpot_ms": 1.25}
    }
    assert found["performance"]["system_output_throughput_tok_s"] == pytest.approx(290.909)


def test_a_record_without_decode_has_nothing_to_say_of_it():
    with pytest.raises(RecordError, match="no decode; run pytest -m decode first"):
        exports.serving([one()], "vllm")
    stopped = one(
        metrics={**metrics(), **decoded().metrics}, verdicts=(verdict("decode", "invalid"),)
    )
    with pytest.raises(RecordError, match="no decode"):
        exports.serving([stopped], "trtllm")


# Apache Otava


def otava_series(text: str, metrics: list[str], branch: str | None = None) -> dict[str, list]:
    """As ``otava/importer.py`` 0.8.0 CsvImporter.fetch_data reads it."""
    lines = [line.split(",") for line in text.splitlines()]
    header, rows = lines[0], lines[1:]
    data: dict[str, list] = {name: [] for name in ["time", *metrics]}
    for cells in rows:
        assert len(cells) >= len(header)
        if branch is not None and cells[header.index("branch")] != branch:
            continue
        time = datetime.fromisoformat(cells[header.index("time")].replace("Z", "+00:00"))
        data["time"].append(time.timestamp())
        for name in metrics:
            data[name].append(float(cells[header.index(name)]))
    assert data["time"] == sorted(data["time"])
    return data


def session(day: int, tok_per_s: float = 1000.0, **changes) -> exports.Export:
    case = case_record(metrics=metrics(tok_per_s), **changes)
    return of(case, created=f"2026-11-{day:02d}T10:00:00Z")[0]


def csv_of(path: Path, *found: exports.Export, **options) -> str:
    for export in found:
        exports.append_otava(path, exports.otava_row(export, **options))
    return path.read_text()


def test_otava_rows_are_appended_and_keep_the_header(tmp_path):
    path = tmp_path / "tiny.csv"
    first = csv_of(path, session(1))
    text = csv_of(path, session(2, 980.0))
    assert text.startswith(first)
    assert text.splitlines()[0] == (
        "time,commit,case,machine,dtype,weights,digest,workload,torch,driver,"
        "acc_infer_fraction,p_infer_core_tok_per_s,p_val_core_tok_per_s,"
        "graph_breaks_count,graphs_count,mem_gib"
    )
    series = otava_series(text, ["p_infer_core_tok_per_s", "graph_breaks_count"])
    assert series["p_infer_core_tok_per_s"] == [1000.0, 980.0]
    assert series["graph_breaks_count"] == [0.0, 0.0]


def test_otava_s_columns_can_be_named(tmp_path):
    text = csv_of(tmp_path / "x.csv", session(1), metrics=["compile_time"])
    assert text.splitlines()[0].endswith(",driver,compile_time_s")


def refused(path: Path, new: exports.Export, message: str, **options) -> None:
    before = path.read_text()
    with pytest.raises(RecordError, match=message):
        csv_of(path, new, **options)
    assert path.read_text() == before


def test_a_changed_header_is_refused_and_the_file_stays(tmp_path):
    path = tmp_path / "tiny.csv"
    csv_of(path, session(1))
    few = of(
        case_record(metrics={"p_infer_core": speed("p_infer_core", 1.0)}),
        created="2026-11-02T10:00:00Z",
    )[0]
    refused(
        path, few, "its columns are not those of this run .without acc_infer_fraction, .*--metric"
    )
    refused(path, session(2), "with branch", branch="main")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "fp16"}, "holds dtype 'fp32', this run is of 'fp16'"),
        ({"weights": "dummy"}, "holds weights 'real', this run is of 'dummy'"),
        ({"digest": "sha256:0"}, "holds digest"),
        ({"workload": {"questions": 8}}, "holds workload .* this run is of 'questions=8'"),
    ],
)
def test_what_does_not_compare_is_no_point_of_the_series(tmp_path, changes, message):
    path = tmp_path / "tiny.csv"
    csv_of(path, session(1))
    refused(path, session(2, **changes), message)


def test_another_machine_is_no_point_of_the_series(tmp_path):
    path = tmp_path / "tiny.csv"
    csv_of(path, session(1))
    other = of(environment=Environment("other-gpu", "Other", "cuda", {}))[0]
    refused(
        path, other, "holds machine 'cpu-test-2-cores', this run is of 'other-gpu'.*use another"
    )


def test_a_session_is_appended_once_and_in_order(tmp_path):
    path = tmp_path / "tiny.csv"
    csv_of(path, session(2))
    refused(path, session(2), "holds this session already")
    refused(path, session(1), "is newer .its last row is of 2026-11-02T10:00:00Z")


def test_branches_are_ordered_each_by_itself(tmp_path):
    path = tmp_path / "tiny.csv"
    csv_of(path, session(2), branch="main")
    text = csv_of(path, session(1, 900.0), branch="fix")
    assert otava_series(text, ["p_infer_core_tok_per_s"], "fix")["p_infer_core_tok_per_s"] == [
        900.0
    ]


def test_a_torn_file_is_refused_by_line(tmp_path):
    path = tmp_path / "tiny.csv"
    text = csv_of(path, session(1))
    path.write_text(text + "2026-11-02T10:00:00Z,abc\n")
    refused(path, session(3), r"line 3 has 2 columns \(expected 16, as the header\)")


def test_an_invalid_metric_is_no_cell():
    found = one(verdicts=(verdict("p_infer_core", "invalid"),))
    with pytest.raises(RecordError, match=r"p_infer_core is invalid .the run was disturbed"):
        exports.otava_row(found, ["p_infer_core"])
    with pytest.raises(RecordError, match=r"p_x was not measured .there: acc_infer, "):
        exports.otava_row(found, ["p_x"])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "tiny.csv"
    before = csv_of(path, session(1))

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RecordError, match="cannot be written: No space left on device"):
        csv_of(path, session(2))
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.csv"]
    assert path.read_text() == before


def test_appends_at_the_same_time_lose_no_row(tmp_path):
    path = tmp_path / "tiny.csv"
    rows = [exports.otava_row(session(1, 1000.0 + i), branch=f"b{i}") for i in range(8)]
    threads = [threading.Thread(target=exports.append_otava, args=(path, row)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line.split(",")[2] for line in path.read_text().splitlines()[1:]) == [
        f"b{i}" for i in range(8)
    ]


def test_text_with_commas_stays_one_cell(tmp_path):
    import pandas as pd

    path = tmp_path / "tiny.csv"
    context = {"torch": 'nightly, "odd"\nbuild'}
    odd = of(environment=Environment(MACHINE, "Test CPU", "cpu", context))[0]
    exports.append_otava(path, exports.otava_row(odd))
    assert exports.append_otava(path, exports.otava_row(session(23))) == 2
    frame = pd.read_csv(path)
    assert list(frame["torch"]) == ['nightly, "odd" build', "2.13.0"]


@settings(max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_one_cell_of_one_line(text):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tiny.csv"
        place = Environment(MACHINE, "Test CPU", "cpu", {"torch": text})
        new = exports.otava_row(of(environment=place)[0])
        exports.append_otava(path, new)
        assert exports.append_otava(path, exports.otava_row(session(23))) == 2
        lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert next(csv.reader([lines[1]])) == new.cells


def test_what_is_no_text_is_refused(tmp_path):
    path = tmp_path / "tiny.csv"
    path.write_bytes(b"time,\xff\n")
    with pytest.raises(RecordError, match=r"is no CSV .* restore the file"):
        csv_of(path, session(1))


def test_an_impossible_fraction_has_no_bounds():
    found = one(metrics=with_accuracy(1.5))
    assert bencher_results(exports.bencher([found]))["tiny"]["acc-infer-fraction"] == {"value": 1.5}
    found = one(metrics=with_accuracy(0.5, 0))
    assert bencher_results(exports.bencher([found]))["tiny"]["acc-infer-fraction"] == {"value": 0.5}


def test_pandas_reads_the_csv(tmp_path):
    import pandas as pd

    path = tmp_path / "tiny.csv"
    csv_of(path, session(1), session(2, 980.0))
    frame = pd.read_csv(path, parse_dates=["time"])
    assert list(frame["p_infer_core_tok_per_s"]) == [1000.0, 980.0]
    assert str(frame["time"].dtype).startswith("datetime64")


def test_otava_itself_reads_the_csv_and_finds_the_step(tmp_path):
    importer = pytest.importorskip(
        "otava.importer", reason="needs the extra 'trend' (apache-otava)"
    )
    from otava.data_selector import DataSelector
    from otava.test_config import create_test_config

    path = tmp_path / "tiny.csv"
    steady = [1000.0, 1001.0, 999.0, 1000.5, 999.5, 1000.2, 999.8, 1000.0]
    days = [*steady, *(0.9 * value for value in steady)]
    csv_of(path, *(session(day, value) for day, value in enumerate(days, start=1)))
    definition = yaml.safe_load(exports.otava_config(path, exports.otava_row(session(1))))
    ((name, test),) = definition["tests"].items()
    assert name == f"tiny-{MACHINE}"
    selector = DataSelector()
    selector.since_time = datetime.fromisoformat("2026-10-01T00:00:00+00:00")
    selector.until_time = datetime.fromisoformat("2027-01-01T00:00:00+00:00")
    series = importer.CsvImporter().fetch_data(create_test_config(name, test), selector)
    assert series.time[0] == int(datetime.fromisoformat("2026-11-01T10:00:00+00:00").timestamp())
    assert series.attributes["torch"] == ["2.13.0"] * 16
    assert series.metrics["mem_gib"].direction == -1
    points = series.analyze().change_points
    (step,) = points["p_infer_core_tok_per_s"]
    assert (step.index, round(step.forward_change_percent(), 1)) == (8, -10.0)
    assert points["mem_gib"] == []


# lm-evaluation-harness

GROUP_KEYS = {"name", "alias", "sample_len", "sample_count"}
SCORES = {"acc,none", "acc_stderr,none", "exact_match,full-vocab", "exact_match_stderr,full-vocab"}


def two_subjects(names: tuple[str, str] = ("sky", "sea")) -> StoredAnswers:
    rows = [(f"{names[0]}/{i}", "A", "A" if i else "-", "A", 1.5) for i in range(10)]
    rows += [(f"{names[1]}/{i}", "B", "B", "AB"[i % 2], 0.25) for i in range(6)]
    return StoredAnswers.of(rows, date="2026-11-22", commit=None, reason="measured", context={})


def lm_eval_files(directory: Path, **changes) -> tuple[dict, dict[str, list[dict]]]:
    """Write, and read as lm_eval 0.4.13's own functions find and open the files.

    ``lm_eval/utils.py``: get_results_filenames, get_sample_results_filenames, get_file_task_name.
    """
    from samples import packaged

    found = one(**{"accuracy": {"inductor": two_subjects()}, **changes})
    (path,) = export_lm_eval.write(directory, [found], {"tiny": packaged()})
    files = [str(file) for file in directory.rglob("*")]
    (results,) = [name for name in files if "/results_" in name and ".json" in name]
    assert results == str(path)
    samples = {}
    for name in [name for name in files if "/samples_" in name and ".json" in name]:
        task = Path(name).name[len("samples_") : Path(name).name.rfind("_")]
        samples[task] = [json.loads(line) for line in Path(name).read_text().splitlines()]
    return json.loads(Path(results).read_text()), samples


def test_lm_eval_results_have_the_harness_s_shape(tmp_path):
    """``lm_eval/result_schema.py`` EvalResults, _TaskMetrics and _SampleCount of 0.4.13."""
    results, _ = lm_eval_files(tmp_path)
    tasks = {"tiny_sky", "tiny_sea"}
    assert set(results["results"]) == {"tiny", *tasks}
    assert results["group_subtasks"] == {"tiny": ["tiny_sea", "tiny_sky"]}
    assert set(results["groups"]) == {"tiny"}
    for name, scores in results["results"].items():
        assert set(scores) - SCORES == GROUP_KEYS - (set() if name == "tiny" else {"sample_count"})
        assert scores["name"] == name
        assert all(isinstance(scores[key], float) for key in SCORES)
        assert results["versions"][name].startswith("perfline-")
        assert results["n-shot"][name] == 5
        assert results["higher_is_better"][name] == {"acc": True, "exact_match": True}
    assert set(results["configs"]) == set(results["n-samples"]) == tasks
    assert results["n-samples"]["tiny_sea"] == {"effective": 6}  # the split's size is not known
    assert results["config"]["model_dtype"] == "fp32"
    assert results["model_name_sanitized"] == "tiny-inductor"
    assert results["date"] == datetime.fromisoformat("2026-11-22T10:00:00+00:00").timestamp()
    assert "transformers_version" not in results  # not in the record's context


def test_lm_eval_scores_are_its_formulas(tmp_path):
    """``lm_eval/api/metrics.py``: mean, mean_stderr (n - 1), pooled_sample_stderr."""
    results, _ = lm_eval_files(tmp_path)
    sea, sky, group = (results["results"][n] for n in ("tiny_sea", "tiny_sky", "tiny"))
    assert (sea["acc,none"], sky["acc,none"], group["acc,none"]) == (0.5, 1.0, 13 / 16)
    assert sky["exact_match,full-vocab"] == 0.9
    deviation = math.sqrt(sum((x - 0.5) ** 2 for x in [0, 1] * 3) / 5)
    assert sea["acc_stderr,none"] == pytest.approx(deviation / math.sqrt(6))
    assert sky["acc_stderr,none"] == 0.0
    pooled = (5 * sea["acc_stderr,none"] ** 2 * 6 + 0) / (16 - 2)
    assert group["acc_stderr,none"] == pytest.approx(math.sqrt(pooled / 16))


def test_a_single_question_has_no_error(tmp_path):
    single = answers(n=1)
    results, _ = lm_eval_files(tmp_path, accuracy={"inductor": single})
    assert not [key for key in results["results"]["tiny_sky"] if "stderr" in key]


def test_lm_eval_samples_are_one_row_per_filter_and_question(tmp_path):
    _, samples = lm_eval_files(tmp_path)
    assert {task: len(rows) for task, rows in samples.items()} == {"tiny_sky": 20, "tiny_sea": 12}
    assert samples["tiny_sea"][0] == {
        "doc_id": 0,
        "doc": {"id": "sea/0", "subject": "sea"},
        "target": "0",
        "filtered_resps": ["B"],
        "filter": "none",
        "metrics": ["acc"],
        "acc": 0.0,
        "margin_logits": 0.25,
    }
    full = [row for row in samples["tiny_sky"] if row["filter"] == "full-vocab"]
    assert [row["exact_match"] for row in full] == [0.0] + [1.0] * 9
    assert full[0]["filtered_resps"] == [""]  # no letter


def test_real_subjects_are_named_as_the_harness_names_them(tmp_path):
    found = two_subjects(("abstract_algebra", "anatomy"))
    results, samples = lm_eval_files(tmp_path, accuracy={"inductor": found})
    assert set(samples) == {"mmlu_abstract_algebra", "mmlu_anatomy"}
    assert results["n-samples"]["mmlu_anatomy"] == {"original": 135, "effective": 6}


def test_every_task_is_there_by_the_harness_s_name(tmp_path):
    chinese = two_subjects(("law", "logic"))
    one_subject = StoredAnswers.of(
        [(f"hellaswag/{i}", "AB"[i % 2], "A", "A", 0.5) for i in range(4)],
        **{"date": "2026-11-22", "commit": None, "reason": "measured", "context": {}},
    )
    found = {"inductor": two_subjects(), "infer_ceval": chinese, "infer_hellaswag": one_subject}
    results, samples = lm_eval_files(tmp_path, accuracy=found)
    theirs = ["ceval-valid_law", "ceval-valid_logic"]
    assert set(samples) == {"tiny_sky", "tiny_sea", *theirs, "hellaswag"}
    assert set(results["results"]) == {*samples, "tiny", "ceval-valid"}
    assert set(results["groups"]) == {"tiny", "ceval-valid"}
    assert results["group_subtasks"]["ceval-valid"] == theirs
    assert results["group_subtasks"]["hellaswag"] == []
    assert results["results"]["ceval-valid"]["acc,none"] == 13 / 16
    assert results["results"]["hellaswag"]["acc_norm,none"] == 0.5  # the task's own measure
    assert results["results"]["hellaswag"]["acc,none"] == 1.0
    assert results["higher_is_better"]["hellaswag"] == {"acc_norm": True, "acc": True}
    assert [row["acc_norm"] for row in samples["hellaswag"]] == [1.0, 0.0, 1.0, 0.0]
    assert samples["hellaswag"][1]["metrics"] == ["acc_norm", "acc"]
    assert samples["hellaswag"][1]["acc"] == 1.0
    assert [path.parent.name for path in tmp_path.rglob("results_*")] == ["tiny-inductor"]


def test_a_task_whose_answers_are_invalid_is_left_out(tmp_path):
    found = {"inductor": two_subjects(), "infer_ceval": two_subjects(("law", "logic"))}
    invalid = (verdict("acc_infer_ceval", "invalid"),)
    _, samples = lm_eval_files(tmp_path, accuracy=found, verdicts=invalid)
    assert set(samples) == {"tiny_sky", "tiny_sea"}


def test_shots_of_another_definition_are_not_known(tmp_path):
    results, _ = lm_eval_files(tmp_path, digest="sha256:0")
    assert "n-shot" not in results


def test_every_engine_that_answered_is_a_model(tmp_path):
    found = one(verdicts=(verdict("acc_val", "invalid"),))
    written = export_lm_eval.write(tmp_path, [found], {})
    assert [path.parent.name for path in written] == ["tiny-inductor"]
    written = export_lm_eval.write(tmp_path, [one()], {})
    assert [path.parent.name for path in written] == ["tiny-eager", "tiny-inductor"]


def test_no_answers_are_an_error(tmp_path):
    with pytest.raises(RecordError, match=r"holds no answers .* run `pytest -m accuracy` first"):
        export_lm_eval.write(tmp_path, [one(weights="dummy")], {})


def test_subjects_cannot_lead_elsewhere_nor_meet(tmp_path):
    lm_eval_files(tmp_path / "in", accuracy={"inductor": two_subjects(("../../x", "b"))})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    with pytest.raises(RecordError, match="differ in signs only"):
        lm_eval_files(tmp_path, accuracy={"inductor": two_subjects(("a b", "a.b"))})


def test_pandas_reads_results_and_samples(tmp_path):
    import pandas as pd

    results, _ = lm_eval_files(tmp_path)
    frame = pd.DataFrame(results["results"]).T
    assert frame.loc["tiny", "acc,none"] == 13 / 16
    (path,) = tmp_path.rglob("samples_tiny_sky_*.jsonl")
    samples = pd.read_json(path, lines=True)
    assert samples.groupby("filter")[["acc", "exact_match"]].mean().loc["none", "acc"] == 1.0
    assert samples["exact_match"].mean() == 0.9


def test_lm_eval_itself_makes_its_table(tmp_path):
    utils = pytest.importorskip("lm_eval.utils", reason="needs the extra 'bench' (lm-eval)")
    results, _ = lm_eval_files(tmp_path)
    table = utils.make_table(results)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    shown = f"perfline-{__version__}"
    assert ["tiny", shown, "none", "5", "acc", "↑", "0.8125", "±", "0.0818"] in rows
    assert ["", "", "full-vocab", "5", "exact_match", "↑", "0.7500", "±", "0.1035"] in rows
    assert ["- sea", shown, "none", "5", "acc", "↑", "0.5000", "±", "0.2236"] in rows
    assert "Groups" in utils.make_table(results, "groups")
    files = [str(path) for path in tmp_path.rglob("*") if path.is_file()]
    tasks = {
        utils.get_file_task_name(Path(f).name) for f in utils.get_sample_results_filenames(files)
    }
    assert tasks == {"tiny_sea", "tiny_sky"}
    assert utils.get_latest_filename(utils.get_results_filenames(files)).endswith("00Z.json")
    formulas = pytest.importorskip("lm_eval.api.metrics")
    sky, sea = [0.0] + [1.0] * 9, [1.0, 0.0] * 3
    errors = [formulas.mean_stderr(sky), formulas.mean_stderr(sea)]
    scores = results["results"]
    stderr = "exact_match_stderr,full-vocab"
    assert [scores["tiny_sky"][stderr], scores["tiny_sea"][stderr]] == pytest.approx(errors)
    assert scores["tiny"][stderr] == pytest.approx(formulas.pooled_sample_stderr(errors, [10, 6]))


# The command


@pytest.mark.parametrize("form", ["customBiggerIsBetter", "customSmallerIsBetter", "bencher"])
def test_the_command_prints_or_writes_the_same(tmp_path, capsys, form):
    run = saved(tmp_path, record())
    assert perfline(str(run), "--format", form) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)
    assert perfline(str(run), "--format", form, "-o", str(tmp_path / "new" / "out.json")) == 0
    assert (tmp_path / "new" / "out.json").read_text() == printed
    assert capsys.readouterr().out == f"written: {tmp_path}/new/out.json\n"


def test_no_older_export_stands_for_a_session_that_was_stopped(tmp_path):
    target = tmp_path / "bencher.json"
    whole, stopped = saved(tmp_path, record()), saved(tmp_path / "now", record(partial=True))
    assert perfline(str(whole), "--format", "bencher", "-o", str(target)) == 0
    with pytest.raises(RecordError, match="is partial"):
        perfline(str(stopped), "--format", "bencher", "-o", str(target))
    assert not target.exists()
    with pytest.raises(RecordError, match="is the record; write the export elsewhere"):
        perfline(str(whole), "--format", "bencher", "-o", str(whole))
    assert whole.exists()


def test_the_command_appends_for_otava_and_shows_its_configuration_once(tmp_path, capsys):
    table = str(tmp_path / "tiny.csv")
    run = saved(tmp_path, record())
    assert perfline(str(run), "--format", "otava", "-o", table, "--metric", "p_infer_core") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"written: {table} (1 row)\nOtava reads it with this otava.yaml:\n\n")
    definition = yaml.safe_load(printed.split("\n\n", 1)[1])
    assert definition["tests"][f"tiny-{MACHINE}"]["metrics"] == {
        "p_infer_core_tok_per_s": {"column": "p_infer_core_tok_per_s", "direction": 1, "scale": 1}
    }
    later = saved(tmp_path, record(created="2026-11-23T10:00:00Z"))
    assert perfline(str(later), "--format", "otava", "-o", table, "--metric", "p_infer_core") == 0
    assert capsys.readouterr().out == f"written: {table} (2 rows)\n"


def test_the_command_writes_lm_eval_s_files(tmp_path, capsys):
    run = saved(tmp_path, record())
    assert perfline(str(run), "--format", "lm-eval", "-o", str(tmp_path / "lm")) == 0
    assert len(list((tmp_path / "lm").rglob("samples_tiny_sky_*.jsonl"))) == 2
    assert capsys.readouterr().out.count("written: ") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "otava"], "--format otava needs -o, the CSV to append to"),
        (["--format", "lm-eval"], "--format lm-eval needs -o, a directory"),
        (["--format", "bencher", "--branch", "x"], "--metric and --branch are for --format otava"),
        (["--format", "otava", "-o", "x.csv"], "holds one case: name one of llama3-8b, tiny with"),
    ],
)
def test_the_command_says_what_is_missing(tmp_path, words, message):
    run = saved(tmp_path, record(case_record(), case_record("llama3-8b")))
    with pytest.raises(RecordError, match=message):
        perfline(str(run), *words)


def test_an_unknown_format_names_the_known_ones(tmp_path, capsys):
    with pytest.raises(SystemExit):
        perfline("run.json", "--format", "csv")
    error = capsys.readouterr().err
    assert all(name in error for name in FORMATS)


def test_links_and_devices_stay_what_they_are(tmp_path, capsys):
    run = saved(tmp_path, record())
    link = tmp_path / "latest.json"
    link.symlink_to(tmp_path / "out.json")
    assert perfline(str(run), "--format", "bencher", "-o", str(link)) == 0
    assert link.is_symlink()
    assert json.loads((tmp_path / "out.json").read_text())
    assert perfline(str(run), "--format", "bencher", "-o", "/dev/null") == 0
    assert Path("/dev/null").is_char_device()


def test_rows_are_not_appended_to_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RecordError, match=r"fifo: is no regular file, and rows cannot"):
        perfline(str(saved(tmp_path, record())), "--format", "otava", "-o", f"{tmp_path}/fifo")


def test_a_file_s_name_that_is_no_utf_8_is_printed_all_the_same(tmp_path, capsys):
    run = saved(tmp_path, record())
    assert perfline(str(run), "--format", "bencher", "-o", f"{tmp_path}/\udcff.json") == 0
    assert capsys.readouterr().out == f"written: {tmp_path}/\\udcff.json\n"
