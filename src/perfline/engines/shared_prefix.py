"""How are prompts answered with every shared prefix computed once?

``SharedPrefixRunner`` executes a ``prefix_plan.Plan`` on a ``TorchEngine``: a node's keys and
values are held once, in one row, while its batches of suffixes run; the head sees the last token of
each row alone. Answers are those of ``engine.run_pass`` up to rounding: the same products in other
batches. Where the device runs behind the host, one batch runs while the one before is read.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from perfline.engines import prefix_plan
from perfline.engines.device import GIB, Device
from perfline.engines.engine import Clock, Progress
from perfline.engines.prefix_forward import Ints, KeysValues, PrefixForward
from perfline.engines.prefix_plan import Batch, Limits, Plan
from perfline.engines.torch_engine import TorchEngine, told
from perfline.errors import DeviceMemory, EngineError
from perfline.tasks.answers import Answers, full_vocab_letter, letter_table
from perfline.tasks.prompts import Prompt

OnBatch = Callable[[Answers], None]


@dataclass(frozen=True)
class SharedPass:
    """One pass over prompts.

    Attributes:
        answers: one row per prompt, in their order.
        served_tokens: prompt tokens, as if each prompt were run by itself.
        computed_tokens: tokens really run, padding left out; a node that an out-of-memory made run
            twice counts twice.
        padded_tokens: padding that was run beside them.
        core_s: seconds in forwards.
        whole_s: seconds of the pass: copies, forwards, answers, ``on_batch``.
        flops: really executed, padding included; attention as (query, key) pairs that count, as in
            ``TorchEngine.layer_flops``. None where not known.
        halvings: how often memory ran out.
    """

    answers: Answers
    served_tokens: int
    computed_tokens: int
    padded_tokens: int
    core_s: float
    whole_s: float
    flops: float | None
    halvings: int


@dataclass
class _Flight:
    """A batch on its way: its result is queued, not yet read; ``rows`` are of ``_Gathered``."""

    rows: list[int]
    result: torch.Tensor
    start: Any
    end: Any


@dataclass(frozen=True)
class _Forward:
    """``rows`` of ``width`` tokens after ``prefix``, of whose keys and values all is ``held``."""

    rows: int
    width: int
    prefix: int
    held: bool = False


class _Gathered:
    """What a pass has found so far.

    Attributes:
        rows: of all prompts (``Prompt.rows``): what is run.
        left: how many rows of each prompt are not done yet.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        n = len(prompts)
        self.prompts = prompts
        self.rows = [row for prompt in prompts for row in prompt.rows]
        self.left = np.array([len(prompt.rows) for prompt in prompts], dtype=np.int64)
        self._ends = np.cumsum(self.left)
        self._scores = np.full((len(self.rows), 2), np.nan)
        self.letters = letter_table(prompts)
        self.argmax = np.full(n, -1, dtype=np.int64)
        self.argmax_letter = [""] * n
        self.scales = np.zeros(n, dtype=np.float32)
        self.done = np.zeros(len(self.rows), dtype=np.bool_)
        self.core_s = 0.0
        self.computed = self.padded = 0
        self.flops: float | None = 0.0

    def prompt_of(self, row: int) -> int:
        """Whose row it is."""
        return int(np.searchsorted(self._ends, row, side="right"))

    def take(self, row: int, found: npt.NDArray[np.float32], text: Callable[[int], str]) -> bool:
        """Take in what ``PrefixForward.answer`` gave for a row: whether its prompt is answered."""
        number = self.prompt_of(row)
        prompt, end = self.prompts[number], int(self._ends[number])
        self.done[row] = True
        self.left[number] -= 1
        if prompt.continuations:
            self._scores[row] = found
            if not self.left[number]:
                scored = self._scores[end - prompt.choices : end].tolist()
                own, letter, self.scales[number] = prompt.scored(scored)
                self.letters[number, : prompt.choices] = own
                self.argmax_letter[number] = letter
        else:
            *logits, self.scales[number], self.argmax[number] = found.tolist()
            self.letters[number, : prompt.choices] = logits[: prompt.choices]
            best = text(int(self.argmax[number]))
            self.argmax_letter[number] = full_vocab_letter(best, prompt.choices)
        return not self.left[number]

    def answers(self, numbers: Sequence[int]) -> Answers:
        """The answers to those prompts."""
        labels = [self.prompts[number].label for number in numbers]
        return Answers(
            ids=tuple(self.prompts[number].id for number in numbers),
            letter_logits=self.letters[list(numbers)],
            argmax=self.argmax[list(numbers)],
            argmax_letter="".join(self.argmax_letter[number] for number in numbers),
            labels="".join(label for label in labels if label) if all(labels) else None,
            shots=tuple(self.prompts[number].shots for number in numbers),
            scales=self.scales[list(numbers)],
        )


