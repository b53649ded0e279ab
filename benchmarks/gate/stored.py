"""How often does the stored gate pass, cry wolf and see a slowdown, by sessions held and spread?

    python benchmarks/gate/stored.py            # print the table: two minutes
    python benchmarks/gate/stored.py --write    # and put it into STORED.md

Sessions are drawn from a log-normal spread with a fixed seed, and judged by the gate itself with a
case's default limits.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from perfline.cases.case import GatesSpec
from perfline.gates.performance import throughput_baseline
from perfline.metrics import Metric

SESSIONS = (1, 2, 3, 5, 8)
SPREADS = (0.005, 0.01, 0.02, 0.03)
SLOWDOWNS = (0.05, 0.10, 0.30)
DRAWS = 4_000
PAGE = Path(__file__).with_name("STORED.md")
_HEADERS = ("sessions held", "true spread", "unchanged: ok", "unchanged: regressed")


def words(held: int, spread: float, slowdown: float, draws: int, seed: int = 0) -> Counter[str]:
    """Count the gate's words for a run slower by ``slowdown`` than ``held`` stored sessions.

    ``spread`` is that of the logarithms between sessions, both fractions.
    """
    rng = np.random.default_rng([seed, held, round(1e4 * spread), round(1e4 * slowdown)])
    rates = 1000 * np.exp(rng.normal(0, spread, (draws, held + 1)))
    found: Counter[str] = Counter()
    for *sessions, today in rates.tolist():
        value = today * (1 - slowdown)
        metric = Metric("p_infer_core", value, "tok/s", "higher", (value,) * 3)
        found[throughput_baseline(metric, sessions, GatesSpec()).word] += 1
    return found


def table(draws: int, seed: int) -> str:
    """Return the rates in per cent as Markdown."""
    power = [f"{100 * slowdown:g} % slower: regressed" for slowdown in SLOWDOWNS]
    lines = [" | ".join(("", *_HEADERS, *power, "")).strip()]
    lines.append("| " + " | ".join(["---"] * (len(_HEADERS) + len(power))) + " |")
    for held in SESSIONS:
        for spread in SPREADS:
            same = words(held, spread, 0.0, draws, seed)
            shares = [same["ok"], same["regressed"]]
            shares += [words(held, spread, slow, draws, seed)["regressed"] for slow in SLOWDOWNS]
            cells = [str(held), f"{100 * spread:g} %", *(f"{100 * n / draws:.1f}" for n in shares)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table; with ``--write`` store it."""
    parser = argparse.ArgumentParser(description="rates of the stored throughput gate")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    rates = table(args.draws, args.seed)
    print(rates)
    if args.write:
        limits = GatesSpec()
        PAGE.write_text(
            "# The stored throughput gate, simulated\n\n"
            "Written by `python benchmarks/gate/stored.py --write`: "
            f"{args.draws} draws a cell, seed {args.seed}, in per cent. Margin "
            f"{100 * limits.throughput_margin_fraction:g} %, declared spread "
            f"{100 * limits.throughput_session_sd_fraction:g} %. The rest is `unsure`, "
            "or `improved`.\n\n"
            f"{rates}\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
