from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import perfline.baselines.baseline
from perfline.baselines.baseline import (
    Anchor,
    Baseline,
    Session,
    load,
    load_published,
    locked,
    merge,
    save,
)
from perfline.engines.engine import Fingerprint
from perfline.errors import BaselineError
from perfline.fields import as_json
from perfline.metrics import Metric
from perfline.tasks.answers import StoredAnswers

REPOSITORY = Path(__file__).parents[3]
WORKLOAD = {"prompts": 64, "tokens": 43511}


def session(value: float = 1000.0, workload: dict[str, Any] = WORKLOAD) -> Session:
    samples = (value - 1, value, value + 1)
    return Session(
        date="2026-11-22",
        commit=None,
        reason="first",
        context={"torch": "2.13.0", "cuda": None},
        workload=workload,
        metrics={
            "p_infer_core": Metric("p_infer_core", value, "tok/s", "higher", samples),
            "recompiles": Metric("recompiles", 0.0, "count", "lower"),
        },
    )


def answers(letters: str) -> StoredAnswers:
    rows = [(f"law/{i}", letter, letter, "A", 0.5) for i, letter in enumerate(letters)]
    return StoredAnswers.of(rows, date="2026-11-22", commit="1a2b3c4", reason="first", context={})


def baseline(**changes: Any) -> Baseline:
    whole = Baseline(
        case="tiny",
        machine="cpu-2",
        case_digest="sha256:0123",
        dtype="fp32",
        accuracy={"eager": answers("AAB"), "inductor": answers("AAC")},
        sessions=(session(),),
        fingerprints={
            "eager": Fingerprint("p", "torch 2.13.0", {"graphs": 0.0}, {"aten::mm": 29.0})
        },
    )
    return dataclasses.replace(whole, **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return perfline.baselines.baseline.path(tmp_path, "cpu-2", "tiny", dummy=False)


def test_what_could_not_be_read_again_does_not_replace_the_old_file(path: Path) -> None:
    save(path, baseline())
    before = path.read_bytes()
    blank = dataclasses.replace(session(), date=" ")

    with pytest.raises(BaselineError, match=r"could not be read again \(key .*date' is") as raised:
        save(path, baseline(sessions=(blank,)))

    assert str(raised.value).startswith(f"{path}: ")
    assert ".tmp" not in str(raised.value)
    assert (path.read_bytes(), [*path.parent.iterdir()]) == (before, [path])


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """Edit a saved baseline by hand and return the one line that loading it raises."""
    save(path, baseline())
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(BaselineError) as raised:
        load(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_baseline_has_one_place() -> None:
    root = Path("baselines")

    assert (
        perfline.baselines.baseline.path(root, "cpu-2", "tiny", False) == root / "cpu-2/tiny.json"
    )
    assert (
        perfline.baselines.baseline.path(root, "cpu-2", "tiny", True)
        == root / "cpu-2/tiny-dummy.json"
    )


def test_what_was_saved_is_loaded(path: Path) -> None:
    save(path, baseline())

    assert load(path) == baseline()


def test_a_baseline_of_dummy_weights_is_saved_beside(tmp_path: Path) -> None:
    path = perfline.baselines.baseline.path(tmp_path, "cpu-2", "tiny", dummy=True)
    save(path, baseline(accuracy={}))

    assert load(path) == baseline(accuracy={})


def test_saving_again_changes_no_byte(path: Path) -> None:
    save(path, baseline())
    first = path.read_bytes()
    save(path, load(path))

    assert path.read_bytes() == first


def test_values_are_those_of_every_session_that_has_the_metric() -> None:
    held = baseline(sessions=(session(1000.0), session(990.0)))

    assert held.values("p_infer_core") == (1000.0, 990.0)
    assert held.values("p_val_core") == ()


# --- broken files


def test_a_hand_edited_file_is_refused_with_the_way_out(path: Path) -> None:
    def faster(data: dict[str, Any]) -> None:
        data["throughput"]["sessions"][0]["metrics"]["p_infer_core"]["value"] = 2000.0

    assert edit(path, faster) == (
        "was edited by hand (its digest does not fit); restore it with `git restore`; "
        "or remove it (`perfline baselines remove`), run again, and accept that run"
    )


@pytest.mark.parametrize("key", ["case", "machine", "case_digest", "dtype", "digest"])
def test_a_missing_key_is_named(path: Path, key: str) -> None:
    message = edit(path, lambda data: data.pop(key))

    assert message.startswith(f"key '{key}' is missing (expected text); restore it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=1), "has schema 1, and this perfline reads schema 2"),
        (lambda d: d.update(dtype=16), "key 'dtype' is 16 (expected text)"),
        (lambda d: d.pop("accuracy"), "key 'accuracy' is missing (expected an object)"),
        (
            lambda d: d["accuracy"]["eager"]["subjects"]["law"].update(labels="AB"),
            "key 'accuracy.eager.subjects.law.letters' and the other columns differ in length",
        ),
        (
            lambda d: d["throughput"]["sessions"][0].pop("workload"),
            "key 'throughput.sessions.0.workload' is missing (expected an object)",
        ),
        (
            lambda d: d["throughput"]["sessions"][0]["metrics"]["p_infer_core"].update(value="x"),
            "key 'throughput.sessions.0.metrics.p_infer_core.value' is \"x\" (expected a number)",
        ),
        (
            lambda d: d["throughput"]["sessions"][0]["metrics"]["p_infer_core"].update(value=0),
            "key 'throughput.sessions.0.metrics.p_infer_core' is 0 tok/s (expected a number above",
        ),
        (
            lambda d: d["throughput"]["sessions"][0]["metrics"]["recompiles"].update(value=-1),
            "key 'throughput.sessions.0.metrics.recompiles' is -1 count (expected a number at",
        ),
        (
            lambda d: d["fingerprints"]["eager"]["counts"].update(graphs=-1),
            "key 'fingerprints.eager.counts.graphs' is -1 (expected a number at least 0)",
        ),
        (
            lambda d: d["fingerprints"]["eager"].update(counts={}),
            "key 'fingerprints.eager' is wrong (a fingerprint without counts); restore it",
        ),
        (
            lambda d: d["throughput"]["sessions"][0]["metrics"]["p_infer_core"].update(
                value=math.nan
            ),
            "holds NaN, which is no number",
        ),
    ],
)
def test_a_wrong_value_is_named(path: Path, change: Any, message: str) -> None:
    assert edit(path, change).startswith(message)


def test_a_torn_file_names_line_and_column(path: Path) -> None:
    save(path, baseline())
    text = path.read_text()
    path.write_text(text[: len(text) // 2])

    with pytest.raises(
        BaselineError, match=r"is torn or not JSON at line \d+, column \d+: .*; rest"
    ):
        load(path)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("cpu-2/other.json", "holds the baseline of case 'tiny' (expected 'other'"),
        ("cpu-4/tiny.json", "holds the baseline of machine 'cpu-2' (expected 'cpu-4'"),
    ],
)
def test_a_baseline_in_the_wrong_place_is_refused(
    path: Path, tmp_path: Path, place: str, message: str
) -> None:
    save(path, baseline())
    wrong = tmp_path / place
    wrong.parent.mkdir(exist_ok=True)
    path.rename(wrong)

    with pytest.raises(BaselineError) as raised:
        load(wrong)
    assert str(raised.value).startswith(f"{wrong}: {message}")
    with pytest.raises(BaselineError):
        save(wrong, baseline())


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_zero_and_negative_throughput_are_not_saved(path: Path, value: float) -> None:
    broken = dataclasses.replace(
        session(), metrics={"p_val_core": Metric("p_val_core", value, "tok/s", "higher")}
    )

    with pytest.raises(BaselineError, match=r"p_val_core is -?\d tok/s .*; not stored$"):
        save(path, baseline(sessions=(broken,)))
    assert not path.exists()


def test_no_round_may_be_zero(path: Path) -> None:
    metric = Metric("p_val_core", 5.0, "tok/s", "higher", (5.0, 0.0, 5.0))
    broken = dataclasses.replace(session(), metrics={"p_val_core": metric})

    with pytest.raises(BaselineError, match="p_val_core is 0 tok/s"):
        save(path, baseline(sessions=(broken,)))


# --- merging


def test_the_first_run_is_the_baseline() -> None:
    assert merge(None, baseline()) == baseline()


def test_a_throughput_run_keeps_the_answers() -> None:
    merged = merge(baseline(), baseline(accuracy={}, sessions=(session(1100.0),)))

    assert merged.accuracy == baseline().accuracy
    assert merged.values("p_infer_core") == (1100.0,)


def test_an_accuracy_run_keeps_the_sessions_and_the_other_engine() -> None:
    merged = merge(baseline(), baseline(accuracy={"inductor": answers("ABA")}, sessions=()))

    assert merged.sessions == baseline().sessions
    assert merged.accuracy["eager"] == answers("AAB")
    assert merged.accuracy["inductor"] == answers("ABA")


def test_add_appends_the_session_and_keeps_the_answers() -> None:
    new = baseline(accuracy={"eager": answers("BBB")}, sessions=(session(1100.0),))
    merged = merge(baseline(), new, add=True)

    assert merged.values("p_infer_core") == (1000.0, 1100.0)
    assert merged.accuracy == baseline().accuracy


def anchor(*values: float) -> Anchor:
    metric = Metric("p_infer_core", sum(values) / len(values), "tok/s", "higher", values)
    return Anchor(metric, "2026-11-22", None, "first")


def test_replaced_sessions_become_the_anchor_of_what_moved(path: Path) -> None:
    old = baseline(sessions=(session(1000.0), session(990.0)))

    merged = merge(old, baseline(sessions=(session(985.0),)))

    assert merged.anchors == {"p_infer_core": anchor(1000.0, 990.0)}  # not of equal counts
    assert merged.anchor("p_infer_core") == ((1000.0, 990.0), "2026-11-22")
    assert merged.anchor("recompiles") == ((), "")
    save(path, merged)
    assert load(path) == merged


def test_an_anchor_stays_until_it_is_moved() -> None:
    old = baseline(anchors={"p_infer_core": anchor(1000.0)}, sessions=(session(985.0),))
    new = baseline(sessions=(session(980.0),))

    assert merge(old, new).anchors == old.anchors
    assert merge(old, new, add=True).anchors == old.anchors
    assert merge(old, baseline(sessions=())).anchors == old.anchors
    assert merge(old, new, moved={"p_infer_core"}).anchors == {}
    assert merge(old, new, add=True, moved={"p_infer_core"}).anchors == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"case_digest": "sha256:9"},
        {"dtype": "fp16"},
        {"sessions": (session(985.0, {"prompts": 8}),)},
    ],
    ids=["case", "dtype", "workload"],
)
def test_what_does_not_compare_has_no_anchor(changes: dict[str, Any]) -> None:
    old = baseline(anchors={"p_infer_core": anchor(1000.0)})

    assert merge(old, baseline(**{"sessions": (session(985.0),), **changes})).anchors == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("reason"), "reason' is missing (expected text)"),
        (lambda a: a["metric"].pop("samples"), "metric.samples' is missing (expected a list"),
        (lambda a: a["metric"].update(value=0), "metric' is 0 tok/s (expected a number above 0)"),
        (lambda a: a["metric"].update(unit=1), "metric.unit' is 1 (expected text)"),
    ],
)
def test_a_broken_anchor_is_named(path: Path, change: Any, message: str) -> None:
    def spoil(data: dict[str, Any]) -> None:
        held = {"metric": as_json(anchor(1000.0).metric), "reason": "first", "commit": None}
        data["throughput"]["anchors"] = {"p_infer_core": held | {"date": "2026-11-22"}}
        change(data["throughput"]["anchors"]["p_infer_core"])

    assert edit(path, spoil).startswith(f"key 'throughput.anchors.p_infer_core.{message}")


