from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfline.compare import sequential
from perfline.compare.model import Side
from perfline.errors import SearchError
from perfline.search import bisect
from perfline.search.bisect import Answer, budget
from perfline.search.probe import Environment, Finding, Terms, finding


def environments(count: int) -> list[Environment]:
    return [Environment(f"c{n}", lambda of: Side(of, Path("python"))) for n in range(count)]


class Measured:
    """Compares by made log ratios, spread by ``sd``; what is in ``broken`` does not build."""

    def __init__(
        self,
        effects: Sequence[float],
        broken: Sequence[int] = (),
        sd: float = 0.005,
        seed: int = 0,
        words: Mapping[tuple[str, str], Finding] | None = None,
    ) -> None:
        self.effects = effects
        self.broken = {f"c{n}" for n in broken}
        self.asked: list[str] = []
        self.terms: list[Terms] = []
        self.sd = sd
        self.words = words or {}
        self.generator = np.random.default_rng(seed)

    def __call__(self, role: str, a: Environment, b: Environment, terms: Terms) -> Finding:
        self.asked.append(f"{role} {a.name} {b.name}")
        self.terms.append(terms)
        if (a.name, b.name) in self.words:
            return self.words[a.name, b.name]
        if b.name in self.broken:
            return Finding("skipped", "does not build")
        effect = self.effects[int(b.name[1:])] - self.effects[int(a.name[1:])]
        values = self.generator.normal(effect, self.sd, terms.max_pairs).tolist()
        looks = sequential.looks_up_to(terms.max_pairs)
        for look in looks:
            margin = np.log1p(terms.margin_fraction)
            word = sequential.decide(values[:look], margin, looks, terms.alpha, terms.ok_alpha).word
            if word is not None:
                return finding(values[:look], word)
        raise AssertionError("the last look decides")


def search(measured: Measured, every: Terms | None = None) -> Answer:
    count = len(measured.effects)
    return bisect.bisect(environments(count), measured, every or budget(count, 0.02, 48))


def step(count: int, first: int, size: float = 0.05) -> list[float]:
    return [size * (n >= first) for n in range(count)]


@given(st.data())
def test_any_step_is_found_in_so_many_comparisons(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 40))
    first = data.draw(st.integers(1, count - 1))
    measured = Measured(step(count, first))

    found = search(measured)

    assert (found.outcome, found.named, found.parent) == ("step", (f"c{first}",), f"c{first - 1}")
    assert measured.asked[0] == f"ends c0 c{count - 1}"
    assert measured.asked[-1] == f"step c{first - 1} c{first}"
    assert len(measured.asked) <= 2 + int(np.ceil(np.log2(max(1, count - 1))))
    assert all(line.split()[1] == "c0" for line in measured.asked[:-1])
    assert not found.several


def test_without_a_difference_nothing_is_looked_for() -> None:
    measured = Measured([0.0] * 9)
    assert search(measured).outcome == "same"
    assert measured.asked == ["ends c0 c8"]


def test_a_bad_end_that_is_better_or_unsure_is_told_apart() -> None:
    assert search(Measured(step(9, 4, -0.05))).outcome == "better"
    assert search(Measured(step(9, 4, 0.011), sd=0.1)).outcome == "unsure"


def test_a_bad_end_that_does_not_run_is_an_error() -> None:
    with pytest.raises(SearchError, match="the bad end c8 cannot be measured: does not build"):
        search(Measured(step(9, 4), broken=[8]))


def test_what_does_not_build_is_stepped_around() -> None:
    found = search(Measured(step(17, 12), broken=[8, 9, 7]))
    assert (found.outcome, found.named) == ("step", ("c12",))


def test_what_does_not_build_beside_the_step_is_named_with_it_as_git_does() -> None:
    found = search(Measured(step(17, 8), broken=[7, 8, 9]))
    assert (found.outcome, found.parent, found.named) == ("step", "c6", ("c7", "c8", "c9", "c10"))


def test_a_broken_stretch_is_left_quickly() -> None:
    measured = Measured(step(65, 60), broken=range(20, 50))
    search(measured)
    assert sum(line.split()[2] in measured.broken for line in measured.asked) <= 4


