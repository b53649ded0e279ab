"""How does a search run over recorded launch pairs? Its own plan, with effects multiplied in.

A launch pair of a probe is drawn, with replacement, from the A/A pairs of a recording, and its
roles are exchanged by the toss of a coin; then the effects of both environments are added to its
log ratio. Nothing else is simulated: the words are ``sequential``'s, the questions the plan's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from _recording import Floats, Recording

from perfline.compare import sequential
from perfline.search.probe import Environment, Finding, Terms, finding


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