def test_an_anchor_that_is_not_plausible_is_not_stored(path: Path) -> None:
    with pytest.raises(BaselineError, match=r"p_infer_core is 0 tok/s .*; not stored$"):
        save(path, baseline(anchors={"p_infer_core": anchor(0.0)}))


def test_add_to_nothing_starts_a_baseline() -> None:
    assert merge(None, baseline(), add=True) == baseline()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"case_digest": "sha256:9"},
            "the baseline's case_digest is sha256:0123, the run's is sha",
        ),
        (
            {"dtype": "fp16"},
            "the baseline's dtype is fp32, the run's is fp16; update without --add",
        ),
        (
            {"sessions": (session(9.0, {"prompts": 8}),)},
            "the baseline's workload is {'prompts': 64",
        ),
        ({"sessions": ()}, "tiny: the run has no throughput to add"),
        ({"sessions": (session(),)}, "tiny: the session of 2026-11-22 is in the baseline already"),
    ],
)
def test_add_refuses_what_does_not_compare(changes: dict[str, Any], message: str) -> None:
    new = baseline(**{"sessions": (session(1100.0),), **changes})

    with pytest.raises(BaselineError) as raised:
        merge(baseline(), new, add=True)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("changes", [{"case_digest": "sha256:9"}, {"dtype": "fp16"}])
