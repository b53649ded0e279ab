"""benchmarks/gate: the rebuilt rules, what is read, and how decisions are counted."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from perfline.compare.sequential import LOOKS
from perfline.errors import PerflineError, RecordError

sys.path.append(str(Path(__file__).parents[3] / "benchmarks" / "gate"))
import _recording
import _table
import evaluate
import rules

LEVELS = (0.0, 0.01, 0.02, 0.05)


def around(centre: float, sd_fraction: float, count: int = 12) -> np.ndarray:
    """Rounds at the normal quantiles: their mean and median are exactly ``centre``."""
    quantiles = scipy.stats.norm.ppf((np.arange(count) + 0.5) / count)
    return centre * (1 + sd_fraction * quantiles)


def recording_json(
    pairs: int = 60,
    pair_sd: float = 0.017,
    session_sd: float = 0.15,
    bias: float = 0.0,
    levels: tuple[float, ...] = LEVELS,
) -> dict[str, object]:
    """A noisy machine: what both sides of a pair share is far above what parts them."""
    rng = np.random.default_rng(5)
    found = []
    for launch in range(pairs):
        session, apart = rng.normal(0, session_sd), bias + rng.normal(0, pair_sd)
        rounds = {}
        for level in levels:
            shared = session + rng.normal(0, 0.03, 8)
            a, b = (100 * np.exp(shared + rng.normal(0, 0.005, 8)) for _ in "ab")
            b = b * math.exp(apart) * (1 + level)
            rounds[str(level)] = {"a": a.tolist(), "b": b.tolist()}
        start = 1000.0 + 60 * launch
        found.append({"launch": launch, "start_s": start, "launch_s": [5.0, 7.0], "levels": rounds})
    return {
        "schema": 1,
        "machine": "cpu-test",
        "context": {"torch": "2.13.0", "threads": 1},
        "created": "2026-11-22T00:00:00Z",
        "command": "record.py",
        "case": "tiny",
        "engine": "inductor",
        "levels": list(levels),
        "note": "Made up.",
        "pairs": found,
    }


def written(folder: Path, data: object) -> Path:
    path = folder / "made-up.json"
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def recording(tmp_path: Path) -> _recording.Recording:
    return _recording.read(written(tmp_path, recording_json()))


# --- thresholds


@pytest.mark.parametrize(
    ("rule", "limit"),
    [
        (rules.pytest_benchmark_mean_5, 1.05),
        (rules.pytest_benchmark_min_5, 1.05),
        (rules.pytorch_7, 1.07),
        (rules.fixed_10, 1.10),
    ],
)
def test_a_threshold_trips_just_above_it(rule: rules.TwoSamples, limit: float) -> None:
    base = around(100.0, 0.01)

    assert not rule(base, base * (limit - 0.001))
    assert rule(base, base * (limit + 0.001))
    assert not rule(base * 2, base)


def test_the_minimum_does_not_see_slow_rounds() -> None:
    base = around(100.0, 0.01)
    spiked = base + np.where(base > base.min(), 50.0, 0.0)

    assert rules.pytest_benchmark_mean_5(base, spiked)
    assert not rules.pytest_benchmark_min_5(base, spiked)


# --- tests within a run


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.03]))
def test_welch_and_mann_whitney_are_scipys_two_sided_tests(seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    base, new = rng.normal(1, 0.02, 12), rng.normal(1 + shift, 0.03, 9)
    variances = base.var(ddof=1) / 12, new.var(ddof=1) / 9
    t = (new.mean() - base.mean()) / math.sqrt(sum(variances))
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 11 + variances[1] ** 2 / 8)
    u = sum(float(x > y) for x in new for y in base)
    p_u = scipy.stats.mannwhitneyu(new, base, method="exact").pvalue

    assert rules.welch_5(base, new) == bool(2 * scipy.stats.t.sf(t, freedom) < 0.05)
    assert rules.mann_whitney_5(base, new) == (
        p_u < 0.05 and u > 54 and bool(np.median(new) > np.median(base))
    )


def test_within_run_tests_call_the_next_launch_slower_that_only_differs_by_its_launch() -> None:
    base, shifted = around(100.0, 0.003), around(100.5, 0.003)  # 0.5 %: a launch's own offset

    assert rules.welch_5(base, shifted)
    assert rules.mann_whitney_5(base, shifted)
    assert not rules.criterion(base, shifted)  # below its noise threshold of 1 %


@pytest.mark.parametrize(
    ("factor", "rounds", "slower"),
    [
        (1.09, 12, False),  # significant, but below the factor
        (1.12, 12, True),
        (1.12, 30, True),  # normal approximation
        (1.12, 5, False),  # 1 / C(10, 5) = 0.004: no test can say p < 0.002
        (1.12, 6, False),  # 1 / C(12, 6) = 0.0011, but twice that is p
        (1.12, 7, True),
    ],
)
def test_asv_wants_both_the_factor_and_the_u_test(factor: float, rounds: int, slower: bool) -> None:
    base = around(100.0, 0.01, rounds)

    assert rules.asv_factor_1_1(base, base * factor) is slower


@pytest.mark.parametrize(
    ("shift", "noise", "slower"),
    [(0.03, 0.005, True), (0.008, 0.001, False), (0.0, 0.01, False), (0.03, 0.1, False)],
)
def test_criterion_wants_an_interval_beyond_its_noise_threshold(
    shift: float, noise: float, slower: bool
) -> None:
    base = around(100.0, noise)

    assert rules.criterion(base, base * (1 + shift)) is slower
    assert rules.criterion(base * (1 + shift), base) is False


def test_rounds_without_any_spread_are_judged_all_the_same() -> None:
    same = np.full(8, 100.0)

    for rule in (rules.criterion, rules.asv_factor_1_1, rules.pytest_benchmark_mean_5):
        assert rule(same, same) is False
        assert rule(same, same * 1.2) is True


# --- the history


def test_bencher_draws_the_line_at_the_prediction_interval() -> None:
    history = around(100.0, 0.01, 30)
    limit = 100.0 + scipy.stats.t.ppf(0.99, 29) * history.std(ddof=1) * math.sqrt(1 + 1 / 30)

    assert not rules.bencher_t_99(history, limit - 1e-6)
    assert rules.bencher_t_99(history, limit + 1e-6)


def test_bencher_looks_at_the_last_64_runs_and_needs_a_spread() -> None:
    history = np.concatenate([np.full(40, 500.0), around(100.0, 0.01, 64)])

    assert rules.bencher_t_99(history, 110.0)
    assert not rules.bencher_t_99(np.full(10, 100.0), 200.0)
    assert not rules.bencher_t_99(np.array([100.0]), 200.0)


# --- perfline's gates


@pytest.mark.parametrize(
    ("factor", "word"), [(1.1, "regressed"), (1.0, "ok"), (0.9, "improved"), (1.014, "unsure")]
)
def test_the_stored_gate_is_the_one_that_pytest_runs(factor: float, word: str) -> None:
    history = [around(100.0 * (1 + 0.004 * (index % 3 - 1)), 0.002) for index in range(8)]

    assert rules.stored_gate(history, around(100.0 * factor, 0.002)) == word


def test_the_ab_gate_looks_only_at_looks_and_may_run_out_of_pairs() -> None:
    assert rules.ab_gate([0.05] * 9) is None
    first = rules.ab_gate([0.05 + 0.001 * index for index in range(60)])
    assert first is not None
    assert (first.word, first.pairs) == ("regressed", LOOKS[0])
    noisy = [0.3 * (-1) ** index * (1 + index) for index in range(LOOKS[-1])]
    assert rules.ab_gate(noisy[:-1]) is None
    last = rules.ab_gate(noisy)
    assert last is not None
    assert (last.word, last.pairs) == ("unsure", LOOKS[-1])


# --- reading


def test_a_recording_gives_one_median_log_ratio_a_pair(recording: _recording.Recording) -> None:
    rounds = recording.pairs[3].levels[0.02]
    by_hand = float(np.median([math.log(b / a) for a, b in zip(rounds.a, rounds.b, strict=True)]))

    assert recording.levels == LEVELS
    assert recording.log_ratios(0.02)[3] == pytest.approx(by_hand, rel=1e-12)
    assert recording.log_ratios(0.05).mean() - recording.log_ratios(0.0).mean() == pytest.approx(
        math.log(1.05), abs=0.002
    )
    assert recording.spreads() == pytest.approx((0.017, 0.007), rel=0.3)
    assert recording.seconds_per_pair == pytest.approx(7 + (60 - 7) / 4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.update(schema=2), "schema 2"),
        (lambda d: d.update(levels=[0.01]), "expected 0.0"),
        (lambda d: d.update(pairs=d["pairs"][:1]), "at least 2 launch pairs"),
        (lambda d: d["pairs"][1].update(launch_s=[1.0]), "pairs.1.launch_s' holds 1"),
        (lambda d: d["pairs"][1]["levels"].pop("0.02"), r"pairs.1.levels' lacks \[0.02\]"),
        (lambda d: d["pairs"][1]["levels"].update(slow={}), "is no slow-down"),
        (lambda d: d["pairs"][1]["levels"]["0.0"]["a"].pop(), "has 7 and b 8 rounds"),
        (lambda d: d["pairs"][1]["levels"]["0.0"].update(b=[0.0] * 8), "all above 0"),
        (lambda d: d["pairs"][1]["levels"]["0.0"].update(b="x"), "no list of numbers"),
    ],
)
def test_a_damaged_recording_is_one_clear_line(damage, message: str, tmp_path: Path) -> None:
    data = recording_json(pairs=3)
    damage(data)

    with pytest.raises(RecordError, match=message) as problem:
        _recording.read(written(tmp_path, data))
    assert "made-up.json" in str(problem.value)
    assert "\n" not in str(problem.value)


# --- counting


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> _table.Evaluation:
    path = written(tmp_path_factory.mktemp("gate"), recording_json())
    return evaluate.evaluate(_recording.read(path), decisions=300, seed=1)


def row(found: _table.Evaluation, rule: str, decided_on: str) -> _table.Row:
    (only,) = [r for r in found.rows if r.rule == rule and r.decided_on.startswith(decided_on)]
    return only


def test_every_rule_judges_the_same_later_launches(evaluation: _table.Evaluation) -> None:
    stored = [r for r in evaluation.rows if r.decided_on.startswith("stored")]

    assert [r.rule for r in stored] == [rule.name for rule in rules.RULES]
    assert {cell.decisions for r in stored for cell in r.cells.values()} == {30}


def test_a_stored_threshold_is_counted_as_by_hand(evaluation: _table.Evaluation) -> None:
    pairs = evaluation.recording.pairs
    for level in LEVELS:
        by_hand = sum(
            new.levels[level].b.mean() / old.levels[level].a.mean() > 1.05
            for old, new in itertools.pairwise(pairs[29:])
        )
        cell = row(evaluation, "pytest-benchmark mean:5%", "stored").cells[level]
        assert (cell.regressed, cell.mean_pairs) == (by_hand, 0.5)


def test_the_launch_that_is_judged_and_later_ones_are_no_baseline(tmp_path: Path) -> None:
    data = recording_json(pairs=20)
    before = evaluate.evaluate(_recording.read(written(tmp_path, data)), 1, 0)
    for rounds in data["pairs"][-1]["levels"].values():
        rounds["a"] = [value * 10 for value in rounds["a"]]
    after = evaluate.evaluate(_recording.read(written(tmp_path, data)), 1, 0)

    stored = [
        [r.cells for r in found.rows if r.decided_on.startswith("stored")]
        for found in (before, after)
    ]
    assert stored[0] == stored[1]


def test_consecutive_comparisons_share_no_pair(evaluation: _table.Evaluation) -> None:
    cell = row(evaluation, "perfline A/B", "consecutive").cells[0.0]

    assert cell.decisions >= 2
    assert cell.mean_pairs is not None
    assert cell.decisions * cell.mean_pairs <= 60
    assert cell.mean_s == pytest.approx(cell.mean_pairs * 20.25)


def test_on_a_noisy_machine_the_pairs_see_what_thresholds_do_not(
    evaluation: _table.Evaluation,
) -> None:
    ours = row(evaluation, "perfline A/B", "resampled pairs; at 0").cells
    threshold = row(evaluation, "pytest-benchmark mean:5%", "stored").cells

    assert ours[0.0].decisions == 300
    assert ours[0.0].regressed <= 3
    assert ours[0.05].regressed == 300
    assert threshold[0.0].regressed >= 5
    assert evaluation.claims[0].holds is True
    assert (ours[0.02].rate >= 0.95) is evaluation.claims[1].holds


def test_a_bias_between_the_sides_is_not_hidden_by_exchanging_roles(tmp_path: Path) -> None:
    path = written(tmp_path, recording_json(bias=0.04, levels=(0.0, 0.01)))
    found = evaluate.evaluate(_recording.read(path), decisions=300, seed=1)

    assert row(found, "perfline A/B", "resampled pairs; at 0").cells[0.0].rate <= 0.03
    assert row(found, "perfline A/B", "resampled pairs, roles").cells[0.0].rate > 0.4
    assert [claim.holds for claim in found.claims] == [False, None, None]
    assert found.claims[1].found == "2 % was not recorded"


def test_into_a_recording_of_equals_alone_slow_downs_are_multiplied(
    evaluation: _table.Evaluation, tmp_path: Path
) -> None:
    path = written(tmp_path, recording_json(levels=(0.0,)))
    found = evaluate.evaluate(_recording.read(path), decisions=300, seed=1)
    slowed = found.recording.pairs[7].levels

    assert tuple(slowed) == found.recording.levels == (0.0, *evaluate.MULTIPLIED)
    assert slowed[0.02].b.tolist() == pytest.approx((slowed[0.0].b * 1.02).tolist())
    assert slowed[0.02].a is slowed[0.0].a
    assert found.recording.seconds_per_pair == 60.0
    assert "multiplied into B's rounds, not measured" in _table.markdown([found])
    assert "The slow-downs as measured" in _table.markdown([evaluation])
    assert row(found, "perfline A/B", "resampled pairs; at 0").cells[0.05].regressed == 300


def test_too_few_decisions_do_not_show_1_percent(tmp_path: Path) -> None:
    found = evaluate.evaluate(_recording.read(written(tmp_path, recording_json(20))), 298, 0)

    assert found.claims[0].holds is False
    assert row(found, "perfline A/B", "consecutive").cells[0.0].decisions <= 2


def test_the_same_seed_gives_the_same_table(
    evaluation: _table.Evaluation, recording: _recording.Recording
) -> None:
    again = evaluate.evaluate(recording, decisions=300, seed=1)

    assert _table.markdown([again]) == _table.markdown([evaluation])


# --- showing


def test_cells_carry_clopper_pearson_bounds() -> None:
    assert _table.Cell(299, 0, 0, 10.0, None).text == "0.0 (0.0-1.2)"
    assert _table.Cell(100, 95, 5, 10.0, None).text == "95.0 (88.7-98.4)"
    assert _table.Cell(0, 0, 0, None, None).text == "-"


def test_the_script_prints_and_writes_between_the_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    written(tmp_path / "data", recording_json(24))
    readme = tmp_path / "README.md"
    readme.write_text(f"# Gate\n\n{_table.BEGIN}\nstale text\n{_table.END}\n\nafter\n")
    monkeypatch.setattr(evaluate, "HERE", tmp_path)

    assert evaluate.main(["--write", "--decisions", "20"]) == 0
    assert evaluate.main(["--write", "--decisions", "20"]) == 0  # replaces, does not append

    printed = capsys.readouterr().out
    text = readme.read_text()
    assert text.startswith(f"# Gate\n\n{_table.BEGIN}\n### made-up: tiny, inductor")
    assert text.endswith(f"{_table.END}\n\nafter\n")
    assert text.count("| perfline, stored baseline |") == 1
    assert "stale text" not in text
    assert "resampled from 24 launch pairs, the roles of each pair exchanged at random" in text
    assert text.split(_table.BEGIN + "\n")[1].split(_table.END)[0] in printed
    data = json.loads((tmp_path / "evaluation.json").read_text())
    (only,) = data["recordings"]
    assert only["launch_pairs"] == 24
    assert {r["rule"] for r in only["rows"]} >= {rule.name for rule in rules.RULES}
    assert only["rows"][0]["levels"]["0.02"]["decisions"] == 20


def test_without_markers_or_recordings_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "HERE", tmp_path)
    assert evaluate.main([]) == 2
    assert "run benchmarks/gate/record.py" in capsys.readouterr().err

    (tmp_path / "README.md").write_text("nothing here")
    with pytest.raises(PerflineError, match="put them back"):
        _table.write_between_markers(tmp_path / "README.md", "text")
