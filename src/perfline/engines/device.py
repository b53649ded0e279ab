"""Which device runs the model, how is it synchronised, and how much memory, how fast, has it?

One object answers for CUDA, ROCm, XPU, MPS and CPU, through ``torch.accelerator``; no other module
asks what kind of device there is. On a CPU, memory is the peak resident set of this process.

It also says whether the compiler is there that ``torch.compile`` calls on the device. Inductor
compiles what it writes for a CPU with ``$CXX``, else g++ (clang++ on macOS); Triton builds its
launchers for a GPU with ``$CC``, else gcc, else clang. Both take one program's name, without
arguments, and both notice its absence only when the first model is compiled.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfline.errors import EngineError, clip

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Compiler:
    """What was looked for, and where it is.

    Attributes:
        language: ``C`` or ``C++``.
        caller: who calls it.
        path: where it is; None where it is not.
        problem: what is missing and what to do; empty where nothing is.
    """

    language: str
    caller: str
    path: str | None
    problem: str = ""


def compiler(kind: str) -> Compiler | None:
    """Return the compiler for a device of this kind; None where none is needed."""
    mac = sys.platform == "darwin"
    if kind in ("cpu", "xpu"):
        return _look("C++", "inductor", "CXX", ("clang++",) if mac else ("g++",))
    if kind == "cuda":  # ROCm's, too
        return _look("C", "Triton", "CC", ("gcc", "clang"))
    return None


def _look(language: str, caller: str, variable: str, names: tuple[str, ...]) -> Compiler:
    named = os.environ.get(variable)
    path = next(filter(None, map(shutil.which, (named,) if named else names)), None)
    if path is not None:
        return Compiler(language, caller, path)
    if named:
        found = f"${variable} is '{named}', which is no program; correct or unset it"
    else:
        get = f"sudo apt-get install {names[0]}" if sys.platform == "linux" else f"get {names[0]}"
        found = f"no {' or '.join(names)} on PATH; {get}, or name one in ${variable}"
    return Compiler(language, caller, None, f"no {language} compiler for {caller}: {found}")


GIB = 1024**3
_LEAST_COPIED = 256 * 1024**2
_COPIES = 8
_CPUS = Path("/sys/devices/system/cpu")
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
MACHINE = "PERFLINE_MACHINE"  # in the environment: what machines are called that are one to people
_SHARED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
_TASKS = Path("/proc/self/task")
_MEMINFO = Path("/proc/meminfo")
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Device:
    """The device of this session.

    Attributes:
        kind: torch's device type: ``cuda`` (also ROCm), ``xpu``, ``mps``, ``cpu``.
        name: the device's own name, such as ``NVIDIA A100-SXM4-40GB``.
        slug: what decides speed, as a folder name under ``baselines/``.
    """

    kind: str
    name: str
    slug: str

    @property
    def torch(self) -> torch.device:
        """The torch device."""
        import torch

        return torch.device(self.kind)

    @property
    def runs_behind(self) -> bool:
        """Whether work is queued and timed by events, so that the host can go ahead of it."""
        return self.kind in ("cuda", "xpu")

    def synchronize(self) -> None:
        """Wait until all queued work is done; nothing to wait for on a CPU."""
        if self.kind != "cpu":
            import torch

            torch.accelerator.synchronize()

    def reset_peak_memory(self) -> None:
        """Start a new peak (on Linux, the kernel's high-water mark of this process: proc(5))."""
        if self.kind == "cpu":
            if _CLEAR_REFS.exists():
                _CLEAR_REFS.write_text("5")
        elif self._counts_memory():
            import torch

            torch.accelerator.reset_peak_memory_stats()

    def peak_memory_gib(self) -> float | None:
        """Peak memory in GiB since the last reset; None where the device does not count it."""
        if self.kind == "cpu":
            found = (
                re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text()) if _STATUS.exists() else None
            )
            return int(found.group(1)) / 1024**2 if found else None
        if self._counts_memory():
            import torch

            return int(torch.accelerator.max_memory_allocated()) / GIB
        return None

    def free_memory_gib(self) -> float | None:
        """Memory in GiB that can still be taken; None where the device does not say."""
        if self.kind == "cpu":
            found = (
                re.search(r"MemAvailable:\s+(\d+) kB", _MEMINFO.read_text())
                if _MEMINFO.exists()
                else None
            )
            machine = [] if found is None else [int(found.group(1)) * 1024]
            left = min([*machine, *_group_memory()], default=None)
            return None if left is None else left / GIB
        import torch

        if self._counts_memory() and hasattr(torch.accelerator, "get_memory_info"):
            return int(torch.accelerator.get_memory_info()[0]) / GIB
        return None

    def uncached_bytes(self) -> int | None:
        """Bytes that cannot be read from caches: four times the last level of them; None unknown.

        On Linux those of all cores that this process may use (sysfs-devices-system-cpu).
        """
        if self.kind == "cpu":
            size = _last_level_cache()
        else:
            import torch

            module: Any = torch.get_device_module(self.kind)
            found = getattr(module, "get_device_properties", lambda _: None)(0)
            size = getattr(found, "L2_cache_size", None) or getattr(
                found, "last_level_cache_size", None
            )
        return 4 * size if size else None

    def memory_bandwidth(self) -> float | None:
        """Bytes a second of the best of a read and a copy of uncached memory; None unknown.

        The data sheet's number is no ceiling that any kernel reaches. With torch's own number of
        threads, which the case sets; a copy reads and writes.
        """
        uncached, free = self.uncached_bytes(), self.free_memory_gib()
        if uncached is None:
            return None
        size = max(uncached, _LEAST_COPIED if self.kind == "cpu" else 4 * _LEAST_COPIED)
        if free is not None and 3 * size > free * GIB:
            return None
        import torch

        source = torch.ones(size // 4, device=self.torch)
        target = torch.empty_like(source)
        best = 0.0
        runs: tuple[tuple[int, Callable[[], object]], ...] = (
            (size, source.sum),
            (2 * size, lambda: target.copy_(source)),
        )
        for moved, run in runs:
            for _ in range(_COPIES):
                self.synchronize()
                start = time.perf_counter()
                run()
                self.synchronize()
                best = max(best, moved / (time.perf_counter() - start))
        return best

    def _counts_memory(self) -> bool:
        # MPS has no caching-allocator statistics behind torch.accelerator.
        return self.kind in ("cuda", "xpu")


def current_device() -> Device:
    """The accelerator that torch would use, or the CPU.

    Where ``MACHINE`` is set, its folder has that name for the model of the device and the number of
    cores: machines that somebody takes for one. The kind of device stays in it, and a CPU's
    instruction set.
    """
    import torch

    given = _shared_name()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        name, cores, quota = _cpu_name(), len(usable_cores()), core_quota()
        shown = f"{cores}" if quota is None else f"{quota:g}-of-{cores}"
        capability = torch.backends.cpu.get_cpu_capability()
        machine = given or f"{name}-{shown}-cores"
        return Device("cpu", name, slugify(f"cpu-{machine}-{capability}"))
    kind, module = accelerator.type, torch.get_device_module(accelerator.type)
    name = str(module.get_device_name() if hasattr(module, "get_device_name") else kind)
    return Device(kind, name, slugify(f"{kind}-{given}" if given else name))


def _shared_name() -> str:
    """What ``MACHINE`` says; EngineError where a folder's name cannot hold it."""
    given = os.environ.get(MACHINE, "")
    if given and not _SHARED_NAME.fullmatch(given):
        raise EngineError(
            f"{MACHINE} is {clip(repr(given), 60)} in the environment; expected 1 to 60 of a-z, "
            "0-9, '-' and '_', the first of them no sign: it names a folder below baselines/"
        )
    return given


def synchronized_timer() -> float:
    """``time.perf_counter`` after the device is done: the timer for pytest-benchmark."""
    torch = sys.modules.get("torch")  # not imported: nothing can be queued
    if torch is not None and torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def slugify(text: str) -> str:
    """Lower-case letters, digits and single hyphens; ``(R)`` and the word ``CPU`` say nothing."""
    plain = re.sub(r"\((r|tm)\)", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def cpu_contention() -> tuple[float, float] | None:
    """Seconds this process ran and seconds it was ready but waited for a core, all threads.

    Source: the first two fields of ``/proc/<pid>/task/<tid>/schedstat`` (kernel documentation,
    scheduler/sched-stats). None where the kernel does not keep them.
    """
    ran = waited = 0
    try:
        for task in _TASKS.iterdir():
            fields = (task / "schedstat").read_text().split()
            ran, waited = ran + int(fields[0]), waited + int(fields[1])
    except (OSError, IndexError, ValueError):
        return None
    return ran / 1e9, waited / 1e9


def core_quota() -> float | None:
    """How many of the cores that it sees this container may use; None where all of them.

    Source: ``cpu.max`` of control groups (kernel documentation, admin-guide/cgroup-v2), or
    version 1's ``cpu.cfs_quota_us``. torch does not look, and starts a thread for each core.
    """
    quotas = []
    for group in _groups("cpu"):
        with suppress(OSError, ValueError):
            if (group / "cpu.max").exists():
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota = (group / "cpu.cfs_quota_us").read_text()
                period = (group / "cpu.cfs_period_us").read_text()
            if "max" not in quota and int(quota) > 0:
                quotas.append(int(quota) / int(period))
    quota_of_all = min(quotas, default=None)
    return None if quota_of_all is None or quota_of_all >= len(usable_cores()) else quota_of_all


def _group_memory() -> Iterator[int]:
    """Bytes that each control group above this process still has, with what it can give back."""
    for group in _groups("memory"):
        with suppress(OSError, ValueError):
            new = (group / "memory.max").exists()
            limit = (group / ("memory.max" if new else "memory.limit_in_bytes")).read_text()
            used = (group / ("memory.current" if new else "memory.usage_in_bytes")).read_text()
            found = re.search(
                r"^(?:total_)?inactive_file (\d+)$", (group / "memory.stat").read_text(), re.M
            )
            if "max" not in limit:
                yield max(0, int(limit) - int(used) + (int(found.group(1)) if found else 0))


def _groups(controller: str) -> Iterator[Path]:
    """This process's control group of that kind, and those above it."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = _GROUPS / controllers
        own = top / path.lstrip("/")
        yield from (each for each in (own, *own.parents) if each == top or top in each.parents)


def _last_level_cache() -> int | None:
    """Bytes of the last-level caches of the cores that this process may use; None unknown."""
    units, found = {"K": 1024, "M": 1024**2, "G": 1024**3}, {}
    try:
        for core in usable_cores():
            last = max(
                (_CPUS / f"cpu{core}" / "cache").glob("index*"),
                key=lambda index: int((index / "level").read_text()),
            )
            size = (last / "size").read_text().strip()
            shared = (last / "shared_cpu_list").read_text()
            found[shared] = int(size[:-1]) * units[size[-1]]
    except (OSError, ValueError, LookupError):
        return None
    return sum(found.values())


def usable_cores() -> list[int]:
    """The cores that this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found.group(1).strip()
    import platform

    return platform.processor() or platform.machine()
