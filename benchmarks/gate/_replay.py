"""How does a search run over recorded launch pairs? Its own plan, with effects multiplied in.

A launch pair of a probe is drawn, with replacement, from the A/A pairs of a recording, and its
roles are exchanged by the toss of a coin; then the effects of both environments are added to its
log ratio. Nothing else is simulated: the words are ``sequential``'s, the questions the plan's own.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from _recording import Floats, Recording, read
from tabulate import tabulate

from perfline import jsonfile
from perfline.compare import sequential
from perfline.errors import RecordError
from perfline.search.probe import Environment, Finding, Terms, finding

HERE = Path(__file__).parent


def environment(name: str) -> Environment:
    """An environment that is never made."""

    def side(name: object) -> object:
        raise AssertionError("nothing is started in a replay")

    return Environment(name, side)  # type: ignore[arg-type]


@dataclass
class Replay:
    """``probe.Compare`` over a recording.

    Attributes:
        effects: by environment, how much slower it is than the good end (a log ratio); None cannot
            be measured.
        spread: the recorded log ratios are multiplied by it.
        pairs: launch pairs drawn so far; ``probes``: decisions so far.
    """

    recording: Recording
    effects: Mapping[str, float | None]
    generator: np.random.Generator
    spread: float = 1.0
    pairs: int = 0
    probes: int = 0
    _still: Floats = field(init=False)

    def __post_init__(self) -> None:
        """Take the A/A pairs."""
        self._still = self.spread * self.recording.log_ratios(0.0)

    def ask(self, role: str, a: Environment, b: Environment, terms: Terms) -> Finding:
        """As a plan asks."""
        return self(a, b, terms)

    def __call__(self, a: Environment, b: Environment, terms: Terms) -> Finding:
        """As ``Compare`` says."""
        of_a, of_b = self.effects[a.name], self.effects[b.name]
        assert of_a is not None
        if of_b is None:
            return Finding("skipped", "does not build")
        self.probes += 1
        drawn = self.generator.choice(self._still, terms.max_pairs)
        values = drawn * self.generator.choice((-1.0, 1.0), terms.max_pairs) + (of_b - of_a)
        margin, looks = math.log1p(terms.margin_fraction), sequential.looks_up_to(terms.max_pairs)
        word: sequential.Word | None = None
        for look in looks:
            some = values[:look].tolist()
            if 2.0**-look > max(terms.alpha, terms.ok_alpha):
                continue  # no word can fall so early
            word = sequential.decide(some, margin, looks, terms.alpha, terms.ok_alpha).word
            if word is not None:
                break
        self.pairs += len(some)
        return finding(some, word)


@dataclass
class Tally:
    """What a rule answered."""

    runs: int = 0
    right: int = 0
    wrong: int = 0
    launches: int = 0

    def join(self, other: Tally) -> None:
        """Count another's answers, too."""
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)

    def row(self, rule: str, effect: float, what: str, kind: str) -> dict[str, object]:
        """One row of a table, in per cent; ``what`` is what of some ``kind`` was drawn."""
        return {
            "rule": rule,
            "slow-down": f"{100 * effect:g} %",
            what: kind,
            "runs": self.runs,
            "right": round(100 * self.right / self.runs, 1) if effect else None,
            "innocent named": round(100 * self.wrong / self.runs, 1),
            "launches": round(self.launches / self.runs),
            "how": "replayed",
        }


Rows = Callable[[Recording, int, int], Iterator[dict[str, object]]]


def tell(plan: str, doc: str, drawn: str, marks: tuple[str, str], rows: Rows) -> int:
    """Print the table of ``plan``; with ``--write`` put it into SEARCH.md and results/PLAN.json."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help=f"{drawn} a slow-down")
    parser.add_argument("--max-pairs", type=int, default=sequential.LOOKS[-1])
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    recording = read(HERE / "data" / "tiny-cpu-2-cores.json")
    found = []
    for each in rows(recording, args.runs, args.max_pairs):
        found.append(each)
        print(*each.values(), flush=True)
    table = tabulate(found, headers="keys", tablefmt="github")
    print(table)
    if args.write:
        told = {"schema": 1, "recording": recording.name, "runs": args.runs, "rows": found}
        command = f"python benchmarks/gate/{plan}_replay.py --runs {args.runs} --write"
        told |= {"command": command, "max_pairs": args.max_pairs}
        jsonfile.write(HERE / "results" / f"{plan}.json", told, RecordError)
        (begin, end), page = marks, HERE / "SEARCH.md"
        before, rest = page.read_text().split(begin)
        page.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}")
    return 0
