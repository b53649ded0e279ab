from __future__ import annotations

from dataclasses import replace

import pytest

from perfline.report import search_text
from perfline.report.search_text import Shown
from perfline.search import isolate
from perfline.search.bisect import Answer
from perfline.search.probe import Finding, terms
from perfline.search.record import Probe, Search

TERMS = terms(0.02, 48, probes=8)
BAD = Finding("bad", "", 0.05, 0.04, 0.06, "+5.1 %", 14, 4.9)
SKIPPED = Finding("skipped", "candidate: was asked to load and ended with status 1", minutes=0.4)


class Commit:
    def __init__(self, subject: str = "", date: str = "") -> None:
        self.subject = subject
        self.date = date


SHOWN = Shown("commit", {f"{n:012d}": Commit(f"change {n}", "2026-11-20") for n in range(5)})
NAMES = list(SHOWN.candidates)


def search(*findings: Finding) -> Search:
    found = Search(
        "2026", False, "perfline bisect tiny", "bisect", "r", "tiny", "eager", "core_time"
    )
    probes = tuple(Probe("half", NAMES[0], NAMES[1], TERMS, finding) for finding in findings)
    return replace(found, probes=probes)


def terminal(answer: Answer, shown: Shown = SHOWN, follow: str = "") -> str:
    text = search_text.terminal(search(BAD, SKIPPED), answer, shown, "results/bisect.json", follow)
    assert max(map(len, text.splitlines())) <= 80
    return text


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_step_has_its_subject_its_size_and_its_share():
    step = Finding("bad", "", 0.031, 0.025, 0.036, "+3.1 %", 14, 5.0)
    answer = Answer("step", BAD, (NAMES[2],), NAMES[1], step)

    text = terminal(answer, follow="perfline compare")

    assert text.startswith(f"tiny eager core_time: first bad commit: {NAMES[2]}\n")
    assert f"{NAMES[2]} 2026-11-20 change 2" in words(text)
    assert "+3.1 % [+2.5 %, +3.7 %], of +5.1 % [+4.1 %, +6.2 %] from the good end" in words(text)
    assert "there is more than one step in the range" in words(text)
    assert f"skipped {NAMES[1]}: candidate: was asked to load and ended" in words(text)
    assert "2 comparisons, 5 minutes in all" in text
    assert text.endswith("next: perfline compare")


def test_skipped_ones_before_the_last_are_named_with_it():
    text = terminal(Answer("step", BAD, (NAMES[2], NAMES[3]), NAMES[1], BAD))
    assert f"one of 2 commits did it, up to {NAMES[3]}: those before it could not be" in words(text)
    assert "more than one step" not in text


def test_a_range_says_why_it_is_no_more():
    text = terminal(Answer("range", BAD, (NAMES[2],), NAMES[1], None, "c2 is unsure: +2.0 %"))
    assert f"it lies between {NAMES[1]} and {NAMES[2]}: c2 is unsure: +2.0 %" in words(text)
    assert "at most 1 %" not in text


@pytest.mark.parametrize(
    ("outcome", "improved", "said"),
    [
        ("same", False, "the bad end is no worse than the good one: there is nothing to find"),
        ("same", True, "the bad end is no better than the good one"),
        ("better", False, "--improved finds where it became so"),
        ("better", True, "the bad end is worse than the good one: look without --improved"),
        ("unsure", False, "whether the bad end is worse could not be told"),
    ],
)
def test_without_a_search_it_says_why(outcome: str, improved: bool, said: str):
    shown = replace(SHOWN, improved=improved)
    text = terminal(Answer(outcome, BAD), shown)  # type: ignore[arg-type]
    assert said in words(text)


def test_a_version_has_no_subject():
    shown = Shown("version", {"5.24.0": Commit()})
    text = terminal(Answer("step", BAD, ("5.24.0",), "5.23.0", BAD), shown)
    assert text.splitlines()[1] == "  5.24.0"


