"""A scripted engine: what it answers, how long it takes and what it compiles, without a model.

Every call is written to ``log``, so that a test can pin the order of the phases; time passes only
where the script says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from perfline.engines.device import Device
from perfline.engines.engine import (
    CompileCounts,
    EngineName,
    Fingerprint,
    Generated,
    Head,
    Ints,
    Profile,
    Span,
)
from perfline.engines.environment import Environment
from perfline.errors import NoDecode, NoFidelity, NoSharedPrefixes
from perfline.tasks.answers import LETTERS
from perfline.tasks.prompts import Prompt
from perfline.tasks.reference import prompt_digest

DEVICE = Device("cpu", "Fake CPU", "fake-cpu")
ENVIRONMENT = Environment("fake-cpu", "Fake CPU", "cpu", {"torch": "9.9", "commit": "abc1234"})


@dataclass
class FakeClock:
    """A clock that moves only when told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def prompts(n: int = 40, length: int = 100) -> list[Prompt]:
    """``n`` prompts of two subjects, of rising lengths, their labels A B C D in turn."""
    return [
        Prompt(
            id=f"{'even' if i % 2 == 0 else 'odd'}/{i // 2}",
            subject="even" if i % 2 == 0 else "odd",
            ids=np.arange(length + i, dtype=np.int64),
            shots=5,
            label=LETTERS[i % 4],
        )
        for i in range(n)
    ]


@dataclass
class FakeEngine:
    """``engine.MeasuredEngine`` by script.

    Attributes:
        token_s: seconds a token takes in the forward.
        wrong: ids of questions that it answers wrongly (with the next letter).
        graphs_at: numbers of the forwards (from 0) at which it compiles a graph.
        factors: the n-th forward takes ``factors[n % len]`` times as long.
        deprecated: what it warns of in each forward, as other packages do.
        uncompiled: why it compiled nothing though it should have.
        eager_ops, more_mm, software: of its fingerprint.
        largest: the largest logit of its vocabulary.
    """

    name: EngineName
    clock: FakeClock
    log: list[str] = field(default_factory=list)
    token_s: float = 1e-4
    read_s: float = 0.0
    compile_s: float = 0.0
    wrong: frozenset[str] = frozenset()
    graphs_at: tuple[int, ...] = ()
    factors: Sequence[float] = (1.0,)
    breaks: int = 0
    memory_gib: float = 1.0
    nan: frozenset[str] = frozenset()
    deprecated: str = ""
    uncompiled: str = ""
    eager_ops: int = 40
    more_mm: int = 0
    software: str = "torch 9.9"
    largest: float = 5.0
    _forwards: int = 0
    _graphs: int = 0

    def begin(self, prompts: Sequence[Prompt], head: Head) -> None:
        self.log.append(f"told {len(prompts)} {head}")

    def prepare(self, prompt: Prompt) -> Prompt:
        self.log.append("prepare")
        return prompt

    def forward(self, batch: Prompt, head: Head) -> Prompt:
        self.log.append(f"forward {batch.id} {head}")
        if self.deprecated:
            warnings.warn(self.deprecated, FutureWarning, stacklevel=2)
        if self._forwards in self.graphs_at:
            self._graphs += 1
            self.clock.now += self.compile_s
        self.clock.now += (
            self.token_s * len(batch.ids) * self.factors[self._forwards % len(self.factors)]
        )
        self._forwards += 1
        return batch

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def read(self, logits: Prompt) -> tuple[list[float], float, int, str]:
        self.log.append("read")
        self.clock.now += self.read_s
        right = LETTERS.index(logits.label or "A")
        given = (right + 1) % 4 if logits.id in self.wrong else right
        letters = [5.0 if i == given else float(i) for i in range(4)]
        if logits.id in self.nan:
            letters[0] = float("nan")
        return letters, self.largest, given, LETTERS[given]

    def compile_counts(self) -> CompileCounts:
        return CompileCounts(self._graphs, self.breaks if self._graphs else 0, 0, self._graphs)

    def forget_compiled(self) -> None:
        self.log.append("forget")

    def not_compiled(self) -> str:
        return self.uncompiled

    def fingerprint(
        self,
        prompt: Prompt,
        head: Head,
        compiled: tuple[CompileCounts, CompileCounts],
        sample_tokens: int,
    ) -> Fingerprint:
        counts = {"prompt_tokens": sample_tokens, "weights_elsewhere": 0}
        if self.name != "eager":
            first, later = compiled
            counts |= {
                "eager_ops": self.eager_ops,
                "graphs": first.graphs,
                "graph_breaks": first.graph_breaks + later.graph_breaks,
                "recompiles": later.graphs,
            }
        operators = {"aten::mm": 29 + self.more_mm}
        return Fingerprint(prompt_digest(prompt.ids), self.software, counts, operators)

    def profile(
        self, prompts: Sequence[Prompt], head: Head, trace: Path | None = None
    ) -> Callable[[], Profile]:
        self.log.append(f"profile {len(prompts)} {head}")
        if trace is not None:
            trace.write_text("{}")
        tokens = sum(len(prompt.ids) for prompt in prompts)
        return lambda: Profile(tokens, 1.0, False, (Span("layers.0.mlp", "aten::mm", 0.9, 1),))

    def flops(self, tokens: int, head: Head) -> float | None:
        return 1e6 * tokens

    def reset_peak_memory(self) -> None:
        self.log.append("reset peak")

    def peak_memory_gib(self) -> float | None:
        return self.memory_gib


