"""What is measured, how, and by which limits? One YAML file says it: YAML -> ``Case``.

The dataclasses below are the whole schema: the reader walks their type hints and field metadata, so
a new setting is one new line here. Nothing is guessed: an unknown key, a wrong type or a value out
of range is a :class:`~perfline.errors.CaseError` of one line::

    cases/tiny.yaml: key 'model.precison' is not known; did you mean 'model.precision'?
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml

from perfline.errors import CaseError

PACKAGED_CASES = Path(__file__).parent
OWN = "cases"  # the directory of a repository's own
CASE_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,29}")

Precision = Literal["fp32", "fp16", "bf16"]
Scoring = Literal["full-vocab", "letters"]
WeightsKind = Literal["real", "dummy"]
EngineName = str  # "eager", "inductor", or that of an engine of one's own: see ``engine_name``
ENGINE_NAMES: tuple[EngineName, ...] = ("eager", "inductor")

# Field metadata: value ranges, paths that stay below their parent, what the digest leaves out.
_POSITIVE = {"gt": 0}
_FRACTION = {"gt": 0, "lt": 1}
_PERCENTAGE_POINTS = {"gt": 0, "lt": 100}
_DIRECTORY = {"relative": True, "digest": False}
_NOT_IN_DIGEST = {"digest": False}
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
    gates: GatesSpec = field(default_factory=GatesSpec, metadata=_NOT_IN_DIGEST)
    compare: CompareSpec = field(default_factory=CompareSpec, metadata=_NOT_IN_DIGEST)
    engines: tuple[str, ...] = field(default=ENGINE_NAMES, metadata=_NOT_IN_DIGEST)
    source: Path = field(metadata={"key": None} | _NOT_IN_DIGEST)
    named_in: str = field(default="", metadata={"key": None} | _NOT_IN_DIGEST)

    @property
    def engine_names(self) -> tuple[EngineName, ...]:
        """The engines by the names that metrics, records and tests give them."""
        return tuple(map(engine_name, self.engines))

    @property
    def engines_named_in(self) -> str:
        """Which option or file names the engines."""
        return self.named_in or f"{self.source}: key 'engines'"

    def with_engines(self, engines: Sequence[str], named_in: str) -> Case:
        """The case with other engines; ``named_in`` is the option that names them. CaseError."""
        try:
            _check_engines(engines)
        except _Wrong as error:
            raise CaseError(f"{named_in} {error}") from None
        return dataclasses.replace(self, engines=tuple(engines), named_in=named_in)

    def digest(self, weights: WeightsKind = "real") -> str:
        """Return ``sha256:`` and 16 hex digits over every setting that changes the numbers.

        Names, places (hub id, directories), limits and the number and length of the rounds are
        left out; ``weights`` says whether the checkpoint or random weights are measured.
        """
        canonical = json.dumps(
            {"case": _digested(self), "weights": weights}, sort_keys=True, separators=(",", ":")
        )
        return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def engine_name(engine: str) -> EngineName:
    """Return an engine's name in metrics, records and tests: ``myclass`` for ``my.module:MyClass``.

    The class's name alone, so that answers and times stay comparable when a module moves.
    """
    return engine.rpartition(":")[2].replace("_", "").lower() if ":" in engine else engine


def load_case(path: Path) -> Case:
    """Read one case file; raise CaseError with file, key, what was found and what is valid."""
    return _checked(_read(path), path, str(path))


def with_settings(case: Case, settings: Sequence[tuple[str, str]]) -> Case:
    """``case`` as its file would say it with ``settings``, such as ``("engine.mode", "default")``.

    A value is read as YAML. CaseError as for a file: unknown keys and unfit values are refused.
    """
    if not settings:
        return case
    data = _read(case.source)
    for key, text in settings:
        shown = f"--set {_clip(f'{key}={text}')}"
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
    given = " ".join(f"--set {key}={text}" for key, text in settings)
    return _checked(data, case.source, f"{case.source} with {given}")


def _read(path: Path) -> Any:
    """The YAML of a case file, unchecked."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CaseError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except yaml.YAMLError as error:
        raise CaseError(f"{path}: is not valid YAML: {_one_line(error)}") from error
    except RecursionError as error:
        raise CaseError(f"{path}: is not valid YAML: it is nested too deeply") from error


