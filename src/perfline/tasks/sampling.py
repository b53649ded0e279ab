"""Which questions does a run of N ask?

The first N of one fixed order: stratified by subject, and the same for every N, so that a run of
1,000 is contained in a run of 4,000 and both can be paired with a baseline that holds all answers.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
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