def test_a_changed_case_keeps_nothing_old(changes: dict[str, Any]) -> None:
    new = baseline(accuracy={}, sessions=(session(1100.0),), **changes)

    assert merge(baseline(), new) == new


@pytest.mark.parametrize(("name", "other"), [("case", "llama3-8b"), ("machine", "cpu-4")])
@pytest.mark.parametrize("add", [False, True])
def test_another_case_or_machine_never_merges(name: str, other: str, add: bool) -> None:
    with pytest.raises(BaselineError, match=f"the baseline's {name} is .*; that is another basel"):
        merge(baseline(), baseline(**{name: other}), add=add)


def test_an_update_holds_the_lock_while_it_reads_and_writes(path: Path) -> None:
    for value in (1000.0, 1010.0, 1020.0):
        with locked(path):
            old = load(path) if path.exists() else None
            save(path, merge(old, baseline(sessions=(session(value),)), add=True))

    assert load(path).values("p_infer_core") == (1000.0, 1010.0, 1020.0)
    assert list(path.parent.iterdir()) == [path]


# --- published figures


@pytest.mark.parametrize(
    ("case", "figures"),
    [
        ("llama3-8b", (2415, 7945.9, 7979.6, 8178.3, 9051.3, 0.464, 0.652, 0.652, 34.5)),
        ("deepseek-7b", (2305, 8877.0, 8913.4, 9383.8, 10338.8, 0.464, 0.482, 0.482, 28.7)),
    ],
)
def test_the_published_figures_of_both_cases(case: str, figures: tuple[float, ...]) -> None:
    published = load_published(REPOSITORY / "baselines" / "published" / f"{case}.json")

    names = "e2e_time p_val_whole p_val_core p_infer_whole p_infer_core mfu acc_infer acc_val mem"
    assert {name: f.value for name, f in published.metrics.items() if f.judged} == dict(
        zip(names.split(), figures, strict=True)
    )
    shown = {name: f.value for name, f in published.metrics.items() if not f.judged}
    chinese = {"acc_val_ceval": 0.45, "acc_infer_ceval": 0.45}
    chinese |= {"acc_val_cmmlu": 0.472, "acc_infer_cmmlu": 0.472}
    assert shown == (chinese if case == "deepseek-7b" else {})
    assert (published.device, published.dtype) == ("nvidia-a100-sxm4-40gb", "fp16")
    assert published.metrics["p_infer_core"].unit == "tok/s"
    assert "while loading" in published.metrics["mem"].note
    assert "14,042 questions" in published.source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"case": "x"}, "key 'case' is 'x' (expected 'tiny', the file's name)"),
        (
            {"metrics": {"mfu": {"value": 0, "unit": "fraction"}}},
            "key 'metrics.mfu.value' is 0 (exp",
        ),
        ({"metrics": {"mfu": {"value": 1}}}, "key 'metrics.mfu.unit' is missing (expected tok/s"),
        ({"device": 3}, "key 'device' is 3 (expected text or null)"),
    ],
)
def test_a_broken_published_file_is_one_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "tiny.json"
    data = {"schema": 1, "case": "tiny", "source": "s", "device": None, "dtype": "fp32"}
    path.write_text(json.dumps(data | {"metrics": {}} | change))

    with pytest.raises(BaselineError) as raised:
        load_published(path)
    assert str(raised.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    "machine", ["..", "/abs", "a/b", "", ".", "A100", "-x", "x\n", "published"]
)
def test_a_machine_that_leads_elsewhere_is_refused(tmp_path: Path, machine: str) -> None:
    with pytest.raises(BaselineError) as raised:
        perfline.baselines.baseline.path(tmp_path, machine, "tiny", dummy=False)
    message = (
        f"machine is {machine!r}; expected [a-z0-9][a-z0-9-]*, not 'published'; "
        "measure anew, do not edit"
    )
    assert str(raised.value) == message
    with pytest.raises(BaselineError) as raised:
        save(tmp_path / "cpu-2" / "tiny.json", baseline(machine=machine))
    assert str(raised.value) == message
    assert list(tmp_path.iterdir()) == []


