"""Which tokens do prompts share, and in which forwards is each computed only once?

Planning on token ids alone, without a device: ``plan`` sorts whole prompts by their ids, computes
each run of tokens that enough of them begin with once (a ``Node``, given its parent's KV), and
batches what is left of every prompt (its suffix, never empty). Nodes of like length are computed
side by side (a group), and the suffixes on a group's leaves, too, where that is cheaper. Text is
never split: a tokenizer may merge a blank line with what follows, so only their ids tell what two
prompts share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from perfline.tasks.prompts import Prompt

Ints = npt.NDArray[np.int64]
Costs = npt.NDArray[Any]  # numbers, some of them inf
# torch.compile makes a size of 1 a graph of its own: a lone last token is padded to two, and a node
# has no fewer.
LEAST_WIDTH = 2
_FAR = 2**62


@dataclass(frozen=True)
class Limits:
    """What one forward may take, and what it costs beyond its tokens.

    Attributes:
        forward_tokens: rows x padded length of a forward.
        kv_bytes: keys and values that the rows of a forward attend to, prefix included.
        kv_bytes_per_token: of one row, for as many layers as are held at a time.
        held_bytes_per_token: of a row, in all layers: a node that is held keeps them.
        forward_cost_tokens: tokens that take as long as launching a forward: a node must save more
            than two of these (its own forward, and the batch that its rows leave).
        least_rows: 2 where a lone row costs as much as two, as in a compiled forward.
        steady: no forward of several rows, and none after a prefix, has as many positions, padding
            included: prompts that do run alone (``upstream.steady_positions``). None: no limit.
    """

    forward_tokens: int = 4096
    kv_bytes: int = 2**30
    kv_bytes_per_token: int = 1
    held_bytes_per_token: int = 1
    forward_cost_tokens: int = 64
    least_rows: int = 1
    steady: int | None = None

    @property
    def held_tokens(self) -> int:
        """Of all nodes that one forward computes, beyond ``least_rows``; and of their copies."""
        return min(self.forward_tokens, self.kv_bytes // self.held_bytes_per_token)

    def rows(self, prefix: int, width: int) -> int:
        """How many rows of ``width`` tokens on a prefix fit one forward; one always does."""
        if self.steady is not None and prefix + width > self.steady:
            return 1  # rows on prefixes of unequal lengths would pad each other
        by_bytes = self.kv_bytes // ((prefix + width) * self.kv_bytes_per_token)
        return max(1, min(self.forward_tokens // width, by_bytes))


@dataclass(frozen=True)
class Node:
    """Tokens ``start`` to ``end`` of prompt ``row``, shared by all rows below; ``end`` is depth."""

    parent: int | None
    row: int
    start: int
    end: int


@dataclass(frozen=True)
class Batch:
    """One forward: the suffixes of ``rows`` on ``prefix`` tokens, padded to ``width`` tokens.

    Attributes:
        node: None: nothing shared, prefix 0.
        nodes: of each row, where they may hang on different nodes of one group; ``node`` is the
            group's first, and ``prefix`` the longest of theirs.
    """

    node: int | None
    rows: tuple[int, ...]
    prefix: int
    width: int
    nodes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How to answer prompts; rows and nodes are indices, a node comes after its parent.

    Attributes:
        groups: nodes by the forward that computes them: siblings, one after the other.
        batches: depth first, so that only the nodes of one path, and those computed with them,
            need to be held.
        served_tokens: of all prompts, as if each were run by itself.
        computed_tokens: of all forwards, padding left out.
        padded_tokens: padding of all forwards.
    """

    nodes: tuple[Node, ...]
    groups: tuple[tuple[int, ...], ...]
    batches: tuple[Batch, ...]
    served_tokens: int
    computed_tokens: int
    padded_tokens: int

    @property
    def reuse_factor(self) -> float:
        """Served tokens over computed ones."""
        return self.served_tokens / max(1, self.computed_tokens)

    @property
    def forwards(self) -> int:
        """How many forwards it takes."""
        return len(self.groups) + len(self.batches)

    def group(self, node: int) -> tuple[int, ...]:
        """The nodes that the forward of ``node``, the first of them that is needed, computes."""
        return next(group for group in self.groups if node in group)

    def path(self, node: int | None) -> tuple[int, ...]:
        """The node and all above it, topmost first."""
        found: list[int] = []
        while node is not None:
            found.append(node)
            node = self.nodes[node].parent
        return tuple(reversed(found))


