"""How does a process that torchrun started meet the others, and which device is its own?

All that torchrun says stands in environment variables; ranks meet at the store that they name.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from perfline.distributed.group import Group
from perfline.errors import RankError

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, or what sets the same variables, started this process beside others."""
    return all(environ.get(name) for name in _NEEDED) and environ["WORLD_SIZE"] != "1"


def attempt(environ: Mapping[str, str] = os.environ) -> int:
    """How often torchrun has started the job again."""
    return int(environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def ranks_here(environ: Mapping[str, str] = os.environ) -> int:
    """How many ranks there are on this host; 1 without torchrun."""
    if not launched(environ):
        return 1
    return int(environ.get("LOCAL_WORLD_SIZE") or environ["WORLD_SIZE"])


def join(timeout_s: float) -> Group:
    """Meet the other ranks, and take this rank's device.

    RankError where they are not reached, or where the device is not to be had.
    """
    from torch.distributed.rendezvous import rendezvous

    environ, host = os.environ, socket.gethostname()
    rank, ranks = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    _check_name(environ["MASTER_ADDR"], f"rank {rank} on {host}")
    try:
        store: Any = next(iter(rendezvous("env://", timeout=timedelta(seconds=timeout_s))))[0]
    except (RuntimeError, ValueError, OSError) as error:
        place = f"{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}"
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise RankError(
            f"rank {rank} on {host} did not reach the store at {place} within {timeout_s:g} s "
            f"({first})"
        ) from error
    store = getattr(store, "underlying_store", store)  # some versions of torch prefix an attempt
    group = Group(rank, ranks, host, store, timeout_s, attempt())
    group.join()
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
