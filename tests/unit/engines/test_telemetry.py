from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest

from perfline.engines.device import Device
from perfline.engines.telemetry import Clocks, RoundHealth, clocks, silent, watch

GPU = Device("cuda", "NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3")
NEVER_S = 1e6  # no reading between begin and end


def nvml(reasons=0, pids=(), fails=False, sm_clock_mhz=1200):
    """A pynvml with one GPU in the given state; a list is one answer a call."""

    class NVMLError(Exception):
        pass

    def init():
        if fails:
            raise NVMLError("Driver/library version mismatch")

    def answer(script):
        answers = iter(script) if isinstance(script, list) else None
        return lambda *_: script if answers is None else next(answers)

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: "handle",
        nvmlDeviceGetCurrentClocksEventReasons=answer(reasons),
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=p) for p in pids],
        nvmlDeviceGetClockInfo=answer(sm_clock_mhz),
        nvmlDeviceGetTemperature=answer([60, 71, 70]),
        nvmlDeviceGetPowerUsage=answer([90_000, 650_000, 630_000]),
        nvmlDeviceGetTotalEnergyConsumption=answer([1_000_000, 1_640_500]),
    )


def one_round(library, friends=()):
    with watch(GPU, library, NEVER_S) as health:
        health.friends = friends
        health.begin()
        return health.end()


def hide(library, *names):
    """Let NVML answer "not supported"."""

    def hidden(*_):
        raise library.NVMLError

    for name in names:
        setattr(library, name, hidden)
    return library


def test_a_round_tells_its_energy_and_readings():
    assert one_round(nvml(pids=[os.getpid()])) == RoundHealth(
        joules=640.5, sm_clock_mhz=1200, temperature_c=71, power_w=650.0, readings=2
    )


def test_clock_and_power_before_the_round_are_those_of_an_idle_gpu():
    assert one_round(nvml(sm_clock_mhz=[345, 1980])).sm_clock_mhz == 1980


def test_a_gpu_in_order_has_no_faults():
    assert one_round(nvml(pids=[os.getpid()])).faults == ()


def test_the_power_cap_is_a_large_gpu_s_normal_state():
    assert one_round(nvml(reasons=0x4)).faults == ()


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (0x08, "hardware slowdown"),
        (0x20, "software thermal slowdown"),
        (0x40, "hardware thermal slowdown"),
        (0x80, "power brake"),
    ],
)
def test_throttled_clocks_are_a_fault_with_the_reason(bit, name):
    health = one_round(nvml(reasons=[0, bit]))
    assert health.throttled == (
        f"clocks throttled in 1 of 2 readings ({name}; SM clock down to 1200 MHz)"
    )
    assert health.faults == (health.throttled,)
    assert health.foreign == ()


def test_another_process_is_a_fault_with_its_pid():
    health = one_round(nvml(pids=[os.getpid(), 4242]))
    assert (health.throttled, health.foreign) == ("", (4242,))
    assert health.faults == ("another process computes on the GPU (pid 4242)",)


def test_the_other_side_of_a_comparison_is_no_stranger():
    assert one_round(nvml(pids=[os.getpid(), 4242]), friends=[4242]).foreign == ()
    assert one_round(nvml(pids=[os.getpid(), 4242, 7]), friends=[4242]).foreign == (7,)


def test_in_a_container_processes_have_other_numbers():
    assert one_round(nvml(pids=[99999])).foreign == ()
    assert one_round(nvml(pids=[99999, 88888])).foreign == (88888, 99999)
    assert one_round(nvml(pids=[99999, 88888]), friends=[17]).foreign == ()


def test_a_board_that_does_not_tell_leaves_the_field_empty():
    names = ("ClockInfo", "PowerUsage", "TotalEnergyConsumption", "ComputeRunningProcesses")
    library = hide(nvml(reasons=0x40), *(f"nvmlDeviceGet{name}" for name in names))
    assert one_round(library) == RoundHealth(
        throttled="clocks throttled in 2 of 2 readings (hardware thermal slowdown)",
        temperature_c=71,
        readings=2,
    )
    assert one_round(hide(nvml(), *(f"nvmlDeviceGet{name}" for name in names))).numbers == {
        "temperature_c": 71
    }


def test_an_old_driver_knows_the_reasons_by_their_old_name():
    library = hide(nvml(), "nvmlDeviceGetCurrentClocksEventReasons")
    assert one_round(library).throttled == ""
    library = hide(nvml(), "nvmlDeviceGetCurrentClocksEventReasons")
    library.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x08
    assert "hardware slowdown" in one_round(library).throttled


