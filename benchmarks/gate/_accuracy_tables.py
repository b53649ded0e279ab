"""How is what ``accuracy.py`` found shown? As Markdown tables, one for each of its questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from _accuracy_rules import GATE, UNPAIRED
from tabulate import tabulate

OTHERS = tuple(UNPAIRED)


def markdown(document: Mapping[str, Any]) -> str:
    """All tables, and from where they are."""
    results, context = document["results"], document["context"]
    versions = ", ".join(f"{name} {context[name]}" for name in ("torch", "transformers"))
    parts = [
        f"Recorded {document['date'][:10]} on {document['machine']} with {versions}; "
        f"{sum(document['ids'].values())} questions; {document['draws']} draws "
        f"of each arm ({document['draws'] // 20} at 14,042 questions).",
        "### Known damage",
        _arms(results["arms"], "damage"),
        "### No damage: the same function computed otherwise",
        _arms(results["arms"], "no damage"),
        "### Noise in all layers, by its size",
        _noise(results["noise"]),
        "### Exchangeable models: two draws of the same noise or the same rounding",
        _exchangeable(results["exchangeable"]),
        "### False alarms, exact: so many flips, each lost or gained by fair coin",
        _exact(results["exact_null"]),
        "### False alarms: every arm's flips directed by fair coin, questions drawn anew",
        _null(results["null"]),
        "### Power: questions drawn anew from arms whose accuracy fell",
        _power(results["power"]),
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    align = ["left", *["right"] * (len(heads) - 1)]
    return tabulate(rows, headers=heads, tablefmt="pipe", disable_numparse=True, colalign=align)


def _arms(arms: Sequence[Mapping[str, Any]], family: str) -> str:
    rows = []
    for arm in arms:
        if arm["family"] == family:
            n = sum(arm[key] for key in ("both_right", "lost", "gained", "both_wrong"))
            rows.append(
                [
                    arm["name"],
                    f"{100 * (arm['both_right'] + arm['gained']) / n:.2f}",
                    f"{arm['drop_pp'] + 0.0:.2f}",
                    *(str(arm[key]) for key in ("lost", "gained", "wrong_to_wrong")),
                    f"{arm['max_letter_logit_difference']:.1g}",
                    f"{arm['mcnemar_p']:.2g}",
                    arm["verdict"],
                    *("alarm" if arm["alarms"][rule] else "." for rule in OTHERS),
                ]
            )
    heads = ["", "accuracy %", "drop pp", "lost", "gained", "wrong→wrong"]
    return _table(rows, [*heads, "max Δlogit", "McNemar p", GATE, *OTHERS])


def _noise(scales: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            scale["family"],
            f"{scale['mean_drop_pp']:.2f} ({scale['least_drop_pp']:.2f} to "
            f"{scale['most_drop_pp']:.2f})",
            f"{scale['mean_flips']:.1f}",
            *(str(scale["words"][word]) for word in ("regressed", "unsure", "ok", "improved")),
            *(str(scale["alarms"][rule]) for rule in OTHERS),
        ]
        for scale in scales
    ]
    words = [f"perfline {word}" for word in ("regressed", "unsure", "ok", "improved")]
    seeds = scales[0]["seeds"]
    heads = [f"{seeds} seeds each", "mean drop pp (range)", "mean flips", *words, *OTHERS]
    return _table(rows, heads)


def _exchangeable(families: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            family["family"],
            f"{family['mean_flips']:.1f}",
            f"{family['spread_pp']:.2f}",
            *(
                f"{family['disjoint_alarms'][rule]}/{family['disjoint_pairs']}, "
                f"{family['ordered_alarms'][rule]}/{family['ordered_pairs']}"
                for rule in (GATE, *OTHERS)
            ),
        ]
        for family in families
    ]
    return _table(rows, ["", "mean flips", "sd of the drop pp", GATE, *OTHERS])


def _exact(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            f"{row['n']:,}",
            f"{row['flips']} ({row['flips_percent']:g} %)",
            *(f"{100 * row['rates'][rule]:.2f}" for rule in (GATE, *OTHERS)),
            f"{100 * row['rates']['passes']:.0f}",
        ]
        for row in rows
    ]
    heads = ["questions", "flips", *(f"{rule}: false alarms %" for rule in (GATE, *OTHERS))]
    return _table(lines, [*heads, "perfline passes %"])


def _null(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            f"{_bin(row, '%')} ({row['mean_flips_percent']:.1f} %, {row['arms']} arms)",
            f"{row['n']:,}",
            *(_rate(row["rates"][rule]) for rule in (GATE, *OTHERS)),
            f"{100 * row['rates']['passes']['fraction']:.0f}",
        ]
        for row in rows
    ]
    heads = ["flips (mean)", "questions", *(f"{rule}: false alarms %" for rule in (GATE, *OTHERS))]
    return _table(lines, [*heads, "perfline passes %"])


def _power(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            f"{_bin(row, 'pp')} ({row['mean_drop_pp']:.2f} pp, {row['arms']} arms)",
            f"{row['n']:,}",
            _rate(row["rates"][GATE]),
            *(f"{100 * row['rates'][word]['fraction']:.1f}" for word in ("unsure", "passes")),
            *(_rate(row["rates"][rule]) for rule in OTHERS),
        ]
        for row in rows
    ]
    heads = ["true drop (mean)", "questions", "perfline: alarms %", "unsure %", "passes %"]
    return _table(lines, [*heads, *(f"{rule}: alarms %" for rule in OTHERS)])


def _bin(row: Mapping[str, Any], unit: str) -> str:
    if row["high"] == 100:
        return f"above {row['low']:g} {unit}"
    return f"{row['low']:g} to {row['high']:g} {unit}"


def _rate(rate: Mapping[str, Any]) -> str:
    return "{:.1f} ({:.1f} to {:.1f})".format(*(100 * rate[k] for k in ("fraction", "low", "high")))
