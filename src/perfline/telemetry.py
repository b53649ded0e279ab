"""Was the device itself well while it was timed?

Through NVML (extra ``gpu``): clocks, temperature, power, the reasons why clocks are lowered, and
who else computes on the GPU. Where there is no NVML nothing is known, and nothing is claimed.
Clocks are only read, never set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from perfline.device import Device

# nvml.h, nvmlClocksEventReasons*: what slows the clocks against the owner's wish. The power cap
# (0x4) is left out: a large GPU at full load runs at it, that is its normal state.
SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Sample:
    """One reading of the GPU.

    A field is None where this board does not tell it (MIG and vGPU hide some).

    Attributes:
        sm_clock_mhz: streaming-multiprocessor clock.
        temperature_c: GPU temperature, degrees Celsius.
        power_w: board power.
        slowdowns: names from ``SLOWDOWNS`` that were active.
        foreign: ids of other processes that compute on the GPU.
    """

    sm_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    slowdowns: tuple[str, ...]
    foreign: tuple[int, ...]


@dataclass
class Watch:
    """Readings taken during a measurement."""

    _read: Any = None
    samples: list[Sample] = field(default_factory=list)

    def sample(self) -> None:
        """Take one reading; nothing where there is no NVML."""
        if self._read is not None:
            self.samples.append(self._read())

    def faults(self) -> tuple[str, ...]:
        """What makes the run invalid, one sentence each."""
        found = []
        slowed = [s for s in self.samples if s.slowdowns]
        if slowed:
            names = sorted({name for s in slowed for name in s.slowdowns})
            found.append(
                f"clocks throttled in {len(slowed)} of {len(self.samples)} readings "
                f"({', '.join(names)}{_lowest_clock(slowed)})"
            )
        foreign = sorted({pid for s in self.samples for pid in s.foreign})
        if foreign:
            pids = ", ".join(map(str, foreign))
            found.append(f"another process computes on the GPU (pid {pids})")
        return tuple(found)


@contextmanager
def watch(device: Device, nvml: ModuleType | None = None) -> Iterator[Watch]:
    """Watch ``device``; ``nvml`` stands in for the pynvml module in tests."""
    library = nvml or _pynvml()
    if device.kind != "cuda" or library is None:
        yield Watch()
        return
    try:
        library.nvmlInit()
    except library.NVMLError:
        yield Watch()
        return
    try:
        handle = _handle(library)
        yield Watch(lambda: _sample(library, handle))
    finally:
        library.nvmlShutdown()


def _pynvml() -> ModuleType | None:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml  # type: ignore[no-any-return]


def _handle(nvml: Any) -> Any:
    """The GPU that torch uses, by UUID: CUDA_VISIBLE_DEVICES renumbers torch's, not NVML's."""
    import torch

    if torch.cuda.is_available():
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    return nvml.nvmlDeviceGetHandleByIndex(0)


def _sample(nvml: Any, handle: Any) -> Sample:
    def ask(name: str, *arguments: object) -> Any:
        try:
            return getattr(nvml, name)(handle, *arguments)
        except nvml.NVMLError:
            return None

    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons") or 0
    running = ask("nvmlDeviceGetComputeRunningProcesses") or []
    milliwatts = ask("nvmlDeviceGetPowerUsage")
    return Sample(
        sm_clock_mhz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        temperature_c=ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        power_w=None if milliwatts is None else milliwatts / 1000,
        slowdowns=tuple(name for bit, name in SLOWDOWNS.items() if reasons & bit),
        foreign=_foreign([process.pid for process in running]),
    )


def _lowest_clock(samples: list[Sample]) -> str:
    clocks = [s.sm_clock_mhz for s in samples if s.sm_clock_mhz is not None]
    return f"; SM clock down to {min(clocks)} MHz" if clocks else ""


def _foreign(pids: list[int]) -> tuple[int, ...]:
    """Whose process is not ours; in a container NVML gives the host's pids, and one is ours."""
    others = tuple(pid for pid in pids if pid != os.getpid())
    ours_is_unnamed = os.getpid() not in pids
    return () if ours_is_unnamed and len(others) <= 1 else others