def plan(prompts: Sequence[Prompt], limits: Limits) -> Plan:
    """Plan the forwards that answer ``prompts``: the same plan for the same ids, every time."""
    lengths = np.array([len(prompt.ids) for prompt in prompts], dtype=np.int64)
    if lengths.size and lengths.min() == 0:
        raise ValueError("a prompt without tokens; expected at least one")
    keys = [prompt.ids.astype(">u4").tobytes() for prompt in prompts]  # bytes sort as the ids do
    steady = _FAR if limits.steady is None else limits.steady
    apart = [row for row, length in enumerate(lengths.tolist()) if length >= steady]
    order = sorted(set(range(len(prompts))) - set(apart), key=keys.__getitem__)
    shared = _shared_lengths([prompts[row] for row in order])
    nodes, members = _tree(order, shared, 2 * limits.forward_cost_tokens)
    groups = tuple(_groups(nodes, limits))
    suffix = {
        row: int(lengths[row]) - (0 if node is None else nodes[node].end)
        for node, rows in members.items()
        for row in rows
    }

    def cut(mates: Sequence[int | None]) -> list[Batch]:
        return list(_batches(mates, members, nodes, suffix, limits))

    def cost(some: Sequence[Batch]) -> int:
        run = sum(max(len(b.rows), limits.least_rows) * b.width for b in some)
        return run + len(some) * limits.forward_cost_tokens

    batches: list[Batch] = []
    for mates in _together(nodes, groups, members, limits):
        some = [batch for node in mates for batch in cut([node])]
        if len(mates) > 1 and cost(together := cut(mates)) < cost(some):
            some = together
        batches += some
    suffix |= {row: int(lengths[row]) for row in apart}
    batches += [Batch(None, (row,), 0, suffix[row]) for row in apart]
    suffixes = sum(suffix.values())
    in_nodes = sum(node.end - node.start for node in nodes)
    run_in_nodes = sum(
        max(len(group), limits.least_rows)
        * max(nodes[number].end - nodes[number].start for number in group)
        for group in groups
    )
    return Plan(
        nodes=tuple(nodes),
        groups=groups,
        batches=tuple(batches),
        served_tokens=int(lengths.sum()),
        computed_tokens=suffixes + in_nodes,
        padded_tokens=sum(b.width * max(len(b.rows), limits.least_rows) for b in batches)
        - suffixes
        + run_in_nodes
        - in_nodes,
    )


def _shared_lengths(prompts: Sequence[Prompt]) -> Ints:
    """Tokens that each prompt shares with the next in order, both's last ones left out.

    Those are the positions whose logits are needed (``Prompt.tail``).
    """
    shared = np.zeros(max(0, len(prompts) - 1), dtype=np.int64)
    for i, (one, other) in enumerate(pairwise(prompts)):
        most = min(len(one.ids) - one.tail, len(other.ids) - other.tail)
        differ = one.ids[:most] != other.ids[:most]
        shared[i] = differ.argmax() if differ.any() else most
    return shared


def _tree(
    order: Sequence[int], shared: Ints, threshold: int
) -> tuple[list[Node], dict[int | None, list[int]]]:
    """Nodes, and the rows that hang on each of them directly, in depth-first order."""
    nodes: list[Node] = []
    members: dict[int | None, list[int]] = {}
    waiting: list[tuple[int, int, int | None]] = [(0, len(order), None)] if order else []
    while waiting:
        low, high, node = waiting.pop()
        if high - low == 1:
            members.setdefault(node, []).append(order[low])
            continue
        between = shared[low : high - 1]
        depth, start = int(between.min()), 0 if node is None else nodes[node].end
        saved = (high - low - 1) * (depth - start)
        if saved > threshold and depth - start >= LEAST_WIDTH:
            nodes.append(Node(node, order[low], start, depth))
            node = len(nodes) - 1
            members[node] = []  # keeps the order depth first
        cuts = [low, *(low + 1 + np.flatnonzero(between == depth)).tolist(), high]
        pieces = [(a, b, node) for a, b in pairwise(cuts)]
        # Longest first: siblings that one forward computes are of like lengths then.
        pieces.sort(key=lambda piece: int(shared[piece[0] : piece[1] - 1].min(initial=_FAR)))
        waiting += pieces
    return nodes, members


