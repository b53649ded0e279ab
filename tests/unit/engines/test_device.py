from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from perfline.engines import device
from perfline.engines.device import Device, core_quota, cpu_contention, current_device, slugify
from perfline.engines.environment import (
    advertised_bandwidth,
    collect,
    git_commit,
    limits,
    packages,
    peak_flops,
    uncommitted,
)
from perfline.errors import EngineError


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA A100-SXM4-40GB", "nvidia-a100-sxm4-40gb"),
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "intel-xeon-cpu-2-20ghz"),
    ],
)
def test_a_device_s_folder_is_its_name_in_plain_letters(name, slug):
    assert slugify(name) == slug


@pytest.mark.parametrize(
    ("device", "dtype", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", "fp16", 312e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H200", "fp16", 989e12),
        ("NVIDIA H100 PCIe", "fp16", 756e12),
        ("Tesla T4", "bf16", None),
        ("Some Xeon", "fp32", None),
        ("NVIDIA A1000", "fp16", None),  # not an A100 by its first letters
    ],
)
def test_peaks_are_known_or_absent(device, dtype, peak):
    assert peak_flops(device, dtype) == peak


@pytest.mark.parametrize(
    ("device", "gb_per_s"),
    [
        ("NVIDIA A100-SXM4-40GB", 1555),
        ("NVIDIA A100-SXM4-80GB", 2039),
        ("NVIDIA A100 80GB PCIe", 1935),
        ("NVIDIA A100-SXM4-64GB", None),  # a kind that no data sheet of ours is on
        ("NVIDIA H100 80GB HBM3", 3350),
        ("NVIDIA H200", 4800),
        ("Some Xeon", None),
    ],
)
def test_the_advertised_bandwidth_is_known_or_absent(device, gb_per_s):
    assert advertised_bandwidth(device) == (None if gb_per_s is None else gb_per_s * 1e9)


def test_this_machine_has_a_device_with_a_slug(monkeypatch):
    monkeypatch.delenv("PERFLINE_MACHINE", raising=False)
    device = current_device()
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", device.slug)
    if device.kind == "cpu":
        assert re.search(r"-\d+-cores-", device.slug)


def test_machines_that_one_name_is_given_to_are_one_of_each_kind_and_instruction_set(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PERFLINE_MACHINE", "hosted_x86")
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: None)
    found = []
    for model, cores, capability in (
        ("Xeon", 4, "AVX2"),
        ("EPYC", 2, "AVX2"),
        ("Xeon", 4, "AVX512"),
    ):
        monkeypatch.setattr("perfline.engines.device._cpu_name", lambda model=model: model)
        monkeypatch.setattr(
            "perfline.engines.device.usable_cores", lambda cores=cores: list(range(cores))
        )
        monkeypatch.setattr(
            "torch.backends.cpu.get_cpu_capability", lambda capability=capability: capability
        )
        device = current_device()
        found.append((device.name, device.slug))
    assert found == [
        ("Xeon", "cpu-hosted-x86-avx2"),
        ("EPYC", "cpu-hosted-x86-avx2"),
        ("Xeon", "cpu-hosted-x86-avx512"),
    ]
    environment = collect(tmp_path)  # what the folder leaves out stands beside the verdict
    assert (environment.machine, environment.context["device"]) == found[-1][::-1]

    gpu = SimpleNamespace(type="cuda", get_device_name=lambda: "NVIDIA A100-SXM4-40GB")
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: gpu)
    monkeypatch.setattr("torch.get_device_module", lambda kind: gpu)
    assert current_device().slug == "cuda-hosted-x86"
    monkeypatch.setenv("PERFLINE_MACHINE", "")  # as a workflow sets what it leaves empty
    assert current_device().slug == "nvidia-a100-sxm4-40gb"


@pytest.mark.parametrize("name", ["ü", "../..", "x" * 61, "Rüdi", "a b", "-", "a\n"])
def test_a_name_that_names_no_folder_is_refused(monkeypatch, name):
    monkeypatch.setenv("PERFLINE_MACHINE", name)
    with pytest.raises(EngineError, match=r"^PERFLINE_MACHINE is '.*expected 1 to 60 of a-z"):
        current_device()