def test_a_case_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match=r"case is '\.\./tiny'; expected"):
        perfline.baselines.baseline.path(tmp_path, "cpu-2", "../tiny", dummy=False)


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        (
            {"value": 65.2, "unit": "fraction"},
            "key 'metrics.acc.value' is 65.2 as a fraction (expected 0 to 1)",
        ),
        (
            {"value": 65.2, "unit": "%"},
            "key 'metrics.acc.unit' is \"%\" (expected tok/s, fraction, s or GiB)",
        ),
    ],
)
def test_a_published_figure_has_a_known_unit(
    tmp_path: Path, figure: dict[str, Any], message: str
) -> None:
    path = tmp_path / "tiny.json"
    data = {"schema": 1, "case": "tiny", "source": "s", "device": None, "dtype": "fp32"}
    path.write_text(json.dumps(data | {"metrics": {"acc": figure}}))
    with pytest.raises(BaselineError) as raised:
        load_published(path)
    assert str(raised.value) == f"{path}: {message}; restore it with `git restore`"


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            Metric("m", 5.0, "MB", "lower"),
            "has unit 'MB' (expected one of tok/s, GiB, count, s, fraction, tok, questions, x, "
            "questions/s)",
        ),
        (
            Metric("m", 5.0, "tok/s", "lower"),
            "has direction 'lower' (expected higher or info for tok/s)",
        ),
        (
            Metric("m", 5e-4, "tok/s", "higher"),
            "is 0.0005 tok/s, not plausible (expected at least 0.001)",
        ),
        (
            Metric("m", 5e-7, "GiB", "lower"),
            "is 5e-07 GiB, not plausible (expected at least 1e-06)",
        ),
        (
            Metric("m", 5.0, "tok/s", "higher", (5.0, 1e-300)),
            "is 1e-300 tok/s, not plausible (expected at least 0.001)",
        ),
    ],
)
def test_a_metric_that_is_not_plausible_is_neither_stored_nor_read(
    path: Path, metric: Metric, message: str
) -> None:
    odd = baseline(sessions=(dataclasses.replace(session(), metrics={"m": metric}),))
    with pytest.raises(BaselineError) as raised:
        save(path, odd)
    assert str(raised.value) == f"{path}: m {message}; not stored"

    def spoil(data: dict[str, Any]) -> None:
        data["throughput"]["sessions"][0]["metrics"]["m"] = as_json(metric)

    assert edit(path, spoil).startswith(f"key 'throughput.sessions.0.metrics.m' {message}; restore")
