"""The plan of isolate, over scripted comparisons: no process, no noise that a test depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from perfline.compare import sequential
from perfline.errors import SearchError, WorkerError
from perfline.search import isolate, probe, record
from perfline.search.groups import Group
from perfline.search.isolate import Question
from perfline.search.probe import Environment, Finding, Terms, finding
from perfline.search.record import Journal, Search

Effect = Callable[[frozenset[str]], float | None]  # of swapped groups: log ratio; None: no start


def group(name: str, *near: str) -> Group:
    what = (f"{name} 1 -> 2",)
    return Group(name, what, packages=frozenset({name}), near=frozenset(near))


TORCH, TRANSFORMERS, NUMPY = group("torch"), group("transformers", "torch"), group("numpy")


@dataclass
class Bench:
    """Compares by what is swapped; dies at the n-th question.

    Attributes:
        effect: log ratio of A with these groups to A; None where it does not start.
        tokens: prompt tokens of the same, of 1000; ``runs``: what its fingerprint says.
    """

    effect: Effect = lambda swapped: 0.0
    tokens: Callable[[frozenset[str]], int] = lambda swapped: 1000
    runs: Callable[[frozenset[str]], str] = lambda swapped: ""
    groups: Sequence[Group] = (TORCH, TRANSFORMERS, NUMPY)
    metric: str = "core_time"
    dies_at: int = 99
    asked: list[str] = field(default_factory=list)
    swapped: dict[str, frozenset[str]] = field(default_factory=dict)

    def mix(self, name: str, groups: Sequence[Group]) -> Environment:
        self.swapped[name] = frozenset[str]().union(*(each.packages for each in groups))
        return Environment(name, lambda side: None)  # type: ignore[arg-type,return-value]

    def question(self) -> Question:
        everything = self.mix("B", self.groups)
        return Question(
            self.mix("A", ()),
            everything,
            tuple(self.groups),
            self.mix,
            probe.sought(self.metric),
            {isolate.TOKENS: self.count, isolate.RUNS: self.fingerprint},
            margin_fraction=0.02,
            max_pairs=48,
        )

    def _ask(self, kind: str, b: Environment) -> frozenset[str]:
        if len(self.asked) == self.dies_at:
            raise KeyboardInterrupt
        self.asked.append(f"{kind} {b.name}")
        return self.swapped[b.name]

    def time(self, a: Environment, b: Environment, terms: Terms) -> Finding:
        assert a.name == "A"
        effect = self.effect(self._ask("time", b))
        if effect is None:
            return Finding("skipped", "cannot import name 'x'")
        noise = np.random.default_rng(len(self.asked)).normal(effect, 0.002, terms.max_pairs)
        looks = sequential.looks_up_to(terms.max_pairs)
        margin = math.log1p(terms.margin_fraction)
        for look in looks:
            some = noise[:look].tolist()
            found = sequential.decide(some, margin, looks, terms.alpha, terms.ok_alpha)
            if found.word is not None:
                break
        return replace(finding(some, found.word), minutes=1.0)

    def count(self, a: Environment, b: Environment, terms: Terms) -> Finding:
        tokens = self.tokens(self._ask("tokens", b))
        ratio = math.log(tokens / 1000)
        word: probe.Word = "bad" if tokens > 1000 else "good"
        return Finding(word, "", ratio, ratio, ratio, f"1000 -> {tokens}")

    def fingerprint(self, a: Environment, b: Environment, terms: Terms) -> Finding:
        said = self.runs(self._ask("runs", b))
        return Finding("bad" if said else "good", said or "runs what it did")

    def run(self, path: Path, notes: list[str] | None = None) -> Search:
        fresh = Search(
            "now", True, "perfline isolate", "isolate", "r", "tiny", "eager", self.metric
        )
        journal = Journal(path, record.resumed(path, fresh), self.time)
        ended = isolate.isolate(self.question(), journal, (notes or []).append)
        assert not ended.partial
        assert record.load(path) == ended
        return ended


def of(**effects: float) -> Effect:
    """Effects that add up."""
    return lambda swapped: sum(effects.get(name, 0.0) for name in swapped)


def test_the_guilty_group_is_named_with_its_share_of_the_whole(tmp_path: Path):
    bench = Bench(of(transformers=0.05))
    found = bench.run(tmp_path / "r.json")
    assert found.named == ("transformers",)
    assert found.answer.startswith("transformers did it: +5.1 % [+")
    assert "of +5.1 %; left over: " in found.answer
    assert found.groups == {
        "torch": ("torch 1 -> 2",),
        "transformers": ("transformers 1 -> 2",),
        "numpy": ("numpy 1 -> 2",),
    }
    assert bench.asked == [
        *("tokens B", "time B", "runs B"),
        *("time torch", "time transformers", "time numpy"),
    ]


def test_two_groups_whose_shares_add_up_are_both_named(tmp_path: Path):
    found = Bench(of(transformers=0.03, torch=0.02)).run(tmp_path / "r.json")
    assert found.named == ("torch", "transformers")
    assert found.answer.startswith("torch and transformers did it: +2.0 % [")
    assert "] and +3.0 % [" in found.answer


def test_one_group_makes_faster_what_another_makes_slower(tmp_path: Path):
    found = Bench(of(transformers=0.08, torch=-0.03)).run(tmp_path / "r.json")
    assert found.named == ("transformers",)
    assert found.answer.startswith("transformers did it: +8.3 % [")


def test_what_is_only_slow_together_is_told_by_what_is_left_without_each(tmp_path: Path):
    bench = Bench(lambda swapped: 0.05 if {"torch", "transformers"} <= swapped else 0.0)
    found = bench.run(tmp_path / "r.json")
    assert found.named == ("torch", "transformers")
    assert found.answer.startswith("torch with transformers did it, and none alone: +5.1 % [")
    assert [line for line in bench.asked if "without" in line] == [
        *("time B without torch", "time B without transformers", "time B without numpy"),
    ]


def test_of_two_groups_each_is_what_is_left_without_the_other(tmp_path: Path):
    both = frozenset({"torch", "transformers"})
    bench = Bench(lambda swapped: 0.05 if swapped == both else 0.0, groups=(TORCH, TRANSFORMERS))
    assert bench.run(tmp_path / "r.json").named == ("torch", "transformers")
    assert [line for line in bench.asked if "without" in line] == []


def test_a_group_that_is_slow_alone_and_slower_with_another(tmp_path: Path):
    """Without transformers all of it is gone, without numpy what it adds: both are told."""

    def effect(swapped: frozenset[str]) -> float:
        return 0.03 * ("transformers" in swapped) + 0.04 * ({"transformers", "numpy"} <= swapped)

    found = Bench(effect).run(tmp_path / "r.json")
    assert found.named[0] == "transformers"
    assert "torch" not in found.named
    assert found.answer.startswith("transformers did it: +3.0 % [")
    assert found.answer.endswith(" of +7.2 %; the rest with numpy")


def test_small_shares_of_all_name_nobody(tmp_path: Path):
    groups = tuple(group(f"g{n}") for n in range(6))
    bench = Bench(of(**{f"g{n}": 0.01 for n in range(6)}), groups=groups)
    found = bench.run(tmp_path / "r.json")
    assert found.named == ()
    assert found.answer.startswith("no group by itself is to blame for +6.")


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        (0.0, "nothing to isolate: that B is worse by 2 % is ruled out ("),
        (-0.05, "nothing to isolate: B is better by -4."),
        (0.0101, "nothing to isolate yet: that B is worse by 2 % is neither shown nor ruled out"),
    ],
    ids=["same", "better", "unsure"],
)
def test_b_that_is_no_worse_is_not_isolated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effect: float, said: str
):
    bench = Bench(of(torch=effect))
    if effect == 0.0101:
        unsure = Finding("unsure", "", 0.01, -0.01, 0.03, "+1.0 %", pairs=48)
        monkeypatch.setattr(bench, "time", lambda a, b, terms: unsure)
    found = bench.run(tmp_path / "r.json")
    assert found.named == ()
    assert found.answer.startswith(said)
    assert not [line for line in bench.asked if "torch" in line]


def test_more_prompt_tokens_decide_without_any_timing(tmp_path: Path):
    bench = Bench(tokens=lambda swapped: 1090 if "transformers" in swapped else 1000)
    found = bench.run(tmp_path / "r.json")
    assert found.named == ("transformers",)
    assert found.answer == (
        "transformers (+9.0 % prompt tokens, 1000 -> 1090) did it: the timed prompts are not the "
        "same ones (+9.0 % prompt tokens, 1000 -> 1090 in all), so no timing was needed"
    )
    assert not [line for line in bench.asked if line.startswith("time")]


def test_what_runs_in_a_forward_is_told_of_each_group_and_decides_nothing(tmp_path: Path):
    def runs(swapped: frozenset[str]) -> str:
        return "fell off the fast path: graph breaks 0 -> 2" if "numpy" in swapped else ""

    bench = Bench(of(transformers=0.05), runs=runs)
    found = bench.run(tmp_path / "r.json")
    assert found.named == ("transformers",)
    said = {each.b: each.finding.word for each in found.probes if each.role == isolate.RUNS}
    assert said == {"torch": "good", "transformers": "good", "numpy": "bad"}


def test_an_engine_that_tells_no_fingerprint_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def none(a: Environment, b: Environment, terms: Terms) -> Finding:
        raise WorkerError("baseline: tells no fingerprint")

    bench = Bench(of(transformers=0.05))
    monkeypatch.setattr(bench, "fingerprint", none)
    found = bench.run(tmp_path / "r.json")
    assert found.named == ("transformers",)
    assert found.notes == ("what runs in a forward is not known: baseline: tells no fingerprint",)


def test_a_group_that_does_not_run_alone_is_merged_with_its_neighbour(tmp_path: Path):
    def effect(swapped: frozenset[str]) -> float | None:
        if "transformers" in swapped and "torch" not in swapped:
            return None
        return 0.05 if "transformers" in swapped else 0.0

    told: list[str] = []
    bench = Bench(effect)
    fresh = tmp_path / "r.json"
    found = bench.run(fresh, told)
    assert found.named == ("transformers + torch",)
    assert found.groups["transformers + torch"] == ("transformers 1 -> 2", "torch 1 -> 2")
    assert list(found.groups) == ["transformers + torch", "numpy"]
    note = "transformers alone does not run (cannot import name 'x'): moved with torch"
    assert found.notes == (note,)


def test_groups_that_only_run_together_are_not_taken_apart(tmp_path: Path):
    bench = Bench(
        lambda swapped: 0.05 if len(swapped) in (0, 2) else None, groups=(TORCH, TRANSFORMERS)
    )
    found = bench.run(tmp_path / "r.json")
    assert found.named == ("torch + transformers",)
    assert bench.asked[-1] == "time torch"


def test_one_group_needs_no_second_comparison(tmp_path: Path):
    bench = Bench(of(torch=0.05), groups=(TORCH,))
    found = bench.run(tmp_path / "r.json")
    assert found.named == ("torch",)
    assert bench.asked == ["tokens B", "time B", "runs B"]


PARTS = tuple(group(f"p{n}") for n in range(5))
PACKAGES = frozenset(each.name for each in PARTS)
REST = replace(group("rest"), packages=PACKAGES, parts=PARTS)


def test_of_a_group_with_parts_the_part_is_found(tmp_path: Path):
    bench = Bench(of(p3=0.05), groups=(TORCH, REST))
    found = bench.run(tmp_path / "r.json")
    assert found.named == ("p3",)
    assert found.answer.startswith("p3 did it: +5.1 % [")
    assert bench.asked[-4:] == ["time rest", "time p0 to p2", "time p3 to p4", "time p3"]
    assert list(found.groups) == ["torch", "rest", "p0 to p2", "p3 to p4", "p3"]


def test_parts_that_only_together_do_it_stay_together(tmp_path: Path):
    bench = Bench(lambda swapped: 0.05 if {"p0", "p4"} <= swapped else 0.0, groups=(TORCH, REST))
    found = bench.run(tmp_path / "r.json")
    assert found.named == ("rest",)
    assert bench.asked[-2:] == ["time p0 to p2", "time p3 to p4"]


def test_a_metric_without_noise_names_who_makes_it_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bench = Bench(metric="graph_breaks")

    def breaks(a: Environment, b: Environment, terms: Terms) -> Finding:
        count = 3 if "torch" in bench._ask("breaks", b) else 0
        return Finding("bad" if count else "good", "", change=f"0 -> {count}")

    monkeypatch.setattr(bench, "time", breaks)
    found = bench.run(tmp_path / "r.json")
    assert found.named == ("torch",)
    assert found.answer == "torch did it: 0 -> 3 of 0 -> 3"
    assert bench.asked[0] == "breaks B"


def test_b_that_does_not_run_ends_it_and_is_asked_again(tmp_path: Path):
    path = tmp_path / "r.json"
    bench = Bench(lambda swapped: None)
    with pytest.raises(SearchError, match="B cannot be compared with A: cannot import name 'x'"):
        bench.run(path)
    assert record.load(path).partial
    mended = Bench(of(numpy=0.05))
    assert mended.run(path).named == ("numpy",)
    assert mended.asked[0] == "time B"  # the tokens were known


@pytest.mark.parametrize("dies_at", range(6))
def test_a_killed_search_goes_on_behind_what_it_measured(tmp_path: Path, dies_at: int):
    path = tmp_path / "r.json"
    killed = Bench(of(torch=0.05), dies_at=dies_at)
    with pytest.raises(KeyboardInterrupt):
        killed.run(path)
    assert not path.exists() or record.load(path).partial
    rest = Bench(of(torch=0.05))
    assert rest.run(path).named == ("torch",)
    whole = Bench(of(torch=0.05))
    whole.run(tmp_path / "whole.json")
    assert killed.asked + rest.asked == whole.asked


def test_a_group_may_be_named_in_error_in_one_percent_of_all_searches():
    """Each of 1 + 2 k comparisons has its share, over six looks."""
    bench = Bench()
    every = probe.terms(0.02, 48, isolate.probes(bench.groups))
    assert every.alpha * 6 * (1 + 2 * 3) == pytest.approx(probe.ERROR)
    assert isolate.probes([TORCH]) == 1
    parts = tuple(group(f"p{n}") for n in range(5))
    assert isolate.probes([TORCH, replace(group("rest"), parts=parts)]) == 1 + 2 * 2 + 2 * 3


def test_each_group_has_to_have_a_part_of_what_b_is_shown_to_be_worse_by(tmp_path: Path):
    found = Bench(of(torch=0.05)).run(tmp_path / "r.json")
    margins: Mapping[str, set[float]] = {
        role: {each.terms.margin_fraction for each in found.probes if each.role == role}
        for role in (isolate.ENDS, isolate.ALONE)
    }
    assert margins[isolate.ENDS] == {0.02}
    (part,) = margins[isolate.ALONE]
    assert 0.02 < part < 0.0257


def test_a_driver_is_told_and_not_swapped():
    sides = {
        name: SimpleNamespace(context={"driver": "570.1"}) for name in ("baseline", "candidate")
    }
    ends = SimpleNamespace(comparisons={"tiny": SimpleNamespace(sides=sides)})
    (told,) = isolate._drivers(ends)
    assert told == "driver 570.1 on both sides: it is the machine's, and cannot be swapped"
    sides["baseline"].context.clear()
    assert not list(isolate._drivers(ends))
