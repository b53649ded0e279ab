"""How do the ranks of a torchrun job reach each other?

Through the key-value store that torch's ranks meet at, and nothing else: no collective, so no rank
waits for another to compute. Every wait ends by itself, and names the rank that was waited for.

Keys, below one prefix an attempt: ``command/K``, what rank 0 asks; ``heard/K``, what the others
say; ``taken/P``, how many units of pass P are taken; ``alive``, signs of life of rank 0;
``joined/R``, ``host/R``, ``device/...``; ``let-go``. Above it: ``ended``, the job's exit status.

All that torchrun says stands in environment variables; ranks meet at the store that they name.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from perfline.errors import RankError

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Who started a process as one of several tasks: how many there are, and which one it is.
_TASKS = {
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "MPI": ("PMI_SIZE", "PMI_RANK"),
    "MVAPICH": ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    "PyTorchJob": ("PET_NNODES", "PET_NODE_RANK"),
    "a launcher of ranks": ("WORLD_SIZE", "RANK"),
}


def launched(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, or what sets the same variables, started this process beside others."""
    return all(environ.get(name) for name in _NEEDED) and environ["WORLD_SIZE"] != "1"


def lone_task(environ: Mapping[str, str] = os.environ) -> tuple[int, str] | None:
    """Which of several tasks this is that do not meet as ranks, and that in words; None for none.

    Each of them would measure, and all would write the same files.
    """
    if launched(environ):
        return None
    for who, names in _TASKS.items():
        tasks, number = (environ.get(name, "") for name in names)
        if tasks.isdecimal() and number.isdecimal() and int(tasks) > 1:
            absent = [name for name in _NEEDED if not environ.get(name)] or ["WORLD_SIZE above 1"]
            return int(number), (
                f"{who} started this as task {number} of {tasks} ({names[1]}, {names[0]}), without "
                f"what ranks meet by ({', '.join(absent)}): task 0 measures alone; start one task, "
                "or torchrun in each node's (docs/parallel.md)"
            )
    return None