def _checked(data: object, path: Path, shown: str) -> Case:
    try:
        case = cast("Case", _build(Case, data, "", source=path))
        _check_whole(case, path)
    except _Wrong as error:
        raise CaseError(f"{shown}: {error}") from None
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
    """Load the cases named ``ids`` in that order, or all of them; an unknown id is a CaseError."""
    found = find_cases(*directories)
    wanted = list(found) if ids is None else list(dict.fromkeys(ids))
    for name in wanted:
        if name not in found:
            raise CaseError(
                f"case '{name}' is not known{_hint(name, found)} (known: {', '.join(found)})"
            )
    return [load_case(found[name]) for name in wanted]


class _Wrong(Exception):  # noqa: N818 - internal: becomes a CaseError once the file is known
    """What is wrong with a key, without the file."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-3`` as the number that it is, and takes plain trees only.

    Refused: duplicate keys, aliases (a few lines of them can stand for gigabytes, or for
    themselves), text that cannot be printed, whole numbers of more than 64 bits.
    """

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
            value, kind = None, _clip(node.tag.rpartition(":")[2])
            problem = f"{_clip(repr(node.value))} cannot be read as {kind}; quote it if it is text"
        if not node.value.isprintable():
            problem = f"{_clip(repr(node.value))} holds what cannot be printed"
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            problem = f"{_clip(node.value)} is too large; expected a number of at most 64 bits"
        if problem:
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {_clip(repr(key.value))} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))


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


