"""How fast does an engine generate token by token, and how long is the wait for the first?

A round generates behind the same prompts as every other round, in every *form* that the case asks
for: single prompts of several lengths, batches, long contexts. Compile, warm-up and timed rounds
are phases as in ``measure.throughput``: a graph compiled in a timed round makes the run invalid.

``mbu`` is the share of the memory bandwidth that a step uses: the bytes that it reads, over its
time, over the bandwidth of the best of a copy and a read on this device.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from perfline.cases.case import Case, DecodeSpec
from perfline.engines.device import Device, cpu_contention
from perfline.engines.engine import (
    Clock,
    CompileCounts,
    EngineName,
    Fingerprint,
    Generated,
    Ints,
    MeasuredDecoder,
    MeasuredEngine,
)
from perfline.engines.telemetry import RoundHealth, Watch
from perfline.errors import EngineError, NoDecode
from perfline.gates.accuracy import OtherToken
from perfline.measure import notices
from perfline.measure.throughput import Ready, compile_metrics, counted, waited_fraction
from perfline.metrics import Direction, Metric, suffix
from perfline.tasks.prompts import Prompt, stratified_sample

PROMPTS = 4  # of a round, one by one, stratified by length
_TOKENS_CPU, _TOKENS = 16, 128  # behind each prompt, where the case does not say
_ALIGN = 64  # a cache's length is a multiple of it
_COUNTED = 17  # tokens whose operators are counted: a fault of every eighth shows


@dataclass(frozen=True)
class Form:
    """What is generated with one form of cache.

    Attributes:
        name: ``""``, or what stands behind the metrics' names: ``b8``, ``c2048``.
        prompts: what is generated behind, one after the other; each is (rows, width).
        length: of the cache, in tokens.
    """

    name: str
    prompts: tuple[Ints, ...]
    length: int

    @property
    def rows(self) -> int:
        """How many prompts are run at once."""
        return len(self.prompts[0])


def tokens_of(spec: DecodeSpec, device: Device) -> int:
    """How many tokens are generated behind each prompt."""
    default = _TOKENS_CPU if device.kind == "cpu" else _TOKENS
    return default if spec.tokens is None else spec.tokens


def forms(
    case: Case, prompts: Sequence[Prompt], tokens: int, positions: int
) -> tuple[list[Form], list[str]]:
    """The forms that a case asks for, and a line on each that its model has no positions for.

    Single prompts are as long as the case's are; rows of a batch are cut, or told again, to the
    middle length; those of a context to as much as leaves room for the tokens. NoDecode where there
    is no room for a prompt.
    """
    spec, most = case.decode, positions - tokens
    if most < 1:
        raise NoDecode(
            f"{case.source}: decode generates {tokens} tokens, and the model has {positions} "
            "positions, the prompt's included: set key 'decode.tokens' to fewer"
        )
    order = stratified_sample([len(p.ids) for p in prompts], max(PROMPTS, *spec.batch_sizes))
    ids = [prompts[index].ids[-most:] for index in order]
    few = stratified_sample([len(each) for each in ids], PROMPTS)
    single = tuple(ids[index][None] for index in few)
    middle = sorted(len(each) for each in ids)[len(ids) // 2]
    found = [_form("", single, tokens)]
    for rows in spec.batch_sizes:
        if rows > 1:
            batch = np.stack([_told(ids[row % len(ids)], middle) for row in range(rows)])
            found.append(_form(f"b{rows}", (batch,), tokens))
    lines = []
    for context in spec.context:
        if tokens < context <= positions:
            told = _told(np.concatenate(ids), context - tokens)[None]
            found.append(_form(f"c{context}", (told,), tokens))
        else:
            lines.append(
                f"{case.id}: decode.context {context} is left out: {tokens} tokens are generated, "
                f"and the model has {positions} positions"
            )
    return found, lines


def _told(ids: Ints, length: int) -> Ints:
    return np.resize(ids, length)


def _form(name: str, prompts: tuple[Ints, ...], tokens: int) -> Form:
    longest = max(each.shape[1] for each in prompts)
    return Form(name, prompts, _ALIGN * math.ceil((longest + tokens) / _ALIGN))


@dataclass(frozen=True)
class DecodeRound:
    """One timed round.

    Attributes:
        generated: by form, all passes of the round one after the other.
    """

    generated: Mapping[str, tuple[Generated, ...]]
    whole_s: float
    health: RoundHealth = field(default_factory=RoundHealth)


@dataclass(frozen=True)
class Decoded:
    """All that the decoding of one engine is known by.

    Attributes:
        tokens: generated behind each prompt.
        rounds: those that count; all of them where none would be left.
        timed: what was compiled in the timed rounds; anything makes the run invalid.
        streamed: bytes that one step reads; None where not known, or where they fit a cache.
        bandwidth: bytes a second that the device reads, or copies; None where not measured.
        others: tokens that are not the likeliest (``tokens_apart``).
        compared: how many tokens were.
        fingerprint: what runs while some tokens are generated; None where that was not asked.
    """

    engine: EngineName
    forms: tuple[Form, ...]
    tokens: int
    static: bool
    ready: Ready
    rounds: tuple[DecodeRound, ...]
    timed: CompileCounts
    peak_memory_gib: float | None
    waited_fraction: float | None
    streamed: int | None
    bandwidth: float | None
    faults: tuple[str, ...] = ()
    thrown_out: tuple[str, ...] = ()
    timed_s: float = 0.0
    others: tuple[OtherToken, ...] = ()
    compared: int = 0
    fingerprint: Fingerprint | None = None

    @property
    def fingerprint_name(self) -> str:
        """What records and baselines hold the fingerprint by, beside that of a forward."""
        return f"{self.engine} decode"

    @property
    def step_s(self) -> float:
        """Seconds a step at batch 1, over all rounds."""
        generated = [g for each in self.rounds for g in each.generated[""]]
        return 1 / _tokens_per_s(generated)

    @property
    def first_s(self) -> float:
        """Seconds to the first token at batch 1, the mean over all rounds."""
        return statistics.fmean(g.first_s for each in self.rounds for g in each.generated[""])

    @property
    def watched(self) -> bool:
        """Whether the device's own readings were to be had."""
        return any(done.health.readings for done in self.rounds)

    @property
    def given(self) -> dict[str, tuple[Ints, ...]]:
        """The tokens of all rounds, by form: those of its prompts in turn, pass after pass."""
        return {
            form.name: tuple(g.tokens for each in self.rounds for g in each.generated[form.name])
            for form in self.forms
        }

    def metrics(self) -> list[Metric]:
        """The metrics, under the names that the field gives them."""
        end = suffix(self.engine)
        found = []
        for form in self.forms:
            of = f"_{form.name}" if form.name else ""
            rounds = [each.generated[form.name] for each in self.rounds]
            speed = tuple(_tokens_per_s(each) for each in rounds)
            found.append(_median(f"decode{of}{end}", speed, "tok/s", "higher"))
            first = tuple(statistics.fmean(g.first_s for g in each) for each in rounds)
            if not form.name:
                found.append(_median(f"ttft{end}", first, "s", "lower"))
                found += self._times(rounds, end)
            else:
                found.append(_median(f"ttft{of}{end}", first, "s", "info"))
        if self.mbu:
            found.append(_median(f"mbu{end}", self.mbu, "fraction", "info"))
        if self.bandwidth is not None:
            found.append(Metric("decode_bandwidth", self.bandwidth / 1e9, "GB/s", "info"))
        if self.peak_memory_gib is not None:
            found.append(Metric(f"mem_decode{end}", self.peak_memory_gib, "GiB", "lower"))
        if self.engine == "inductor":
            found += [
                Metric(f"{m.name}_decode", m.value, m.unit, m.direction)
                for m in compile_metrics(self.ready)
            ]
        return found

    @property
    def mbu(self) -> tuple[float, ...]:
        """Of each round, at batch 1; empty where it is not known."""
        if self.streamed is None or not self.bandwidth:
            return ()
        return tuple(
            self.streamed * _tokens_per_s(each.generated[""]) / self.bandwidth
            for each in self.rounds
        )

    @property
    def token_times_s(self) -> tuple[float, ...]:
        """By position: the median time of the first token, the second, and so on; batch 1."""
        rows = [
            (each.first_s, *each.steps_s) for done in self.rounds for each in done.generated[""]
        ]
        return tuple(float(value) for value in np.median(np.array(rows), axis=0))

    def _times(self, rounds: Sequence[Sequence[Generated]], end: str) -> Iterator[Metric]:
        steps = [np.concatenate([g.steps_s for g in each]) for each in rounds]
        for percent in (50, 99):
            times = tuple(float(np.percentile(each, percent)) for each in steps)
            yield _median(f"itl_p{percent}{end}", times, "s", "info")


