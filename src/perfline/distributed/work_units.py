"""Into which pieces is a pass cut, so that the ranks of a job end it together?

A unit is a subject, or a part of one that is more than its share. Units are handed out one by one,
longest first, to whoever is free (Graham's LPT rule: at most 4/3 of the shortest time there is;
SIAM J. Appl. Math. 17 (1969) 416-429). The same prompts and ranks make the same units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from perfline.tasks.prompts import Prompt

# Of a piece: below, the subject's shots, which every piece runs again, are most of its work. Finer
# units than shares would end more evenly, and cost more than that: benchmarks/scaling.py.
LEAST_QUESTIONS = 8


@dataclass(frozen=True)
class Unit:
    """Questions that one rank answers together.

    Attributes:
        cost: tokens that they take, padding included.
    """

    ids: tuple[str, ...]
    cost: int


def cut(
    prompts: Sequence[Prompt], ranks: int, cost: Callable[[Sequence[Prompt]], int]
) -> tuple[Unit, ...]:
    """Cut ``prompts`` into units for ``ranks``, every prompt in one of them; longest first."""
    subjects: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        subjects.setdefault(prompt.subject, []).append(prompt)
    whole = [(members, cost(members)) for members in subjects.values()]
    share = sum(tokens for _, tokens in whole) / ranks
    units: list[Unit] = []
    for members, tokens in whole:
        pieces = max(1, min(math.ceil(tokens / share), len(members) // LEAST_QUESTIONS))
        if pieces == 1:
            units.append(_unit(members, tokens))
        else:
            units += [_unit(piece, cost(piece)) for piece in _pieces(members, pieces)]
    return tuple(sorted(units, key=lambda unit: (-unit.cost, unit.ids)))


def _unit(prompts: Sequence[Prompt], cost: int) -> Unit:
    return Unit(tuple(prompt.id for prompt in prompts), cost)


def _pieces(prompts: Sequence[Prompt], n: int) -> list[list[Prompt]]:
    """``n`` pieces of about as many questions; those that share a passage stay side by side."""
    alike = sorted(prompts, key=lambda prompt: prompt.ids.astype(">u4").tobytes())
    edges = [round(i * len(alike) / n) for i in range(n + 1)]
    return [alike[low:high] for low, high in pairwise(edges)]
