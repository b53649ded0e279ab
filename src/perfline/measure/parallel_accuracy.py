"""How do the ranks of a torchrun job share the questions of a pass?

Rank 0 runs pytest; the others answer what it asks. It lists a pass's units (``work_units.cut``);
whoever is free, rank 0 too, takes the next one off a shared counter and sends its answers batch by
batch. They merge by question id, and only rank 0 keeps a journal and a record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from perfline.cases.case import Case
from perfline.distributed.group import POLL_S, Group
from perfline.distributed.replica import Replica
from perfline.distributed.work_units import Unit, cut
from perfline.engines.engine import CompileCounts, EngineName
from perfline.errors import MissingRanks, RankError
from perfline.measure.accuracy import AccuracyRun, Keep, Part
from perfline.measure.journal import from_row, to_row
from perfline.measure.parallel_rounds import AggregateTimings, Repeat, TimedRun, conduct
from perfline.tasks.answers import Answers, union
from perfline.tasks.prompts import Prompt

Prompts = Mapping[str, Prompt]  # by id


@dataclass
class _Taken:
    """A unit that a rank works on."""

    rank: int
    batches: list[Answers] = field(default_factory=list)


@dataclass
class RankCoordinator:
    """Rank 0's side: asks, answers with the others, collects.

    Attributes:
        broken: why no further pass can be shared; empty where it can.
    """

    group: Group
    broken: str = ""
    _gone: set[int] = field(default_factory=set)  # ranks that said goodbye
    _tensor: int = 1  # ranks that hold one model between them
    _opened: int = 0
    _replica: Replica | None = None  # that this rank leads

    @property
    def replicas(self) -> int:
        """How many replicas of the model there are."""
        return self.group.ranks // self._tensor

    @property
    def leaders(self) -> Sequence[int]:
        """The ranks that lead a replica of the model, this one first."""
        return range(0, self.group.ranks, self._tensor)

    @property
    def hosts(self) -> int:
        """On how many hosts they are."""
        return len(set(self.group.hosts()))

    def alive(self) -> None:
        """Tell the others that rank 0 still works."""
        self.group.alive()

    def open(self, case: Case) -> Replica | None:
        """Have the others load the case too; this rank's replica where the model is split.

        MissingRanks where there are too few.
        """
        self._check()
        tensor = case.parallel.tensor
        if self.group.ranks % tensor:
            raise MissingRanks(
                f"case '{case.id}' splits its model over {tensor} ranks (parallel.tensor), "
                f"and torchrun has started {self.group.ranks}: expected a multiple of {tensor}"
            )
        self._tensor, self._opened = tensor, self._opened + 1
        self.ask("open", case.id)
        self._replica = None if tensor == 1 else Replica(self.group, tensor, self._opened)
        return self._replica

    def prepare(self, case: str, engine: EngineName) -> None:
        """Have the others make the engine ready in the meantime.

        RankError where a rank is lost: before a pass begins anew, and its journal with it.
        """
        self._check()
        self.ask("prepare", case, engine=engine)

    def answer(self, run: AccuracyRun, prompts: Sequence[Prompt], keep: Keep | None) -> list[Part]:
        """Answer every prompt once; RankError names the rank that failed or is silent."""
        self._check()
        units = cut(prompts, self.replicas, run.cost)
        number = self.ask(
            "answer",
            run.identity["case"],
            engine=run.identity["engine"],
            identity=dict(run.identity),
            units=[unit.ids for unit in units],
        )
        collected = _Collected(self, number, units, run, keep)
        by_id = {prompt.id: prompt for prompt in prompts}
        try:
            while (mine := self.group.take(number)) < len(units):
                here = [by_id[name] for name in units[mine].ids]
                collected.add(mine, run.part(here, collected.keep))
            collected.wait()
        finally:
            self.group.close(number, len(units))
        return collected.parts

    def replica_of(self, rank: int) -> int:
        """Which replica a rank belongs to."""
        return rank // self._tensor

    def time(self, run: TimedRun, repeat: Repeat) -> AggregateTimings:
        """Time rounds of all ranks together; RankError names the rank that failed or is silent."""
        self._check()
        return conduct(self, run, repeat)

    def lost(self, text: str) -> RankError:
        """No further pass can be shared; the error to raise."""
        self.broken = text
        return RankError(text)

    def _check(self) -> None:
        if self._replica is not None and self._replica.broken:
            self.broken = self._replica.broken
        if self.broken:
            raise RankError(self.broken)

    def ask(self, do: str, case: str, **more: object) -> int:
        """Ask the other ranks; returns the command's number."""
        return self.group.post({"do": do, "case": case, "opened": self._opened, **more})

    def end(self, status: int, wait: bool) -> None:
        """Tell the others that it is over; ``wait`` until they are, RankError where one is not.

        A status that all have agreed on is final: torchrun starts a failed group again, and a
        verdict must not be asked for twice.
        """
        self.group.post({"do": "end", "status": status})
        final = False
        try:
            if wait and not self.broken:
                self._wait_for_goodbyes()
                final = True
        finally:
            self.group.end(status, final)

    def _wait_for_goodbyes(self) -> None:
        group, others = self.group, set(range(1, self.group.ranks))
        begin = group.clock()
        while not others <= self._gone:
            for message in group.messages():
                self.hear(message)
            if group.clock() - begin > group.timeout_s:
                names = ", ".join(group.name(rank) for rank in sorted(others - self._gone))
                raise RankError(
                    f"waited {group.timeout_s:g} s for {names} to end: it hangs, or is gone, or "
                    "--rank-timeout is too short"
                )
            group.sleep(POLL_S)

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take in what concerns no pass: goodbyes, and that a rank or a replica is lost."""
        if message["kind"] == "goodbye":
            self._gone.add(message["rank"])
        elif message["kind"] == "crashed":
            raise self.lost(f"{self.group.name(message['rank'])} crashed: {message['text']}")
        elif message["kind"] == "lost":
            raise self.lost(message["text"])


class _Collected:
    """The parts of one pass, as they come in."""

    def __init__(
        self,
        coordinator: RankCoordinator,
        number: int,
        units: Sequence[Unit],
        run: AccuracyRun,
        keep: Keep | None,
    ) -> None:
        self.parts: list[Part] = []
        self._coordinator, self._group, self._number, self._units = (
            coordinator,
            coordinator.group,
            number,
            units,
        )
        self._run, self._journal = run, keep
        self._done: set[int] = set()
        self._taken: dict[int, _Taken] = {}
        self._answered = 0
        self._heard: dict[int, float] = {}  # when each rank last said something

    def keep(self, answers: Answers) -> None:
        """Take in a batch of any rank; then look what the other ranks have said."""
        self._keep(answers)
        self._group.alive()
        self._listen()

    def add(self, unit: int, part: Part) -> None:
        """Take in a whole unit. RankError where it does not hold just its questions."""
        if unit in self._done or sorted(part.answers.ids) != sorted(self._units[unit].ids):
            raise RankError(
                f"replica {part.replica} gave {len(part.answers.ids)} answers to the "
                f"{len(self._units[unit].ids)} questions of unit {unit}, or gave them twice"
            )
        self._done.add(unit)
        self.parts.append(part)

    def wait(self) -> None:
        """Wait until every unit is there; this rank has none left to do."""
        begin = self._group.clock()
        while len(self._done) < len(self._units):
            if not self._listen():
                self._group.sleep(POLL_S)
            self._group.alive()
            unsaid = set(range(len(self._units))) - self._done - set(self._taken)
            if unsaid and self._group.clock() - begin > self._group.timeout_s:
                self._silent(min(unsaid), "a rank that took them and never said so")

    def _keep(self, answers: Answers) -> None:
        self._answered += len(answers.ids)
        if self._journal is not None:
            self._journal(answers)
        if self._run.progress is not None:
            self._run.progress(self._answered, sum(len(unit.ids) for unit in self._units))

    def _listen(self) -> bool:
        """Read what was said; whether there was anything."""
        heard = False
        for message in self._group.messages():
            heard = True
            self._heard[message["rank"]] = self._group.clock()
            self._coordinator.hear(message)
            if message.get("pass") == self._number:  # what is left of a failed pass is not counted
                self._hear(message)
        self._check_silence()
        return heard

    def _hear(self, message: Mapping[str, Any]) -> None:
        kind, rank = message["kind"], message["rank"]
        if kind == "failed":
            raise RankError(f"{self._group.name(rank)}: {message['text']}")
        unit = int(message["unit"])
        if kind == "took":
            self._taken[unit] = _Taken(rank)
        elif kind == "batch":
            answers = from_row(message["answers"])
            self._taken[unit].batches.append(answers)
            self._keep(answers)
        elif kind == "did":
            answers = union(self._taken[unit].batches)
            counts = CompileCounts(**message["counts"])
            replica = self._coordinator.replica_of(rank)
            self.add(unit, Part(answers, replica, counts=counts, **message["cost"]))

    def _check_silence(self) -> None:
        """RankError where a rank that has a unit has been silent for too long."""
        now = self._group.clock()
        for unit, taken in self._taken.items():
            late = now - self._heard[taken.rank] > self._group.timeout_s
            if late and unit not in self._done:
                self._silent(unit, self._group.name(taken.rank))

    def _silent(self, unit: int, who: str) -> None:
        ids = self._units[unit].ids
        taken = self._taken.get(unit)
        given = sum(len(batch.ids) for batch in taken.batches) if taken is not None else 0
        raise self._coordinator.lost(
            f"waited for {who} with {given} of {len(ids)} questions answered (first: {ids[0]}): "
            f"silent for {self._group.timeout_s:g} s; it hangs, or --rank-timeout is too short"
        )


def help_with(
    group: Group, number: int, units: Sequence[Sequence[str]], run: AccuracyRun, prompts: Prompts
) -> None:
    """Another rank's side of :meth:`RankCoordinator.answer`: take units while there are any."""
    while (unit := group.take(number)) < len(units):
        said = {"pass": number, "unit": unit}
        group.tell("took", **said)

        def keep(answers: Answers, said: Mapping[str, int] = said) -> None:
            group.tell("batch", answers=to_row(answers), **said)

        part = run.part([prompts[name] for name in units[unit]], keep)
        cost = {
            "served_tokens": part.served_tokens,
            "computed_tokens": part.computed_tokens,
            "padded_tokens": part.padded_tokens,
            "core_s": part.core_s,
            "flops": part.flops,
            "halvings": part.halvings,
        }
        group.tell("did", cost=cost, counts=asdict(part.counts), **said)
