"""Was the device itself well while it was timed, and what energy did it take?

Through NVML (extra ``gpu``): clocks, temperature, power, the reasons why clocks are lowered, who
else computes on the GPU, and the board's energy counter. Where there is no NVML nothing is known,
and nothing is claimed. Clocks are only read, never set. One round::

    with watch(device) as health:
        health.begin()
        ...
        found = health.end()  # RoundHealth: faults, joules, lowest clock, ...

Readings are taken before, after and, by a thread, every 0.2 s during the round: ten or so calls
into the driver that hold no lock of Python's. No thread runs on a CPU, nor between rounds.
"""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from perfline.engines.device import Device

# nvml.h, nvmlClocksEventReasons*: what slows the clocks against the owner's wish. The power cap
# (0x4) is left out: a large GPU at full load runs at it, that is its normal state.
SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
PERIOD_S = 0.2
ENERGY_STEP_S = 0.1  # the energy counter is written every 20 to 100 ms, by board


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
    slowdowns: tuple[str, ...] | None
    foreign: tuple[int, ...] | None


@dataclass(frozen=True)
class RoundHealth:
    """What the readings of one round say; all empty where there is no NVML.

    Attributes:
        throttled: one sentence on throttled clocks, which make the round worthless; else empty.
        foreign: ids of other processes that computed on the GPU: they make the run invalid.
        joules: energy the board took from ``begin`` to ``end``; None where it does not count. The
            counter is written every 20 to 100 ms: a round of 1 s is known to 10 % or better.
        sm_clock_mhz: the lowest; temperature_c: the highest; power_w: the mean.
        readings: how many there were.
    """

    throttled: str = ""
    foreign: tuple[int, ...] = ()
    joules: float | None = None
    sm_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    readings: int = 0

    @property
    def faults(self) -> tuple[str, ...]:
        """All that makes the round worthless, one sentence each."""
        pids = ", ".join(map(str, self.foreign))
        other = f"another process computes on the GPU (pid {pids})" if pids else ""
        return tuple(sentence for sentence in (self.throttled, other) if sentence)

    @property
    def numbers(self) -> dict[str, float]:
        """Clock, temperature and power by the names of their fields, those that are known."""
        names = ("sm_clock_mhz", "temperature_c", "power_w")
        values = ((name, getattr(self, name)) for name in names)
        return {name: value for name, value in values if value is not None}


class Watch:
    """Readings of one device, round by round.

    Attributes:
        friends: ids of other processes that may compute on the GPU (the other side, in an A/B
            comparison); may be set at any time.
    """

    def __init__(
        self,
        read: Callable[[Collection[int]], Sample] | None = None,
        joules: Callable[[], float | None] = lambda: None,
        period_s: float = PERIOD_S,
    ) -> None:
        """Watch through ``read`` and ``joules``; without ``read`` nothing is ever known."""
        self.friends: Collection[int] = ()
        self._read, self._count_joules, self._period_s = read, joules, period_s
        self._before: Sample | None = None
        self._joules_before: float | None = None
        self._during: list[Sample] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def sample(self) -> Sample | None:
        """Take one reading; None where there is no NVML."""
        return None if self._read is None else self._read(self.friends)

    def begin(self) -> None:
        """Begin a round; call it before the round's own clock starts."""
        self.close()
        self._before, self._during = self.sample(), []
        if self._read is None:
            return
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._sample_on, args=(self._stop, self._during), daemon=True, name="nvml"
        )
        self._thread.start()
        self._joules_before = self._count_joules()

    def end(self) -> RoundHealth:
        """End the round; call it once the device is idle and the round's own clock has stopped."""
        start, stop = self._joules_before, self._count_joules()
        self.close()
        before, after = self._before, self.sample()
        self._before = None
        if before is None or after is None:
            return RoundHealth()
        joules = None if start is None or stop is None else stop - start
        return _health(before, [*self._during, after], joules)

    def close(self) -> None:
        """Stop reading; safe to call at any time."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _sample_on(self, stop: threading.Event, into: list[Sample]) -> None:
        while not stop.wait(self._period_s):
            found = self.sample()
            if found is not None:
                into.append(found)


@dataclass(frozen=True)
class Clocks:
    """How the GPU's clocks are set, as far as NVML tells; it does not tell of ``nvidia-smi -lgc``.

    Attributes:
        index: the GPU's number for ``nvidia-smi -i``.
        highest_mhz: the boost clock.
        application_mhz: the application clock in force; default_mhz: that without a setting.
        steady_mhz: a clock that load, heat and the power cap should leave alone: the default
            application clock where it is below the highest, else the highest supported one up to
            four fifths of it.
        persistent: whether the driver stays loaded between programs.
    """

    index: int | None
    highest_mhz: int | None
    application_mhz: int | None
    default_mhz: int | None
    steady_mhz: int | None
    persistent: bool | None


@contextmanager
def watch(
    device: Device, nvml: ModuleType | None = None, period_s: float = PERIOD_S
) -> Iterator[Watch]:
    """Watch ``device``; ``nvml`` stands in for the pynvml module in tests."""
    with _gpu(device, nvml) as gpu:
        if isinstance(gpu, str):
            yield Watch()
            return
        health = Watch(lambda friends: _sample(gpu, friends), lambda: _joules(gpu), period_s)
        try:
            yield health
        finally:
            health.close()


def silent(device: Device, nvml: ModuleType | None = None) -> str:
    """Why nothing is known of the device's health; empty where something is, or there is none."""
    with _gpu(device, nvml) as gpu:
        return gpu if isinstance(gpu, str) else ""


