from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfline.errors import MetricError, RecordError
from perfline.fields import Node, as_json
from perfline.metrics import Metric, mfu, summary

FINITE = st.floats(-1e30, 1e30)


def read(data: dict[str, object]) -> Metric:
    return Node(Path("f.json"), data, RecordError).build(Metric, name="m")


@given(value=FINITE, samples=st.lists(FINITE, max_size=5))
def test_a_metric_survives_json(value: float, samples: list[float]) -> None:
    metric = Metric("m", value, "tok/s", "higher", tuple(samples))

    assert read(json.loads(json.dumps(as_json(metric)))) == metric


def test_a_metric_without_samples_has_no_samples_key() -> None:
    metric = Metric("mfu", 0.464, "fraction", "info")

    assert as_json(metric) == {"value": 0.464, "unit": "fraction", "direction": "info"}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_metric(number: float) -> None:
    with pytest.raises(MetricError, match=r"^mem: -?(nan|inf) GiB is no measurement$"):
        Metric("mem", number, "GiB", "lower")
    with pytest.raises(MetricError, match="is no measurement"):
        Metric("mem", 1.0, "GiB", "lower", samples=(1.0, number))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "9"}, 'value\' is "9" (expected a number)'),
        ({"value": True}, "value' is true (expected a number)"),
        ({"value": None}, "value' is null (expected a number)"),
        ({"unit": 3}, "unit' is 3 (expected text)"),
        ({"direction": "up"}, 'direction\' is "up" (expected higher, lower or info)'),
        ({"samples": 3}, "samples' is 3 (expected a list of numbers)"),
        ({"samples": ["x"]}, 'samples.0\' is "x" (expected a number)'),
    ],
)
def test_a_mistyped_key_is_named(change: dict[str, object], message: str) -> None:
    data: dict[str, object] = {"value": 9.0, "unit": "tok/s", "direction": "higher"}

    with pytest.raises(RecordError) as raised:
        read(data | change)

    assert str(raised.value) == f"f.json: key '{message}"


@pytest.mark.parametrize(
    ("tokens_per_s", "parameters"), [(9051.3, 8.0e9), (10338.8, 7.0e9)], ids=["llama3", "deepseek"]
)
def test_mfu_gives_the_published_46_4_per_cent(tokens_per_s: float, parameters: float) -> None:
    value = mfu(tokens_per_s, parameters, 312e12)

    assert value is not None
    assert round(100 * value, 1) == 46.4


def test_a_device_without_a_known_peak_has_no_mfu() -> None:
    assert mfu(9051.3, 8e9, None) is None


def test_summary_is_median_and_standard_error() -> None:
    median, error = summary([3.0, 1.0, 2.0, 10.0])

    assert median == 2.5
    assert error == pytest.approx(math.sqrt(50 / 3) / 2)
    assert summary([7.0, 7.0, 7.0]) == (7.0, 0.0)


def test_one_sample_has_no_error_and_none_has_no_summary() -> None:
    assert summary([7.0]) == (7.0, None)
    with pytest.raises(MetricError, match="no samples"):
        summary([])


def test_a_metric_of_ones_own_survives_json_and_ours_has_no_key_more() -> None:
    metric = Metric("wait", 0.03, "ms", "lower", samples=[0.03, 1.0], own=True)
    data = json.loads(json.dumps(as_json(metric)))

    assert data["own"] is True
    assert Node("f.json", data, RecordError).build(Metric, name="wait") == metric
    assert "own" not in as_json(Metric("mem", 1.0, "GiB", "lower"))


def test_what_no_type_tells_of_a_stored_metric_names_the_file() -> None:
    data = {"value": 1.0, "unit": "tok/s", "direction": "higher", "own": True}
    node = Node("f.json", data, RecordError, "run pytest again", "metrics.p_infer_core.")

    with pytest.raises(RecordError, match=r"^f.json: key 'metrics.p_infer_core' is wrong \(p_inf"):
        node.build(Metric, name="p_infer_core")


def test_numbers_of_numpy_are_numbers() -> None:
    metric = Metric("wait", np.float32(0.5), "ms", "lower", samples=np.ones(2, np.float32))

    assert (type(metric.value), metric.samples) == (float, (1.0, 1.0))


@pytest.mark.parametrize("samples", [None, 5, np.array(1.0)], ids=["none", "number", "array"])
def test_samples_that_are_none_say_so(samples) -> None:
    with pytest.raises(MetricError, match=r"^wait: samples are .*; expected numbers, one a round$"):
        Metric("wait", 1.0, "s", "lower", samples=samples)


def test_samples_may_come_one_by_one() -> None:
    assert Metric("wait", 1.0, "s", "lower", samples=(x for x in (1, 2))).samples == (1, 2)


@pytest.mark.parametrize(
    "name",
    [
        *("p_x", "acc_x", "mem", "mem_mine", "mfu_mine_computed", "graphs", "e2e_time"),
        *("tokens_mine", "load_time_mine", "power", "scaling_efficiency_val", "fidelity_ways"),
        *("flips", "flips_mine"),
    ],
)
def test_a_name_of_ours_is_no_name_of_ones_own(name: str) -> None:
    Metric(name, 1.0, "x", "info")
    with pytest.raises(MetricError, match="perfline's own metrics are called so"):
        Metric(name, 1.0, "x", "info", own=True)


@pytest.mark.parametrize("name", ["wait", "memory_bandwidth", "graphs_per_s", "my_mem", "itl_p999"])
def test_other_names_are_free(name: str) -> None:
    assert Metric(name, 1.0, "x", "info", own=True).own


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (1e31, "s", r"^wait: 1e\+31 s is no measurement$"),
        (10**5000, "s", "^wait: too long to be shown s is no measurement$"),
        (1.0, "", "^wait: has no unit; "),
        (1.0, " ", "^wait: has no unit; "),
    ],
    ids=["too large", "digits", "no unit", "blank unit"],
)
def test_what_no_record_could_be_read_with_is_refused_when_it_is_made(value, unit, said):
    with pytest.raises(MetricError, match=said):
        Metric("wait", value, unit, "lower")
