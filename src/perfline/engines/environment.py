"""What was this measured on, and with what?

Identity decides whether two measurements may be compared (the machine); context is recorded and
shown beside a verdict, and never blocks one: finding what a new torch did is the point.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import yaml

from perfline.engines.device import MACHINE, core_quota, current_device, usable_cores
from perfline.fields import OPTIONAL

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "safetensors", "numpy")
# The oldest and the newest version that the suite passes with (docs/versions.md). Others are
# measured too, with a notice: a change of version is what perfline is for.
TESTED = {"torch": ("2.9", "2.15.0"), "transformers": ("4.57", "5.24.0")}

# Set inside of git's hooks, and by people: git would answer for another repository.
GIT_PLACES = {
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
}

# Environment variables that decide speed; where caches and libraries lie does not.
_VARIABLE = re.compile(
    r"(TORCH|PYTORCH_|TRITON_|CUDA_|CUBLAS|CUDNN|NVIDIA_|NCCL_|HIP_|HSA_|ROCR_|MIOPEN_|OMP_|KMP_"
    r"|GOMP_|MKL_|OPENBLAS_|ATEN_|DNNL_|ONEDNN_|MALLOC_|TOKENIZERS_PARALLELISM$|LD_PRELOAD$)"
)
_PLACE = re.compile(r"(_DIR|_HOME|_PATH|_CACHE|_ROOT|_VERSION)$")

LAYOUT = re.compile(r"(?:[0-9]+-nodes-)?x(?P<ranks>[0-9]+)")


@dataclass(frozen=True)
class Environment:
    """One machine and its software.

    Attributes:
        machine: the folder under ``baselines/``, made of what decides speed; of several ranks
            under torchrun the layout too.
        device: the device's name as torch reports it.
        kind: ``cuda``, ``xpu``, ``mps`` or ``cpu``.
        context: versions, driver, commit; name -> text. What is not known is not in it.
        layout: how ``machine`` ends for several ranks, such as ``x8`` or ``2-nodes-x16``.
        packages: version of every installed distribution but those installed as editable, whose
            commit tells more; None in what an older perfline wrote.
        variables: the environment variables that decide speed; None as above.
    """

    machine: str
    device: str
    kind: str
    context: dict[str, str] = field(default_factory=dict)
    layout: str = field(default="", metadata=OPTIONAL)
    packages: dict[str, str] | None = field(default=None, metadata=OPTIONAL)
    variables: dict[str, str] | None = field(default=None, metadata=OPTIONAL)

    @property
    def one_rank(self) -> str:
        """``machine`` of a single rank, whose answers do as well: they depend on no layout."""
        return self.machine.removesuffix(f"-{self.layout}") if self.layout else self.machine

    def of_ranks(self, hosts: Sequence[str]) -> Environment:
        """The environment of several ranks like this one; each on the host that is named."""
        layout = layout_of(hosts)
        return replace(self, machine=f"{self.one_rank}-{layout}", layout=layout)


def layout_of(hosts: Sequence[str]) -> str:
    """How the machine of several ranks is named behind that of one; ``LAYOUT`` matches it."""
    nodes = len(set(hosts))
    return f"x{len(hosts)}" if nodes == 1 else f"{nodes}-nodes-x{len(hosts)}"


def collect(root: Path) -> Environment:
    """The environment of this process; ``root`` is the git work tree whose commit is recorded."""
    device = current_device()
    context = _context(root)
    if os.environ.get(MACHINE):  # the folder does not tell them apart
        context["device"] = device.name
    return Environment(
        device.slug,
        device.name,
        device.kind,
        context,
        packages=packages(editable=False),
        variables=variables(os.environ),
    )


def beyond_tested(context: Mapping[str, str]) -> list[str]:
    """A sentence for every package of ``context`` outside of ``TESTED``."""
    from packaging.version import InvalidVersion, Version

    found = []
    for name, (first, last) in TESTED.items():
        try:
            here = Version(Version(context[name]).public)  # a local part (+cpu) says nothing here
        except (KeyError, InvalidVersion):
            continue
        if here > Version(last):
            found.append(f"{name} {here} is newer than tested ({last})")
        elif here < Version(first):
            found.append(f"{name} {here} is older than tested ({first})")
    return found


def packages(*, editable: bool = True) -> dict[str, str]:
    """The version of every installed distribution; of two on the path, what an import finds.

    Without ``editable`` those are left out that ``pip install -e`` installed.
    """
    found: dict[str, str] = {}
    for each in metadata.distributions():
        name = each.metadata["Name"]  # None: a directory that lost its METADATA
        if name and (editable or not _is_editable(each)):
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), each.version)
    return dict(sorted(found.items()))


def _is_editable(each: metadata.Distribution) -> bool:
    try:
        about = json.loads(each.read_text("direct_url.json") or "{}")
        return bool(about.get("dir_info", {}).get("editable"))
    except (ValueError, AttributeError):  # broken: what it is installed as is not known
        return False


def variables(given: Mapping[str, str]) -> dict[str, str]:
    """Those of the environment variables ``given`` that decide how fast a model runs."""
    return {
        name: text
        for name, text in sorted(given.items())
        if _VARIABLE.match(name) and not _PLACE.search(name)
    }


def peak_flops(device: str, dtype: str) -> float | None:
    """Peak dense FLOP/s of ``device`` for ``dtype`` (fp32, fp16, bf16), from ``peaks.yaml``.

    None for a device that the table does not list: an unknown device has no MFU.
    """
    rates = (float(row["peaks"][dtype]) for row in _listed(device) if dtype in row["peaks"])
    return next(rates, None)


def advertised_bandwidth(device: str) -> float | None:
    """Bytes a second of the memory of ``device`` by its data sheet; None where it is not listed."""
    return next((float(r["bandwidth"]) for r in _listed(device) if "bandwidth" in r), None)


def _listed(device: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of ``peaks.yaml`` on that device."""
    text = resources.files("perfline.engines").joinpath("peaks.yaml").read_text("utf-8")
    yield from (row for row in yaml.safe_load(text) if re.fullmatch(row["device"], device))


