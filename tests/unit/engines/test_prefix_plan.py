"""Plans: every prompt comes out again, nothing is run that limits forbid, and MMLU's numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfline.engines.prefix_plan import LEAST_WIDTH, Batch, Limits, Node, Plan, plan
from perfline.tasks.prompt_lengths import dummy_prompts
from perfline.tasks.prompts import Prompt

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=24)  # few letters: much is shared
# Questions of their own, each with choices: what one forward computes of several.
ASKED = st.lists(
    st.tuples(st.lists(st.integers(0, 9), min_size=8, max_size=12), st.integers(2, 4)), max_size=8
).map(lambda asked: [[*head, *range(k, 4)] for head, n in asked for k in range(n)])
ROWS = st.one_of(st.lists(TOKENS, max_size=30), ASKED)
LIMITS = st.builds(
    Limits,
    forward_tokens=st.integers(1, 200),
    kv_bytes=st.integers(1, 2000),
    kv_bytes_per_token=st.integers(1, 5),
    held_bytes_per_token=st.integers(1, 20),
    forward_cost_tokens=st.integers(0, 20),
    least_rows=st.integers(1, 2),
    steady=st.one_of(st.none(), st.integers(4, 24)),
)


def prompts(*rows):
    return [
        Prompt(f"s/{i}", "s", np.asarray(row, dtype=np.int64), 5, None)
        for i, row in enumerate(rows)
    ]


def node_of(batch: Batch, row: int) -> int | None:
    return dict(zip(batch.rows, batch.nodes, strict=True))[row] if batch.nodes else batch.node


def before(made: Plan, batch: Batch, row: int) -> int:
    node = node_of(batch, row)
    return 0 if node is None else made.nodes[node].end


def tokens_of(made: Plan, asked: list[Prompt], batch: Batch, row: int) -> list[int]:
    """The prompt as the plan computes it: its path, then its own suffix."""
    path = [made.nodes[number] for number in made.path(node_of(batch, row))]
    found = [token for n in path for token in asked[n.row].ids[n.start : n.end].tolist()]
    return found + asked[row].ids[before(made, batch, row) :].tolist()


@given(ROWS, LIMITS)
def test_every_prompt_is_computed_exactly_and_once(rows, limits):
    asked = prompts(*rows)
    made = plan(asked, limits)
    computed = {
        row: tokens_of(made, asked, batch, row) for batch in made.batches for row in batch.rows
    }
    assert computed == dict(enumerate(rows))
    assert sum(len(batch.rows) for batch in made.batches) == len(rows)


@given(ROWS, LIMITS)
def test_no_suffix_is_empty_and_limits_hold(rows, limits):
    made = plan(prompts(*rows), limits)
    for batch in made.batches:
        befores = [before(made, batch, row) for row in batch.rows]
        suffixes = [len(rows[row]) - each for row, each in zip(batch.rows, befores, strict=True)]
        assert batch.prefix == max(befores)
        assert min(suffixes) >= 1
        assert batch.width == max(LEAST_WIDTH, *suffixes)
        if len(batch.rows) > 1:
            assert len(suffixes) * batch.width <= limits.forward_tokens
            kv = len(suffixes) * (batch.prefix + batch.width) * limits.kv_bytes_per_token
            assert kv <= limits.kv_bytes
        if batch.nodes:  # each row has a copy of its prefix
            copied = len(suffixes) * (batch.prefix + batch.width)
            assert copied <= limits.held_tokens or len(suffixes) == 1
            assert made.group(batch.node)[0] == batch.node
            assert {*batch.nodes} <= {*made.group(batch.node)}
            assert limits.least_rows == 1


@given(ROWS, LIMITS)
def test_totals_are_those_of_the_forwards(rows, limits):
    made = plan(prompts(*rows), limits)
    nodes = sum(
        max(len(group), limits.least_rows)
        * max(made.nodes[n].end - made.nodes[n].start for n in group)
        for group in made.groups
    )
    batches = sum(max(len(b.rows), limits.least_rows) * b.width for b in made.batches)
    assert made.computed_tokens + made.padded_tokens == nodes + batches
    assert made.computed_tokens <= made.served_tokens == sum(map(len, rows))


@given(ROWS, LIMITS)
def test_nodes_follow_their_parents_and_depth_first(rows, limits):
    made = plan(prompts(*rows), limits)
    for number, node in enumerate(made.nodes):
        start = 0 if node.parent is None else made.nodes[node.parent].end
        assert node.start == start
        assert node.end - node.start >= LEAST_WIDTH
        assert node.parent is None or node.parent < number
    entered, left, path = set(), set(), set()
    for batch in made.batches:  # whoever leaves a node never comes back to it
        now = {node for row in batch.rows for node in made.path(node_of(batch, row))}
        if batch.nodes:  # all of the group are held
            now |= set(made.group(batch.node))
        left |= path - now
        entered |= now
        path = now
        assert not now & left
    assert entered == set(range(len(made.nodes)))


@given(ROWS, LIMITS)
def test_groups_are_siblings_and_hold_every_node_once(rows, limits):
    made = plan(prompts(*rows), limits)
    assert sorted(n for group in made.groups for n in group) == list(range(len(made.nodes)))
    for group in made.groups:
        assert len({made.nodes[n].parent for n in group}) == 1
        assert made.group(group[-1]) == group
        widths = [made.nodes[n].end - made.nodes[n].start for n in group]
        if len(group) > 1:
            assert len(group) * max(widths) <= limits.forward_tokens
        if len(group) > limits.least_rows:  # all of them are held
            deepest = max(made.nodes[n].end for n in group)
            assert len(group) * deepest <= limits.held_tokens
        alone = sum(limits.least_rows * width + limits.forward_cost_tokens for width in widths)
        together = max(len(group), limits.least_rows) * max(widths) + limits.forward_cost_tokens
        assert together <= alone


def test_where_a_lone_row_costs_two_nodes_and_rows_come_in_pairs():
    heads = [[i] * n for i, n in enumerate((20, 18, 31, 30, 11))]
    asked = prompts(*([*head, 7, i] for head in heads for i in (1, 2)))
    made = plan(asked, Limits(forward_cost_tokens=2, least_rows=2))
    lengths = [[made.nodes[n].end for n in group] for group in made.groups]
    assert lengths == [[32, 31], [21, 19, 12]]  # the longest first, next to those most alike
    alone = plan(asked, Limits(forward_cost_tokens=2))
    assert [len(group) for group in alone.groups] == [2, 2, 1]  # where padding costs 2 at most
    few = Limits(kv_bytes=240, held_bytes_per_token=4, forward_cost_tokens=2, least_rows=2)
    assert few.held_tokens == 60
    assert [len(group) for group in plan(asked, few).groups] == [2, 2, 1]  # three would hold 63
    alone = prompts([1] * 9, [2] * 4)  # nothing shared: two rows of 9 cost less than 2 x 9 + 2 x 4
    assert len(plan(alone, Limits(forward_cost_tokens=2)).batches) == 2
    assert len(plan(alone, Limits(forward_cost_tokens=2, least_rows=2)).batches) == 1


@given(ASKED, LIMITS)
def test_no_plan_costs_more_than_one_without_groups(rows, limits):
    def cost(made):
        tokens = made.computed_tokens + made.padded_tokens
        return tokens + made.forwards * limits.forward_cost_tokens

    asked = prompts(*rows)
    alone = dataclasses.replace(limits, held_bytes_per_token=limits.kv_bytes + 1)
    assert cost(plan(asked, limits)) <= cost(plan(asked, alone))


def test_questions_of_one_forward_have_their_choices_in_one_too():
    heads = [[i] * n for i, n in enumerate((20, 19, 18))]
    asked = prompts(*([*head, 7, *range(i)] for head in heads for i in (1, 2)))
    made = plan(asked, Limits(forward_cost_tokens=4))
    assert made.groups == ((0, 1, 2),)
    (batch,) = made.batches
    assert (batch.node, batch.prefix, batch.width) == (0, 21, 2)
    assert [made.nodes[node].end for node in batch.nodes] == [21, 20, 19, 21, 20, 19]
    few = plan(asked, Limits(forward_cost_tokens=4, forward_tokens=70))  # 3 x (21 + 2), at most
    assert [len(batch.rows) for batch in few.batches] == [3, 3]
    apart = plan(asked, Limits(forward_cost_tokens=4, least_rows=2))  # compiled
    assert [batch.nodes for batch in apart.batches] == [()] * 3


@given(ROWS, LIMITS, st.integers(4, 24))
def test_what_depends_on_a_forward_s_length_runs_alone(rows, limits, steady):
    asked = prompts(*rows)
    made = plan(asked, dataclasses.replace(limits, steady=steady))
    assert all(len(asked[node.row].ids) < steady for node in made.nodes)
    for batch in made.batches:
        alone = Batch(None, batch.rows[:1], 0, len(asked[batch.rows[0]].ids))
        assert batch == alone or batch.prefix + batch.width <= steady


def test_a_plan_spelt_out():
    head, passage = [7] * 10, [8] * 10
    asked = prompts(
        [*head, 1, 2, 3],
        [*head, *passage, 1],
        [*head, *passage, 2, 3],
        [*head, 4],
        [9, 9],
    )
    made = plan(asked, Limits(forward_cost_tokens=4))
    assert made.nodes == (Node(None, 0, 0, 10), Node(0, 1, 10, 20))
    assert made.batches == (
        Batch(0, (3, 0), 10, 3),
        Batch(1, (1, 2), 20, 2),
        Batch(None, (4,), 0, 2),
    )
    assert (made.served_tokens, made.computed_tokens, made.padded_tokens) == (69, 29, 3)
    assert made.forwards == 5
    assert made.reuse_factor == pytest.approx(69 / 29)


def test_a_node_must_save_more_than_two_forwards_cost():
    asked = prompts([1] * 9 + [2], [1] * 9 + [3])  # shares 9 tokens once
    assert len(plan(asked, Limits(forward_cost_tokens=4)).nodes) == 1
    assert len(plan(asked, Limits(forward_cost_tokens=5)).nodes) == 0


def test_identical_prompts_and_a_prompt_that_begins_another_keep_their_last_token():
    asked = prompts([5] * 8, [5] * 8, [5] * 8 + [6])
    made = plan(asked, Limits(forward_cost_tokens=1))
    assert made.nodes == (Node(None, 0, 0, 7),)
    assert [batch.rows for batch in made.batches] == [(0, 1, 2)]


def test_the_order_of_prompts_does_not_change_the_work():
    rng = np.random.default_rng(0)
    rows = [[*range(20), *rng.integers(9, size=rng.integers(1, 9))] for _ in range(40)]
    one, other = plan(prompts(*rows), Limits()), plan(prompts(*reversed(rows)), Limits())
    assert one == plan(prompts(*rows), Limits())
    assert (one.computed_tokens, one.forwards) == (other.computed_tokens, other.forwards)


def test_rows_that_would_pad_each_other_much_run_apart():
    rows = [[1] * 50 + [2 + i] * n for i, n in enumerate((4, 5, 4, 90, 89))]
    made = plan(prompts(*rows), Limits(forward_cost_tokens=16))
    assert [(batch.rows, batch.width) for batch in made.batches] == [((4, 3), 90), ((0, 2, 1), 5)]
    assert made.padded_tokens == 3
    dear = plan(prompts(*rows), Limits(forward_cost_tokens=300))
    assert [batch.rows for batch in dear.batches] == [(0, 2, 1, 4, 3)]


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="without tokens"):
        plan(prompts([]), Limits())


def test_no_prompts_make_no_forwards():
    made = plan([], Limits())
    assert (made.forwards, made.served_tokens, made.reuse_factor) == (0, 0, 0.0)


def test_mmlu_s_subject_prefixes_save_five_sixths():
    made = plan(dummy_prompts(128_256, 2048), Limits(forward_cost_tokens=64))
    assert made.served_tokens == 9_396_415
    assert made.computed_tokens == pytest.approx(1.50e6, rel=0.005)
    assert made.reuse_factor == pytest.approx(6.26, abs=0.02)
    assert made.padded_tokens < 0.04 * made.computed_tokens
    assert made.forwards < 1000