@dataclass
class FakeDecoder:
    """``engine.MeasuredDecoder`` by script: token n behind a prompt is n, in ``step_s`` seconds.

    Attributes:
        first_s: seconds to the first token.
        other: number of the token that is another one, 5 logits below the right one; None: none.
        graphs_at: numbers of the generations (from 0) at which the engine compiles a graph.
        factors: in the n-th generation all takes ``factors[n % len]`` times as long.
        streamed: bytes that a step reads.
        eager_ops: of its fingerprint, a token.
    """

    engine: FakeEngine
    step_s: float = 1e-3
    first_s: float = 1e-2
    other: int | None = None
    tie: bool = False
    graphs_at: tuple[int, ...] = ()
    factors: Sequence[float] = (1.0,)
    streamed: int | None = None
    eager_ops: int = 9
    static: bool = True
    positions: int = 4096
    _generations: int = 0

    def generate(self, ids: Ints, tokens: int, length: int) -> Generated:
        assert not self.static or ids.shape[1] + tokens <= length
        self.engine.log.append(f"generate {tokens} behind {ids.shape} in {length}")
        factor = self.factors[self._generations % len(self.factors)]
        self.engine._graphs += self._generations in self.graphs_at
        self._generations += 1
        given = np.tile(np.arange(tokens), (len(ids), 1))
        if self.other is not None:
            given[:, self.other] = 99
        steps = (self.step_s * factor,) * (tokens - 1)
        first_s = self.first_s * factor
        self.engine.clock.now += first_s + sum(steps)
        return Generated(given, first_s, steps, first_s + sum(steps))

    def logits_after(self, ids: Ints, last: int = 1) -> np.ndarray:
        logits = np.zeros((last, 100), dtype=np.float32)
        logits[range(last), range(last)] = 5.0
        logits[:, 99] = 5.0 if self.tie else 0.0
        return logits

    def streamed_bytes(self, rows: int, length: int) -> int | None:
        return self.streamed

    def fingerprint(
        self,
        ids: Ints,
        tokens: int,
        length: int,
        compiled: tuple[CompileCounts, CompileCounts],
        prompt_tokens: int,
    ) -> Fingerprint:
        prompt = Prompt("s/0", "s", ids[0], 5, None)
        found = self.engine.fingerprint(prompt, "last", compiled, prompt_tokens)
        if self.engine.name == "eager":
            return found
        return replace(found, counts={**found.counts, "eager_ops": self.eager_ops * tokens})


