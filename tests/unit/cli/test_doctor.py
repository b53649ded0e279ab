from __future__ import annotations

import json
import os
import pwd
import shutil
import struct
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perfline.baselines import baseline
from perfline.baselines.proposal import measured_baseline
from perfline.cases.case import load_cases
from perfline.cli import doctor
from perfline.cli import main as cli
from perfline.engines import device, environment, telemetry
from perfline.engines.device import Device
from perfline.engines.telemetry import Clocks, Sample, Watch
from perfline.errors import DataError
from samples import case_record, packaged, record

GPU = Device("cuda", "NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3")
CPU = Device("cpu", "Test CPU", "cpu-test-2-cores")
READING = Sample(1980, 41, 312.4, ("software thermal slowdown",), (77, 78))
CLOCKS = Clocks(3, 1980, 1980, 1980, 1575, True)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Stand on a device with this much free memory; nothing of this machine shines through."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor.data, "PACKAGED_DATA", tmp_path / "packaged")

    def stand(
        where: Device,
        free_gib: float | None,
        reading: Sample | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        @contextmanager
        def watch(_: Device) -> Any:
            yield Watch(None if reading is None else lambda friends: reading)

        collected = SimpleNamespace(context={"torch": "2.13.0", "transformers": "5.23.0"})
        monkeypatch.setattr(telemetry, "watch", watch)
        monkeypatch.setattr(telemetry, "clocks", lambda _: clocks)
        monkeypatch.setattr(environment, "current_device", lambda: where)
        monkeypatch.setattr(environment, "core_quota", lambda: None)
        monkeypatch.setattr(doctor, "current_device", lambda: where)
        monkeypatch.setattr(environment, "collect", lambda _: collected)
        monkeypatch.setattr(device.Device, "free_memory_gib", lambda _: free_gib)
        monkeypatch.setattr(doctor, "_waited_fraction", lambda: 0.25)
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")

    return stand


def checkpoint(directory: Path) -> Path:
    """A whole checkpoint of one fp32 tensor with 500,000 numbers."""
    directory.mkdir(parents=True)
    size = 4 * 500_000
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "w": {"dtype": "F32", "shape": [1000, 500], "data_offsets": [0, size]},
        }
    ).encode()
    (directory / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + bytes(size)
    )
    (directory / "config.json").write_text('{"model_type": "llama"}')
    (directory / "tokenizer.json").write_text("{}")
    return directory


def questions(directory: Path) -> Path:
    for split in ("dev", "test"):
        (directory / split).mkdir(parents=True)
    return directory