def _groups(nodes: Sequence[Node], limits: Limits) -> Iterator[tuple[int, ...]]:
    """Cut siblings where padding and the cost of forwards are least; in order of their numbers.

    More than ``least_rows`` are only as many as may be held: all of a group are until the last of
    them is done with.
    """
    siblings: dict[int | None, list[int]] = {}
    for number, node in enumerate(nodes):
        siblings.setdefault(node.parent, []).append(number)
    found: list[tuple[int, ...]] = []
    for numbers in siblings.values():
        start = nodes[numbers[0]].start
        ends = np.array([nodes[number].end for number in numbers], dtype=np.int64)

        def costs(j: int, start: int = start, ends: Ints = ends) -> Costs:
            most = max(limits.least_rows, limits.held_tokens // int(ends[j - 1]))
            back = ends[max(0, j - most) : j][::-1]
            sizes, longest = np.arange(1, len(back) + 1), np.maximum.accumulate(back)
            widths, kv = longest - start, sizes * longest * limits.kv_bytes_per_token
            fits = (sizes * widths <= limits.forward_tokens) & (kv <= limits.kv_bytes)
            fits &= (sizes <= limits.least_rows) | (sizes * longest <= limits.held_tokens)
            run = np.maximum(sizes, limits.least_rows) * widths + limits.forward_cost_tokens
            return np.where(fits | (sizes == 1), run, np.inf)[::-1]

        found += [tuple(numbers[i:j]) for i, j in _cheapest_cuts(len(numbers), costs)]
    yield from sorted(found)


def _cheapest_cuts(count: int, costs: Callable[[int], Costs]) -> Iterator[tuple[int, int]]:
    """Cut 0 to ``count`` into pieces that cost least in all; the last piece (from, to) first.

    ``costs(j)``: of the pieces that end at ``j``, the longest first; inf for what may not be. An
    exact dynamic program: ``best[j]`` is the least cost up to ``j``.
    """
    best = np.zeros(count + 1)
    cut = np.zeros(count + 1, dtype=np.int64)
    for j in range(1, count + 1):
        found = costs(j)
        first = j - len(found)
        whole = best[first:j] + found
        chosen = int(whole.argmin())
        best[j], cut[j] = whole[chosen], first + chosen
    j = count
    while j:
        i = int(cut[j])
        yield i, j
        j = i


def _together(
    nodes: Sequence[Node],
    groups: Sequence[tuple[int, ...]],
    members: Mapping[int | None, Sequence[int]],
    limits: Limits,
) -> Iterator[tuple[int | None, ...]]:
    """Nodes whose rows may share forwards, depth first: the leaves of a group; any other alone.

    Where a lone row costs as much as two, as in a compiled forward, all are alone: a mask of each
    row's own would be a graph of its own.
    """
    parents = {node.parent for node in nodes}
    mates = {
        group[0]: group
        for group in groups
        if len(group) > 1 and limits.least_rows == 1 and parents.isdisjoint(group)
    }
    others = {node for group in mates.values() for node in group[1:]}
    for node in members:
        if node is not None and node not in others:
            yield mates.get(node, (node,))
    if None in members:
        yield (None,)


def _batches(
    mates: Sequence[int | None],
    members: Mapping[int | None, Sequence[int]],
    nodes: Sequence[Node],
    suffix: Mapping[int, int],
    limits: Limits,
) -> Iterator[Batch]:
    """Cut rows, sorted by length, where padding and the cost of forwards are least; longest first.

    Rows on different nodes each have a copy of theirs, of no more tokens in all than may be held.
    """
    node_of = {row: node for node in mates for row in members[node]}
    ends = {node: 0 if node is None else nodes[node].end for node in mates}
    prefix = max(ends.values())
    ordered = sorted(node_of, key=lambda row: (suffix[row], node_of[row] or 0, row))
    widths = np.maximum([suffix[row] for row in ordered], LEAST_WIDTH)

    def costs(j: int) -> Costs:
        width = int(widths[j - 1])
        most = limits.rows(prefix, width)
        if len(mates) > 1:
            most = max(1, min(most, limits.held_tokens // (prefix + width)))
        sizes = np.arange(min(j, most), 0, -1)
        return np.maximum(sizes, limits.least_rows) * width + limits.forward_cost_tokens

    for i, j in _cheapest_cuts(len(ordered), costs):
        rows, width = tuple(ordered[i:j]), int(widths[j - 1])
        shared = [node for row in rows if (node := node_of[row]) is not None]
        on = tuple(shared) if len(mates) > 1 else ()
        yield Batch(mates[0], rows, max(ends[node_of[row]] for row in rows), width, on)
