"""Does the model compute what it did, by every way that perfline runs it? Seconds, in fp32.

Accuracy sees a fault once it turns answers; the numbers behind the answers move long before. A few
prompts, the same ones every time, are run in fp32: eager and compiled, by themselves and by shared
prefixes. How far apart two ways lie is the largest KL divergence at any position that is looked at
(``tasks.reference``). What re-ordered arithmetic alone does is measured in the same session, by
*variations* of the eager forward that leave the mathematics as it is (``gates.fidelity``).

*Drift* is how far the case's own dtype takes each engine from the same fp32 numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from perfline.cases.case import Case, EngineName
from perfline.engines.engine import Clock
from perfline.errors import EngineError, NoFidelity, NoSharedPrefixes
from perfline.gates.accuracy import ROUNDING_FRACTION
from perfline.metrics import Metric, pass_name
from perfline.tasks.prompts import Prompt
from perfline.tasks.reference import PromptReference, kl, log_softmax, prompt_reference
from perfline.tasks.sampling import spread_sample

Floats = npt.NDArray[np.floating]
POSITIONS = 16  # of a prompt that are looked at, its last token among them
VARIED = 4  # prompts that the variations are tried on, and whose layers are kept
VARIATIONS = ("attention", "batch")
LOOKED_AT = 4  # the likeliest tokens of a position, whose log-probabilities drift is of


class Logits(Protocol):
    """A model in fp32, or in its own dtype: ``engines.full_precision``; tests script one."""

    @property
    def letters(self) -> tuple[int, ...]:
        """The tokens that answer A, B, C, D; none under ``--dummy-weights``."""

    def plain(
        self,
        name: EngineName,
        prompt: Prompt,
        positions: Sequence[int],
        variation: str | None = None,
    ) -> tuple[Floats, list[float]]:
        """Logits of the prompt run by itself, (positions, vocabulary), and a number a layer."""

    def shared(self, name: EngineName, prompts: Sequence[Prompt]) -> Floats:
        """Logits at the last tokens by shared prefixes, (prompts, vocabulary); NoSharedPrefixes."""

    def not_compiled(self, name: EngineName) -> str:
        """Why an engine that compiles ran eagerly; empty where it did not."""


@dataclass(frozen=True)
class Drift:
    """What a case's own dtype costs: mean squared error of log-probabilities, nats^2, by prompt.

    The error is against the eager model in fp32, over the ``LOOKED_AT`` tokens that are likeliest
    there, at all positions that are looked at.

    Attributes:
        engines: of each engine, in the case's own dtype, each prompt by itself.
        variations: of the eager engine, in that dtype, in another order of arithmetic.
        rounded: of the fp32 model that rounds to that dtype what its modules take and give.
    """

    engines: dict[EngineName, tuple[float, ...]]
    variations: dict[str, tuple[float, ...]]
    rounded: tuple[float, ...]

    def metrics(self) -> list[Metric]:
        """The root mean square of each engine."""
        return [
            Metric(f"drift_{pass_name(name)}", rms(errors), "nats", "info")
            for name, errors in self.engines.items()
        ]


def rms(squares: Sequence[float]) -> float:
    """Return the root of the mean of squares that are given."""
    return float(np.sqrt(np.mean(squares)))


@dataclass(frozen=True)
class Fidelity:
    """What one session computed in fp32. KL in nats, the largest of all positions.

    Attributes:
        prompts: what is stored, by question id.
        logits: of the eager, plain way: by question id (positions, vocabulary).
        apart: KL(eager plain || way) of the others, such as ``inductor shared``: by question, at
            the positions that are looked at; of a shared way at the last one.
        variations: KL(eager plain || variation) of what only re-orders the arithmetic.
        most: the KL that rounding can explain at all: every logit off by the share of the largest
            one that ``gates.accuracy`` grants fp32.
        layers_off: by how much the variations move a layer's number; by layer.
        without: ways that this model does not have, and why.
        seconds: of all of it.
        rounded: see ``Drift``; empty where the case's own dtype is fp32.
        drift: None there, and until it is measured.
        others: as ``logits``, of the engines beside the eager one.
        first_layers: how many of them were asked for (``fidelity.layers``); None: all.
        uncompiled: why an engine that compiles ran eagerly, and was held to itself; empty where it
            did not.
    """

    prompts: dict[str, PromptReference]
    logits: dict[str, Floats] = field(repr=False)
    apart: dict[str, dict[str, Floats]] = field(repr=False)
    variations: dict[str, float]
    most: float
    layers_off: tuple[float, ...]
    without: dict[str, str]
    seconds: float
    rounded: tuple[float, ...] = ()
    drift: Drift | None = None
    others: dict[EngineName, dict[str, Floats]] = field(default_factory=dict, repr=False)
    first_layers: int | None = None
    uncompiled: str = ""

    @property
    def ways(self) -> dict[str, float]:
        """By way, the largest of ``apart``."""
        return {
            way: max(float(each.max()) for each in rows.values())
            for way, rows in self.apart.items()
        }

    def metrics(self) -> list[Metric]:
        """How far the farthest way is from the eager one, and how long all of it took."""
        found = [Metric("fidelity_time", self.seconds, "s", "info")]
        if self.ways:
            found.append(Metric("fidelity_ways", max(self.ways.values()), "nats", "info"))
        return found + ([] if self.drift is None else self.drift.metrics())


def positions_of(prompt: Prompt) -> list[int]:
    """Return the positions of a prompt that are looked at: evenly spread, the last one included."""
    length = len(prompt.ids)
    count = min(POSITIONS, length)
    return [(number + 1) * length // count - 1 for number in range(count)]


def sample(case: Case, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the case's prompts for this: ``fidelity.prompts`` of all lengths and subjects.

    Without the continuations that some tasks score: positions of the prompt itself are looked at.
    """
    subjects, lengths = [p.subject for p in prompts], [len(p.ids) for p in prompts]
    chosen = spread_sample(subjects, lengths, case.fidelity.prompts)
    return [replace(prompts[index], continuations=()) for index in chosen]