def _tokens_per_s(generated: Sequence[Generated]) -> float:
    """Tokens of all rows a second, the first ones apart."""
    steps = sum(len(g.tokens) * len(g.steps_s) for g in generated)
    return steps / sum(math.fsum(g.steps_s) for g in generated)


def _median(name: str, samples: Sequence[float], unit: str, direction: Direction) -> Metric:
    return Metric(name, statistics.median(samples), unit, direction, samples)


@dataclass(frozen=True)
class Work:
    """What an engine generates.

    Attributes:
        tokens: behind each prompt.
    """

    engine: MeasuredEngine
    decoder: MeasuredDecoder
    forms: tuple[Form, ...]
    tokens: int
    clock: Clock = time.perf_counter

    def once(self) -> dict[str, list[Generated]]:
        """One pass over all prompts of all forms."""
        return {f.name: [self.generate(f, ids) for ids in f.prompts] for f in self.forms}

    def generate(self, form: Form, ids: Ints) -> Generated:
        """Generate behind one prompt, or one batch."""
        return self.decoder.generate(ids, self.tokens, form.length)

    def fingerprint(self, ready: Ready) -> Fingerprint:
        """What runs while tokens are generated behind one prompt of the middle length.

        They are few: a profiler keeps every operator of them.
        """
        form = self.forms[0]
        ids = _middle(form)
        compiled = ready.first, ready.later
        lengths = sum(each.size for of in self.forms for each in of.prompts)
        tokens = min(self.tokens, _COUNTED)
        return self.decoder.fingerprint(ids, tokens, form.length, compiled, lengths)

    def make_ready(self, min_round_s: float, *, anew: bool = True) -> Ready:
        """Compile by the first generation of each form, then warm up over all prompts.

        ``anew``: as if nothing had run before.
        """
        engine, clock = self.engine, self.clock
        if anew:
            engine.forget_compiled()
        before, start = engine.compile_counts(), clock()
        for form in self.forms:  # by a prompt of the middle length, as throughput's first forward
            self.generate(form, _middle(form))
        compiled, first = clock(), engine.compile_counts()
        self.once()
        end, later = clock(), engine.compile_counts() - first
        pass_s = end - compiled
        if later.graphs:
            self.once()
            pass_s = clock() - end
        repeats = max(1, math.ceil(min_round_s / pass_s)) if pass_s > 0 else 1
        took = compiled - start, end - compiled
        return Ready(*took, first - before, later, repeats, engine.not_compiled())


