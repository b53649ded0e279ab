"""How often does each rule raise an alarm, and how often rightly?

Every arm is judged as it came out. Then questions are drawn anew from an arm's own (with
replacement, so that the counts of right and wrong before and after are multinomial): as they are,
for power, and with the direction of every flip tossed by a fair coin, for false alarms. For a given
number of such flips the rates are also found exactly, without drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from _accuracy_rules import GATE, UNPAIRED, Counts, alarms, count, gate_word

from perfline.cases.case import GatesSpec
from perfline.gates.statistics import clopper_pearson, mcnemar_p
from perfline.gates.verdict import Word

SEED = 20261122
DRAWS = 2000  # of each arm and size; of MMLU's size, where one verdict takes 6 ms, a twentieth
MMLU_QUESTIONS = 14_042
MMLU_MOST_DROP_PP = 5.0  # at MMLU's size, where larger drops are all seen
SIZES = (200, 400, 780, MMLU_QUESTIONS)
RESAMPLED_SEEDS = (0, 1, 2, 3)  # of the noise: it shall not outweigh the other damage
FLIPS_PERCENT = (0.5, 1.0, 2.0, 5.0, 10.0)  # at which rates are exact
FLIP_BINS = (0.0, 1.0, 3.0, 6.0, 100.0)  # per cent of the questions
DROP_BINS = (0.0, 0.5, 1.0, 2.0, 5.0, 100.0)  # pp
_WORDS: tuple[Word, ...] = ("regressed", "unsure", "ok", "improved")


def evaluate(raw: Mapping[str, Any], gates: GatesSpec, draws: int = DRAWS) -> dict[str, Any]:
    """Judge every arm by every rule, and find rates."""
    arms: list[dict[str, Any]] = raw["arms"]
    by_name = {arm["name"]: arm["answers"] for arm in arms}
    rows, resampled = [], []
    for number, arm in enumerate(arms):
        if arm["family"] == "reference":
            continue
        counts = count(by_name[arm["against"]], arm["answers"], raw["labels"])
        changed = sum(map(str.__ne__, by_name[arm["against"]], arm["answers"]))
        rows.append(
            {
                **{key: value for key, value in arm.items() if key not in ("answers", "reason")},
                **asdict(counts),
                "wrong_to_wrong": changed - counts.lost - counts.gained,
                "drop_pp": counts.drop_pp,
                "mcnemar_p": mcnemar_p(counts.lost, counts.gained),
                "alarms": alarms(counts, gates),
            }
        )
        if _is_resampled(arm) and counts.lost + counts.gained:
            for size, n in enumerate(SIZES):
                rng = np.random.default_rng((SEED, number, size))
                resampled += resample(counts, n, gates, rng, draws)
    accuracy = sum(map(str.__eq__, arms[0]["answers"], raw["labels"])) / len(raw["labels"])
    return {
        "arms": rows,
        "noise": _by_scale(rows),
        "exchangeable": exchangeable(arms, raw["labels"], gates),
        "exact_null": exact_null(accuracy, gates),
        "null": pooled(resampled, "flips_percent", FLIP_BINS, "null"),
        "power": pooled(resampled, "drop_pp", DROP_BINS, "as it is"),
    }


def _is_resampled(arm: Mapping[str, Any]) -> bool:
    if arm["family"].startswith("noise"):
        return any(arm["name"].endswith(f", seed {seed}") for seed in RESAMPLED_SEEDS)
    return bool(arm["family"] == "damage")


def resample(
    counts: Counts, n: int, gates: GatesSpec, rng: np.random.Generator, draws: int
) -> list[dict[str, Any]]:
    """How often each rule raises an alarm over ``n`` questions drawn from an arm's.

    ``as it is`` where the accuracy fell; ``null`` with every flip lost or gained by fair coin
    (not at MMLU's size: ``exact_null`` costs less).
    """
    mmlu = n == MMLU_QUESTIONS
    draws = draws // 20 if mmlu else draws
    shares = np.array([counts.both_right, counts.lost, counts.gained, counts.both_wrong]) / counts.n
    about = {
        "n": n,
        "draws": draws,
        "drop_pp": counts.drop_pp,
        "flips_percent": 100 * (counts.lost + counts.gained) / counts.n,
    }
    found = []
    if counts.drop_pp > 0 and not (mmlu and counts.drop_pp > MMLU_MOST_DROP_PP):
        drawn = rng.multinomial(n, shares, size=draws)
        found.append({**about, "which": "as it is", "tally": _tally(drawn, gates)})
    if not mmlu:
        drawn = rng.multinomial(n, shares, size=draws)
        flips = drawn[:, 1] + drawn[:, 2]
        drawn[:, 1] = rng.binomial(flips, 0.5)
        drawn[:, 2] = flips - drawn[:, 1]
        found.append({**about, "which": "null", "tally": _tally(drawn, gates)})
    return found


def _tally(drawn: npt.NDArray[np.int64], gates: GatesSpec) -> dict[str, int]:
    """Draws with an alarm by rule, and what else the gate says (``improved`` passes as ``ok``)."""
    tally = dict.fromkeys((GATE, *UNPAIRED, "unsure", "passes"), 0)
    rows, times = np.unique(drawn, axis=0, return_counts=True)
    for row, k in zip(rows.tolist(), times.tolist(), strict=True):
        counts = Counts(*row)
        for name, raised in alarms(counts, gates).items():
            tally[name] += k * raised
        word = gate_word(counts.n, counts.lost, counts.gained, gates)
        tally["unsure"] += k * (word == "unsure")
        tally["passes"] += k * (word in ("ok", "improved"))
    return tally


def pooled(
    rows: Sequence[Mapping[str, Any]],
    by: str,
    bins: Sequence[float],
    which: Literal["null", "as it is"],
) -> list[dict[str, Any]]:
    """Rates over all arms of a bin (``low`` excluded, ``high`` included), by number of questions.

    The bounds are Clopper-Pearson's at 95 % (two-sided) over the draws.
    """
    rows, found = [row for row in rows if row["which"] == which], []
    for low, high in pairwise(bins):
        for n in SIZES:
            chosen = [row for row in rows if row["n"] == n and low < row[by] <= high]
            draws = sum(row["draws"] for row in chosen)
            rates = {}
            for name in (GATE, *UNPAIRED, "unsure", "passes") if chosen else ():
                k = sum(row["tally"][name] for row in chosen)
                low_bound, high_bound = clopper_pearson(k, draws, 0.95)
                rates[name] = {"fraction": k / draws, "low": low_bound, "high": high_bound}
            if chosen:
                found.append(
                    {
                        **{"low": low, "high": high, "n": n, "arms": len(chosen), "draws": draws},
                        f"mean_{by}": sum(row[by] for row in chosen) / len(chosen),
                        "rates": rates,
                    }
                )
    return found


def exact_null(accuracy: float, gates: GatesSpec) -> list[dict[str, Any]]:
    """Each rule's false alarms where so many of ``n`` answers flip, each by fair coin: exact.

    The more of a given number of flips are losses, the sooner a rule raises its alarm; so the rate
    is the binomial tail from the first number of losses that does. ``passes`` likewise: the gate
    says neither ``regressed`` nor ``unsure``.
    """
    return [
        {
            "n": n,
            "flips": round(n * percent / 100),
            "flips_percent": percent,
            "rates": _fair_flips(n, round(n * percent / 100), accuracy, gates),
        }
        for n in SIZES
        for percent in FLIPS_PERCENT
    ]


def _fair_flips(n: int, flips: int, accuracy: float, gates: GatesSpec) -> dict[str, float]:
    right = round(accuracy * n)

    def raised(name: str, lost: int) -> bool:
        counts = Counts(right - lost, lost, flips - lost, n - right - flips + lost)
        return alarms(counts, gates)[name]

    def stops(lost: int) -> bool:
        return gate_word(n, lost, flips - lost, gates) in ("regressed", "unsure")

    rates = {name: _tail(flips, partial(raised, name)) for name in (GATE, *UNPAIRED)}
    return {**rates, "passes": 1 - _tail(flips, stops)}


def _tail(flips: int, raised: Callable[[int], bool]) -> float:
    """P(``raised(losses)``) for losses binomial in ``flips`` by fair coin; monotone in them."""
    low, high = 0, flips + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if raised(middle) else (middle + 1, high)
    return mcnemar_p(low, flips - low) if low <= flips else 0.0


def _by_scale(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Noise in all layers, by its size: what really happened to each seed's model."""
    families = [name for name in dict.fromkeys(row["family"] for row in rows) if "noise" in name]
    found = []
    for family in families:
        chosen = [row for row in rows if row["family"] == family]
        drops = [row["drop_pp"] for row in chosen]
        flips = [row["lost"] + row["gained"] for row in chosen]
        found.append(
            {
                "family": family,
                "seeds": len(chosen),
                "mean_drop_pp": sum(drops) / len(drops),
                "least_drop_pp": min(drops),
                "most_drop_pp": max(drops),
                "mean_flips": sum(flips) / len(flips),
                "words": {w: sum(r["verdict"] == w for r in chosen) for w in _WORDS},
                "alarms": {name: sum(r["alarms"][name] for r in chosen) for name in UNPAIRED},
            }
        )
    return found


def exchangeable(
    arms: Sequence[Mapping[str, Any]], labels: str, gates: GatesSpec
) -> list[dict[str, Any]]:
    """Pairs of models that were damaged by the same draw: neither is worse by design.

    Disjoint pairs are independent decisions; all ordered pairs hold each model many times.
    """
    families = dict.fromkeys(a["family"] for a in arms if "seed" in a["name"])
    found = []
    for family in families:
        answers = [arm["answers"] for arm in arms if arm["family"] == family]
        pairs = [
            (i, j, count(answers[i], answers[j], labels))
            for i in range(len(answers))
            for j in range(len(answers))
            if i != j
        ]
        raised = [(i, j, alarms(counts, gates)) for i, j, counts in pairs]
        disjoint = [which for i, j, which in raised if i % 2 == 0 and j == i + 1]
        flips = sum(counts.lost + counts.gained for _, _, counts in pairs) / len(pairs)
        found.append(
            {
                "family": family,
                "mean_flips": flips,
                "spread_pp": float(np.std([counts.drop_pp for _, _, counts in pairs])),
                "ordered_pairs": len(pairs),
                "ordered_alarms": {x: sum(w[x] for *_, w in raised) for x in (GATE, *UNPAIRED)},
                "disjoint_pairs": len(disjoint),
                "disjoint_alarms": {x: sum(w[x] for w in disjoint) for x in (GATE, *UNPAIRED)},
            }
        )
    return found