def measure(
    model: Logits,
    names: Sequence[EngineName],
    prompts: Sequence[Prompt],
    clock: Clock = time.perf_counter,
    shared: bool = True,
) -> Fidelity:
    """Run ``prompts`` by every way of the engines ``names``, and by the variations.

    ``shared``: by shared prefixes, too. EngineError where logits are not finite.
    """
    start = clock()
    logits: dict[str, Floats] = {}
    layers: dict[str, list[float]] = {}
    for prompt in prompts:
        logits[prompt.id], layers[prompt.id] = _plain(model, "eager", prompt)
    varied = prompts[:: max(1, len(prompts) // VARIED)]
    variations, layers_off = _varied(model, varied, logits, layers)
    most, variations["rounding"] = _rounding(logits.values())
    try:
        rounded = tuple(
            _error(logits[p.id], _plain(model, "eager", p, "rounded")[0]) for p in prompts
        )
    except NoFidelity:
        rounded = ()  # fp32 is the case's own dtype
    apart: dict[str, dict[str, Floats]] = {}
    without: dict[str, str] = {}
    others: dict[EngineName, dict[str, Floats]] = {}
    for name in dict.fromkeys(("eager", *names)):
        if name != "eager":
            others[name] = {p.id: _plain(model, name, p)[0] for p in prompts}
            apart[f"{name} plain"] = {p.id: kl(logits[p.id], others[name][p.id]) for p in prompts}
        if not shared:
            continue
        try:
            last = model.shared(name, prompts)
        except NoSharedPrefixes as why:
            without[f"{name} shared"] = str(why)
            continue
        apart[f"{name} shared"] = {
            p.id: kl(logits[p.id][-1:], _finite(row[None], p))
            for p, row in zip(prompts, last, strict=True)
        }
    return Fidelity(
        prompts={
            p.id: prompt_reference(
                p, positions_of(p), logits[p.id], model.letters, layers[p.id] if p in varied else ()
            )
            for p in prompts
        },
        logits=logits,
        apart=apart,
        variations=variations,
        most=most,
        layers_off=layers_off,
        without=without,
        seconds=clock() - start,
        rounded=rounded,
        others=others,
        uncompiled=_uncompiled(model, names),
    )


def _uncompiled(model: Logits, names: Sequence[EngineName]) -> str:
    return next(filter(None, map(model.not_compiled, names)), "")


def references(
    found: Fidelity, name: EngineName, prompts: Sequence[Prompt]
) -> dict[str, PromptReference]:
    """Return what is kept of an engine's plain way; beside the eager one, without the letters."""
    if name == "eager":
        return found.prompts
    rows = found.others[name]
    return {p.id: prompt_reference(p, positions_of(p), rows[p.id], ()) for p in prompts}


def with_drift(
    found: Fidelity,
    model: Logits,
    names: Sequence[EngineName],
    prompts: Sequence[Prompt],
    clock: Clock = time.perf_counter,
) -> Fidelity:
    """Run ``prompts`` by the same model in its own dtype: ``found`` with the drift of it.

    EngineError where logits are not finite.
    """
    start = clock()

    def errors(name: EngineName, variation: str | None = None) -> tuple[float, ...]:
        return tuple(
            _error(found.logits[p.id], _plain(model, name, p, variation, "its own dtype")[0])
            for p in prompts
        )

    variations: dict[str, tuple[float, ...]] = {}
    for variation in VARIATIONS:
        with suppress(NoFidelity):  # the model has no such variation
            variations[variation] = errors("eager", variation)
    drift = Drift(
        engines={name: errors(name) for name in dict.fromkeys(("eager", *names))},
        variations=variations,
        rounded=found.rounded,
    )
    return replace(
        found,
        drift=drift,
        seconds=found.seconds + clock() - start,
        uncompiled=found.uncompiled or _uncompiled(model, names),
    )


def _error(reference: Floats, other: Floats) -> float:
    """Mean squared difference of the log-probabilities of the likeliest tokens, nats^2."""
    told = log_softmax(reference)
    likeliest = np.argsort(-told, axis=-1, kind="stable")[:, :LOOKED_AT]
    off = np.take_along_axis(log_softmax(other) - told, likeliest, axis=-1)
    return float(np.mean(off**2))


def _varied(
    model: Logits,
    prompts: Sequence[Prompt],
    logits: dict[str, Floats],
    layers: dict[str, list[float]],
) -> tuple[dict[str, float], tuple[float, ...]]:
    """How far the variations move the logits, and the layers' numbers."""
    found: dict[str, float] = {}
    off: list[npt.NDArray[np.float64]] = []
    for variation in VARIATIONS:
        try:
            varied = {p.id: _plain(model, "eager", p, variation) for p in prompts}
        except NoFidelity:
            continue  # the model has no such variation; the others say enough
        found[variation] = max(_apart(logits[name], rows) for name, (rows, _) in varied.items())
        off += [np.abs(np.subtract(each, layers[name])) for name, (_, each) in varied.items()]
    return found, tuple(np.max(off, axis=0).tolist()) if off else ()


def _plain(
    model: Logits,
    name: EngineName,
    prompt: Prompt,
    variation: str | None = None,
    dtype: str = "fp32",
) -> tuple[Floats, list[float]]:
    rows, layers = model.plain(name, prompt, positions_of(prompt), variation)
    return _finite(rows, prompt, dtype), layers


def _rounding(logits: Iterable[Floats]) -> tuple[float, float]:
    """(the most that rounding can explain, what one unit in the last place does): KL, nats."""
    signs = np.random.default_rng(0)
    most = least = 0.0
    for rows in logits:
        off = signs.choice((-1.0, 1.0), size=rows.shape)
        largest = np.abs(rows).max(axis=-1, keepdims=True)
        most = max(most, _apart(rows, rows + ROUNDING_FRACTION["fp32"] * largest * off))
        least = max(least, _apart(rows, rows + np.spacing(largest) * off))
    return most, least


def _apart(reference: Floats, other: Floats) -> float:
    return float(kl(reference, other).max())


def _finite(logits: Floats, prompt: Prompt, dtype: str = "fp32") -> Floats:
    if not np.isfinite(logits).all():
        raise EngineError(
            f"fidelity: logits of question {prompt.id} in {dtype} are not finite: broken weights, "
            "or a broken kernel?"
        )
    return logits
