from __future__ import annotations

import re
import subprocess
import sys

import pytest

from perfline.engines.device import Device, cpu_contention, current_device, slugify
from perfline.engines.environment import collect, git_commit, packages, peak_flops


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


def test_this_machine_has_a_device_with_a_slug():
    device = current_device()
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", device.slug)
    if device.kind == "cpu":
        assert re.search(r"-\d+-cores-", device.slug)


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


def test_a_changed_work_tree_says_so(tmp_path):
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
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == f"{clean}-dirty"
