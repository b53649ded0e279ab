"""What is measured, how, and by which limits? One YAML file says it: YAML -> ``Case``.

The dataclasses below are the whole schema: ``fields`` walks their type hints and metadata, so a new
setting is one new line here. Nothing is guessed: an unknown key, a wrong type or a value out
of range is a :class:`~perfline.errors.CaseError` of one line::

    cases/tiny.yaml: key 'model.precison' is not known; did you mean 'model.precision'?
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from perfline import fields
from perfline.errors import CaseError, clip
from perfline.fields import OUTSIDE, Node, did_you_mean
from perfline.jsonfile import is_special

PACKAGED_CASES = Path(__file__).parent
OWN = "cases"  # the directory of a repository's own
CASE_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,29}")

Precision = Literal["fp32", "fp16", "bf16", "checkpoint"]  # the last: as it is quantised
# What two correct engines may differ by in a letter logit, as a share of the largest one: rounding
# errors of some 30 layers, about 8 units in the last place of fp16 and bf16 (2^-11, 2^-8).
# A quantised checkpoint computes in whichever of them its quantizer takes.
ROUNDING_FRACTION: dict[Precision, float] = {
    "fp32": 1e-4,
    "fp16": 4e-3,
    "bf16": 3e-2,
    "checkpoint": 3e-2,
}
Scoring = Literal["full-vocab", "letters"]
WeightsKind = Literal["real", "dummy"]
EngineName = str  # "eager", "inductor", or that of an engine of one's own: see ``engine_name``
ENGINE_NAMES: tuple[EngineName, ...] = ("eager", "inductor")

# Field metadata: those of perfline.fields, and what the digest leaves out.
_POSITIVE = {"gt": 0}
_FRACTION = {"gt": 0, "lt": 1}
_PERCENTAGE_POINTS = {"gt": 0, "lt": 100}
_NOT_IN_DIGEST = {"digest": False}
_DIRECTORY = {"relative": True, "digest": False}
_WHERE_CHANGED = {"digest": "where changed"}  # a later setting: older cases keep their digests


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which model, where its weights are, and how it is loaded."""

    hub_id: str | None = field(default=None, metadata=_NOT_IN_DIGEST)
    case_dir: str = field(metadata=_DIRECTORY)  # below --data-dir
    weight_dir: str = field(metadata=_DIRECTORY)  # below case_dir
    precision: Precision
    bos: bool | Literal["tokenizer"] = "tokenizer"
    nominal_parameters: float = field(metadata=_POSITIVE)  # of the published MFU
    attention: str = "sdpa"  # transformers' attn_implementation
    config: Mapping[str, object] | None = field(default=None, hash=False)


@dataclass(frozen=True, kw_only=True)
class MmluSpec:
    """Which questions, how they are asked, and how an answer is scored."""

    mmlu_dir: str = field(default="mmlu_dataset/data", metadata=_DIRECTORY)  # below case_dir
    few_shots: int = field(default=5, metadata={"ge": 0})
    max_prompt_tokens: int = field(default=2048, metadata=_POSITIVE)
    scoring: Scoring = "full-vocab"


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """How the compiled engine is compiled."""

    compiler: Literal["inductor"] = "inductor"
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = (
        "default"
    )
    dynamic: bool = True
    scope: Literal["layer", "model"] = "layer"
    batch_size: Literal[1] = 1
    cpu_threads: int | None = field(default=None, metadata={"gt": 0})  # None: torch's own


@dataclass(frozen=True, kw_only=True)
class ParallelSpec:
    """Over how many devices one model is split; ``torchrun`` starts a process for each."""

    tensor: int = field(default=1, metadata=_POSITIVE)


@dataclass(frozen=True, kw_only=True)
class ThroughputSpec:
    """What the throughput test times: ``rounds`` passes over a sample of prompts."""

    sample: int = field(default=64, metadata=_POSITIVE)
    rounds: int = field(default=5, metadata=_POSITIVE | _NOT_IN_DIGEST)
    min_round_s: float = field(default=1.0, metadata=_POSITIVE | _NOT_IN_DIGEST)
    head: Literal["all", "last"] = "all"