def test_a_thread_reads_during_the_round_and_only_then():
    library, read_thrice = nvml(), threading.Event()
    read = []

    def slow_at_the_third(handle):
        read.append(threading.current_thread().name)
        if len(read) == 3:
            read_thrice.set()
        return 0x40 if len(read) == 3 else 0

    library.nvmlDeviceGetCurrentClocksEventReasons = slow_at_the_third
    library.nvmlDeviceGetTemperature = lambda *_: 70
    library.nvmlDeviceGetPowerUsage = lambda *_: 700_000
    with watch(GPU, library, period_s=0.001) as health:
        health.begin()
        assert read_thrice.wait(10)
        found = health.end()
        alive = [thread.name for thread in threading.enumerate()]
    assert "hardware thermal slowdown" in found.throttled
    assert found.readings == len(read) >= 4
    assert set(read[1:-1]) == {"nvml"}
    assert "nvml" not in alive


def test_rounds_do_not_mix():
    library = nvml(reasons=[0x40, 0, 0, 0])
    counter = iter([0, 5000, 5000, 12000])
    library.nvmlDeviceGetTotalEnergyConsumption = lambda handle: next(counter)
    library.nvmlDeviceGetTemperature = library.nvmlDeviceGetPowerUsage = lambda *_: 70
    with watch(GPU, library, NEVER_S) as health:
        found = []
        for _ in range(2):
            health.begin()
            found.append(health.end())
    assert [bool(each.throttled) for each in found] == [True, False]
    assert [each.joules for each in found] == [5.0, 7.0]


def test_a_round_that_breaks_leaves_no_thread_behind():
    def break_down():
        with watch(GPU, nvml(), NEVER_S) as health:
            health.begin()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_down()
    assert "nvml" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(
    ("device", "library"),
    [
        (Device("cpu", "x", "x"), nvml()),
        (GPU, nvml(fails=True)),
        (GPU, hide(nvml(), "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByUUID")),
    ],
    ids=["cpu", "no-driver", "hidden"],
)
def test_without_nvml_nothing_is_known_and_nothing_claimed(device, library):
    with watch(device, library) as health:
        assert health.sample() is None
        health.begin()
        assert "nvml" not in [thread.name for thread in threading.enumerate()]
        assert health.end() == RoundHealth()
    assert RoundHealth().faults == ()
    assert clocks(device, library) is None


def with_clocks(**answers):
    library = nvml()
    for name, value in answers.items():
        setattr(library, f"nvmlDeviceGet{name}", lambda *_, value=value: value)
    return library


def test_the_steady_clock_is_the_default_one_where_that_is_below_the_highest():
    library = with_clocks(
        Index=2, MaxClockInfo=1410, DefaultApplicationsClock=1095, ApplicationsClock=1410
    )
    assert clocks(GPU, library) == Clocks(2, 1410, 1410, 1095, 1095, None)


def test_else_it_is_the_highest_up_to_four_fifths():
    library = with_clocks(
        Index=0,
        MaxClockInfo=1980,
        DefaultApplicationsClock=1980,
        ApplicationsClock=1980,
        PersistenceMode=1,
        SupportedMemoryClocks=[1593, 2619],
        SupportedGraphicsClocks=[1980, 1590, 1584, 1575, 345],
    )
    assert clocks(GPU, library) == Clocks(0, 1980, 1980, 1980, 1584, True)
    assert clocks(GPU, with_clocks(MaxClockInfo=1980)).steady_mhz is None


def test_a_device_of_which_nothing_is_known_says_why(monkeypatch):
    """As with MIG or CUDA_VISIBLE_DEVICES by UUID in a container that shows NVML another GPU."""
    assert silent(GPU, nvml()) == ""
    assert silent(GPU, nvml(fails=True)) == "NVML does not start: Driver/library version mismatch"
    library = nvml()
    monkeypatch.setattr(
        "perfline.engines.telemetry._handle", lambda nvml: nvml.nvmlDeviceGetHandleByUUID("GPU-1")
    )
    library.nvmlDeviceGetHandleByUUID = hide(nvml(), "x").x
    library.NVMLError = Exception
    assert silent(GPU, library).startswith("NVML does not know this GPU, or this slice of one")
    monkeypatch.setattr("perfline.engines.telemetry._pynvml", lambda: None)
    assert silent(GPU) == "NVML: pip install nvidia-ml-py"
    assert silent(Device("cpu", "x", "cpu-x")) == ""