def clocks(device: Device, nvml: ModuleType | None = None) -> Clocks | None:
    """Return how the device's clocks are set; None where there is no NVML."""
    with _gpu(device, nvml) as gpu:
        if isinstance(gpu, str):
            return None
        sm = gpu.nvml.NVML_CLOCK_SM
        highest = gpu.ask("nvmlDeviceGetMaxClockInfo", sm)
        default = gpu.ask("nvmlDeviceGetDefaultApplicationsClock", sm)
        persistent = gpu.ask("nvmlDeviceGetPersistenceMode")
        return Clocks(
            index=gpu.ask("nvmlDeviceGetIndex"),
            highest_mhz=highest,
            application_mhz=gpu.ask("nvmlDeviceGetApplicationsClock", sm),
            default_mhz=default,
            steady_mhz=_steady_mhz(gpu, highest, default),
            persistent=None if persistent is None else bool(persistent),
        )


@dataclass(frozen=True)
class _Gpu:
    nvml: Any
    handle: Any

    def ask(self, name: str, *arguments: object) -> Any:
        """What NVML answers; None where this board or driver does not tell."""
        query = getattr(self.nvml, name, None)  # pynvml drops what NVML has deprecated
        try:
            return None if query is None else query(self.handle, *arguments)
        except self.nvml.NVMLError:
            return None


@contextmanager
def _gpu(device: Device, nvml: ModuleType | None) -> Iterator[_Gpu | str]:
    """The GPU, or why nothing is known of it."""
    library: Any = nvml or _pynvml()
    if device.kind != "cuda" or library is None:
        yield "NVML: pip install nvidia-ml-py" if device.slug.startswith("nvidia-") else ""
        return
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        yield f"NVML does not start: {error}"
        return
    try:
        try:
            found: _Gpu | str = _Gpu(library, _handle(library))
        except library.NVMLError as error:  # a slice of a GPU, or one that is not seen from here
            found = f"NVML does not know this GPU, or this slice of one: {error}"
        yield found
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


def _sample(gpu: _Gpu, friends: Collection[int]) -> Sample:
    reasons = gpu.ask("nvmlDeviceGetCurrentClocksEventReasons")
    if reasons is None:  # a driver before 535 knows them by their old name
        reasons = gpu.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    running = gpu.ask("nvmlDeviceGetComputeRunningProcesses")
    milliwatts = gpu.ask("nvmlDeviceGetPowerUsage")
    return Sample(
        sm_clock_mhz=gpu.ask("nvmlDeviceGetClockInfo", gpu.nvml.NVML_CLOCK_SM),
        temperature_c=gpu.ask("nvmlDeviceGetTemperature", gpu.nvml.NVML_TEMPERATURE_GPU),
        power_w=None if milliwatts is None else milliwatts / 1000,
        slowdowns=(
            None
            if reasons is None
            else tuple(name for bit, name in SLOWDOWNS.items() if reasons & bit)
        ),
        foreign=None if running is None else _foreign([p.pid for p in running], friends),
    )


def _joules(gpu: _Gpu) -> float | None:
    """Energy since the driver was loaded; boards since Volta count it."""
    millijoules = gpu.ask("nvmlDeviceGetTotalEnergyConsumption")
    return None if millijoules is None else millijoules / 1000


def _foreign(pids: list[int], friends: Collection[int]) -> tuple[int, ...]:
    """Whose process is not ours.

    In a container NVML gives the host's numbers: then one process is ours, and one each is our
    friends', whatever they are called.
    """
    if os.getpid() in pids:
        return tuple(pid for pid in pids if pid != os.getpid() and pid not in friends)
    return () if len(pids) <= 1 + len(friends) else tuple(pids)


def _health(before: Sample, during: list[Sample], joules: float | None) -> RoundHealth:
    """Sum up a round. The clock and the power before it are those of an idle GPU: left out."""
    readings = [before, *during]
    slowed = [reading for reading in readings if reading.slowdowns]
    clocks = [r.sm_clock_mhz for r in during if r.sm_clock_mhz is not None]
    heat = [r.temperature_c for r in readings if r.temperature_c is not None]
    power = [r.power_w for r in during if r.power_w is not None]
    throttled = ""
    if slowed:
        names = ", ".join(sorted({name for r in slowed for name in r.slowdowns or ()}))
        lowest = f"; SM clock down to {min(clocks)} MHz" if clocks else ""
        throttled = (
            f"clocks throttled in {len(slowed)} of {len(readings)} readings ({names}{lowest})"
        )
    return RoundHealth(
        throttled=throttled,
        foreign=tuple(sorted({pid for r in readings for pid in r.foreign or ()})),
        joules=joules,
        sm_clock_mhz=min(clocks, default=None),
        temperature_c=max(heat, default=None),
        power_w=statistics.fmean(power) if power else None,
        readings=len(readings),
    )


def _steady_mhz(gpu: _Gpu, highest: int | None, default: int | None) -> int | None:
    if highest is None or (default is not None and default < highest):
        return default
    memory = gpu.ask("nvmlDeviceGetSupportedMemoryClocks")
    supported = gpu.ask("nvmlDeviceGetSupportedGraphicsClocks", max(memory)) if memory else None
    return max((mhz for mhz in supported or () if mhz <= 0.8 * highest), default=None)
