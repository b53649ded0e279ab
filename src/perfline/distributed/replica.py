"""Which ranks hold one model between them, and how do they run the same forwards?

Every weight is split over the ranks of a replica (``parallel.tensor`` in a case's YAML), and they
take every step of every forward together. The first of them leads: it does what a process by itself
would do, and tells the others before each pass which one that is. They do nothing but follow
(``rank_worker.follow``). What is told goes through the group's store, outside of anything timed;
tensors go through the replica's own torch.distributed world.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from perfline.distributed.group import Group
from perfline.errors import PerflineError, RankError, ReplicaLost, told

_CAUSE_S = 2.0  # for which a rank whose collective failed looks for the one that knows why


@dataclass
class Replica:
    """The ranks that hold one model between them, seen from one of them.

    Attributes:
        size: how many they are: ranks ``first`` to ``first + size - 1`` of the job.
        opening: which of the session's opened cases this is for.
        broken: which collective has failed; none is to be waited for again.
    """

    group: Group
    size: int
    opening: int
    broken: str = ""
    _told: int = 0  # or heard
    _in_step: bool = False
    _joined: bool = False

    @property
    def place(self) -> int:
        """This rank's place in the replica; 0 leads."""
        return self.group.rank % self.size

    @property
    def first(self) -> int:
        """The rank that leads."""
        return self.group.rank - self.place

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Go on only where all ranks of the replica come through what is within.

        RankError (DeviceMemory where it is that) names the first rank that did not; this rank's
        own error goes first.
        """
        step, self._told = self._told, self._told + 1
        try:
            yield
        except PerflineError as error:
            problem = json.dumps([type(error).__name__, str(error)])
            self.group.put(self._key(f"{step}/agreed/{self.place}"), problem)
            raise
        self.group.put(self._key(f"{step}/agreed/{self.place}"), "")
        for place in range(self.size):
            who = self.first + place
            try:
                problem = self.group.wait_for(self._key(f"{step}/agreed/{place}"), who)
            except RankError as error:  # silent: it would be so for every case to come
                self.broken = str(error)
                raise ReplicaLost(self.broken) from error
            if problem:
                kind, text = json.loads(problem)
                raise told(kind, f"{self.group.name(who)}: {text}")

    def check_alike(self, own: Mapping[str, str]) -> None:
        """RankError, on all ranks, where one holds a share of something else than the first."""
        key = self._key("identity")
        with self.agreeing():
            if self.place == 0:
                self.group.put(key, json.dumps(own))
            check_alike(json.loads(self.group.wait_for(key, self.first)), own, self.first)

    def join(self, kind: str) -> None:
        """Make the replica's torch.distributed world, for devices of that kind.

        transformers splits a model over all ranks of the world: replicas have one each.
        """
        import torch

        distributed: Any = torch.distributed
        if torch.accelerator.is_available():  # transformers takes the device from here
            os.environ["LOCAL_RANK"] = str(torch.accelerator.current_device_index())
        store: Any = self.group.store
        # pytest listens to every logger, and would show every collective with a failure.
        logging.getLogger("c10d-NullHandler-default").disabled = True
        with self._in_words("did not meet"):
            distributed.init_process_group(
                distributed.get_default_backend_for_device(kind),
                # An earlier attempt's addresses would still stand below the same name.
                store=distributed.PrefixStore(self.group.key(self._key("world")), store),
                rank=self.place,
                world_size=self.size,
                timeout=timedelta(seconds=self.group.timeout_s),
            )
        self._joined = True

    @contextmanager
    def in_step(self, **said: object) -> Iterator[None]:
        """As leader, tell the others what comes next; nothing within is told, all run the same."""
        self.tell(**said)
        self._in_step = True
        try:
            with self.failing():
                yield
        finally:
            self._in_step = False

    @contextmanager
    def failing(self) -> Iterator[None]:
        """End the replica by what breaks on this rank alone: the others would wait for it.

        Errors made for users are met by all ranks alike, or told where they are raised.
        """
        try:
            yield
        except PerflineError:
            raise
        except Exception as error:  # whatever it is: --rank-timeout is long
            first = (str(error) or type(error).__name__).splitlines()[0]
            self.fail(f"{type(error).__name__}: {first}")
            raise

    def tell(self, **said: object) -> None:
        """As leader, tell the others what comes next, and wait until they have heard.

        Nothing happens on the others, which run the same code when they follow.
        """
        if self._in_step:
            return
        if self.broken:
            raise ReplicaLost(self.broken)
        if self.place == 0:
            self.group.put(self._key(f"told/{self._told}"), json.dumps(said))
            self._told += 1
            self._meet()

    def hear(self) -> dict[str, Any]:
        """What the leader tells next."""
        text = self.group.wait_for(self._key(f"told/{self._told}"), 0, while_alive=True)
        self._told += 1
        self._meet()
        said: dict[str, Any] = json.loads(text)
        return said

    def leave(self) -> None:
        """Let the others go, as leader, and end the replica's world."""
        with suppress(RankError):  # they are gone already
            self.tell(do="close")
        self.end()

    def end(self) -> None:
        """End the replica's world, where there is one."""
        from torch import distributed

        if self._joined:
            self._joined = False
            distributed.destroy_process_group()

    def lost(self, error: RuntimeError) -> ReplicaLost | None:
        """What a failed collective means to a user; None for any other error."""
        from torch import distributed

        if self.broken:
            return ReplicaLost(self.broken)
        # gloo's errors are plain RuntimeErrors that name its source file.
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            return self._lost("did not go on together", error)
        return None

    def fail(self, why: str) -> None:
        """Tell the other ranks why this one cannot go on, and end the world that they wait in."""
        if not self.broken:
            self.broken = f"{self.group.name(self.group.rank)}: {why}"
            with suppress(RankError):
                self.group.put(self._key("cause"), self.broken)
        self.end()

    def _meet(self) -> None:
        from torch import distributed

        if self._joined:
            with self._in_words("did not go on together"):
                distributed.barrier()

    @contextmanager
    def _in_words(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self._lost(what, error) from error

    def _lost(self, what: str, error: RuntimeError) -> ReplicaLost:
        if cause := self.group.peek(self._key("cause"), _CAUSE_S):
            self.broken = cause
            return ReplicaLost(self.broken)
        others = [self.group.name(self.first + place) for place in range(self.size)]
        first = (str(error) or type(error).__name__).splitlines()[0]
        self.broken = (
            f"{' and '.join(others)}, which hold one model between them, {what}: {first}; one of "
            "them hangs, has ended, or --rank-timeout is too short"
        )
        return ReplicaLost(self.broken)

    def _key(self, name: str) -> str:
        return f"replica/{self.opening}/{self.first}/{name}"


def check_alike(first: Mapping[str, str], own: Mapping[str, str], leader: int = 0) -> None:
    """RankError where this rank would measure something else than rank ``leader``."""
    different = [key for key in {**first, **own} if first.get(key) != own.get(key)]
    if different:
        key = different[0]
        raise RankError(
            f"its {key} is {own.get(key, 'not known')}, rank {leader}'s is "
            f"{first.get(key, 'not known')}: all ranks need the same machine, software, weights "
            "and questions"
        )
