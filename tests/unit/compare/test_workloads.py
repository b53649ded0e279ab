"""Decode beside prefill, or by itself: the same rule for each, and one of them cannot hide."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fake_workers import FakeLauncher, Script, generated, last, noisy, plan
from perfline import jsonfile
from perfline.compare import record, run
from perfline.compare.record import Comparison
from perfline.compare.sequential import ALPHA
from perfline.errors import CaseError, RecordError
from perfline.report import comparison_text


def launcher(prefill=1.0, step=1.0, first=1.0):
    def side(factor, step, first, seed):
        return Script(
            token_s=noisy(factor, 1e-3, seed),
            step_s=noisy(100 * step, 1e-3, seed + 2),
            first_s=noisy(1000 * first, 1e-3, seed + 4),
        )

    return FakeLauncher(side(1, 1, 1, 1), side(prefill, step, first, 2))


def asked(kind, **changes):
    whole = plan()
    return dataclasses.replace(
        whole, workload=dataclasses.replace(whole.workload, kind=kind, **changes)
    )


def words(found):
    names = ("core_time", "decode_time", "ttft")
    return {v.metric: v.word for v in found.verdicts if v.metric in names}


@pytest.mark.parametrize(
    ("slow", "metric"),
    [({"prefill": 1.1}, "core_time"), ({"step": 1.1}, "decode_time"), ({"first": 1.1}, "ttft")],
)
def test_what_is_slow_is_regressed_and_the_others_are_ok(slow, metric):
    found = last(launcher(**slow), asked("all"))
    assert words(found) == {
        **dict.fromkeys(("core_time", "decode_time", "ttft"), "ok"),
        metric: "regressed",
    }
    assert f"{metric} " in comparison_text.headline(found) or metric == "core_time"
    assert "regressed" in comparison_text.headline(found)
    assert found.ended
    assert found.alpha_each == pytest.approx(ALPHA / 3)


def test_decode_alone_is_its_steps_and_the_first_token():
    found = last(launcher(prefill=1.1), asked("decode"))
    assert words(found) == {"decode_time": "regressed", "ttft": "ok"}
    shown = comparison_text.table(found)
    assert "decode  " in shown
    assert "p_infer_core" not in shown
    assert found.alpha_each == pytest.approx(ALPHA / 2)


def test_prefill_is_as_it_was():
    found = last(launcher(), asked("prefill"))
    assert words(found) == {"core_time": "ok"}
    assert found.alpha_each == ALPHA
    assert all(verdict.metric != "decode_flips" for verdict in found.verdicts)
    assert found.beside == {}


def test_a_word_stays_the_one_that_fell_first():
    found = last(launcher(), asked("all"))
    assert {d.word for d in (found.decision, *found.beside.values())} == {"ok"}
    again = run._judged(asked("all"), found, ())
    assert (again.decision, again.beside) == (found.decision, found.beside)


@pytest.mark.parametrize(
    ("tokens", "word", "said"),
    [
        ((4, 5, 6), "ok", "0 of 6 generated tokens differ from A's (0 more are ties)"),
        ((4, 9, 7), "ok", "0 of 5 generated tokens differ from A's (1 more are ties)"),
        ((4, 8, 6), "regressed", "1 of 5 generated tokens differ from A's (0 more are ties)"),
        ((7, 5, 6), "regressed", "1 of 4 generated tokens differ from A's (0 more are ties)"),
        ((4, 5), "incomparable", "A generated 6 tokens, B 5"),
        (None, "missing", "the perfline of B is too old to tell which tokens it generated"),
    ],
)
@pytest.mark.parametrize("alternate", [False, True])
def test_b_s_tokens_are_held_to_a_s(tokens, word, said, alternate):
    both = launcher()
    given = None if tokens is None else (generated(1, 2, 3), generated(*tokens))
    both.candidate = dataclasses.replace(both.candidate, generated=given)
    found = last(both, dataclasses.replace(asked("decode"), alternate=alternate))
    (judged,) = (v for v in found.verdicts if v.metric == "decode_flips")
    assert (judged.word, judged.reason) == (word, said)
    assert both.log.count("generated A") == both.log.count("generated B") == 1
    shown = comparison_text.terminal(
        Comparison("2026-11-26T03:00:00Z", False, "perfline compare", {"tiny": found}), "run.json"
    )
    assert ("first tokens that differ: 1" in shown) == (word == "regressed")
    assert found.word == word


def test_a_worker_that_does_not_tell_is_invalid():
    found = last(FakeLauncher(), asked("all"))
    assert found.verdicts[0].word == "invalid"
    assert "told of a round without step_s" in found.problem


def test_the_record_is_read_again_and_one_that_lacks_seconds_is_refused(tmp_path):
    found = last(launcher(), asked("all"))
    path = tmp_path / "compare.json"
    record.save(
        path, Comparison("2026-11-26T03:00:00Z", False, "perfline compare", {"tiny": found})
    )
    assert record.load(path).cases["tiny"] == found
    data = json.loads(path.read_text())
    del data["cases"]["tiny"]["pairs"][0]["candidate"]["rounds"][1]["first_s"], data["digest"]
    path.write_text(json.dumps(data | {"digest": jsonfile.digest(data)}))
    with pytest.raises(RecordError, match=r"candidate\.rounds\.1\.first_s' is missing"):
        record.load(path)


@pytest.mark.parametrize(
    ("changes", "tokens", "why"),
    [
        ({"ranks": 2}, None, "it runs in one process, without --ranks"),
        ({"engine": "my:Own"}, None, "the engines are eager and inductor"),
        ({}, 0, "leaves it out"),
    ],
)
def test_what_has_no_decode_is_refused_at_once(changes, tokens, why):
    whole = asked("decode", **changes)
    decode = dataclasses.replace(whole.case.decode, tokens=tokens)
    whole = dataclasses.replace(whole, case=dataclasses.replace(whole.case, decode=decode))
    with pytest.raises(CaseError, match=f"--workload decode: .*{why}"):
        run.begin(whole)