def _clip(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(name: str, valid: Iterable[str], prefix: str = "") -> str:
    nearest = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean '{prefix}{nearest[0]}'?" if nearest else ""


def _build(cls: type[Any], data: object, prefix: str, **extra: object) -> object:
    """Build the dataclass ``cls`` from a YAML mapping; ``prefix`` is the dotted path to it."""
    if not isinstance(data, dict):
        where = f"key '{prefix[:-1]}'" if prefix else "the file"
        raise _Wrong(f"{where} holds {_found(data)}; expected a mapping of keys to values")
    fields = {
        f.metadata.get("key", f.name): f
        for f in dataclasses.fields(cls)
        if f.metadata.get("key", f.name) is not None
    }
    for key in data:
        if key not in fields:
            nearest = _hint(str(key), fields, prefix) or f" (known: {', '.join(fields)})"
            raise _Wrong(f"key '{prefix}{_clip(str(key))}' is not known{nearest}")
    hints = get_type_hints(cls)
    values = dict(extra)
    for key, spec in fields.items():
        if key in data:
            values[spec.name] = _value(hints[spec.name], data[key], f"{prefix}{key}", spec.metadata)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise _Wrong(f"key '{prefix}{key}' is missing; expected {_expected(hints[spec.name])}")
    return cls(**values)


def _value(hint: Any, value: object, key: str, meta: Mapping[str, Any]) -> object:
    """Check ``value`` against its type hint and its field's ranges; return it, int as float."""
    if dataclasses.is_dataclass(hint):
        return _build(cast("type[Any]", hint), value, f"{key}.")
    for option in _options(hint):
        if option is float and type(value) is int:
            value = float(value)
        if get_origin(option) is Literal:
            fits = any(type(value) is type(word) and value == word for word in get_args(option))
        elif get_origin(option) is Mapping:
            fits = isinstance(value, dict)
        elif get_origin(option) is tuple:
            fits = isinstance(value, list) and all(type(item) is str for item in value)
            value = tuple(cast("list[str]", value)) if fits else value
        else:
            fits = type(value) is option  # bool is no int here
        if fits:
            _check_range(value, key, meta)
            if isinstance(value, dict):
                _check_plain(value, key)
            return value
    raise _Wrong(f"key '{key}' is {_found(value)}; expected {_expected(hint)}")


def _check_range(value: object, key: str, meta: Mapping[str, Any]) -> None:
    if isinstance(value, int | float):
        checks = {
            "that is finite": math.isfinite(value),
            f"above {meta.get('gt')}": value > meta.get("gt", -math.inf),
            f"at least {meta.get('ge')}": value >= meta.get("ge", -math.inf),
            f"below {meta.get('lt')}": value < meta.get("lt", math.inf),
        }
        for limit, holds in checks.items():
            if not holds:
                raise _Wrong(f"key '{key}' is {value}; expected a number {limit}")
    if isinstance(value, str) and not value.strip():
        raise _Wrong(f"key '{key}' is empty; expected text")
    if meta.get("relative"):
        path = PurePosixPath(cast("str", value))
        if path.is_absolute() or ".." in path.parts:
            raise _Wrong(f"key '{key}' is '{value}'; expected a relative path without '..'")


def _check_plain(value: object, key: str) -> None:
    """Refuse what JSON has no word for, as a digest needs one: dates, sets, NaN, keys not text."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise _Wrong(f"key '{key}' has the key {_clip(repr(name))}; expected text as key")
            _check_plain(item, f"{key}.{name}")
    elif isinstance(value, list):
        for position, item in enumerate(value):
            _check_plain(item, f"{key}.{position}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise _Wrong(f"key '{key}' is {value}; expected a number that is finite")
    elif not isinstance(value, str | int | float | None):
        raise _Wrong(f"key '{key}' is {_found(value)}; expected text, a number, a list or null")


def _check_whole(case: Case, path: Path) -> None:
    if not CASE_ID.fullmatch(case.id) or case.id.endswith("-dummy"):
        raise _Wrong(
            f"key 'case' is '{case.id}'; expected {CASE_ID.pattern}, not ending in -dummy "
            "(that suffix names baselines of --dummy-weights)"
        )
    if case.id != path.stem:
        raise _Wrong(f"key 'case' is '{case.id}'; expected '{path.stem}', the file's name")
    regressed, ok = case.gates.accuracy_drop_regressed_pp, case.gates.accuracy_drop_ok_pp
    if regressed > ok:
        raise _Wrong(
            f"key 'gates.accuracy_drop_regressed_pp' is {regressed}; expected at most {ok}, "
            "which is gates.accuracy_drop_ok_pp"
        )
    try:
        _check_engines(case.engines)
    except _Wrong as error:
        raise _Wrong(f"key 'engines' {error}") from None
    if case.model.config is not None and "model_type" not in case.model.config:
        raise _Wrong("key 'model.config.model_type' is missing; expected text such as 'llama'")


_ENGINE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_LONGEST_CLASS = 30  # it stands in the names of metrics, in tables of 80 columns
# Words that metrics' names hold already.
_TAKEN = frozenset({*ENGINE_NAMES, "val", "infer", "computed", "timed", "one", "per"})


def _check_engines(engines: Sequence[str]) -> None:
    if not engines:
        raise _Wrong("names no engine; expected eager, inductor or module:Class")
    seen: dict[str, str] = {}
    for engine in engines:
        shown, name = _clip(repr(engine)), engine_name(engine)
        if engine not in ENGINE_NAMES:
            if not _ENGINE.fullmatch(engine):
                hint = _hint(engine, ENGINE_NAMES)
                raise _Wrong(f"names {shown}; expected eager, inductor or module:Class{hint}")
            if name in _TAKEN or not name[:1].isalpha() or len(name) > _LONGEST_CLASS:
                raise _Wrong(
                    f"names {shown}, and metrics cannot be named after that class; expected a name "
                    f"of at most {_LONGEST_CLASS} letters and digits that is none of "
                    f"{', '.join(sorted(_TAKEN))}"
                )
        if name in seen:
            raise _Wrong(
                f"names {shown} beside {_clip(repr(seen[name]))}: both would have the metrics of "
                f"'{name}'; rename one of the classes, or name it once"
            )
        seen[name] = engine


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _found(value: object) -> str:
    if value is None:
        return "empty (null)"
    return f"the {_NAMES.get(type(value), type(value).__name__)} {_clip(repr(value))}"


_NAMES: dict[object, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "truth value",
    dict: "mapping",
    Mapping: "mapping",
    tuple: "list of text",
    list: "list",
    type(None): "null",
}


def _expected(hint: Any) -> str:
    if dataclasses.is_dataclass(hint):
        return "a mapping of keys to values"
    words = []
    for option in _options(hint):
        if option is bool:
            words += ["true", "false"]
        elif get_origin(option) is Literal:
            words += [str(word) for word in get_args(option)]
        else:
            name = _NAMES[get_origin(option) or option]
            words.append(name if name in ("text", "null") else f"a {name}")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


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