def _middle(form: Form) -> Ints:
    """Of a form's prompts, the one of the middle length."""
    return sorted(form.prompts, key=np.size)[len(form.prompts) // 2]


class DecodeRegion:
    """The timed region: call ``round()`` as often as wanted, then ``finish()``."""

    def __init__(self, work: Work, ready: Ready, health: Watch | None = None) -> None:
        """Start the region: peak memory and compile counts begin anew here."""
        self._work, self._ready, self._health = work, ready, health or Watch()
        self._rounds: list[DecodeRound] = []
        work.engine.reset_peak_memory()
        self._counts = work.engine.compile_counts()
        self._contention = cpu_contention()

    def round(self) -> DecodeRound:
        """Time one round; the device is read before and after, and beside it by a thread."""
        self._health.begin()
        work = self._work
        start = work.clock()
        with notices.timed():
            passes = [work.once() for _ in range(self._ready.repeats)]
        whole_s = work.clock() - start
        generated = {f.name: tuple(g for p in passes for g in p[f.name]) for f in work.forms}
        done = DecodeRound(generated, whole_s, self._health.end())
        self._rounds.append(done)
        return done

    def finish(self, bandwidth: Callable[[], float | None], uncached_bytes: int | None) -> Decoded:
        """End the region; both are of the device: see there."""
        assert self._rounds, "finish() before any round()"
        kept, thrown_out, faults = counted(self._rounds)
        work, engine = self._work, self._work.engine
        streamed = work.decoder.streamed_bytes(1, work.forms[0].length)
        if uncached_bytes is None or (streamed is not None and streamed < uncached_bytes):
            streamed = None
        return Decoded(
            engine=engine.name,
            forms=work.forms,
            tokens=work.tokens,
            static=work.decoder.static,
            ready=self._ready,
            rounds=kept,
            timed=engine.compile_counts() - self._counts,
            peak_memory_gib=engine.peak_memory_gib(),
            waited_fraction=waited_fraction(self._contention, cpu_contention()),
            streamed=streamed,
            bandwidth=None if streamed is None else bandwidth(),
            faults=faults,
            thrown_out=thrown_out,
            timed_s=sum(done.whole_s for done in self._rounds),
        )


def tokens_apart(
    given: Mapping[str, Sequence[Ints]], forms: Sequence[Form], eager: MeasuredDecoder
) -> tuple[list[OtherToken], int]:
    """Which tokens are not the likeliest behind their own text; and how many were compared.

    By the eager engine's forward without a cache, so that a cache that is wrong on every engine is
    seen, too. ``given`` is as ``Decoded.given``; what several passes gave alike is compared once.
    EngineError where the logits are not finite.
    """
    others: list[OtherToken] = []
    compared, seen = 0, set[tuple[str, bytes]]()
    for form in forms:
        for nth, rows in enumerate(given[form.name]):
            number = nth % len(form.prompts)
            for row, tokens in enumerate(rows):
                where = f"{form.name or 'single'}/{number * form.rows + row}"
                if (where, tokens.tobytes()) in seen:
                    continue
                seen.add((where, tokens.tobytes()))
                text = np.concatenate([form.prompts[number][row], tokens[:-1]])
                logits = eager.logits_after(text, len(tokens))
                if not np.isfinite(logits).all():
                    raise EngineError(f"decode: logits behind the tokens of {where} are not finite")
                likeliest = logits.argmax(axis=1)
                compared += len(tokens)
                for at in np.flatnonzero(likeliest != tokens).tolist():
                    before, after, here = int(likeliest[at]), int(tokens[at]), logits[at]
                    gap, largest = float(here[before] - here[after]), float(np.abs(here).max())
                    others.append(OtherToken(f"{where} token {at}", before, after, gap, largest))
    return others, compared
