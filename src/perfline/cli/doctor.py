"""Is this machine ready to measure, and if not, which command makes it so?

``perfline doctor`` looks at the device, its health, the versions, and for every case at its
weights, questions, baseline and size. It changes nothing; a tar beside the data is unpacked, as
pytest would. What is absent comes with the command that gets it; only what is broken fails.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path

from perfline.baselines import baseline
from perfline.cases import data
from perfline.cases.case import Case, WeightsKind
from perfline.engines import environment, telemetry
from perfline.engines.device import GIB, Compiler, Device, compiler, cpu_contention, current_device
from perfline.engines.telemetry import Clocks, Sample
from perfline.errors import CaseError, DataError, EngineError, MissingData, PerflineError
from perfline.gates.performance import MAX_CONTENTION_FRACTION
from perfline.report.text import paragraph
from perfline.tasks import task as tasks

_PACKAGES = ("pytest", "pytest-benchmark", "nvidia-ml-py", "accelerate")
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_LEAST_BYTES = 16 * 1024**2  # a record with all answers, what inductor writes for a small model
_LISTEN_S = 0.2  # how long the CPU is kept busy to see who else wants it


@dataclass(frozen=True)
class Found:
    """Something looked for: there (``path``), absent (``command`` gets it), or broken."""

    path: str | None = None
    command: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class CaseState:
    """What one case has on this machine.

    Attributes:
        questions: those of the first task.
        other_tasks: those of each further task, by its name.
        weights_gib: the model's size in the case's precision; from the checkpoint, else from the
            case's nominal number of parameters; None where that does not tell it (a quantised one).
        attention: what would run, the case's or what the model's class has in its place; None where
            there is no checkpoint to tell.
        tensor: ranks that hold the model between them, under torchrun.
        fits: whether a rank's share is less than the free memory; None where the device does not
            say.
        baseline: ``path`` of the file that would apply (that of random weights where there is no
            other); ``problem`` where it is broken.
        sessions: date of each session that the baseline holds; None where there is no baseline.
    """

    case: str
    precision: str
    weights: Found
    questions: Found
    weights_gib: float | None
    attention: str | None
    tensor: int
    fits: bool | None
    baseline: Found
    sessions: tuple[str, ...] | None
    other_tasks: dict[str, Found] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """The device and its health; a field is None where it cannot be known.

    Attributes:
        peak_flops: dense FLOP/s by dtype, of those that the table knows.
        waited_fraction: of a busy moment on the CPU, spent waiting for a core.
        reading: clocks, temperature, power, throttling, other processes; through NVML.
        clocks: how the clocks are set, as far as NVML tells.
        lock_clocks: the command with which an administrator keeps the clocks steady.
        compiler: what torch.compile calls; None where it calls none.
        silent: why there is no reading, where there should be one.
    """

    name: str
    kind: str
    machine: str
    free_memory_gib: float | None
    peak_flops: dict[str, float]
    waited_fraction: float | None
    reading: Sample | None
    clocks: Clocks | None
    lock_clocks: str | None
    compiler: Compiler | None
    silent: str = ""


@dataclass(frozen=True)
class Report:
    """All that the doctor found."""

    machine: Machine | None
    versions: dict[str, str]
    cases: tuple[CaseState, ...]
    problems: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())


def doctor(cases: Sequence[Case], data_dir: Path | None, baselines: Path, as_json: bool) -> int:
    """Print the report; 1 where something is broken, else 0."""
    report = inspect(cases, data_dir, baselines)
    print(json.dumps(asdict(report), indent=1) if as_json else "\n".join(lines(report)))
    return 1 if report.problems else 0


def inspect(cases: Sequence[Case], data_dir: Path | None, baselines: Path) -> Report:
    """Look at the machine and at every case."""
    machine, problems = None, list(_closed_places())
    notes: list[str] = []
    versions = _versions(_PACKAGES)
    try:
        device = current_device()
        versions = {**environment.collect(Path.cwd()).context, **versions}
    except (ImportError, OSError) as error:
        problems.append(f"torch cannot be imported ({error}); install it: pip install torch")
        versions = {**_versions(environment.PACKAGES), **versions}
    else:
        machine = examine(device)
        notes = [note for note in environment.limits(Path.cwd()) if note not in problems]
        if machine.compiler is not None and machine.compiler.problem:
            problems.append(machine.compiler.problem)
    if "transformers" not in versions:
        problems.append("transformers is not installed; install it: pip install transformers")
    states = tuple(_case_state(case, data_dir, baselines, machine) for case in cases)
    if any(state.tensor > 1 for state in states) and "accelerate" not in versions:
        problems.append(
            "accelerate is not installed, with which transformers splits a model over ranks "
            "(parallel.tensor); install it: pip install 'perfline[parallel]'"
        )
    for state in states:
        for found in (
            state.weights,
            state.questions,
            *state.other_tasks.values(),
            state.baseline,
        ):
            if found.problem is not None:
                problems.append(f"case '{state.case}': {found.problem}")
    return Report(machine, versions, states, tuple(problems), tuple(notes))


def examine(device: Device) -> Machine:
    """Describe the device and take one reading of its health."""
    with telemetry.watch(device) as watch:
        reading = watch.sample()
    clocks = telemetry.clocks(device)
    peaks = {dtype: environment.peak_flops(device.name, dtype) for dtype in _BYTES}
    nvidia = device.slug.startswith("nvidia-")  # whose tool the command is
    return Machine(
        name=device.name,
        kind=device.kind,
        machine=device.slug,
        free_memory_gib=device.free_memory_gib(),
        peak_flops={dtype: peak for dtype, peak in peaks.items() if peak is not None},
        waited_fraction=_waited_fraction(),
        reading=reading,
        clocks=clocks,
        lock_clocks=_lock_command(clocks) if nvidia else None,
        compiler=compiler(device.kind),
        silent="" if reading is not None else telemetry.silent(device),
    )


def lines(report: Report) -> Iterator[str]:
    """Yield the report for reading."""
    versions = ", ".join(f"{name} {text}" for name, text in report.versions.items())
    machine = [] if report.machine is None else _machine_lines(report.machine)
    tested = ", ".join(
        f"{name} {first} to {last}" for name, (first, last) in environment.TESTED.items()
    )
    beyond = "; ".join(environment.beyond_tested(report.versions))
    more = f"tested    {tested}{f'; {beyond}: measured all the same' if beyond else ''}"
    for line in (*machine, f"versions  {versions}", more):
        text = line.lstrip()
        yield from paragraph(text, " " * (len(line) - len(text)), " " * 10)
    for state in report.cases:
        yield ""
        yield from _case_lines(state, report.machine)
    yield ""
    for note in report.notes:
        yield from paragraph(f"note: {note}", "")
    for problem in report.problems:
        yield from paragraph(f"problem: {problem}", "")
    if not report.problems:
        absent = [s for s in report.cases if s.weights.path is None or s.questions.path is None]
        yield f"ready: {len(report.cases) - len(absent)} of {len(report.cases)} cases"


def _closed_places() -> Iterator[str]:
    """Where a run would write, and cannot: what pytest then fails with."""
    try:
        scratch = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield f"{error.strerror}; make one, or name one in $TMPDIR"
        return
    compiled = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    places = (
        (Path("results"), "give pytest --results=FILE elsewhere"),
        (Path(compiled) if compiled else scratch, "name another in $TORCHINDUCTOR_CACHE_DIR"),
    )
    for place, way_out in places:
        there = next(each for each in (place, *place.absolute().parents) if each.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            yield f"{place}: cannot be written; make it writable, or {way_out}"
        elif (free := shutil.disk_usage(there).free) < _LEAST_BYTES:
            yield f"{place}: its disk is full ({free} bytes left); make room, or {way_out}"


def _machine_lines(machine: Machine) -> Iterator[str]:
    free = machine.free_memory_gib
    yield f"device    {machine.name} ({machine.kind})"
    yield f"machine   {machine.machine} (its baselines' directory)"
    yield f"memory    {'free memory not known' if free is None else f'{free:.1f} GiB free'}"
    peaks = ", ".join(f"{k} {v / 1e12:g}" for k, v in machine.peak_flops.items())
    yield f"peak      {f'{peaks} TFLOP/s dense' if peaks else 'not known for this device: no MFU'}"
    waited = machine.waited_fraction
    if waited is None:
        yield "cpu       contention not known: the kernel keeps no schedstat"
    else:
        busy = waited > MAX_CONTENTION_FRACTION
        hint = ": others take it, timings will be unsure" if busy else ""
        yield f"cpu       {100 * waited:.0f} % of the time waiting for a core{hint}"
    if (found := machine.compiler) is not None:
        yield f"compiler  {found.path or 'missing'} ({found.language}, for {found.caller})"
    yield f"clocks    {_reading(machine)}"
    if machine.lock_clocks is not None:
        yield from _clock_lines(machine.clocks, machine.lock_clocks)


def _lock_command(clocks: Clocks | None) -> str:
    """Return what an administrator would type; perfline itself never sets a clock."""
    gpu = "" if clocks is None or clocks.index is None else f" -i {clocks.index}"
    mhz = "MHZ" if clocks is None or clocks.steady_mhz is None else str(clocks.steady_mhz)
    return f"sudo nvidia-smi{gpu} -pm 1; sudo nvidia-smi{gpu} -lgc {mhz},{mhz}"


def _clock_lines(clocks: Clocks | None, command: str) -> Iterator[str]:
    if clocks is not None and clocks.application_mhz is not None:
        mhz = f"application clock {clocks.application_mhz} of {clocks.highest_mhz} MHz"
        if clocks.application_mhz != clocks.default_mhz:
            yield f"  locked    {mhz}, set by an administrator"
        else:
            yield f"  locked    not by the {mhz}; of `nvidia-smi -lgc` NVML tells nothing"
    elif clocks is not None:
        yield "  locked    not known: NVML tells nothing of it on this board"
    yield "  steady clocks, by an administrator:"
    yield from (f"    {each}" for each in command.split("; "))
    choice = "MHZ: one of `nvidia-smi -q -d SUPPORTED_CLOCKS`; " if "MHZ" in command else ""
    yield f"  {choice}undo: sudo nvidia-smi -rgc"


def _reading(machine: Machine) -> str:
    reading = machine.reading
    if reading is None:
        hint = f" ({machine.silent})" if machine.silent else ""
        return f"not known on this device{hint}"
    known = []
    if reading.sm_clock_mhz is not None:
        known.append(f"SM {reading.sm_clock_mhz} MHz")
    if reading.temperature_c is not None:
        known.append(f"{reading.temperature_c} C")
    if reading.power_w is not None:
        known.append(f"{reading.power_w:.0f} W")
    if reading.slowdowns is not None:
        known.append(", ".join(reading.slowdowns) or "not throttled")
    if reading.foreign is not None:
        pids = ", ".join(map(str, reading.foreign))
        known.append(f"other processes compute here: pid {pids}" if pids else "no other process")
    return ", ".join(known) or "not told by this board"


def _case_lines(state: CaseState, machine: Machine | None) -> Iterator[str]:
    yield f"case {state.case} ({state.precision})"
    others = [(f"of {name}: ", found) for name, found in state.other_tasks.items()]
    looked_for = [("weights   ", state.weights), ("questions ", state.questions), *others]
    for name, found in looked_for:
        yield f"  {name}{_place(found)}"
        if found.path is None and found.command is not None:
            yield f"    {found.command}"
    yield f"  {'baseline':<10}{_baseline(state)}"
    if state.attention is not None:
        yield f"  {'attention':<10}{state.attention}"
    if state.weights_gib is None:
        return
    size = f"{state.weights_gib:.3g} GiB of weights"
    if state.tensor > 1:
        ranks = f"{state.tensor} ranks hold one model: start under torchrun"
        yield f"  {'parallel':<10}{ranks}, see docs/parallel.md"
        size = f"{state.weights_gib / state.tensor:.3g} GiB of weights a rank"
    free = machine.free_memory_gib if machine is not None else None
    if free is None:
        yield f"  {'memory':<10}{size}; free memory not known"
    elif state.fits:
        yield f"  {'memory':<10}{size}, {free:.1f} GiB free"
    else:
        yield f"  {'memory':<10}{size} do not fit in {free:.1f} GiB: lower model.precision"


def _place(found: Found) -> str:
    if found.problem is not None:
        return "broken: see the problem below"
    return found.path if found.path is not None else "missing; get it with:"


def _baseline(state: CaseState) -> str:
    if state.baseline.problem is not None:
        return "broken: see the problem below"
    if state.baseline.path is None:
        return "not known without torch"
    if state.sessions is None:
        return f"missing; it would be {state.baseline.path}"
    last = f", last {max(state.sessions)[:10]}" if state.sessions else ""
    count = len(state.sessions)
    return f"{state.baseline.path} ({count} {'session' if count == 1 else 'sessions'}{last})"


def _case_state(
    case: Case, data_dir: Path | None, baselines: Path, machine: Machine | None
) -> CaseState:
    weights = _find(lambda: data.find_weights(case, data_dir))
    each = _BYTES.get(case.model.precision)  # None: as they are stored
    size = None if each is None else case.model.nominal_parameters * each
    attention = None
    if weights.path is not None:
        directory = Path(weights.path)
        try:
            found = data.read_checkpoint(directory)
            data.check_quantization(directory, case.model.precision)
            size = found.size if each is None else found.parameters * each
            attention = None if machine is None else _attention(case, directory)
        except (DataError, EngineError) as error:
            weights = Found(path=weights.path, problem=str(error))
    weights_gib = None if size is None else size / GIB
    free = machine.free_memory_gib if machine is not None else None
    stored, sessions = _stored(case, baselines, machine)
    questions, others = _questions(case, data_dir)
    return CaseState(
        case=case.id,
        precision=case.model.precision,
        weights=weights,
        questions=questions,
        weights_gib=weights_gib,
        attention=attention,
        tensor=case.parallel.tensor,
        fits=(
            None
            if free is None or weights_gib is None
            else weights_gib / case.parallel.tensor < free
        ),
        baseline=stored,
        sessions=sessions,
        other_tasks=others,
    )


def _questions(case: Case, data_dir: Path | None) -> tuple[Found, dict[str, Found]]:
    """The rows of the case's first task, and of each other, by name."""
    try:
        asked = tasks.tasks_of(case)
    except CaseError as error:
        return Found(problem=str(error)), {}
    rows = {each.name: _find(partial(tasks.find_rows, case, each, data_dir)) for each in asked}
    return rows.pop(asked[0].name), rows


