"""In what do two sides differ, and which of these differences must move together?

A :class:`Group` is what ``isolate`` swaps at once: distributions that the packages' own metadata
tie together, the code at a git revision, an environment variable, a setting, or the imports.
Distributions are tied where moving one without the other, in either direction, would break a
requirement (``Requires-Dist``) that holds in both environments: ``torch`` with ``triton`` and the
``nvidia`` wheels that it pins, ``transformers`` with ``tokenizers`` where its pin says so. An
upgrade moves forty packages that seldom matter: what is tied to none of those that a worker
imports is one group, :data:`REST`, whose :attr:`Group.parts` are looked at where it did it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from perfline.compare.model import Side, SideName
from perfline.compare.record import shown_env
from perfline.environments.installers import masked
from perfline.environments.making import Contents
from perfline.errors import SearchError

REST = "rest"
AND = " + "  # between the names of merged groups
# What a worker imports, the most telling first: a group is called after the first that it holds.
ROOTS = ("torch", "transformers", "tokenizers", "numpy", "pyyaml", "safetensors")
# Its own is first on no side's path: both run the perfline that started them, or their ref's.
_NOT_USED = ("perfline",)


@dataclass(frozen=True)
class Package:
    """A distribution as it is installed.

    Attributes:
        source: where it was built from, where that is no index; without credentials.
        content: digest of its own files, as its RECORD has them; empty without one.
        requires: its requirements, as its metadata have them.
    """

    name: str
    version: str
    source: str = ""
    content: str = ""
    requires: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, found: metadata.Distribution) -> Package:
        """What the metadata say."""
        return cls(
            name, found.version, _source(found), _content(found), tuple(found.requires or ())
        )


Packages = Mapping[str, Package]


def packages(found: Contents) -> dict[str, Package]:
    """What an environment holds and a side may use."""
    return {
        name: Package.of(name, each)
        for name, each in found.packages.items()
        if name not in _NOT_USED
    }


@dataclass(frozen=True)
class Group:
    """What is swapped at once.

    Attributes:
        name: short and unlike any other's.
        what: what changes, as ``torch 2.12.0 -> 2.13.0``, each as one text.
        packages: names of distributions; ``env`` of environment variables; ``settings`` keys.
        code: whether the git revision is swapped; ``imports``: the modules to import.
        near: names of packages that its own require, or are required by, somehow.
        parts: groups of which it is made, that could be swapped alone.
    """

    name: str
    what: tuple[str, ...]
    packages: frozenset[str] = frozenset()
    env: frozenset[str] = frozenset()
    settings: frozenset[str] = frozenset()
    code: bool = False
    imports: bool = False
    near: frozenset[str] = field(default=frozenset(), compare=False)
    parts: tuple[Group, ...] = field(default=(), compare=False)

    @property
    def halves(self) -> tuple[Group, ...]:
        """Its parts in two; none where it has less than two."""
        middle = (len(self.parts) + 1) // 2
        if len(self.parts) < 2:
            return ()
        return _joined(self.parts[:middle]), _joined(self.parts[middle:])

    def with_(self, other: Group) -> Group:
        """Both as one."""
        return Group(
            name=f"{self.name}{AND}{other.name}",
            what=(*self.what, *other.what),
            packages=self.packages | other.packages,
            env=self.env | other.env,
            settings=self.settings | other.settings,
            code=self.code or other.code,
            imports=self.imports or other.imports,
            near=self.near | other.near,
        )


def _joined(parts: tuple[Group, ...]) -> Group:
    """Parts of a group as one; of several, called by the first and the last."""
    whole, *others = parts
    for each in others:
        whole = whole.with_(each)
    if not others:
        return whole
    return replace(whole, name=f"{parts[0].name} to {parts[-1].name}", parts=parts)


Swap = Callable[[frozenset[str]], Path]  # A's interpreter with these packages as B has them


def mixed(a: Side, b: Side, groups: Sequence[Group], name: SideName, swap: Swap) -> Side:
    """A with the differences of ``groups`` as B has them, as the side called ``name``.

    ``swap`` may raise InstallError.
    """
    moved = frozenset[str]().union(*(group.packages for group in groups))
    env = frozenset[str]().union(*(group.env for group in groups))
    keys = frozenset[str]().union(*(group.settings for group in groups))
    kept = {key: text for key, text in a.env.items() if key not in env}
    kept |= {key: text for key, text in b.env.items() if key in env}
    settings = {key: text for key, text in a.settings if key not in keys}
    settings |= {key: text for key, text in b.settings if key in keys}
    return replace(
        a,
        name=name,
        python=swap(moved) if moved else a.python,
        ref=b.ref if any(group.code for group in groups) else a.ref,
        env=kept,
        settings=tuple(settings.items()),
        imports=b.imports if any(group.imports for group in groups) else a.imports,
        install=(),
    )


def differences(a: Side, b: Side, ours: Contents, theirs: Contents) -> list[Group]:
    """Everything in which B differs from A, cut into groups; the packages' first.

    SearchError where nothing that can be swapped differs.
    """
    imported = _providers({*a.imports, *b.imports}, ours, theirs)
    found = list(package_groups(packages(ours), packages(theirs), theirs.python, imported))
    if a.ref != b.ref:
        old, new = (ref or "work tree" for ref in (a.ref, b.ref))
        found.append(Group("code", (f"code {old} -> {new}",), code=True))
    old_env, new_env = shown_env(a.env), shown_env(b.env)
    for key in _differing(a.env, b.env):
        what = f"{key} {old_env.get(key, 'unset')} -> {new_env.get(key, 'unset')}"
        found.append(Group(key, (what,), env=frozenset({key})))
    old_set, new_set = dict(a.settings), dict(b.settings)
    for key in _differing(old_set, new_set):
        as_it_is = "as the case says"
        what = f"{key} {old_set.get(key, as_it_is)} -> {new_set.get(key, as_it_is)}"
        found.append(Group(key, (what,), settings=frozenset({key})))
    if a.imports != b.imports:
        shown = (" ".join(side.imports) or "none" for side in (a, b))
        found.append(Group("imports", (f"imports {' -> '.join(shown)}",), imports=True))
    if not found:
        raise SearchError(
            "A and B have the same packages, code, variables and settings: nothing to isolate; "
            "name what differs (--candidate-python, --candidate-install, --candidate-ref, --env)"
        )
    return found


def unswapped(ours: Contents, theirs: Contents) -> str:
    """What differs and cannot be swapped by itself; empty where there is none."""
    if ours.python == theirs.python:
        return ""
    return f"Python {ours.python} -> {theirs.python} is not swapped: all run on A's"


def package_groups(
    a: Packages, b: Packages, python: str, imported: Iterable[str] = ()
) -> Iterator[Group]:
    """The distributions that differ, cut by their requirements; ``python`` is a full version.

    ``imported`` are those that a side imports beside :data:`ROOTS`.
    """
    moved = sorted(
        name
        for name in a.keys() | b.keys()
        if name not in a or name not in b or _differ(a[name], b[name])
    )
    of_a, of_b = _edges(a, python), _edges(b, python)
    edges = [*of_a, *of_b]
    tied = _Tied(moved)
    for x, y in edges:
        if x in tied.parent and y in tied.parent and _breaks(x, y, (a, of_a), (b, of_b)):
            tied.join(x, y)
    rest: list[Group] = []
    first = {name: place for place, name in enumerate((*ROOTS, *sorted({*imported} - {*ROOTS})))}
    cut = {_called(part, first, edges): frozenset(part) for part in tied.parts()}
    for name in sorted(cut, key=lambda each: (first.get(each, len(first)), each)):
        held = cut[name]
        near = {y for x, y in edges if x in held} | {x for x, y in edges if y in held}
        what = (_change(each, a, b) for each in sorted(held, key=lambda n: (n != name, n)))
        group = Group(name, tuple(what), packages=held, near=frozenset(near))
        if name in first:
            yield group
        else:
            rest.append(group)
    if rest:
        yield replace(_joined(tuple(rest)), name=REST)


def _providers(modules: set[str], *environments: Contents) -> set[str]:
    """The distributions that modules come from."""
    tops = {name.partition(".")[0] for name in modules}
    return {
        name
        for found in environments
        for name, each in found.packages.items()
        if tops and any(file.parts[0].removesuffix(".py") in tops for file in each.files or ())
    }


def _change(name: str, a: Packages, b: Packages) -> str:
    old, new = a.get(name), b.get(name)
    if old and new and old.version == new.version:
        if old.source == new.source:
            return f"{name} {old.version}, built anew"
        places = (each.source or "an index" for each in (old, new))
        return f"{name} {old.version} from {' -> '.join(places)}"
    return f"{name} {old.version if old else 'none'} -> {new.version if new else 'none'}"


def _differ(a: Package, b: Package) -> bool:
    if (a.version, a.source) != (b.version, b.source):
        return True
    return bool(a.content and b.content and a.content != b.content)


Edges = dict[tuple[str, str], list[Requirement]]


def _edges(found: Packages, python: str) -> Edges:
    """Who requires whom in an environment, and how; extras that somebody asks for included."""
    extras: dict[str, set[str]] = {name: {""} for name in found}
    grown = True
    while grown:
        edges: Edges = {}
        grown = False
        for name, package in found.items():
            for need in _needs(package, extras[name], python):
                other = canonicalize_name(need.name)
                edges.setdefault((name, other), []).append(need)
                if other in extras and not need.extras <= extras[other]:
                    extras[other] |= need.extras
                    grown = True
    return edges


def _needs(package: Package, extras: Iterable[str], python: str) -> Iterator[Requirement]:
    """The requirements of a distribution that hold here, with these extras."""
    short = ".".join(python.split(".")[:2])
    here = [
        {"extra": extra, "python_version": short, "python_full_version": python} for extra in extras
    ]
    for text in package.requires:
        try:
            need = Requirement(text)
        except InvalidRequirement:
            continue  # nothing can be said of it
        if need.marker is None or any(map(need.marker.evaluate, here)):
            yield need


def _breaks(x: str, y: str, a: tuple[Packages, Edges], b: tuple[Packages, Edges]) -> bool:
    """Whether x of one environment beside y of the other breaks what x requires of y."""
    for (own, edges), (others, _) in ((a, b), (b, a)):
        needs = edges.get((x, y), [])
        if _met(needs, own.get(y)) and not _met(needs, others.get(y)):
            return True
    return False


def _met(needs: Sequence[Requirement], by: Package | None) -> bool:
    if by is None:
        return not needs
    try:
        version = Version(by.version)
    except InvalidVersion:
        return True  # nothing can be said of it
    return all(need.specifier.contains(version, prereleases=True) for need in needs)


@dataclass
class _Tied:
    """Names, and which of them belong together."""

    names: Sequence[str]
    parent: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.parent = {name: name for name in self.names}

    def root(self, name: str) -> str:
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def join(self, x: str, y: str) -> None:
        self.parent[self.root(x)] = self.root(y)

    def parts(self) -> list[list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(self.root(name), []).append(name)
        return list(found.values())


def _called(part: Sequence[str], first: Iterable[str], edges: Iterable[tuple[str, str]]) -> str:
    """The member that a reader knows: one of ``first``, else one that no other requires."""
    known = [name for name in first if name in part]
    asked = {y for x, y in edges if x in part}
    return [*known, *(name for name in part if name not in asked), *part][0]


def _differing(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    return [key for key in {**a, **b} if a.get(key) != b.get(key)]


def _source(found: metadata.Distribution) -> str:
    text = found.read_text("direct_url.json")
    try:
        data = json.loads(text or "{}")
    except ValueError:
        return ""
    return masked(str(data.get("url", ""))) if isinstance(data, dict) else ""


def _content(found: metadata.Distribution) -> str:
    """Of its files' own digests; what an installer writes by itself is left out."""
    lines = (found.read_text("RECORD") or "").splitlines()
    own = sorted(
        line
        for line in lines
        if ",sha256=" in line and ".dist-info/" not in line and not line.startswith("../")
    )
    return hashlib.sha256("\n".join(own).encode()).hexdigest() if own else ""