def test_one_comparison_is_one_line_of_80_columns():
    probe = Probe("half", NAMES[0], NAMES[1], TERMS, SKIPPED)
    line = search_text.probe_line(probe)
    assert line.startswith(f"{NAMES[1]} against {NAMES[0]}: skipped, candidate: was asked")
    assert len(line) <= 80
    bad = search_text.probe_line(replace(probe, finding=BAD))
    assert bad.endswith("bad, +5.1 % [+4.1 %, +6.2 %]")


def test_markdown_quotes_what_a_commit_says():
    shown = Shown("commit", {NAMES[2]: Commit("<b>|@all*")})
    answer = Answer("step", BAD, (NAMES[2],), NAMES[1], BAD)
    text = search_text.markdown(search(BAD), answer, shown, "perfline compare")
    assert "<b>" not in text
    assert "&#64;all" in text
    assert text.rstrip().endswith("~~~~\nperfline compare\n~~~~")


def isolation(*extra: Probe) -> Search:
    """A search over two groups of long names."""
    groups = {
        "torch + transformers": tuple(f"nvidia-part-{n} 13.0.48 -> 13.2.78" for n in range(9)),
        "PYTORCH_CUDA_ALLOC_CONF": ("PYTORCH_CUDA_ALLOC_CONF unset -> expandable_segments:True",),
    }
    probes = (
        Probe(isolate.TOKENS_OF_ENDS, "A", "B", TERMS, Finding("good", change="1 -> 1")),
        Probe(isolate.ENDS, "A", "B", TERMS, BAD),
        *(Probe(isolate.ALONE, "A", name, TERMS, BAD) for name in groups),
        *extra,
    )
    return replace(
        search(),
        plan="isolate",
        probes=probes,
        groups=groups,
        named=("torch + transformers",),
        answer="torch + transformers did it: +5.1 % [+4.1 %, +6.2 %] of +5.1 %",
        notes=("torch alone does not run (crashed): moved with transformers",),
    )


def test_an_isolation_tells_groups_shares_and_notes_in_80_columns():
    said = Finding("bad", "fell off the fast path: graph breaks 0 -> 2")
    runs = Probe(isolate.RUNS, "A", "PYTORCH_CUDA_ALLOC_CONF", TERMS, said)
    text = search_text.isolated(isolation(runs), "results/isolate.json", "perfline compare ...")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "and 3 more" in words(text)
    assert "a forward of PYTORCH_CUDA_ALLOC_CONF: fell off the fast path" in words(text)
    assert "torch alone does not run (crashed): moved with transformers" in words(text)
    assert "B without it" not in text
    assert lines[-2:] == ["record: results/isolate.json", "next: perfline compare ..."]
    (row,) = (line for line in lines if line.startswith("  all"))
    assert row.split()[:4] == ["all", "bad", "+5.1", "%"]


def test_what_is_left_without_a_group_stands_beside_its_share():
    left = Probe(isolate.WITHOUT, "A", "B without torch + transformers", TERMS, SKIPPED)
    text = search_text.isolated(isolation(left), "r.json", "")
    assert "B without it" in text
    rows = [line for line in text.splitlines() if line.startswith("  torch +  ")]
    assert "skipped" in rows[-1]


def test_markdown_of_an_isolation_holds_the_same():
    text = search_text.isolated_markdown(isolation(), "perfline compare ...")
    assert text.startswith("## perfline isolate: tiny eager core_time: torch + transformers did it")
    assert "| all " in text
    assert text.endswith("Next:\n\n~~~~\nperfline compare ...\n~~~~\n")


def test_what_will_be_moved_is_told_a_line_a_group():
    lines = search_text.groups_lines(isolation())
    assert lines[0] == "tiny eager core_time: A and B differ in 2 groups"
    assert lines[1].startswith("  torch + transformers: nvidia-part-0 13.0.48")
    assert max(map(len, lines)) <= 80