@dataclass
class FakeLogits:
    """``fidelity.Logits`` by script: 30 tokens, 3 layers, the same logits for the same prompt.

    Attributes:
        off: by how much a way (``inductor plain``) or a variation (``batch``) is off, in logits;
            1e-6 where nothing is said.
        damage: by how much the model is, from layer ``layer`` on.
        fp32: why the model cannot be had in fp32; empty where it can.
        uncompiled: why the compiled engine ran eagerly; empty where it did not.
        dtype: by how much the case's own dtype takes the logits off, by the name of an engine or a
            variation; "rounded" is the fp32 model that rounds to it. Empty where that is fp32.
        own: these are the logits in that dtype.
    """

    off: dict[str, float] = field(default_factory=dict)
    damage: float = 0.0
    layer: int = 1
    fp32: str = ""
    dtype: dict[str, float] = field(default_factory=dict)
    own: bool = False
    letters: tuple[int, ...] = (1, 2, 3, 4)
    uncompiled: str = ""
    unshared: str = ""

    def not_compiled(self, name: str) -> str:
        return self.uncompiled if name != "eager" else ""

    def _rows(self, prompt: Prompt, off: float) -> np.ndarray:
        made = np.random.default_rng(prompt.ids)
        rows = made.normal(0, 4, size=(len(prompt.ids), 30))
        rows += (self.damage + off) * made.choice((-1, 1), size=rows.shape)
        return rows.astype(np.float32)

    def plain(
        self, name: str, prompt: Prompt, positions: Sequence[int], variation: str | None = None
    ) -> tuple[np.ndarray, list[float]]:
        if self.own or variation == "rounded":
            if not self.dtype:
                raise NoFidelity("the model's own dtype is fp32")
            return self._rounded(prompt, self.dtype[variation or name])[list(positions)], []
        way = variation or f"{name} plain"
        off = 0.0 if way == "eager plain" else self.off.get(way, 1e-6)
        layers = [number + off + self.damage * (number >= self.layer) for number in range(3)]
        return self._rows(prompt, off)[list(positions)], layers

    def _rounded(self, prompt: Prompt, off: float) -> np.ndarray:
        rows = self._rows(prompt, 0.0)
        made = np.random.default_rng(len(prompt.ids))
        return rows + off * made.normal(size=rows.shape).astype(np.float32)

    def shared(self, name: str, prompts: Sequence[Prompt]) -> np.ndarray:
        if self.unshared:
            raise NoSharedPrefixes(self.unshared)
        off = self.off.get(f"{name} shared", 1e-6)
        return np.stack([self._rows(prompt, off)[-1] for prompt in prompts])


@dataclass
class FakeLoadedCase:
    """``loaded_case.LoadedCase`` over scripted engines."""

    engines: dict[str, FakeEngine]
    prompts: Sequence[Prompt] = field(default_factory=prompts)
    load_s: float = 1.5
    load_peak_gib: float | None = 0.5
    own_load_s: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=lambda: {"weights": "sha256:fake"})
    closed: int = 0
    numbers: FakeLogits = field(default_factory=FakeLogits)
    decode: dict[str, dict[str, object]] = field(default_factory=dict)  # by engine, or "both"
    no_decode: str = ""
    more: dict[str, Sequence[Prompt]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def decoder(self, name: EngineName) -> FakeDecoder:
        if self.no_decode:
            raise NoDecode(self.no_decode)
        script = {**self.decode.get("both", {}), **self.decode.get(name, {})}
        return FakeDecoder(self.engines[name], **script)

    def in_step(self, do: str) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def full_precision(self) -> Iterator[FakeLogits]:
        if self.numbers.fp32:
            raise NoFidelity(self.numbers.fp32)
        yield self.numbers

    @contextmanager
    def own_precision(self) -> Iterator[FakeLogits]:
        yield replace(self.numbers, own=True)

    def engine(self, name: EngineName) -> FakeEngine:
        return self.engines[name]

    def shared(self, name: EngineName, say: object) -> None:
        return None

    def close(self) -> None:
        self.closed += 1