@dataclass
class _Pass:
    """One plan on its way through the device.

    Attributes:
        todo: the rows of ``gathered`` that the plan's rows stand for.
        landed: takes the prompts that were answered.
        held: keys and values of the nodes on the current path.
    """

    runner: SharedPrefixRunner
    gathered: _Gathered
    plan: Plan
    todo: Sequence[int]
    clock: Clock
    landed: Callable[[list[int]], None]
    held: dict[int, KeysValues] = field(default_factory=dict)
    flight: _Flight | None = None
    tried: _Forward = field(default_factory=lambda: _Forward(0, 0, 0))

    def run(self) -> tuple[_Forward, str] | None:
        """Run all batches; returns the forward that did not fit, and the error's message."""
        failed = None
        for batch in self.plan.batches:
            try:
                launched = self._launch(batch)
            except DeviceMemory as error:
                if self.runner.engine.ranks > 1:
                    raise  # the ranks that hold the model cannot halve each by itself
                # The error itself would hold on to the frames' tensors.
                failed = self.tried, str(error)
                break
            self._land()
            self.flight = launched
            if not self.runner.overlap:
                self._land()
        self._land()
        return failed

    def _launch(self, batch: Batch) -> _Flight:
        """Queue a batch, and the nodes above it that are not held yet."""
        rows = [self.todo[row] for row in batch.rows]
        befores = [self.plan.nodes[node].end for node in batch.nodes] or [batch.prefix] * len(rows)
        ids, lengths = self._padded(rows, befores, [None] * len(rows), batch.width)
        start = self._mark()
        above, short = self._descend(batch.node), None
        self.tried = _Forward(len(rows), batch.width, batch.prefix, held=bool(batch.nodes))
        if batch.nodes:
            above, short = self.runner.forward.beside([self.held[node] for node in batch.nodes])
        parts = [self.gathered.rows[row] for row in rows]
        targets = [part.targets for part in parts if part.targets is not None]
        result = self.runner.forward.answer(above, ids, lengths, targets, short)
        self._count(ids, lengths, befores, head_rows=sum(part.tail for part in parts))
        return _Flight(rows, result, start, self._mark())

    def _descend(self, last: int | None) -> KeysValues:
        """Hold the nodes down to that one, and those computed with them that are yet to come."""
        path = self.plan.path(last)
        for number in set(self.held) - set(path):
            if last is None or number < last:  # numbers are depth first
                del self.held[number]
        above = self.runner.forward.empty
        for number in path:
            if number not in self.held:
                group = self.plan.group(number)
                nodes = [self.plan.nodes[mate] for mate in group]
                rows = [self.todo[node.row] for node in nodes]
                starts, ends = [node.start for node in nodes], [node.end for node in nodes]
                ids, lengths = self._padded(rows, starts, ends, max(ends) - starts[0])
                self.tried = _Forward(len(rows), ids.shape[1], starts[0], held=True)
                made = self.runner.forward.extend(above, ids, lengths)
                self.held.update(zip(group, made, strict=True))
                self._count(ids, lengths, starts, head_rows=1)
            above = self.held[number]
        return above

    def _padded(
        self, rows: Sequence[int], starts: Sequence[int], ends: Sequence[int | None], width: int
    ) -> tuple[Ints, Ints]:
        """Token ids of those rows from ``starts`` on, (rows, width), and how many are real."""
        ids = np.zeros((len(rows), width), dtype=np.int64)
        lengths = np.zeros(len(rows), dtype=np.int64)
        for i, (row, start, end) in enumerate(zip(rows, starts, ends, strict=True)):
            piece = self.gathered.rows[row].ids[start:end]
            ids[i, : len(piece)], lengths[i] = piece, len(piece)
        return ids, lengths

    def _land(self) -> None:
        """Wait for the batch on its way, if any, and take its answers in."""
        flight, self.flight = self.flight, None
        if flight is None:
            return
        gathered, engine = self.gathered, self.runner.engine
        gathered.core_s += _seconds(flight)
        table = flight.result.numpy()
        broken = np.flatnonzero(~np.isfinite(table).all(axis=1))
        if broken.size:
            raise EngineError(
                f"{engine.name}: logits of {broken.size} of {len(table)} prompts are not finite "
                f"(first: question {gathered.rows[flight.rows[broken[0]]].id}); an overflow in "
                "fp16, or a broken kernel?"
            )
        rows = zip(flight.rows, table, strict=True)
        whole = [row for row, found in rows if gathered.take(row, found, engine.text)]
        if whole:
            self.landed([gathered.prompt_of(row) for row in whole])

    def _mark(self) -> Any:
        """A point in time: of the device where it runs behind the host, else of the clock."""
        if not self.runner.overlap:
            self.runner.engine.synchronize()
            return self.clock()
        event = torch.Event(self.runner.engine.device.torch, enable_timing=True)
        event.record()
        return event

    def _count(self, ids: Ints, lengths: Ints, befores: Sequence[int], head_rows: int) -> None:
        """Count a forward: what the prompts need, what is padding, and its FLOPs.

        Those are linear in the tokens before a row: the rows' mean stands for each.
        """
        rows, width = max(len(ids), self.runner.least_rows), ids.shape[1]
        computed = int(lengths.sum())
        self.gathered.computed += computed
        self.gathered.padded += rows * width - computed
        engine, so_far = self.runner.engine, self.gathered.flops
        before = statistics.fmean(befores)
        layers, head = engine.layer_flops(width, before), engine.head_flops(head_rows)
        self.gathered.flops = (
            None
            if layers is None or head is None or so_far is None
            else so_far + rows * layers + head
        )


