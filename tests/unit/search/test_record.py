from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fake_workers import last, pair
from perfline.compare.model import Side
from perfline.errors import RecordError
from perfline.search import record
from perfline.search.probe import Environment, Finding, Terms, terms
from perfline.search.record import Journal, Search

TERMS = terms(0.02, 48, probes=8)
FRESH = Search(
    "2026-11-26", True, "perfline bisect tiny", "bisect", "sha256:r", "tiny", "inductor", "mem"
)


def environment(name: str) -> Environment:
    return Environment(name, lambda side: Side(side, Path("python")))


A, B, C = map(environment, "abc")


class Asked:
    """Answers ``bad``, and is killed at the n-th question."""

    def __init__(self, dies_at: int = 99) -> None:
        self.questions: list[str] = []
        self.dies_at = dies_at

    def __call__(self, a: Environment, b: Environment, terms: Terms) -> Finding:
        if len(self.questions) == self.dies_at:
            raise KeyboardInterrupt
        self.questions.append(f"{a.name}{b.name}")
        return Finding("bad", estimate=0.05, minutes=1.5, comparisons={"tiny": last(pair(1, 1.3))})


def journal(path: Path, asked: Asked, search: Search = FRESH) -> Journal:
    return Journal(path, record.resumed(path, search), asked)


def ask(found: Journal) -> None:
    for other in (B, C):
        found.probe("step", A, other, TERMS)


def test_every_probe_is_kept_as_it_was_and_the_record_is_partial_until_the_end(tmp_path: Path):
    path = tmp_path / "search.json"
    found = journal(path, Asked())
    ask(found)

    kept = record.load(path)
    assert kept.partial
    assert kept == found.search
    assert [probe.b for probe in kept.probes] == ["b", "c"]
    assert kept.minutes == 3.0
    ended = found.end(("c",), "c did it")
    assert record.load(path) == ended
    assert not ended.partial


def test_a_killed_search_goes_on_behind_what_it_had_measured(tmp_path: Path):
    path = tmp_path / "search.json"
    with pytest.raises(KeyboardInterrupt):
        ask(journal(path, Asked(dies_at=1)))

    again = Asked()
    told: list[bool] = []
    found = replace(journal(path, again), told=lambda probe, known: told.append(known))
    ask(found)

    assert again.questions == ["ac"]
    assert told == [True, False]
    assert [probe.b for probe in found.search.probes] == ["b", "c"]


def test_another_request_and_one_that_has_ended_begin_anew(tmp_path: Path):
    path = tmp_path / "search.json"
    found = journal(path, Asked())
    ask(found)
    assert record.resumed(path, replace(FRESH, request="sha256:other")).probes == ()
    found.end((), "nothing")
    assert record.resumed(path, FRESH).probes == ()


def test_probes_on_other_terms_are_measured_anew(tmp_path: Path):
    path = tmp_path / "search.json"
    ask(journal(path, Asked()))

    again = Asked()
    found = journal(path, again)
    found.probe("step", A, B, replace(TERMS, margin_fraction=0.01))

    assert again.questions == ["ab"]
    assert len(record.load(path).probes) == 1


def test_what_is_no_record_of_a_search_is_not_written_over(tmp_path: Path):
    path = tmp_path / "search.json"
    path.write_text('{"schema": 1, "kind": "compare"}')
    with pytest.raises(RecordError, match=r"perfline compare \(expected a record of a search\)"):
        record.resumed(path, FRESH)


def test_an_edited_record_is_refused(tmp_path: Path):
    path = tmp_path / "search.json"
    ask(journal(path, Asked()))
    data = json.loads(path.read_text())
    data["probes"][0]["finding"]["word"] = "good"
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match="edited by hand"):
        record.load(path)
