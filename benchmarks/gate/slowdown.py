"""How is an engine made slower by a known amount, while it runs?

Imported in a worker (``perfline compare --import slowdown``, with this directory on PYTHONPATH), it
adds work behind every forward: on a CPU a matrix product with ``amount x tokens`` rows, 256 x 256,
on CUDA ``amount x tokens`` cycles of ``torch.cuda._sleep``. Both grow with the prompt, as the
forward itself does. How much stands in the eight bytes of the file that ``PERFLINE_SLOWDOWN``
names, so that it can change between rounds; 0 adds nothing. ``record.py`` calibrates the amounts.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Any

import torch

from perfline.engines.engine import Head
from perfline.engines.torch_engine import TorchEngine

VARIABLE = "PERFLINE_SLOWDOWN"
_MOST_ROWS, _WIDTH = 2**15, 256


def write(path: Path, amount: float) -> None:
    """Set the amount of extra work, at once for whoever has the file open."""
    if not path.exists():
        path.write_bytes(struct.pack("<d", amount))
    with path.open("r+b") as file:
        file.write(struct.pack("<d", amount))


class _Extra:
    """The extra work of one process."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._amount = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
        self._left = torch.ones(_MOST_ROWS, _WIDTH)
        self._right = torch.ones(_WIDTH, _WIDTH)
        self._out = torch.empty(_MOST_ROWS, _WIDTH)  # no page faults: time is linear in the rows

    def run(self, tokens: int, device: torch.device) -> None:
        """Do it once, for a forward of ``tokens``."""
        amount: float = struct.unpack("<d", self._amount[:8])[0]
        if not amount:
            return
        if device.type == "cuda":
            sleep: Any = torch.cuda._sleep
            sleep(int(amount * tokens))
        else:
            rows = min(round(amount * tokens), _MOST_ROWS)
            torch.mm(self._left[:rows], self._right, out=self._out[:rows])


def install() -> None:
    """Slow down every forward of this process by what the file says."""
    extra, forward = _Extra(Path(os.environ[VARIABLE])), TorchEngine.forward

    def slowed(self: TorchEngine, batch: torch.Tensor, head: Head) -> torch.Tensor:
        logits = forward(self, batch, head)
        extra.run(batch.shape[1], batch.device)
        return logits

    TorchEngine.forward = slowed  # type: ignore[method-assign]


if VARIABLE in os.environ:
    install()