@pytest.mark.parametrize(
    ("where", "there", "variables", "line", "problem"),
    [
        (CPU, {"g++"}, {}, "/bin/g++ (C++, for inductor)", ""),
        (CPU, {"g++", "icpx"}, {"CXX": "icpx"}, "/bin/icpx (C++, for inductor)", ""),
        (GPU, {"clang", "g++"}, {}, "/bin/clang (C, for Triton)", ""),
        (
            CPU,
            {"gcc"},
            {"CC": "gcc"},
            "missing (C++, for inductor)",
            "no C++ compiler for inductor: no g++ on PATH; sudo apt-get install g++, or name one "
            "in $CXX",
        ),
        (
            CPU,
            {"g++"},
            {"CXX": "g++-99"},
            "missing (C++, for inductor)",
            "no C++ compiler for inductor: $CXX is 'g++-99', which is no program; correct or "
            "unset it",
        ),
        (
            GPU,
            set(),
            {},
            "missing (C, for Triton)",
            "no C compiler for Triton: no gcc or clang on PATH; sudo apt-get install gcc, or name "
            "one in $CC",
        ),
    ],
)
def test_the_compiler_that_torch_compile_calls(
    on: Any,
    monkeypatch: pytest.MonkeyPatch,
    where: Device,
    there: set[str],
    variables: dict[str, str],
    line: str,
    problem: str,
) -> None:
    on(where, 8.0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    monkeypatch.setattr(sys, "platform", "linux")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    found = doctor.inspect([], None, Path("baselines"))

    assert f"compiler  {line}" in list(doctor.lines(found))
    assert found.problems == ((problem,) if problem else ())


def test_a_bare_machine_says_what_to_type(
    on: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on(GPU, 78.0, READING, CLOCKS)
    (tmp_path / "data").mkdir()

    assert cli.main(["doctor", "--cases", "llama3-8b", "--data-dir", "data"]) == 0

    printed = capsys.readouterr().out.splitlines()
    assert printed[:16] == [
        "device    NVIDIA H100 80GB HBM3 (cuda)",
        "machine   nvidia-h100-80gb-hbm3 (its baselines' directory)",
        "memory    78.0 GiB free",
        "peak      fp32 67, fp16 989, bf16 989 TFLOP/s dense",
        "cpu       25 % of the time waiting for a core: others take it, timings will be",
        "          unsure",
        "compiler  /usr/bin/gcc (C, for Triton)",
        "clocks    SM 1980 MHz, 41 C, 312 W, software thermal slowdown, other processes",
        "          compute here: pid 77, 78",
        "  locked    not by the application clock 1980 of 1980 MHz; of `nvidia-smi -lgc`",
        "            NVML tells nothing",
        "  steady clocks, by an administrator:",
        "    sudo nvidia-smi -i 3 -pm 1",
        "    sudo nvidia-smi -i 3 -lgc 1575,1575",
        "  undo: sudo nvidia-smi -rgc",
        printed[15],
    ]
    assert printed[15].startswith("versions  torch 2.13.0, transformers 5.23.0, pytest ")
    target = "data/llama3_8b_mmlu"
    assert printed[-9:] == [
        "case llama3-8b (fp16)",
        "  weights   missing; get it with:",
        f"    hf download meta-llama/Meta-Llama-3-8B --local-dir {target}/llama3_8b_hf",
        "  questions missing; get it with:",
        "    curl -L --create-dirs "
        f"https://people.eecs.berkeley.edu/~hendrycks/data.tar -o {target}/data.tar",
        "  baseline  missing; it would be baselines/nvidia-h100-80gb-hbm3/llama3-8b.json",
        "  memory    14.9 GiB of weights, 78.0 GiB free",
        "",
        "ready: 0 of 1 cases",
    ]


def test_a_cpu_without_nvml_claims_nothing(on: Any, capsys: pytest.CaptureFixture[str]) -> None:
    on(CPU, None)

    assert cli.main(["doctor", "--cases", "llama3-8b,tiny"]) == 0

    printed = capsys.readouterr().out
    assert "peak      not known for this device: no MFU\n" in printed
    assert "clocks    not known on this device\n" in printed
    assert "nvidia-smi" not in printed
    assert "  memory    14.9 GiB of weights; free memory not known\n" in printed


def test_a_gpu_without_nvml_says_what_would_tell(
    on: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    on(GPU, 78.0)

    assert cli.main(["doctor", "--cases", "tiny"]) == 0
    assert (
        "clocks    not known on this device (NVML: pip install nvidia-ml-py)\n"
        "  steady clocks, by an administrator:\n"
        "    sudo nvidia-smi -pm 1\n"
        "    sudo nvidia-smi -lgc MHZ,MHZ\n"
        "  MHZ: one of `nvidia-smi -q -d SUPPORTED_CLOCKS`; undo: sudo nvidia-smi -rgc\n"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("clocks", "line"),
    [
        (
            Clocks(0, 1410, 1095, 1410, 1110, True),
            "application clock 1095 of 1410 MHz, set by an a",
        ),
        (Clocks(0, 1410, None, None, None, None), "not known: NVML tells nothing of it on this bo"),
    ],
)
def test_whether_clocks_are_locked_is_said_as_far_as_nvml_tells(
    on: Any, clocks: Clocks, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    on(GPU, 78.0, READING, clocks)

    assert cli.main(["doctor", "--cases", "tiny"]) == 0
    assert f"\n  locked    {line}" in capsys.readouterr().out


def test_what_a_board_hides_is_left_out(on: Any, capsys: pytest.CaptureFixture[str]) -> None:
    on(GPU, 78.0, Sample(None, 41, None, None, None))

    assert cli.main(["doctor", "--cases", "tiny"]) == 0
    assert "\nclocks    41 C\n" in capsys.readouterr().out


def test_what_is_there_is_named_with_its_size(on: Any, tmp_path: Path) -> None:
    on(CPU, 8.0)
    home = tmp_path / "data/tiny_mmlu"
    weights = checkpoint(home / "tiny_hf")
    asked = questions(home / "mmlu_dataset/data")

    report = doctor.inspect([packaged()], tmp_path / "data", tmp_path / "baselines")

    (state,) = report.cases
    assert state.weights == doctor.Found(path=str(weights))
    assert state.questions == doctor.Found(path=str(asked))
    assert state.weights_gib == 500_000 * 4 / 1024**3
    assert state.fits is True
    assert report.problems == ()
    assert list(doctor.lines(report))[-1] == "ready: 1 of 1 cases"


def test_the_questions_of_each_task_are_looked_for(on: Any, tmp_path: Path) -> None:
    on(CPU, 8.0)
    (tmp_path / "data/cmmlu").mkdir(parents=True)
    case = replace(packaged(), tasks=("mmlu", "ceval", "cmmlu"))

    report = doctor.inspect([case], tmp_path / "data", tmp_path / "baselines")

    (state,) = report.cases
    assert list(state.other_tasks) == ["ceval", "cmmlu"]
    printed = list(doctor.lines(report))
    told = printed.index("  of ceval: missing; get it with:")
    assert printed[told + 1] == f"    cp -r YOUR_QUESTIONS {tmp_path}/data/ceval"
    assert f"  of cmmlu: {tmp_path}/data/cmmlu" in printed
    assert report.problems == ()


def test_a_task_that_cannot_be_read_is_a_problem(on: Any, tmp_path: Path) -> None:
    on(CPU, 8.0)
    case = replace(packaged(), tasks=("mmul",))
    report = doctor.inspect([case], None, tmp_path / "baselines")
    assert report.problems[0].startswith("case 'tiny': task 'mmul' is not known; did you mean 'mm")


def test_a_rank_of_a_split_model_holds_a_share_of_it(
    on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(CPU, 10.0)
    whole = packaged("llama3-8b")  # 14.9 GiB
    split = replace(whole, parallel=replace(whole.parallel, tensor=2))
    monkeypatch.setattr(doctor, "_versions", lambda names: dict.fromkeys(names, "1"))
    report = doctor.inspect([whole, split], None, tmp_path)
    assert [state.fits for state in report.cases] == [False, True]
    shown = list(doctor.lines(report))
    assert "  memory    7.45 GiB of weights a rank, 10.0 GiB free" in shown
    assert "  parallel  2 ranks hold one model: start under torchrun, see docs/parallel.md" in shown
    assert f"  baseline  missing; it would be {tmp_path}/{CPU.slug}-x2/llama3-8b.json" in shown
    monkeypatch.setattr(doctor, "_versions", lambda names: {})
    (problem,) = (p for p in doctor.inspect([split], None, tmp_path).problems if "accel" in p)
    assert problem.endswith("install it: pip install 'perfline[parallel]'")


def test_a_sharded_checkpoint_is_added_up(on: Any, tmp_path: Path) -> None:
    on(CPU, 8.0)
    weights = checkpoint(tmp_path / "data/llama3_8b_mmlu/llama3_8b_hf")
    shard = (weights / "model.safetensors").rename(weights / "model-1.safetensors")
    (weights / "model-2.safetensors").write_bytes(shard.read_bytes().replace(b'"w"', b'"v"'))
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (weights / "model.safetensors.index.json").write_text(json.dumps(index))

    report = doctor.inspect([packaged("llama3-8b")], tmp_path / "data", tmp_path)

    assert report.cases[0].weights_gib == 2 * 500_000 * 2 / 1024**3  # fp16


def test_a_model_that_does_not_fit_is_said(on: Any, capsys: pytest.CaptureFixture[str]) -> None:
    on(CPU, 8.0)

    assert cli.main(["doctor", "--cases", "llama3-8b"]) == 0
    assert "14.9 GiB of weights do not fit in 8.0 GiB: lower model.precision\n" in (
        capsys.readouterr().out
    )


def test_broken_weights_fail(on: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on(CPU, 8.0)
    weights = checkpoint(tmp_path / "data/tiny_mmlu/tiny_hf")
    with (weights / "model.safetensors").open("r+b") as file:
        file.truncate(1000)

    assert cli.main(["doctor", "--cases", "tiny", "--data-dir", str(tmp_path / "data")]) == 1

    printed = capsys.readouterr().out
    problem = printed[printed.index("problem: ") :].replace("\n  ", " ")
    assert problem.startswith(f"problem: case 'tiny': {weights}/model.safetensors: has 1000 b")
    assert "  weights   broken: see the problem below\n" in printed


def test_weights_that_the_check_refuses_are_not_ready(
    on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(CPU, 8.0)
    home = tmp_path / "data/tiny_mmlu"
    weights = checkpoint(home / "tiny_hf")
    questions(home / "mmlu_dataset/data")
    checked = []

    def refuse(directory: Path) -> None:
        checked.append(directory)
        raise DataError(f"{directory}: holds no tensor")

    monkeypatch.setattr(doctor.data, "check_weights", refuse)

    report = doctor.inspect([packaged()], tmp_path / "data", tmp_path / "baselines")

    assert checked == [weights]
    assert report.problems == (f"case 'tiny': {weights}: holds no tensor",)
    assert not any(line.startswith("ready") for line in doctor.lines(report))


def _store(root: Path, weights: str = "real", **changes: Any) -> Path:
    whole = record(case_record(weights=weights, **changes))
    held = measured_baseline(whole, whole.cases["tiny"], "first")
    path = baseline.path(root, CPU.slug, "tiny", weights == "dummy")
    baseline.save(path, held)
    return path


def test_the_baseline_that_applies_is_named(
    on: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on(CPU, 8.0)
    _store(tmp_path / "baselines")

    assert cli.main(["doctor", "--cases", "tiny"]) == 0
    assert (
        f"  baseline  baselines/{CPU.slug}/tiny.json (1 session, last 2026-11-22)\n"
        in capsys.readouterr().out
    )


def test_where_only_random_weights_have_a_baseline_it_is_named(on: Any, tmp_path: Path) -> None:
    on(CPU, 8.0)
    path = _store(tmp_path / "baselines", "dummy")

    (state,) = doctor.inspect([packaged()], None, tmp_path / "baselines").cases

    assert state.baseline == doctor.Found(path=str(path))
    assert state.sessions == ("2026-11-22T10:00:00Z",)


@pytest.mark.parametrize("fault", ["stale", "torn"])
def test_a_baseline_that_cannot_apply_fails(on: Any, tmp_path: Path, fault: str) -> None:
    on(CPU, 8.0)
    path = _store(tmp_path / "baselines", digest="sha256:0123456789abcdef")
    if fault == "torn":
        path.write_text(path.read_text()[:50])
    expected = {"stale": "is of an older definition of the case", "torn": "is torn or not JSON"}

    report = doctor.inspect([packaged()], None, tmp_path / "baselines")

    (problem,) = report.problems
    assert problem.startswith(f"case 'tiny': {path}: {expected[fault]}")


def test_without_torch_the_rest_is_still_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # `import torch` raises ImportError
    weights = checkpoint(tmp_path / "tiny_mmlu/tiny_hf")

    assert cli.main(["doctor", "--cases", "tiny", "--data-dir", str(tmp_path)]) == 1

    printed = capsys.readouterr().out
    assert printed.startswith("versions  torch ")
    assert f"  weights   {weights}\n" in printed
    assert "  baseline  not known without torch\n" in printed
    problem = printed[printed.index("problem: ") :].replace("\n  ", " ")
    assert problem.startswith("problem: torch cannot be imported (")
    assert problem.endswith("); install it: pip install torch\n")


# What containers and runners do to a run: how it is had here, and the line that tells it, if any.
def full(patch: pytest.MonkeyPatch, here: Path) -> None:
    patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))


def closed(*places: str) -> Any:
    def close(patch: pytest.MonkeyPatch, here: Path) -> None:
        opened = os.access
        shut = [here / place for place in places]
        patch.setattr(os, "access", lambda path, mode: path not in shut and opened(path, mode))

    return close


def scratch(patch: pytest.MonkeyPatch, here: Path) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    patch.setattr(tempfile, "gettempdir", nowhere)


def compiled_elsewhere(patch: pytest.MonkeyPatch, here: Path) -> None:
    (here / "ic").mkdir()
    patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(here / "ic"))
    closed("ic")(patch, here)


def file_in_its_place(patch: pytest.MonkeyPatch, here: Path) -> None:
    (here / "results").write_text("")


def quota(patch: pytest.MonkeyPatch, here: Path) -> None:
    patch.setattr(environment, "core_quota", lambda: 2.0)
    patch.setattr(environment, "usable_cores", lambda: list(range(64)))


def program(said: str, status: int) -> Any:
    """A git of the user's that does this."""

    def put(patch: pytest.MonkeyPatch, here: Path) -> None:
        (here / ".git").mkdir()
        (here / "bin").mkdir()
        (here / "bin/git").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit {status}\n")
        (here / "bin/git").chmod(0o755)
        patch.setenv("PATH", str(here / "bin"), prepend=":")

    return put


def no_git(patch: pytest.MonkeyPatch, here: Path) -> None:
    (here / ".git").mkdir()
    patch.setenv("PATH", str(here))


def no_commit(patch: pytest.MonkeyPatch, here: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(here)], check=True)


def nothing_known(patch: pytest.MonkeyPatch, here: Path) -> None:
    for name in ("HOME", "TERM", "USER", "LOGNAME", "XDG_CACHE_HOME"):
        patch.delenv(name, raising=False)

    def unknown(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    patch.setattr(pwd, "getpwuid", unknown)


ENVIRONMENTS = {
    "a read-only checkout": (closed(""), "problem: results: cannot be written; make it writable"),
    "results of another owner": (file_in_its_place, "problem: results: cannot be written; make"),
    "a read-only compile cache": (compiled_elsewhere, "/ic: cannot be written; make it writable"),
    "no directory for scratch": (scratch, "problem: No usable temporary directory found in"),
    "a full disk": (full, "problem: results: its disk is full (4096 bytes left); make room, or"),
    "a cgroup with fewer cores": (quota, "note: this container may use 2 of the 64 cores that"),
    "no git": (no_git, "note: the commit is not recorded: git: No such file or directory"),
    "a git that refuses": (
        program("fatal: detected dubious ownership in repository", 128),
        "note: the commit is not recorded: fatal: detected dubious ownership in repository",
    ),
    "no commit yet": (no_commit, "note: the commit is not recorded: the repository has none yet;"),
    "a git that says nothing": (program("", 1), "the commit is not recorded: git ends with stat"),
    "no account, no HOME, no TERM": (nothing_known, "ready: 0 of 1 cases"),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_what_an_environment_lacks_is_told_before_a_run_meets_it(
    on: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    arrange, told = ENVIRONMENTS[name]
    on(CPU, 12.0)
    with monkeypatch.context() as patch:
        arrange(patch, tmp_path)
        report = doctor.inspect(load_cases(["llama3-8b"], ()), None, Path("baselines"))
        printed = " ".join("\n".join(doctor.lines(report)).split())

    assert told in printed
    assert bool(report.problems) == ("problem: " in printed)
    assert ("ready: " in printed) == (not report.problems)


def test_the_report_as_json(on: Any, capsys: pytest.CaptureFixture[str]) -> None:
    on(GPU, 78.0, READING, CLOCKS)

    assert cli.main(["doctor", "--cases", "llama3-8b", "--json"]) == 0

    shown = json.loads(capsys.readouterr().out)
    assert shown["machine"]["machine"] == "nvidia-h100-80gb-hbm3"
    assert shown["machine"]["peak_flops"]["fp16"] == 989e12
    assert shown["machine"]["reading"]["slowdowns"] == ["software thermal slowdown"]
    assert shown["machine"]["clocks"]["steady_mhz"] == 1575
    assert shown["cases"][0]["weights"]["path"] is None
    assert shown["cases"][0]["weights"]["command"].startswith("hf download meta-llama/")
    assert shown["cases"][0]["fits"] is True
    assert shown["problems"] == []


def test_an_unknown_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--cases", "tinny"]) == 2
    assert capsys.readouterr().err == (
        "perfline: error: case 'tinny' is not known; did you mean 'tiny'? "
        "(known: deepseek-7b, llama3-8b, tiny)\n"
    )


@pytest.mark.parametrize(
    ("readings", "fraction"),
    [
        ([(1.0, 0.5), (1.15, 0.55)], 0.25),
        ([(1.0, 0.5), (1.2, 0.5)], 0.0),
        ([None, None], None),
    ],
)
def test_waiting_for_a_core_is_a_share_of_a_busy_moment(
    monkeypatch: pytest.MonkeyPatch, readings: list[Any], fraction: float | None
) -> None:
    monkeypatch.setattr(doctor, "cpu_contention", iter(readings).__next__)
    monkeypatch.setattr(doctor, "_LISTEN_S", 0.0)

    found = doctor._waited_fraction()

    assert found == (None if fraction is None else pytest.approx(fraction))


def test_the_machine_at_hand_is_examined() -> None:
    """The real device, whatever it is."""
    here = device.current_device()

    machine = doctor.examine(here)

    assert machine.machine == here.slug
    assert machine.kind == here.kind
    assert machine.free_memory_gib is None or machine.free_memory_gib > 0
