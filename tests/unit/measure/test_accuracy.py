from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from fakes import FakeClock, FakeEngine, prompts
from perfline.engines.engine import run_pass
from perfline.errors import EngineError, NoSharedPrefixes
from perfline.measure.accuracy import AccuracyOptions, AccuracyRun, choose, looks

IDENTITY = {"case": "fake", "engine": "inductor", "weights": "sha256:1"}


@dataclass(frozen=True)
class FakePass:
    answers: object
    computed_tokens: int
    padded_tokens: int = 5
    core_s: float = 1.0
    flops: float | None = 1e9
    halvings: int = 0


@dataclass
class FakeRunner:
    """Shared prefixes by script: batches of 4, a quarter of the tokens, answers of an engine."""

    engine: FakeEngine
    warmed: int = 0
    asked: list[str] = field(default_factory=list)
    stop_after: int | None = None

    def plan(self, chosen):
        return None

    def warm_up(self, plan):
        self.warmed += 1

    def run(self, chosen, plan, clock, progress, on_batch):
        for start in range(0, len(chosen), 4):
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            batch = chosen[start : start + 4]
            self.asked += [p.id for p in batch]
            if on_batch is not None:
                on_batch(run_pass(self.engine, batch, "last", clock).answers)
        answers = run_pass(self.engine, chosen, "last", clock).answers
        return FakePass(answers, sum(len(p.ids) for p in chosen) // 4)


def run(runner=None, wrong=(), **options):
    clock = FakeClock()
    engine = FakeEngine("inductor", clock, wrong=frozenset(wrong))
    if runner is True:
        runner = FakeRunner(FakeEngine("inductor", clock, wrong=frozenset(wrong)))
    oracle = FakeEngine("eager", clock)
    return AccuracyRun(engine, oracle, runner, AccuracyOptions(**options), IDENTITY, clock)


def test_shared_prefixes_are_the_default_and_are_verified_by_the_oracle_s_plain_path():
    session = run(runner=True, verify=6)
    done = session.answer(prompts(40))
    assert done.path == "shared-prefix"
    assert done.answers.ids == tuple(p.id for p in prompts(40))
    served = sum(len(p.ids) for p in prompts(40))
    assert (done.served_tokens, done.computed_tokens) == (served, served // 4)
    assert done.reference is not None
    assert len(done.reference.ids) == 6
    assert {name.split("/")[0] for name in done.reference.ids} == {"even", "odd"}
    assert sum(entry.startswith("forward") for entry in session.oracle.log) == 6


def test_the_plain_path_needs_no_verification_and_shares_nothing():
    session = run(runner=True, plain=True)
    done = session.answer(prompts(20))
    assert (done.path, done.reference, session.runner.warmed) == ("plain", None, 0)
    assert done.computed_tokens == done.served_tokens


def test_a_run_of_n_asks_the_first_n_of_the_fixed_order_and_is_contained_in_a_larger_one():
    few = run(questions=10).answer(prompts(40)).answers.ids
    more = run(questions=20).answer(prompts(40)).answers.ids
    assert len(few) == 10
    assert set(few) < set(more)
    assert sum(name.startswith("even") for name in few) == 5
    assert list(few) == [p.id for p in prompts(40) if p.id in few]  # in the prompts' order


def test_more_than_there_are_asks_all():
    assert len(run(questions=999).answer(prompts(8)).answers.ids) == 8


@pytest.mark.parametrize("plain", [False, True])
def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path, plain):
    options = {"journals": tmp_path, "plain": plain, "verify": 0}
    first = run(runner=True, **options)
    if plain:
        first.engine.nan = frozenset({choose(prompts(40), None)[33].id})
        with pytest.raises(EngineError):
            first.answer(prompts(40))
        kept = 32
    else:
        first.runner.stop_after = 12
        with pytest.raises(KeyboardInterrupt):
            first.answer(prompts(40))
        kept = 12
    second = run(runner=True, resume=True, **options)
    done = second.answer(prompts(40))
    assert (done.resumed, len(done.answers.ids)) == (kept, 40)
    whole = run(runner=True, plain=plain, verify=0).answer(prompts(40)).answers
    assert done.answers.letters() == whole.letters()
    assert (done.answers.letter_logits == whole.letter_logits).all()
    assert done.served_tokens == whole_tokens(whole.ids) - whole_tokens(first_ids(kept))


def first_ids(n):
    return [p.id for p in choose(prompts(40), None)[:n]]


def whole_tokens(ids):
    lengths = {p.id: len(p.ids) for p in prompts(40)}
    return sum(lengths[name] for name in ids)


def test_without_resume_a_pass_begins_anew(tmp_path):
    first = run(runner=True, journals=tmp_path, verify=0)
    first.runner.stop_after = 12
    with pytest.raises(KeyboardInterrupt):
        first.answer(prompts(40))
    assert run(runner=True, journals=tmp_path, verify=0).answer(prompts(40)).resumed == 0


def test_a_finished_pass_is_forgotten_on_demand(tmp_path):
    session = run(runner=True, journals=tmp_path)
    session.answer(prompts(8))
    assert [path.name for path in tmp_path.iterdir()] == ["fake-inductor.jsonl"]
    session.forget()
    assert list(tmp_path.iterdir()) == []


def test_a_sequential_run_stops_at_the_first_look_that_is_certain():
    seen: list[tuple[int, int, int]] = []

    def certain(answers, among, asked_of):
        seen.append((len(answers.ids), among, asked_of))
        return len(answers.ids) >= 10

    done = run(sequential=True).answer(prompts(40), certain)
    assert seen == [(2, 5, 40), (5, 5, 40), (10, 5, 40)]
    assert (len(done.answers.ids), done.looks, done.asked_of) == (10, 5, 40)


def test_looks_are_fixed_in_advance():
    assert looks(14042) == (878, 1755, 3510, 7021, 14042)
    assert looks(3) == (1, 2, 3)


def test_a_graph_compiled_after_the_warm_up_is_counted():
    session = run()
    session.engine.graphs_at = (3,)
    assert session.answer(prompts(8)).counts.graphs == 1


@pytest.mark.parametrize("kind", [NoSharedPrefixes, RuntimeError, EngineError])
def test_a_model_that_takes_no_prefix_is_answered_the_plain_way_with_its_reason(kind):
    class Refusing(FakeRunner):
        def warm_up(self, plan):
            raise kind("its attention is another")

    told = []
    whole = run(Refusing(FakeEngine("eager", FakeClock())))
    whole = replace(whole, ready=lambda: told.append("ready"), without=told.append)
    done = whole.answer(prompts(10))
    assert (done.path, done.reference, len(done.answers.ids)) == ("plain", None, 10)
    why = f"{kind.__name__}: " * (kind is not NoSharedPrefixes) + "its attention is another"
    assert [str(each) for each in told] == [why, "ready"]