class SharedPrefixRunner:
    """Answers prompts by shared prefixes on one engine.

    Attributes:
        limits: what a forward may take; lowered where memory runs out.
        overlap: the device runs behind the host.
        least_rows: how many rows a lone one costs.
    """

    def __init__(
        self,
        engine: TorchEngine,
        limits: Limits | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """``limits`` default to what the device has free; ``say`` takes lines for the user.

        NoSharedPrefixes where there can be none (``PrefixForward``).
        """
        self.engine = engine
        self.forward = PrefixForward(engine)
        self.overlap = engine.device.runs_behind
        self.least_rows = self.forward.least_rows
        self.limits = limits or default_limits(
            engine.device, self.forward.bytes_per_token, self.forward.held_bytes_per_token
        )
        self._say = say

    def plan(self, prompts: Sequence[Prompt]) -> Plan:
        """Plan the rows of ``prompts`` within the runner's limits."""
        rows = [row for prompt in prompts for row in prompt.rows]
        limits = replace(self.limits, least_rows=self.least_rows, steady=self.forward.steady)
        if self.engine.ranks > 1:  # ranks cannot halve what does not fit: no more is held than must
            limits = replace(limits, held_bytes_per_token=limits.kv_bytes + 1)
        return prefix_plan.plan(rows, limits)

    def warm_up(self, plan: Plan) -> None:
        """Compile what any plan needs, and run this one's heaviest batch once."""
        heaviest = max(plan.batches, key=lambda b: len(b.rows) * b.width, default=None)
        rows, width, before = 0, 0, 0
        if heaviest is not None:
            rows, width, before = len(heaviest.rows), heaviest.width, heaviest.prefix
        self.engine.tell(do="warm up", rows=rows, width=width, prefix=before)
        self._warm_up(rows, width, before)

    def follow(self, said: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
        """Do what the runner of the replica's first rank does (``replica``)."""
        if said["do"] == "warm up":
            self._warm_up(said["rows"], said["width"], said["prefix"])
        else:
            tokens, kv_bytes = said["forward_tokens"], said["kv_bytes"]
            self.limits = replace(self.limits, forward_tokens=tokens, kv_bytes=kv_bytes)
            self.run(prompts, self.plan(prompts))

    def _warm_up(self, rows: int, width: int, before: int) -> None:
        """Compile, and run ``rows`` of ``width`` tokens after ``before``; none where 0."""
        forward = self.forward
        if self.engine.compiled_forwards:
            forward.compile()
        forward.prove()
        if rows:
            above = forward.empty
            later = () if self.engine.ranks > 1 else (DeviceMemory,)
            with contextlib.suppress(*later):  # ``run`` will meet it, and lower the limits
                if before:
                    front = np.zeros((1, before), dtype=np.int64)
                    (above,) = forward.extend(above, front, np.array([before]))
                ids = np.zeros((rows, width), dtype=np.int64)
                forward.answer(above, ids, np.full(rows, width))
        self.engine.synchronize()

    def run(
        self,
        prompts: Sequence[Prompt],
        plan: Plan,
        clock: Clock = time.perf_counter,
        progress: Progress | None = None,
        on_batch: OnBatch | None = None,
    ) -> SharedPass:
        """Answer every prompt; ``on_batch`` gets each batch's answers as soon as they are there.

        When memory runs out, the limits are halved and what is left is planned anew. DeviceMemory
        where a single row does not fit, EngineError where logits are not finite.
        """
        limits = {"forward_tokens": self.limits.forward_tokens, "kv_bytes": self.limits.kv_bytes}
        self.engine.tell(do="shared", **told(prompts), **limits)
        gathered, begin = _Gathered(prompts), clock()

        def landed(numbers: list[int]) -> None:
            if on_batch is not None:
                on_batch(gathered.answers(numbers))
            if progress is not None:
                progress(int((gathered.left == 0).sum()), len(prompts))

        halvings, stuck = 0, False
        todo = list(range(len(gathered.rows)))
        while todo:
            failed = _Pass(self, gathered, plan, todo, clock, landed).run()
            left = [row for row in todo if not gathered.done[row]]
            if failed is not None:
                forward, message = failed
                # What was held is free by now: a single row gets one more try.
                if forward.rows == 1 and stuck and left == todo:
                    raise DeviceMemory(message)
                stuck = forward.rows == 1
                halvings += 1
                self._shrink(forward)
                plan = self.plan([gathered.rows[row] for row in left])
            todo = left
        return SharedPass(
            answers=gathered.answers(range(len(prompts))),
            served_tokens=sum(prompt.tokens for prompt in prompts),
            computed_tokens=gathered.computed,
            padded_tokens=gathered.padded,
            core_s=gathered.core_s,
            whole_s=clock() - begin,
            flops=gathered.flops,
            halvings=halvings,
        )

    def _shrink(self, forward: _Forward) -> None:
        """Halve what the forward that did not fit took, and say so."""
        limits, rows, width, prefix = self.limits, forward.rows, forward.width, forward.prefix
        tokens = rows * (width + (prefix if forward.held else 0))  # as ``held_tokens`` counts
        a_token = limits.held_bytes_per_token if forward.held else limits.kv_bytes_per_token
        kv = rows * (prefix + width) * a_token
        self.limits = replace(
            limits,
            forward_tokens=max(1, min(limits.forward_tokens, tokens) // 2),
            kv_bytes=max(1, min(limits.kv_bytes, kv) // 2),
        )
        gc.collect()
        if self.engine.device.kind != "cpu":
            torch.accelerator.empty_cache()
        self._say(
            f"out of memory at {rows} x {width} tokens on a prefix of {prefix}: going "
            f"on with at most {self.limits.forward_tokens} tokens and "
            f"{self.limits.kv_bytes / GIB:.2g} GiB of keys and values a forward"
        )


def default_limits(device: Device, kv_bytes_per_token: int, held_bytes_per_token: int) -> Limits:
    """Keys and values in 0.3 of the memory that is free, on a CPU in 1 GiB at most."""
    free = device.free_memory_gib()
    gib = 1.0 if free is None else 0.3 * free
    if device.kind == "cpu":
        kv_bytes = int(min(gib, 1.0) * GIB)
        return Limits(2048, kv_bytes, kv_bytes_per_token, held_bytes_per_token, 16)
    return Limits(8192, int(gib * GIB), kv_bytes_per_token, held_bytes_per_token, 64)


def _seconds(flight: _Flight) -> float:
    if isinstance(flight.end, torch.Event):
        flight.end.synchronize()
        return float(flight.start.elapsed_time(flight.end)) / 1000
    return float(flight.end - flight.start)