GROUPS = {  # which files there are, as their text; the cores, and the GiB that are left
    "version 2": (
        "0::/a/b\n",
        {
            "a/cpu.max": "200000 100000\n",
            "a/b/cpu.max": "max 100000\n",
            "a/memory.max": "2147483648\n",
            "a/memory.current": "1610612736\n",
            "a/memory.stat": "anon 1\ninactive_file 536870912\n",
        },
        2.0,
        1.0,
    ),
    "version 1": (
        "3:memory:/c\n2:cpu,cpuacct:/c\n",
        {
            "cpu,cpuacct/c/cpu.cfs_quota_us": "150000\n",
            "cpu,cpuacct/c/cpu.cfs_period_us": "100000\n",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "memory/c/memory.limit_in_bytes": "2147483648\n",
            "memory/c/memory.usage_in_bytes": "1073741824\n",
            "memory/c/memory.stat": "total_inactive_file 0\n",
        },
        1.5,
        1.0,
    ),
    "as many as there are": ("0::/\n", {"cpu.max": "6400000 100000\n"}, None, 8.0),
    "no limit": ("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, 8.0),
    "none": ("", {}, None, 8.0),
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_container_has_what_its_control_groups_leave_it(tmp_path, monkeypatch, name):
    own, files, cores, gib = GROUPS[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "own").write_text(own)
    (tmp_path / "meminfo").write_text(f"MemAvailable: {8 * 1024**2} kB\n")
    monkeypatch.delenv("PERFLINE_MACHINE", raising=False)
    monkeypatch.setattr("perfline.engines.device._GROUPS", tmp_path)
    monkeypatch.setattr("perfline.engines.device._OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr("perfline.engines.device._MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("perfline.engines.device.usable_cores", lambda: list(range(64)))
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: None)
    assert core_quota() == cores
    assert Device("cpu", "x", "x").free_memory_gib() == gib
    shown = "64-cores" if cores is None else f"{slugify(f'{cores:g}')}-of-64-cores"
    assert f"-{shown}-" in current_device().slug


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_a_cpu_is_a_high_water_mark_that_can_be_reset():
    device = Device("cpu", "x", "x")
    block = bytearray(200 * 1024 * 1024)
    high = device.peak_memory_gib()
    del block
    device.reset_peak_memory()
    low = device.peak_memory_gib()
    assert high is not None
    assert low is not None
    assert low < high - 0.1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_contention_counts_seconds_that_ran_and_waited():
    counted = cpu_contention()
    if counted is None:
        pytest.skip("this kernel keeps no schedstat")
    ran, waited = counted
    assert ran > 0
    assert waited >= 0


def test_context_names_versions_and_commit(tmp_path):
    environment = collect(tmp_path)
    assert environment.context["torch"]
    assert "commit" not in environment.context  # tmp_path is no git work tree
    assert all(isinstance(value, str) and value for value in environment.context.values())


def test_every_installed_package_is_told_as_an_import_finds_it(tmp_path, monkeypatch):
    for folder, version in (("first", "2"), ("second", "1")):
        about = tmp_path / folder / "Some_Package.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Name: Some_Package\nVersion: {version}\n")
        (tmp_path / folder / "broken.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second")])
    assert packages() == {"some-package": "2"}


def test_a_changed_work_tree_says_so(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "a")
    clean = git_commit(tmp_path)
    assert clean is not None
    assert re.fullmatch(r"[0-9a-f]{12}", clean)
    (tmp_path / "a").write_bytes("é".encode("latin-1"))  # in whatever encoding
    assert git_commit(tmp_path) == f"{clean}-dirty"
    digest = uncommitted(tmp_path)
    assert digest is not None
    # As inside of a hook of another repository.
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("LANG", "C")
    assert git_commit(tmp_path) == f"{clean}-dirty"
    assert uncommitted(tmp_path) == digest
    assert list(limits(tmp_path)) == [] or current_device().kind != "cpu"
    # Cloned without its past.
    subprocess.run(
        ["git", "clone", "-q", "--depth=1", f"file://{tmp_path}", str(tmp_path / "shallow")],
        check=True,
        env={key: value for key, value in os.environ.items() if key != "GIT_DIR"},
    )
    assert git_commit(tmp_path / "shallow") == clean


def test_what_no_cache_holds_is_four_times_the_last_level_of_all_cores(tmp_path, monkeypatch):
    for core, shared in ((0, "0-1"), (1, "0-1"), (2, "2")):
        for level, size in ((1, "32K"), (3, "8192K")):
            index = tmp_path / f"cpu{core}" / "cache" / f"index{level}"
            index.mkdir(parents=True)
            (index / "level").write_text(f"{level}\n")
            (index / "size").write_text(f"{size}\n")
            (index / "shared_cpu_list").write_text(f"{shared}\n")
    monkeypatch.setattr(device, "_CPUS", tmp_path)
    here = device.Device("cpu", "x", "x")
    monkeypatch.setattr(device, "usable_cores", lambda: [0, 1, 2])
    assert here.uncached_bytes() == 4 * 2 * 8 * 1024**2
    monkeypatch.setattr(device, "usable_cores", lambda: [3])
    assert here.uncached_bytes() is None
    assert here.memory_bandwidth() is None


def test_bandwidth_is_bytes_moved_by_the_best_of_reads_and_copies(monkeypatch):
    here = device.Device("cpu", "x", "x")
    monkeypatch.setattr(device, "_LEAST_COPIED", 1024)
    monkeypatch.setattr(device.Device, "uncached_bytes", lambda self: 2048)
    ticks = iter([0.0, 2.0] * 8 + [0.0, 2.0] * 7 + [0.0, 1.0])
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(ticks))
    assert here.memory_bandwidth() == 2 * 2048  # one copy, of which a second
    monkeypatch.setattr(device.Device, "free_memory_gib", lambda self: 1e-6)
    assert here.memory_bandwidth() is None