def attempt(environ: Mapping[str, str] = os.environ) -> int:
    """How often torchrun has started the job again."""
    return int(environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def ranks_here(environ: Mapping[str, str] = os.environ) -> int:
    """How many ranks there are on this host; 1 without torchrun."""
    if not launched(environ):
        return 1
    return int(environ.get("LOCAL_WORLD_SIZE") or environ["WORLD_SIZE"])


def join(timeout_s: float) -> Group:
    """Meet the other ranks, and take this rank's device; rank 0 waits for all.

    RankError where one is not reached, or where the device is not to be had.
    """
    import torch.distributed

    distributed: Any = torch.distributed
    environ, host = os.environ, socket.gethostname()
    place = f"{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}"
    try:
        rank, ranks, port = (int(environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    except ValueError as error:
        given = ", ".join(f"{name}={environ[name]}" for name in _NEEDED)
        raise RankError(f"{given}: expected whole numbers but for the address") from error
    _check_name(environ["MASTER_ADDR"], f"rank {rank} on {host}")
    of_agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun hosts the store
    try:
        # As torch's env:// does, which says of ranks that do not come only how many have.
        store: Any = distributed.TCPStore(
            environ["MASTER_ADDR"],
            port,
            ranks,
            is_master=rank == 0 and not of_agent,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (RuntimeError, ValueError, OSError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise RankError(
            f"rank {rank} on {host} did not reach the store at {place} within {timeout_s:g} s "
            f"({first})"
        ) from error
    group = Group(rank, ranks, host, store, timeout_s, attempt())
    group.join()
    if rank == 0:
        group.hosts()
    _take_device(group, int(environ.get("LOCAL_RANK") or 0))
    return group


def _check_name(name: str, who: str) -> None:
    """RankError where the name of rank 0's node is not known here: torch would go on trying."""
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror as error:
        raise RankError(
            f"{who} does not know the host name '{name}' of rank 0's node ({error.strerror}): have "
            "it resolve on every node, or give torchrun addresses (--local-addr, docs/parallel.md)"
        ) from error


def _take_device(group: Group, local_rank: int) -> None:
    """Make this rank's accelerator the current one; nothing to do on a CPU."""
    import torch

    if not torch.accelerator.is_available():
        return
    count = torch.accelerator.device_count()
    index = 0 if count == 1 else local_rank  # Slurm may show each task its own device alone
    if index < count:
        torch.accelerator.set_device_index(index)
        module: Any = torch.get_device_module()
        properties = module.get_device_properties(index)
        if group.claim(str(getattr(properties, "uuid", index))):
            return
    raise RankError(
        f"rank {group.rank} on {group.host} finds no device of its own: {count} there; start as "
        "many ranks as devices (--nproc-per-node=gpu; perfline compare --ranks)"
    )


POLL_S = 0.02


class Store(Protocol):
    """What is used of ``torch.distributed.Store``."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter; its new value."""

    def set(self, key: str, value: str, /) -> None:
        """Set a key."""

    def get(self, key: str, /) -> bytes:
        """A key's value; waits for it."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all of the keys are set."""

    def delete_key(self, key: str, /) -> bool:
        """Forget a key."""

    def wait(self, keys: list[str], timeout: timedelta, /) -> None:
        """Wait for the keys inside the store; RuntimeError where they do not come."""


@dataclass
class Group:
    """One rank's end of the store.

    Attributes:
        attempt: which of torchrun's restarts this is, from 0.
        timeout_s: how long a rank that is waited for may be silent.
    """

    rank: int
    ranks: int
    host: str
    store: Store
    timeout_s: float = 600.0
    attempt: int = 0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _read: int = 0  # commands, or messages, that this rank has read
    _sent: int = 0  # commands that it has given

    def join(self) -> None:
        """Say where this rank is. RankError where the store knows this rank of this attempt."""
        with self._reached():
            if self.store.add(self.key(f"joined/{self.rank}"), 1) != 1:
                raise RankError(
                    f"rank {self.rank} on {self.host}: the store knows this rank already: torchrun "
                    "restarted the group without counting it (--nnodes=MIN:MAX is not supported); "
                    "start it again with --resume"
                )
            self.store.set(self.key(f"host/{self.rank}"), self.host)

    def claim(self, device: str) -> bool:
        """Whether no other rank of this host has that device."""
        with self._reached():
            return self.store.add(self.key(f"device/{self.host}/{device}"), 1) == 1

    def name(self, rank: int) -> str:
        """``rank 3 on node-b``."""
        key = self.key(f"host/{rank}")
        with self._reached():
            known = self.store.check([key])
            return f"rank {rank} on {self.store.get(key).decode() if known else 'unknown host'}"

    def hosts(self) -> list[str]:
        """Every rank's host; waits for ranks that have not joined yet."""
        keys = [self.key(f"host/{rank}") for rank in range(self.ranks)]
        begin = self.clock()
        with self._reached():
            while not self.store.check(keys):
                if self.clock() - begin > self.timeout_s:
                    absent = [r for r, key in enumerate(keys) if not self.store.check([key])]
                    raise RankError(
                        f"waited {self.timeout_s:g} s for rank {', '.join(map(str, absent))} of "
                        f"{self.ranks} to join: it hangs, or was not started (--rank-timeout)"
                    )
                self.sleep(POLL_S)
            return [self.store.get(key).decode() for key in keys]

    def ended(self) -> int | None:
        """The exit status with which an earlier attempt came to its end; None where none did."""
        with self._reached():
            found = self.store.check(["ended"])
            return int(self.store.get("ended")) if found else None

    def end(self, status: int, final: bool) -> None:
        """Let the other ranks go; ``final``: no later attempt is to repeat this one."""
        with self._reached():
            if final:
                self.store.set("ended", str(status))
            self.store.set(self.key("let-go"), "")

    def leave(self) -> None:
        """Tell rank 0 goodbye; wait until it lets go, lest torchrun takes an exit for a failure."""
        self.tell("goodbye")
        begin = self.clock()
        with suppress(RankError), self._reached():  # rank 0 may host the store, and be gone
            while not self.store.check([self.key("let-go")]):
                if self.clock() - begin > self.timeout_s:
                    return
                self.sleep(POLL_S)

    def post(self, command: Mapping[str, object]) -> int:
        """Rank 0 asks; returns the command's number."""
        number, self._sent = self._sent, self._sent + 1
        with self._reached():
            self.store.set(self.key(f"command/{number}"), json.dumps(command))
        self.alive()
        return number

    def command(self, *, quiet: bool = False) -> tuple[int, dict[str, Any]]:
        """What rank 0 asks next, and its number; waits as long as rank 0 shows that it lives."""
        number, self._read = self._read, self._read + 1
        text = self.wait_for(f"command/{number}", 0, while_alive=True, quiet=quiet)
        return number, json.loads(text)

    def put(self, name: str, text: str) -> None:
        """Tell who waits for it."""
        with self._reached():
            self.store.set(self.key(name), text)

    def wait_for(
        self, name: str, who: int, *, while_alive: bool = False, quiet: bool = False
    ) -> str:
        """What rank ``who`` has put there; RankError where it is silent for too long.

        ``while_alive``: rank 0's signs of life, if it is the one that is waited for, are enough.
        ``quiet``: wait inside the store, where a rank is timing: no traffic, and all that wait
        hear of it as soon as it is there.
        """
        key, begin, beats = self.key(name), self.clock(), -1
        with self._reached():
            while not self.store.check([key]):
                now = self.clock()
                if while_alive and beats != (seen := self.store.add(self.key("alive"), 0)):
                    beats, begin = seen, now
                if now - begin > self.timeout_s:
                    sign = "has shown no sign of life" if while_alive else "has said nothing"
                    raise RankError(
                        f"rank {self.rank} on {self.host} waited for {self.name(who)}, which "
                        f"{sign} for {self.timeout_s:g} s: it hangs, or its host is gone "
                        "(--rank-timeout)"
                    )
                if not quiet:
                    self.sleep(POLL_S)
                    continue
                with suppress(RuntimeError):  # not in that time; a lost store fails the next check
                    self.store.wait([key], timedelta(seconds=self.timeout_s))
            return self.store.get(key).decode()

    def peek(self, name: str, within_s: float) -> str | None:
        """What somebody has put there, or puts there soon; None where nobody does."""
        key, begin = self.key(name), self.clock()
        with suppress(RankError), self._reached():
            while not self.store.check([key]):
                if self.clock() - begin > within_s:
                    return None
                self.sleep(POLL_S)
            return self.store.get(key).decode()
        return None

    def alive(self) -> None:
        """Rank 0 shows that it lives."""
        with self._reached():
            self.store.add(self.key("alive"), 1)

    def tell(self, kind: str, **said: object) -> None:
        """A rank tells rank 0 something."""
        with self._reached():
            number = self.store.add(self.key("said"), 1) - 1
            message = {"kind": kind, "rank": self.rank, **said}
            self.store.set(self.key(f"heard/{number}"), json.dumps(message))

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the other ranks have said and rank 0 has not read yet."""
        with self._reached():
            while self.store.check([key := self.key(f"heard/{self._read}")]):
                message: dict[str, Any] = json.loads(self.store.get(key))
                self.store.delete_key(key)
                self._read += 1
                yield message

    def take(self, number: int) -> int:
        """The next unit of that pass, for this rank alone."""
        with self._reached():
            return self.store.add(self.key(f"taken/{number}"), 1) - 1

    def is_over(self, number: int, units: int) -> bool:
        """Whether no unit of that pass is left to take."""
        with self._reached():
            return self.store.add(self.key(f"taken/{number}"), 0) >= units

    def close(self, number: int, units: int) -> None:
        """Leave no unit of that pass to take."""
        with self._reached():
            self.store.add(self.key(f"taken/{number}"), units)

    def key(self, name: str) -> str:
        """That key of this attempt."""
        return f"{self.attempt}/{name}"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch's DistError, and what TCPStore throws beside it
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise RankError(
                f"rank {self.rank} on {self.host} does not reach the store of the group: rank 0's "
                f"torchrun has ended, or the network is down ({first})"
            ) from error