def today() -> str:
    """The date and time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def limits(root: Path) -> Iterator[str]:
    """A sentence for all that keeps something here from being known, or used, as people expect."""
    if (quota := core_quota()) is not None:
        yield (
            f"this container may use {quota:g} of the {len(usable_cores())} cores that it sees "
            "(its cgroup's CPU quota): give the case so many threads (engine.cpu_threads), and "
            "the machine is named by both"
        )
    if any((each / ".git").exists() for each in (root.absolute(), *root.absolute().parents)):
        refused = _git_refusal(root)
        if refused:
            yield f"the commit is not recorded: {refused}"


def _git_refusal(root: Path) -> str:
    try:
        done = _run("git", "-C", str(root), "rev-parse", "HEAD")
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"git: {getattr(error, 'strerror', None) or 'no answer within 20 s'}"
    if done.returncode == 0:
        return ""
    if _output("git", "-C", str(root), "rev-parse", "--git-dir") is not None:
        return "the repository has none yet; commit once"
    return (done.stderr.strip().splitlines() or [f"git ends with status {done.returncode}"])[0]


def git_commit(root: Path) -> str | None:
    """The work tree's short commit, ``-dirty`` where files differ from it; None without git."""
    commit = _output("git", "-C", str(root), "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def uncommitted(root: Path) -> str | None:
    """A digest of what differs from the commit; None where nothing does, or without git."""
    changes = _output("git", "-C", str(root), "diff", "--no-ext-diff", "HEAD")
    return hashlib.sha256(changes.encode("utf-8", "replace")).hexdigest()[:12] if changes else None


def _context(root: Path) -> dict[str, str]:
    import torch

    facts: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = None
    facts["os"] = f"{platform.system()} {platform.release()}"
    facts["cuda"] = torch.version.cuda
    facts["hip"] = torch.version.hip
    facts["driver"] = _driver()
    facts["commit"] = git_commit(root)
    facts["uncommitted"] = uncommitted(root)
    facts["threads"] = str(torch.get_num_threads())
    facts["runner"] = os.environ.get("RUNNER_NAME")
    return {key: value for key, value in facts.items() if value}


def _driver() -> str | None:
    """NVIDIA's driver version, from the kernel module or its management library."""
    for place in (Path("/proc/driver/nvidia/version"), Path("/sys/module/nvidia/version")):
        if place.is_file():
            found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", place.read_text())
            if found:
                return found.group(1)
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run it without what points git elsewhere than at the directory that it is given."""
    plain = {name: text for name, text in os.environ.items() if name not in GIT_PLACES}
    # A diff holds files' own bytes, in any encoding, whatever LANG says.
    text: Any = {"encoding": "utf-8", "errors": "replace"}
    return subprocess.run(command, capture_output=True, env=plain, timeout=20, check=False, **text)


def _output(*command: str) -> str | None:
    try:
        done = _run(*command)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
