from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfline.report import charts, svg
from perfline.report.charts import Bar, Estimate, HistoryPoint, Interval, Series

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e90, max_value=1e90)


def texts(chart: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(chart).iter("text")]


def titles(chart: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(chart).iter("title")]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 10], ["0.0", "2.5", "5.0", "7.5", "10.0"]),
        ([9000, 9400], ["9,000", "9,100", "9,200", "9,300", "9,400"]),
        ([0.461, 0.464], ["0.461", "0.462", "0.463", "0.464"]),
        ([-3, 1], ["-3", "-2", "-1", "0", "1"]),
    ],
)
def test_ticks_stand_at_round_numbers(values, ticks):
    assert [text for _, text in svg.linear(values, "s").ticks] == ticks


def test_counts_have_whole_ticks():
    assert [text for _, text in svg.linear([1, 3], "round", whole=True).ticks] == ["1", "2", "3"]


def test_bars_start_at_nought():
    axis = svg.linear([15.2, 15.9], "GiB", zero=True)
    assert (axis.low, axis.ticks[0]) == (0.0, (0.0, "0"))


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.booleans(), st.booleans())
def test_an_axis_holds_its_values_and_has_few_ticks_within(values, zero, whole):
    axis = svg.linear(values, "x", zero=zero, whole=whole)
    assert axis.low < axis.high
    assert axis.low <= min(values) + 1e-100
    assert max(values) - 1e-100 <= axis.high
    assert all(axis.low <= value <= axis.high for value, _ in axis.ticks)
    assert len(axis.ticks) <= 7


@given(st.lists(NUMBERS, min_size=2, max_size=30))
def test_any_history_is_well_formed_and_stays_inside_its_frame(values):
    points = [HistoryPoint(f"2026-11-{i + 1:02}", v, f"{v}", "ok", v) for i, v in enumerate(values)]
    chart = ET.fromstring(charts.history("m", "s", points, [("2026-11-02", values[0])]))
    height = float(chart.attrib["viewBox"].split()[3])
    for circle in chart.iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= svg.WIDTH
        assert 0 <= float(circle.attrib["cy"]) <= height


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_any_name_is_text_and_never_markup(name):
    chart = charts.bars(name, name, name, [Bar(name, 1.0, 2.0)])
    assert ET.fromstring(chart).attrib["aria-label"] == f"{name}, {name}"
    assert "<script" not in chart


def test_hostile_names_are_escaped():
    evil = '"><script>alert(1)</script>'
    chart = charts.rounds([Series(evil, (1.0, 2.0))], evil, 1.5)
    assert "<script" not in chart
    assert any(evil in title for title in titles(chart))


def test_intervals_show_the_change_the_interval_and_the_margin():
    row = Interval("p_infer_core", -9.4, -11.0, -7.5, -2.0, "regressed", (0.2, -0.2))
    chart = charts.intervals([row])
    assert texts(chart)[0] == "p_infer_core"
    assert "change against the baseline, %" in texts(chart)
    story = "p_infer_core: -9.40 %, regressed; interval of decision -11.00 to -7.50 %"
    assert titles(chart).count(story) == 2
    assert "margin -2.0 %" in titles(chart)
    assert "accepted session: +0.20 %" in titles(chart)


def test_an_interval_that_is_not_known_is_not_drawn():
    chart = charts.intervals([Interval("m", -1.0, None, None, None, "unsure")])
    assert "reach" not in chart
    assert "limit" not in chart


def test_rounds_have_a_point_a_round_and_the_unit():
    chart = charts.rounds([Series("p_infer_core", (1000.0, 990.0, 980.0))], "tok/s", 1010.0)
    assert chart.count("<circle") == 3
    assert {"tok/s", "round"} <= set(texts(chart))
    assert "baseline 1,010 tok/s" in titles(chart)


