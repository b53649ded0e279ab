"""How does what a file says become a dataclass, and a dataclass what a file says?

By type hints: a dataclass is the whole schema of its object, and :meth:`Node.build` and
:func:`as_json` walk it, for YAML, JSON files and the messages of ``perfline compare`` alike. A
process that is compared imports this, so it needs the standard library only. Field metadata:

- ``key``: its name in the file where that is another; None where it stands outside of its object,
  as the name that a mapping holds the object by.
- ``optional``: it is not in the file where it is the default; fields that came later are.
- ``gt``, ``ge``, ``lt``, ``le``: limits of a number, or of each number of a list; ``or_zero``: 0 is
  fine, too. A whole number is a count, and so at least 0, unless they say otherwise.
- ``relative``: a path that stays below its parent.
- ``blank``: a text of blanks alone is fine.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import operator
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import (
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from perfline.errors import PerflineError, clip, printable

Scalar = str | int | float | bool | None
OUTSIDE: Mapping[str, Any] = {"key": None}
OPTIONAL: Mapping[str, Any] = {"optional": True}
MOST = 1e30  # no measurement lies beyond, and what follows from one stays finite

_T = TypeVar("_T")
_LIMITS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "gt": (operator.gt, "above"),
    "ge": (operator.ge, "at least"),
    "lt": (operator.lt, "below"),
    "le": (operator.le, "at most"),
}
_WORDS = {str: "text", int: "a whole number", float: "a number", type(None): "null", Path: "text"}


@dataclass(frozen=True)
class Node:
    """An object in a file, with look-ups that raise ``error`` for what is not as expected."""

    file: Path | str
    data: Mapping[str, object] = field(repr=False)
    error: type[PerflineError]
    fix: str = ""  # what the user can do about a broken file
    where: str = ""  # dotted keys to this object, with a dot at the end
    by_hand: bool = False  # people write it: what is missing has its default, no key is unknown

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raise the one line about ``key``."""
        fix = f"; {self.fix}" if self.fix else ""
        name = clip(f"{self.where}{key}")
        raise self.error(printable(f"{self.file}: key '{name}' {problem}{fix}"))

    def build(self, cls: type[_T], **given: object) -> _T:
        """Return the dataclass ``cls`` that this object stands for, its fields ``given`` apart."""
        kind: Any = cls
        specs = {key: spec for key, spec in _keys(kind).items() if spec.name not in given}
        if self.by_hand:
            self._refuse_unknown(specs)
        for key, spec in specs.items():
            hint = _hints(kind)[spec.name]
            default = _default(spec)
            may_miss = self.by_hand or spec.metadata.get("optional")
            if key not in self.data and default is not dataclasses.MISSING and may_miss:
                continue
            value = self._found(key, hint)
            limits = {"ge": 0, **spec.metadata} if int in _options(hint) else spec.metadata
            given[spec.name] = self._as(key, value, hint, limits)
            blank = default == "" or spec.metadata.get("blank")
            if isinstance(value, str) and not value.strip() and not blank:
                self._mistyped(key, value, "text")
            if spec.metadata.get("relative"):
                self._check_relative(key, str(value))
        try:
            return cls(**given)
        except PerflineError as problem:  # what no type tells
            name = f"key '{self.where[:-1]}' " if self.where else ""
            wrong = f"{self.file}: {name}is wrong ({problem})"
            raise self.error(printable("; ".join(filter(None, [wrong, self.fix])))) from problem

    def get(self, key: str, hint: Any) -> Any:
        """Return what stands under ``key``, as the type ``hint`` says."""
        return self._as(key, self._found(key, hint), hint, {})

    def text(self, key: str) -> str:
        """Return a string that is not empty."""
        return cast("str", self.get(key, str)) or self._mistyped(key, "", "text")

    def number(self, key: str) -> float:
        """Return a finite number."""
        return cast("float", self.get(key, float))

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the list of strings under ``key``."""
        return cast("tuple[str, ...]", self.get(key, tuple[str, ...]))

    def child(self, key: str) -> Node:
        """Return the object under ``key``."""
        return self._node(key, self._found(key, Mapping[str, object]))

    def children(self) -> Iterator[tuple[str, Node]]:
        """Yield the objects that this object holds under every key."""
        for key in self.data:
            yield key, self.child(key)

    def items(self, key: str) -> Iterator[Node]:
        """Yield the objects of the list under ``key``."""
        for number, value in enumerate(self.get(key, tuple[object, ...])):
            yield self._node(f"{key}.{number}", value)

    def _found(self, key: str, hint: Any) -> object:
        if key not in self.data:
            self.fail(key, f"is missing (expected {self._expected(hint)})")
        return self.data[key]

    def _node(self, key: str, value: object) -> Node:
        if not isinstance(value, dict):
            self._mistyped(key, value, self._expected(Mapping))
        return dataclasses.replace(self, data=value, where=f"{self.where}{key}.")

    def _as(self, key: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
        """Return ``value`` as the first of the types of ``hint`` that it fits."""
        for option in _options(hint):
            kind, arguments = get_origin(option) or option, get_args(option)
            if kind is object:
                return value
            if kind is Literal:
                if any(type(value) is type(word) and value == word for word in arguments):
                    return value
            elif isinstance(value, dict) and dataclasses.is_dataclass(kind):
                return self._object(key, value, cast("type[Any]", kind))
            elif isinstance(value, dict) and issubclass(kind, Mapping):
                return self._mapping(key, value, limits, *arguments)
            elif isinstance(value, list) and kind in (tuple, Sequence):
                items = enumerate(value)
                return tuple(self._as(f"{key}.{n}", v, arguments[0], limits) for n, v in items)
            elif kind in (int, float) and type(value) in (int, kind):  # bool is no int here
                self._check_number(key, value, self._expected(kind), limits)
                return kind(value)
            elif type(value) is (str if kind is Path else kind):
                return kind(value) if kind is Path else value
        words = [w for o in _options(hint) if get_origin(o) is Literal for w in get_args(o)]
        nearest = did_you_mean(value, words) if isinstance(value, str) else ""
        return self._mistyped(key, value, self._expected(hint), nearest)

    def _object(self, key: str, value: object, cls: type[Any]) -> Any:
        node = self._node(key, value)
        if hasattr(cls, "from_json"):
            return cls.from_json(node)
        return node.build(cls, **dict.fromkeys(_outside(cls), key))

    def _mapping(
        self,
        key: str,
        value: object,
        limits: Mapping[str, Any],
        keys: Any = str,
        items: Any = object,
    ) -> Any:
        node = self._node(key, value)
        wanted = get_args(keys) if get_origin(keys) is Literal else node.data
        return {name: node._as(name, node._found(name, items), items, limits) for name in wanted}

    def _check_number(self, key: str, value: Any, what: str, limits: Mapping[str, Any]) -> None:
        if not -MOST <= value <= MOST:  # nor is NaN
            self._mistyped(key, value, f"{what} from -{MOST:g} to {MOST:g}")
        if value == 0 and "or_zero" in limits:
            return
        for name, (holds, words) in _LIMITS.items():
            if name in limits and not holds(value, limits[name]):
                self.fail(key, f"is {value:g} (expected {what} {words} {limits[name]:g})")

    def _check_relative(self, key: str, value: str) -> None:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts:
            self._mistyped(key, value, "a relative path without '..'")

    def _refuse_unknown(self, specs: Iterable[str]) -> None:
        for key in self.data:
            if key not in specs:
                nearest = did_you_mean(str(key), specs, self.where)
                known = nearest or f" (known: {', '.join(specs)})"
                self.fail(clip(str(key), 60), f"is not known{known}")

    def _mistyped(self, key: str, value: object, expected: str, hint: str = "") -> NoReturn:
        found = "empty" if self.by_hand and value in (None, "") else shown(value)
        self.fail(key, f"is {found} (expected {expected}){hint}")

    def _expected(self, hint: Any) -> str:
        words: list[str] = []
        for option in _options(hint):
            kind = get_origin(option) or option
            if kind is Literal:
                words += map(str, get_args(option))
            elif kind in (tuple, Sequence):
                (item, *_) = get_args(option)
                plural = self._expected(item).removeprefix("a ").removeprefix("an ")
                words.append(f"a list of {plural if item is str else f'{plural}s'}")
            elif kind is bool:
                words += ["true", "false"]
            else:
                an_object = "a mapping of keys to values" if self.by_hand else "an object"
                words.append(_WORDS.get(kind, an_object))
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def as_json(value: Any) -> Any:
    """Return what :meth:`Node.build` makes ``value`` of."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        kind: Any = type(value)
        specs = ((key, spec, getattr(value, spec.name)) for key, spec in _keys(kind).items())
        return {
            key: as_json(held)
            for key, spec, held in specs
            if not (spec.metadata.get("optional") and held == _default(spec))
        }
    if isinstance(value, Mapping):
        return {key: as_json(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(held) for held in value]
    return str(value) if isinstance(value, Path) else value


def shown(value: object) -> str:
    """Return ``value`` as JSON writes it, in short."""
    try:
        return clip(json.dumps(value, ensure_ascii=False, default=repr), 60)
    except RecursionError:
        return "nested too deeply"
    except ValueError:  # a number of more digits than Python writes
        return "too long to be shown"


def did_you_mean(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """Return ``; did you mean '...'?`` for the nearest of ``valid``; empty where none is near."""
    nearest = difflib.get_close_matches(name[:60], list(valid), n=1, cutoff=0.5)
    return f"; did you mean '{prefix}{nearest[0]}'?" if nearest else ""


_hints = cache(get_type_hints)


@cache
def _keys(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    """The fields that stand in the object, by their keys."""
    named = ((spec.metadata.get("key", spec.name), spec) for spec in dataclasses.fields(cls))
    return {key: spec for key, spec in named if key is not None}


def _outside(cls: type[Any]) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.metadata.get("key", "") is None]


def _default(spec: dataclasses.Field[Any]) -> Any:
    made = spec.default_factory
    return spec.default if made is dataclasses.MISSING else made()


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