def _attention(case: Case, directory: Path) -> str:
    """What a run would take; EngineError where transformers does not know the checkpoint's kind."""
    from perfline.engines import hf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is another one is what is said here
        return hf.attention_for(case, directory)


def _find(look: Callable[[], Path]) -> Found:
    try:
        return Found(path=str(look()))
    except MissingData as missing:
        return Found(command=missing.command)
    except DataError as error:
        return Found(problem=str(error))
    except ImportError as error:
        return Found(problem=f"{error}; install it: pip install transformers")


def _stored(
    case: Case, baselines: Path, machine: Machine | None
) -> tuple[Found, tuple[str, ...] | None]:
    if machine is None:
        return Found(), None
    place = machine.machine  # of one replica, and nothing beside it
    if case.parallel.tensor > 1:
        place = f"{place}-{environment.layout_of(['here'] * case.parallel.tensor)}"
    path = baseline.path(baselines, place, case.id, dummy=False)
    of_random_weights = baseline.path(baselines, place, case.id, dummy=True)
    kind: WeightsKind = "real"
    if not path.exists() and of_random_weights.exists():
        path, kind = of_random_weights, "dummy"
    if not path.exists():
        return Found(path=str(path)), None
    try:
        held = baseline.load(path)
    except PerflineError as error:
        return Found(path=str(path), problem=str(error)), None
    if held.case_digest != case.digest(kind):
        stale = f"{path}: is of an older definition of the case; run pytest and update it"
        return Found(path=str(path), problem=stale), None
    return Found(path=str(path)), tuple(session.date for session in held.sessions)


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _waited_fraction() -> float | None:
    """Keep one core busy for a moment; return the share of it spent waiting for that core."""
    before = cpu_contention()
    end = time.perf_counter() + _LISTEN_S
    while time.perf_counter() < end:
        pass
    after = cpu_contention()
    if before is None or after is None:
        return None
    ran, waited = after[0] - before[0], after[1] - before[1]
    return waited / (ran + waited) if ran > 0 and waited >= 0 else None