@dataclass(frozen=True, kw_only=True)
class DecodeSpec:
    """What the decode test times, in ``throughput.rounds`` rounds of ``throughput.min_round_s``."""

    batch_sizes: tuple[int, ...] = field(default=(1,), metadata=_POSITIVE)
    context: tuple[int, ...] = field(default=(), metadata=_POSITIVE)  # tokens, with those generated
    tokens: int | None = field(default=None, metadata={"ge": 0})  # None: 128; 16 on a CPU; 0: none


@dataclass(frozen=True, kw_only=True)
class GatesSpec:
    """The limits of every verdict."""

    published_tolerance_pp: float = field(default=1.0, metadata=_PERCENTAGE_POINTS)
    accuracy_drop_regressed_pp: float = field(default=0.25, metadata=_PERCENTAGE_POINTS)
    accuracy_drop_ok_pp: float = field(default=0.5, metadata=_PERCENTAGE_POINTS)
    accuracy_alpha: float = field(default=0.01, metadata=_FRACTION)
    throughput_margin_fraction: float = field(default=0.02, metadata=_FRACTION)
    throughput_session_sd_fraction: float = field(default=0.01, metadata=_FRACTION)
    published_margin_fraction: float = field(default=0.05, metadata=_FRACTION)
    memory_fraction: float = field(default=0.01, metadata=_FRACTION)
    memory_floor_mib: float = field(default=64.0, metadata={"ge": 0})


@dataclass(frozen=True, kw_only=True)
class FidelitySpec:
    """How the model is held against itself and against its stored numbers, in fp32."""

    prompts: int = field(default=16, metadata={"ge": 0, "le": 64})  # 0: not at all
    layers: int | None = field(default=None, metadata={"ge": 1})  # the first ones; None: all


