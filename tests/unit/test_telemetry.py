from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from perfline.device import Device
from perfline.telemetry import watch

GPU = Device("cuda", "NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3")


def nvml(reasons=0, pids=(), fails=False):
    """A pynvml with one GPU in the given state."""

    class NVMLError(Exception):
        pass

    def init():
        if fails:
            raise NVMLError

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: "handle",
        nvmlDeviceGetCurrentClocksEventReasons=lambda handle: reasons,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=p) for p in pids],
        nvmlDeviceGetClockInfo=lambda handle, clock: 1200,
        nvmlDeviceGetTemperature=lambda handle, sensor: 70,
        nvmlDeviceGetPowerUsage=lambda handle: 650_000,
    )


def test_a_board_that_does_not_tell_leaves_the_field_empty():
    library = nvml(reasons=0x40)

    def hidden(*_):
        raise library.NVMLError

    library.nvmlDeviceGetPowerUsage = library.nvmlDeviceGetClockInfo = hidden
    with watch(GPU, library) as health:
        health.sample()
    assert (health.samples[0].power_w, health.samples[0].sm_clock_mhz) == (None, None)
    assert health.faults() == ("clocks throttled in 1 of 1 readings (hardware thermal slowdown)",)


def faults(**state):
    with watch(GPU, nvml(**state)) as health:
        health.sample()
        health.sample()
    return health.faults()


def test_a_gpu_in_order_has_no_faults():
    assert faults(pids=[os.getpid()]) == ()


def test_the_power_cap_is_a_large_gpu_s_normal_state():
    assert faults(reasons=0x4) == ()


@pytest.mark.parametrize(
    ("bit", "name"),
    [(0x08, "hardware slowdown"), (0x20, "software thermal"), (0x80, "power brake")],
)
def test_throttled_clocks_are_a_fault_with_the_reason(bit, name):
    (fault,) = faults(reasons=bit)
    assert "clocks throttled in 2 of 2 readings" in fault
    assert name in fault
    assert "1200 MHz" in fault


def test_another_process_is_a_fault_with_its_pid():
    (fault,) = faults(pids=[os.getpid(), 4242])
    assert "pid 4242" in fault


def test_in_a_container_the_only_process_is_ours_under_another_number():
    assert faults(pids=[99999]) == ()
    assert "another process" in faults(pids=[99999, 88888])[0]


def test_readings_carry_their_units():
    with watch(GPU, nvml()) as health:
        health.sample()
    (sample,) = health.samples
    assert (sample.sm_clock_mhz, sample.temperature_c, sample.power_w) == (1200, 70, 650.0)


@pytest.mark.parametrize("device", [Device("cpu", "x", "x"), GPU])
def test_without_nvml_nothing_is_known_and_nothing_claimed(device):
    with watch(device, nvml(fails=True)) as health:
        health.sample()
    assert (health.samples, health.faults()) == ([], ())