def test_of_two_steps_one_is_found_and_its_share_told() -> None:
    effects = [0.03 * (n >= 3) + 0.05 * (n >= 10) for n in range(17)]
    found = search(Measured(effects))
    assert found.outcome == "step"
    assert found.named in (("c3",), ("c10",))
    assert found.several


def test_a_change_that_came_and_went_and_came_again_is_found_where_it_came() -> None:
    effects = [0.05 * (3 <= n < 6 or n >= 13) for n in range(17)]
    assert search(Measured(effects)).named in (("c3",), ("c13",))


def partial(estimate: float, word: str) -> Finding:
    return Finding(word, "", estimate, estimate - 0.002, estimate + 0.002, "")  # type: ignore[arg-type]


def test_a_part_taken_for_bad_and_for_good_leads_before_the_step_that_is_none() -> None:
    """c2 brings 2 %, c7 6 %: c4 is called bad, c3 good, so c3 to c4 is found, and shows nothing."""
    effects = [0.02 * (n >= 2) + 0.06 * (n >= 7) for n in range(9)]
    words = {("c0", "c4"): partial(0.02, "bad"), ("c0", "c3"): partial(0.02, "good")}
    once = {}

    class Twice(Measured):
        def __call__(self, role: str, a: Environment, b: Environment, terms: Terms) -> Finding:
            if (pair := (a.name, b.name)) in words and pair not in once:
                self.asked.append(f"{role} {a.name} {b.name}")
                once[pair] = True
                return words[pair]
            return super().__call__(role, a, b, terms)

    measured = Twice(effects)
    found = search(measured)

    assert "step c3 c4" in measured.asked
    assert (found.outcome, found.named, found.parent) == ("step", ("c2",), "c1")


def test_a_step_that_is_not_shown_is_a_range_and_says_why() -> None:
    words = {("c3", "c4"): partial(0.002, "unsure")}
    found = search(Measured(step(9, 4), words=words))
    assert (found.outcome, found.named) == ("range", ("c4",))
    assert "c4 is not shown to be worse than its parent c3" in found.reason


def test_candidates_that_stay_unsure_make_it_a_range() -> None:
    words = {("c0", f"c{n}"): Finding("unsure", change="+2.0 %") for n in range(5, 12)}
    measured = Measured(step(17, 8), words=words)

    found = search(measured)

    assert found.outcome == "range"
    assert "c8" in found.named
    assert "is unsure: +2.0 %" in found.reason
    assert not any(line.startswith("step") for line in measured.asked)


def test_the_margin_is_what_the_ends_prove_and_no_less_than_half_of_their_estimate() -> None:
    measured = Measured(step(9, 4, 0.10))
    search(measured)
    assert 0.05 < measured.terms[1].margin_fraction < 0.11
    wide = Measured(step(9, 4), words={("c0", "c8"): Finding("bad", "", 0.04, 0.001, 0.08, "")})
    search(wide)
    assert wide.terms[1].margin_fraction == pytest.approx(np.expm1(0.02))
    assert wide.terms[-1].margin_fraction == pytest.approx(np.expm1(0.02) / 2)


def test_what_became_better_is_found_by_its_size() -> None:
    words = {("c0", "c2"): Finding("bad", "", -0.05, -0.06, -0.04, "-4.9 %")}
    measured = Measured([0, 0, 0], words=words)
    search(measured)
    assert measured.terms[1].margin_fraction == pytest.approx(np.expm1(0.04))


def test_a_metric_without_noise_needs_no_interval() -> None:
    words = {("c0", f"c{n}"): Finding("bad" if n >= 5 else "good") for n in range(1, 9)}
    words[("c4", "c5")] = Finding("bad", change="2 -> 3")
    found = search(Measured([0] * 9, words=words))
    assert (found.outcome, found.named, found.several) == ("step", ("c5",), False)


def test_an_innocent_one_is_named_in_less_than_one_per_cent() -> None:
    """Every turn is wrong, and yet no name: the step is held against its own parent."""
    wrong = {("c0", f"c{n}"): partial(0.05, "bad" if n > 3 else "good") for n in range(1, 9)}
    named = sum(
        search(Measured([0.0] * 9, words=wrong, seed=seed, sd=0.02)).outcome == "step"
        for seed in range(200)
    )
    assert named <= 2