@dataclass(frozen=True, kw_only=True)
class CompareSpec:
    """What ``perfline compare`` does where its command line says nothing else."""

    margin_fraction: float = field(default=0.02, metadata=_FRACTION)
    questions: int = field(default=200, metadata={"ge": 0})


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model, its workload and its limits, as one YAML file states them."""

    id: str = field(metadata={"key": "case"} | _NOT_IN_DIGEST)
    title: str = field(default="", metadata=_NOT_IN_DIGEST)
    model: ModelSpec
    mmlu: MmluSpec = field(default_factory=MmluSpec)
    engine: EngineSpec = field(default_factory=EngineSpec)
    parallel: ParallelSpec = field(default_factory=ParallelSpec, metadata=_WHERE_CHANGED)
    throughput: ThroughputSpec = field(default_factory=ThroughputSpec)
    decode: DecodeSpec = field(default_factory=DecodeSpec, metadata=_WHERE_CHANGED)
    gates: GatesSpec = field(default_factory=GatesSpec, metadata=_NOT_IN_DIGEST)
    fidelity: FidelitySpec = field(default_factory=FidelitySpec, metadata=_NOT_IN_DIGEST)
    fingerprint: bool = field(default=True, metadata=_NOT_IN_DIGEST)  # of what runs in a forward
    compare: CompareSpec = field(default_factory=CompareSpec, metadata=_NOT_IN_DIGEST)
    engines: tuple[str, ...] = field(default=ENGINE_NAMES, metadata=_NOT_IN_DIGEST)
    # Names of packaged ones, and files below the case's directory; throughput is that of the first.
    tasks: tuple[str, ...] = field(default=("mmlu",), metadata=_NOT_IN_DIGEST)
    source: Path = field(metadata={**OUTSIDE, **_NOT_IN_DIGEST})
    named_in: str = field(default="", metadata={**OUTSIDE, **_NOT_IN_DIGEST})
    tasks_named_in: str = field(default="", metadata={**OUTSIDE, **_NOT_IN_DIGEST})

    @property
    def engine_names(self) -> tuple[EngineName, ...]:
        """The engines by the names that metrics, records and tests give them."""
        return tuple(map(engine_name, self.engines))

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks by the names that metrics and tests give them."""
        return tuple(Path(task).stem for task in self.tasks)

    @property
    def engines_named_in(self) -> str:
        """Which option or file names the engines."""
        return self.named_in or f"{self.source}: key 'engines'"

    def with_engines(self, engines: Sequence[str], named_in: str) -> Case:
        """The case with other engines; ``named_in`` is the option that names them. CaseError."""
        if problem := _engines_problem(engines):
            raise CaseError(f"{named_in} {problem}")
        return dataclasses.replace(self, engines=tuple(engines), named_in=named_in)

    def with_tasks(self, tasks: Sequence[str], named_in: str) -> Case:
        """The case with other tasks; ``named_in`` is the option that names them. CaseError.

        One of its own is named by its file or its name.
        Another first task, whose prompts throughput is timed over, is another digest.
        """
        own = dict(zip(self.task_names, self.tasks, strict=True))
        asked = tuple(own.get(task, task) for task in tasks)
        found = dataclasses.replace(self, tasks=asked, tasks_named_in=named_in)
        if problem := _tasks_problem(found):
            raise CaseError(f"case '{self.id}': {named_in} {problem}")
        return found

    def also_asking(self, tasks: Iterable[str]) -> Case:
        """The case with those of ``tasks`` behind its own whose names are not among them.

        A file that is there no more is left out: its answers are those of a task without a name.
        """
        folder = self.source.parent
        there = (task for task in tasks if Path(task).stem == task or (folder / task).is_file())
        known = {**{Path(task).stem: task for task in there}, **dict.fromkeys(self.task_names, "")}
        return dataclasses.replace(self, tasks=(*self.tasks, *filter(None, known.values())))

    def digest(self, weights: WeightsKind = "real") -> str:
        """Return ``sha256:`` and 16 hex digits over every setting that changes the numbers.

        Names, places (hub id, directories), limits and the number and length of the rounds are
        left out; ``weights`` says whether the checkpoint or random weights are measured.
        """
        said: dict[str, object] = {"case": _digested(self), "weights": weights}
        if self.task_names[0] != "mmlu":  # its prompts are those that throughput is timed over
            said["task"] = self.task_names[0]
        canonical = json.dumps(said, sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def engine_name(engine: str) -> EngineName:
    """Return an engine's name in metrics, records and tests: ``myclass`` for ``my.module:MyClass``.

    The class's name alone, so that answers and times stay comparable when a module moves.
    """
    return engine.rpartition(":")[2].replace("_", "").lower() if ":" in engine else engine


def load_case(path: Path | str) -> Case:
    """Read one case file; raise CaseError with file, key, what was found and what is valid."""
    path = Path(path)
    return _checked(read_yaml(path), path, str(path))


def with_settings(case: Case, settings: Sequence[tuple[str, str]]) -> Case:
    """``case`` as its file would say it with ``settings``, such as ``("engine.mode", "default")``.

    A value is read as YAML. CaseError as for a file: unknown keys and unfit values are refused.
    """
    if not settings:
        return case
    data = read_yaml(case.source)
    for key, text in settings:
        shown = f"--set {clip(f'{key}={text}', 60)}"
        *sections, last = key.split(".")
        place = data
        for section in sections:
            inner = place.setdefault(section, {})
            if not isinstance(inner, dict):
                raise CaseError(f"{shown}: '{section}' is no section of {case.source}")
            place = inner
        try:
            place[last] = yaml.load(text, Loader=_Loader)
        except (yaml.YAMLError, RecursionError) as error:
            why = _one_line(error) if isinstance(error, yaml.YAMLError) else "nested too deeply"
            raise CaseError(f"{shown}: the value is not valid YAML: {why}") from error
    given = " ".join(f"--set {clip(f'{key}={text}')}" for key, text in settings)
    return _checked(data, case.source, f"{case.source} with {given}")


def read_yaml(path: Path, lines: bool = False) -> Any:
    """The YAML of a file, unchecked; CaseError where it is none. ``lines``: texts may hold some."""
    if is_special(path):  # a FIFO would wait for its writer for ever
        raise CaseError(f"{path}: is no regular file; expected a case's YAML")
    try:
        loader = _LinesLoader if lines else _Loader
        return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CaseError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except yaml.YAMLError as error:
        raise CaseError(f"{path}: is not valid YAML: {_one_line(error)}") from error
    except RecursionError as error:
        raise CaseError(f"{path}: is not valid YAML: it is nested too deeply") from error


def _checked(data: object, path: Path, shown: str) -> Case:
    if not isinstance(data, dict):
        found = fields.shown(data)
        raise CaseError(f"{shown}: holds {found} (expected a mapping of keys to values)")
    node = Node(shown, data, CaseError, by_hand=True)
    case = node.build(Case, source=path)
    _check(node, case, path)
    return case if case.title else dataclasses.replace(case, title=case.id)


def find_cases(*directories: Path) -> dict[str, Path]:
    """Return ``{case id: file}``, sorted by id, of the packaged cases and those in ``directories``.

    Files are listed, not read. The same id in two places is a CaseError that names both.
    """
    found: dict[str, Path] = {}
    for directory in dict.fromkeys((PACKAGED_CASES, *directories)):
        if not directory.is_dir():
            raise CaseError(f"{directory}: no such directory of cases")
        for path in sorted([*directory.glob("*.yaml"), *directory.glob("*.yml")]):
            other = found.setdefault(path.stem, path)
            try:
                same = other.resolve() == path.resolve()
            except (OSError, RuntimeError) as error:
                raise CaseError(f"{path}: is a link that leads nowhere; remove it") from error
            if not same:
                raise CaseError(f"case '{path.stem}' stands in two files: {other} and {path}")
    return dict(sorted(found.items()))


def slim_cases() -> dict[str, Path]:
    """The published architectures, narrow, whose random weights fit any machine."""
    return {path.stem: path for path in sorted((PACKAGED_CASES / "slim").glob("*.yaml"))}


def own_cases(root: Path) -> dict[str, Path]:
    """Return ``{case id: file}``, sorted, of a repository's own cases: those in ``root/cases``.

    A YAML file there is one where a line begins with ``case:``. They are taken where no directory
    of cases is named; where no case is named either, they alone are meant, not the packaged ones.
    """
    files = sorted([*(root / OWN).glob("*.yaml"), *(root / OWN).glob("*.yml")])
    return {path.stem: path for path in files if path.is_file() and _says_case(path)}


def _says_case(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return re.search(rb"(?m)^case:", file.read(1 << 16)) is not None
    except OSError:
        return True  # reading it tells why it cannot be


def load_cases(ids: Iterable[str] | None = None, directories: Sequence[Path] = ()) -> list[Case]:
    """Load the cases named ``ids`` in that order, or all of them; an unknown id is a CaseError.

    The slim ones are loaded where they are named, and not else.
    """
    found = find_cases(*directories)
    wanted = list(found) if ids is None else list(dict.fromkeys(ids))
    there = slim_cases() | found
    for name in wanted:
        if name not in there:
            hint = f"{did_you_mean(name, there)} (known: {', '.join(found)})"
            raise CaseError(f"case '{clip(name, 60)}' is not known{hint}")
    return [load_case(there[name]) for name in wanted]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-3`` as the number that it is, and takes plain trees only.

    Refused: duplicate keys, aliases (a few lines of them can stand for gigabytes, or for
    themselves), text that cannot be printed, whole numbers of more than 64 bits.
    """

    printed_too = ""  # beside what can be printed

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = cast("Any", self).peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"alias '*{event.anchor}'; write its value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        problem = None
        try:
            value = super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            value, kind = None, clip(node.tag.rpartition(":")[2], 60)
            problem = (
                f"{clip(repr(node.value), 60)} cannot be read as {kind}; quote it if it is text"
            )
        if not all(sign.isprintable() or sign in self.printed_too for sign in node.value):
            problem = f"{clip(repr(node.value), 60)} holds what cannot be printed"
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            problem = f"{clip(node.value, 60)} is too large; expected a number of at most 64 bits"
        if problem:
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {clip(repr(key.value), 60)} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))


class _LinesLoader(_Loader):
    printed_too = "\n"


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),  # YAML 1.2's; PyYAML wants 1.0e+3
    list("-+.0123456789"),
)


def _one_line(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def _check(node: Node, case: Case, path: Path) -> None:
    """Refuse what no type tells."""
    if not CASE_ID.fullmatch(case.id) or case.id.endswith("-dummy"):
        node.fail(
            "case",
            f"is '{case.id}' (expected {CASE_ID.pattern}, not ending in -dummy: that suffix names "
            "baselines of --dummy-weights)",
        )
    if case.id != path.stem:
        node.fail("case", f"is '{case.id}' (expected '{path.stem}', the file's name)")
    regressed, ok = case.gates.accuracy_drop_regressed_pp, case.gates.accuracy_drop_ok_pp
    if regressed > ok:
        node.fail(
            "gates.accuracy_drop_regressed_pp",
            f"is {regressed} (expected at most {ok}, which is gates.accuracy_drop_ok_pp)",
        )
    if problem := _engines_problem(case.engines):
        node.fail("engines", problem)
    if case.decode.tokens == 1:
        node.fail("decode.tokens", "is 1 (expected 2 or more, of which the first is no step; or 0)")
    if 1 not in case.decode.batch_sizes:
        node.fail("decode.batch_sizes", "lacks 1 (expected a list such as [1, 8, 32])")
    for key, sizes in (
        ("batch_sizes", case.decode.batch_sizes),
        ("context", case.decode.context),
    ):
        if len(set(sizes)) < len(sizes):
            node.fail(f"decode.{key}", f"names a number twice: {', '.join(map(str, sizes))}")
    if problem := _tasks_problem(case):
        node.fail("tasks", problem)
    if case.model.config is not None:
        _check_plain(node, "model.config", case.model.config)
        if "model_type" not in case.model.config:
            node.fail("model.config.model_type", "is missing (expected text such as 'llama')")


_ENGINE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_LONGEST_CLASS = 30  # it stands in the names of metrics, in tables of 80 columns
# Words that metrics' names hold already.
_TAKEN = frozenset({*ENGINE_NAMES, "val", "infer", "computed", "timed", "one", "per", "decode"})


def _engines_problem(engines: Sequence[str]) -> str:
    """Say what is wrong with the engines' names; empty where nothing is."""
    one = "eager, inductor or module:Class"
    if not engines:
        return f"names no engine (expected {one})"
    seen: dict[str, str] = {}
    for engine in engines:
        shown, name = clip(repr(engine), 60), engine_name(engine)
        if engine not in ENGINE_NAMES:
            if not _ENGINE.fullmatch(engine):
                return f"names {shown} (expected {one}){did_you_mean(engine, ENGINE_NAMES)}"
            if name in _TAKEN or not name[:1].isalpha() or len(name) > _LONGEST_CLASS:
                return (
                    f"names {shown}, and metrics cannot be named after that class (expected a name "
                    f"of at most {_LONGEST_CLASS} letters and digits that is none of "
                    f"{', '.join(sorted(_TAKEN))})"
                )
        if name in seen:
            return (
                f"names {shown} beside {clip(repr(seen[name]), 60)}: both would have the metrics "
                f"of '{name}'; rename one of the classes, or name it once"
            )
        seen[name] = engine
    return ""


_TASK = re.compile(r"[a-z][a-z0-9_]{0,29}|([\w-]+/)*[a-z][a-z0-9_]{0,29}\.yaml", re.ASCII)


def _tasks_problem(case: Case) -> str:
    """Say what is wrong with the tasks' names; empty where nothing is."""
    one = "a task's name, such as mmlu, or a file below the case's, such as tasks/mine.yaml"
    if not case.tasks:
        return f"names no task (expected {one})"
    for task in case.tasks:
        if not _TASK.fullmatch(task):
            return f"names {clip(repr(task), 60)} (expected {one})"
    if len(set(case.task_names)) != len(case.tasks):
        return f"is {', '.join(case.tasks)} (expected each name once)"
    if case.parallel.tensor > 1 and len(case.tasks) > 1:
        return f"names {len(case.tasks)} (expected one where parallel.tensor splits the model)"
    return ""


def _check_plain(node: Node, key: str, value: object) -> None:
    """Refuse what JSON has no word for, as a digest needs one: dates, sets, NaN, keys not text."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                node.fail(key, f"has the key {clip(repr(name), 60)} (expected text as key)")
            _check_plain(node, f"{key}.{name}", item)
    elif isinstance(value, list):
        for position, item in enumerate(value):
            _check_plain(node, f"{key}.{position}", item)
    elif isinstance(value, float) and not math.isfinite(value):
        node.fail(key, f"is {value} (expected a number that is finite)")
    elif not isinstance(value, str | int | float | None):
        expected = "text, a number, true, false, a list, a mapping or null"
        node.fail(key, f"is {fields.shown(value)} (expected {expected})")


def _digested(section: Any) -> dict[str, object]:
    values: dict[str, object] = {}
    for spec in dataclasses.fields(section):
        value, wanted = getattr(section, spec.name), spec.metadata.get("digest", True)
        if spec.metadata.get("digest") == "where changed":
            assert callable(spec.default_factory)
            wanted = value != spec.default_factory()
        if wanted:
            values[spec.name] = _digested(value) if dataclasses.is_dataclass(value) else value
    return values
