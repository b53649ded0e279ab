"""Which questions does a run of N ask?

The first N of one fixed order: stratified by subject, and the same for every N, so that a run of
1,000 is contained in a run of 4,000 and both can be paired with a baseline that holds all answers.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence


def tier_order(ids: Sequence[str]) -> list[int]:
    """Indices of the questions ``subject/index`` in the order in which runs of N take them.

    Within a subject the order is that of a hash, so it has nothing to do with the file's. The k-th
    of a subject's n questions gets the place (k + 1/2) / n, and all are sorted by place: any first
    N hold each subject in proportion, to within one question (the rule of systematic sampling with
    proportional allocation; Cochran, Sampling Techniques, 3rd ed., 5.1 and 8.1).
    """
    by_subject: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(ids):
        by_subject[name.rpartition("/")[0]].append(index)
    placed = []
    for members in by_subject.values():
        members.sort(key=lambda index: _hash(ids[index]))
        for rank, index in enumerate(members):
            placed.append(((rank + 0.5) / len(members), _hash(ids[index]), index))
    return [index for _, _, index in sorted(placed)]


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def spread_sample(subjects: Sequence[str], lengths: Sequence[int], n: int) -> list[int]:
    """Indices of ``n`` questions that stand for all lengths and as many subjects as can be.

    Sorted by length and cut into ``n`` equal strata, the last gives its longest question, each
    other one that of the subject which has come up least, nearest to its middle. They come back by
    length, the same ones every time; all of them where ``n`` is no smaller than their number.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    if n >= len(order):
        return order
    chosen = [order[-1]]
    for stratum in range(n - 1):
        begin, end = stratum * len(order) // n, (stratum + 1) * len(order) // n
        seen = Counter(subjects[index] for index in chosen)
        places = range(begin, end)
        best = min(places, key=lambda p: (seen[subjects[order[p]]], abs(2 * p + 1 - begin - end)))
        chosen.append(order[best])
    return [*chosen[1:], chosen[0]]