@pytest.mark.parametrize(
    ("samples", "drift"),
    [
        ((100.0, 98.0, 96.0, 94.0, 92.0), -8 / 96),
        ((5.0, 5.0, 5.0), 0.0),
        ((1.0, 2.0), None),
        ((0.0, 0.0, 0.0), None),
    ],
)
def test_drift_is_that_of_a_straight_line(samples, drift):
    found = charts.drift_fraction(samples)
    assert found == drift if drift is None else math.isclose(found, drift, abs_tol=1e-12)


def test_token_times_are_steps_from_the_second_token_on():
    chart = charts.token_times(
        [Series("inductor", (0.001, 0.0015)), Series("eager", (0.002, 0.002), "b")]
    )
    assert {"token", "ms", "0.0"} <= set(texts(chart))
    assert "inductor, token 3: 1.500 ms" in titles(chart)
    assert "eager, token 2: 2.000 ms" in titles(chart)


def test_a_history_marks_this_run_the_accepted_ones_and_the_baseline_then():
    points = [
        HistoryPoint("2026-11-01", 10.0, "first", "ok", 9.0),
        HistoryPoint("2026-11-02", 12.0, "second", "regressed", 9.0),
        HistoryPoint("2026-11-03", 11.0, "this run", "ok", 10.0),
    ]
    chart = charts.history("mem", "GiB", points, [("2026-11-01", 10.0)])
    assert texts(chart)[-2:] == ["GiB", "3 records, oldest first"]
    assert titles(chart) == ["first", "second", "this run", "accepted 2026-11-01: 10.0 GiB"]
    assert 'class="now regressed"' in chart
    assert chart.count('class="baseline"') == 1


def test_gaps_in_the_baseline_are_gaps_in_its_line():
    held = [9.0, 9.0, None, 9.0, 9.0]
    points = [HistoryPoint(f"2026-11-0{i + 1}", 10.0, "", "ok", b) for i, b in enumerate(held)]
    assert charts.history("m", "s", points, []).count('class="baseline"') == 2


def test_many_points_stay_small():
    points = [HistoryPoint(f"{i:04}", 100.0 + i % 7, f"record {i}", "ok") for i in range(400)]
    assert len(charts.history("m", "s", points, [])) < 10_000


def test_bars_tell_value_unit_and_what_was_accepted():
    chart = charts.bars("peak memory", "peak memory", "GiB", [Bar("inductor", 15.9, 15.6)])
    assert {"inductor", "15.90", "peak memory, GiB"} <= set(texts(chart))
    assert titles(chart) == ["inductor: 15.90, accepted 15.60 GiB"]


def test_a_converging_estimate_has_its_looks_and_its_margin():
    steps = [
        Estimate(1, 3.0, 3.0, None, None),
        Estimate(2, 2.0, 2.5, -900.0, 900.0),
        Estimate(3, 2.5, 2.5, 2.0, 3.0, look=True),
    ]
    chart = charts.converging(steps, 2.0)
    assert "slowdown of the candidate, %" in texts(chart)
    assert "after 3 pairs: +2.50 %, +2.00 to +3.00 %, a look" in titles(chart)
    shown = [float(text) for text in texts(chart) if re.fullmatch(r"-?\d+", text)]
    assert max(map(abs, shown)) < 20  # an early interval does not flatten the rest


@pytest.mark.parametrize(
    ("change", "kind", "start"), [(-2.0, "loss", 25.0), (2.0, "gain", 50.0), (0.0, "gain", 50.0)]
)
def test_share_bars_reach_to_their_side(change, kind, start):
    (bar,) = ET.fromstring(charts.share_bar(change, 4.0)).iter("rect")
    assert (bar.attrib["class"], float(bar.attrib["x"])) == (kind, start)


def test_no_change_anywhere_is_no_bar():
    (bar,) = ET.fromstring(charts.share_bar(0.0, 0.0)).iter("rect")
    assert float(bar.attrib["width"]) == 0
