"""How is an environment made of another one and a request, without touching the other?

:func:`make` takes an interpreter and what to install beside its packages, and returns an
interpreter whose packages are those that ``pip install`` would leave behind. Only what the request
changes is installed anew; every other file of the base is linked: hard where that goes, else by a
symbolic link. Each package so has its files in one place: nothing of an older version shines
through, packages that share a namespace lie together, and libraries that find one another by their
place (torch and its CUDA wheels, by RPATH ``$ORIGIN/../..``) do. A second layer on ``sys.path``
would have none of the three.

:func:`swap` takes some packages of another interpreter instead, as they are installed there.

Environments are kept in ``$XDG_CACHE_HOME/perfline/environments`` (else ``~/.cache``) by a digest
of what went in: the base and what the installer chose for the request *today*, so that an open
request is never answered with last month's versions. One is made in a directory of its own and
renamed when it is whole: nobody ever sees half of one, and of two builders the first one wins.
Everything there may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

from perfline.environments.installers import Installer, Pin, Request, find_installer, masked
from perfline.errors import InstallError

_SCHEMA = 1
# What steers a build from a tree, beside the tree.
_BUILT_BY = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CMAKE_ARGS", "TORCH_CUDA_ARCH_LIST")
_ABOUT = "environment.json"  # in an environment: what it is
_LAYOUT = """
import json, os, site, sys, sysconfig
user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
sites = [each for each in dict.fromkeys([*site.getsitepackages(), *user]) if os.path.isdir(each)]
print(json.dumps({"version": sys.version, "platform": sysconfig.get_platform(), "sites": sites,
                  "prefix": sys.prefix, "purelib": sysconfig.get_path("purelib"),
                  "abi": sysconfig.get_config_var("EXT_SUFFIX") or ""}))
"""


@dataclass(frozen=True)
class Made:
    """An environment that holds what was asked for.

    Attributes:
        python: its interpreter; the base's own where the request changes nothing.
        changes: each distribution that is another than in the base, as ``torch 2.12.0 -> 2.13.0``;
            one built from a directory by its address.
        problems: requirements between distributions that hold in the base and not here, in the
            installer's words.
    """

    python: Path
    changes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def make(
    base: Path,
    requests: Sequence[str],
    option: str,
    say: Callable[[str], None] = lambda line: None,
    known: tuple[Path, str] | None = None,
) -> Made:
    """The environment of the interpreter ``base`` and ``requests`` on top, made or found.

    Args:
        base: an interpreter, with the environment that it stands in.
        requests: each as behind ``pip install``: ``transformers==5.24.0``, ``--pre torch``,
            ``-r new.txt``, a wheel or directory. What is named is brought up to the newest version
            that it allows, all else moves only where it must.
        option: how the user gave them, for messages: ``--candidate-install``.
        say: takes lines on what is done, what it cost, and where it is kept.
        known: a directory that is there for this request alone, and what says all of its content,
            such as a commit: the environment is kept by that.

    InstallError where the request is unfit, where the installer refuses it (with its own last
    lines), and where the result cannot be built.
    """

    def tell(line: str) -> None:
        say(f"{option}: {line}")

    request = Request.parse(requests, option)
    found = _Base.of(base)
    installer = find_installer(base)
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    _sweep(cache)
    prefix = f"making-{socket.gethostname()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=cache, ignore_cleanup_errors=True) as new:
        scratch = Path(new)
        file = _private(scratch / "request.txt", request.text)
        try:
            pins = installer.resolve(base, request, file)
        except InstallError as error:
            shown = masked(" ".join(requests))
            raise InstallError(f"{option} {shown!r} cannot be installed; {error}") from error
        changes = found.changes(pins)
        if not pins:
            tell(f"changes nothing: {base} has it all")
            return Made(base)
        key = found.key(pins, request, installer, known)
        kept = cache / key
        made = _load(kept)
        if made is None:
            builder = _Builder(found, installer, scratch / "environment", kept, tell)
            made = builder.build(pins, _private(file, request.pinned(pins, option)), changes)
        else:
            tell(f"{', '.join(changes)}: nothing to install, kept in {kept}")
        for problem in made.problems:
            tell(f"notice: {problem}")
        return made


def installed(base: Path) -> dict[str, str]:
    """Normalised name -> version of every distribution that the interpreter ``base`` has."""
    return {name: each.version for name, each in _Base.of(base).distributions.items()}


def from_index(base: Path) -> list[str]:
    """Names of the distributions that may come from an index: no local builds, no installers."""
    own = {"perfline", "pip", "setuptools", "wheel", "uv"}
    found = _Base.of(base).distributions.items()
    return sorted(n for n, each in found if n not in own and not each.read_text("direct_url.json"))


@dataclass(frozen=True)
class Contents:
    """What an environment holds.

    Attributes:
        python: version of its interpreter, such as ``3.12.3``.
        packages: normalised name -> what an import finds first.
    """

    python: str
    packages: Mapping[str, metadata.Distribution]


def contents(base: Path) -> Contents:
    """What the environment of ``base`` holds; InstallError where it does not tell."""
    found = _Base.of(base)
    return Contents(found.version.partition(" ")[0], found.distributions)


def check_swap(base: Path, other: Path) -> None:
    """InstallError where one of the interpreters does not load what is built for the other."""
    ours, theirs = _Base.of(base), _Base.of(other)
    if ours.abi != theirs.abi or ours.platform != theirs.platform:
        raise InstallError(
            f"{base} is {ours.version.partition(' ')[0]} ({ours.abi}), {other} is "
            f"{theirs.version.partition(' ')[0]} ({theirs.abi}): packages of one do not load in "
            "the other; make both environments with the same Python"
        )


def swap(
    base: Path,
    other: Path,
    names: Collection[str],
    say: Callable[[str], None] = lambda line: None,
) -> Made:
    """The environment of ``base`` with the distributions ``names`` as ``other`` has them.

    As they are installed there, by links: a local build, an editable one and a version that no
    index has any more move like all others; see :func:`check_swap`. What ``other`` lacks is left
    out. InstallError where a distribution would not find what it requires though it does in
    ``base`` and in ``other``, and where nothing can be built.
    """
    ours, theirs = _Base.of(base), _Base.of(other)
    changes = ours.differences(theirs, names)
    parts = [_SCHEMA, ours.state(), theirs.state(), sorted(names)]
    kept = (cache := _cache()) / _digest(parts)
    cache.mkdir(parents=True, exist_ok=True)
    _sweep(cache)
    made = _load(kept)
    if made is None:
        prefix = f"making-{socket.gethostname()}-{os.getpid()}-"
        with tempfile.TemporaryDirectory(prefix=prefix, dir=cache, ignore_cleanup_errors=True) as n:
            builder = _Builder(ours, _checker(base), Path(n) / "environment", kept, say)
            made = builder.swap(theirs, names, changes)
    if made.problems:
        raise InstallError(f"{', '.join(changes)}: {'; '.join(made.problems)}")
    return made


def _checker(base: Path) -> Installer | None:
    """What tells which requirements are not met; None where there is no installer at all."""
    try:
        return find_installer(base)
    except InstallError:
        return None


def _digest(parts: object) -> str:
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


@dataclass(frozen=True)
class _Base:
    """The environment that others are made of; ``sites`` are its directories of packages."""

    python: Path
    version: str
    platform: str
    prefix: Path
    sites: tuple[Path, ...]
    abi: str

    @classmethod
    def of(cls, python: Path) -> _Base:
        layout = _ask(python)
        sites, prefix = tuple(map(Path, layout["sites"])), Path(layout["prefix"])
        return cls(python, layout["version"], layout["platform"], prefix, sites, layout["abi"])

    @cached_property
    def distributions(self) -> dict[str, metadata.Distribution]:
        """Normalised name -> what an import finds first."""
        found: dict[str, metadata.Distribution] = {}
        for each in metadata.distributions(path=list(map(str, self.sites))):
            if name := each.metadata["Name"]:
                found.setdefault(canonicalize_name(name), each)
        return found

    def changes(self, pins: Sequence[Pin]) -> tuple[str, ...]:
        """Each pin as ``name old -> new``; the new one's address where its version is unknown."""
        before = self.distributions
        old = {pin.name: before[pin.name].version if pin.name in before else "none" for pin in pins}
        return tuple(
            sorted(f"{pin.name} {old[pin.name]} -> {pin.version or pin.source}" for pin in pins)
        )

    def differences(self, other: _Base, names: Collection[str]) -> tuple[str, ...]:
        """Those of ``names`` as ``name old -> new``."""
        before, after = self.distributions, other.distributions
        old = {name: before[name].version if name in before else "none" for name in names}
        new = {name: after[name].version if name in after else "none" for name in names}
        return tuple(f"{name} {old[name]} -> {new[name]}" for name in sorted(names))

    def key(
        self,
        pins: Sequence[Pin],
        request: Request,
        installer: Installer,
        known: tuple[Path, str] | None = None,
    ) -> str:
        """What an environment of this base and ``pins`` is kept by; ``known`` as of ``make``."""
        tree, content = (known[0].resolve(), known[1]) if known is not None else (None, "")

        def named(source: str) -> str:
            return source if tree is None else source.replace(f"{tree}", content)

        new = sorted((pin.name, pin.version, named(pin.source), pin.digest) for pin in pins)
        where = [*request.options, *installer.places.values()]
        wheels = _local_wheels(where, {pin.name for pin in pins})
        local: object = request.local_digest(tree)
        if known is not None:
            local = [local, content, {name: os.environ.get(name) for name in _BUILT_BY}]
        options = [named(masked(option)) for option in request.options]
        places = [*options, installer.places, local, wheels]
        return _digest([_SCHEMA, self.state(), new, places])

    def state(self) -> list[object]:
        """What tells this environment from others, and from itself as it was.

        Its interpreter and what stands at the top of its directories: links and files (``.pth``
        among them) with size and date, packages, and for distributions the date of their RECORD,
        which an installer writes anew and an import leaves alone.
        """
        base: list[object] = [str(self.prefix), self.version, self.platform]
        for site in self.sites:
            for entry in sorted(os.scandir(site), key=lambda entry: entry.name):
                if entry.name == "__pycache__":
                    continue
                record = Path(entry.path, "RECORD")
                path = record if record.is_file() else Path(entry.path)
                seen = path.lstat()
                dated = not stat.S_ISDIR(seen.st_mode)
                base.append([str(path), *((seen.st_size, seen.st_mtime_ns) if dated else ())])
        return base


def _local_wheels(places: Iterable[str], names: set[str]) -> list[str]:
    """Name, size and date of each file of these packages in directories of wheels.

    There, unlike at an index, a version is often built anew under its old number.
    """
    words = {word for text in places for word in re.split(r"[,\s=]+", text)}
    folders = {Path(word.removeprefix("file://")) for word in words}
    files = [each for folder in folders if folder.is_dir() for each in folder.iterdir()]
    here = [
        (each, each.stat()) for each in files if canonicalize_name(each.name.split("-")[0]) in names
    ]
    return sorted(f"{path} {seen.st_size} {seen.st_mtime_ns}" for path, seen in here)


def _ask(python: Path) -> dict[str, str]:
    try:
        said = subprocess.run(
            [str(python), "-c", _LAYOUT],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        ).stdout
        return dict(json.loads(said.splitlines()[-1]))
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError) as error:
        raise InstallError(f"{python} does not tell where its packages are: {error}") from error


@dataclass
class _Builder:
    """Builds one environment at ``new``, to stand at ``kept``."""

    base: _Base
    installer: Installer | None
    new: Path
    kept: Path
    say: Callable[[str], None]
    _linked: int = 0
    _hidden: set[str] = field(default_factory=set)

    def build(self, pins: Sequence[Pin], file: Path, changes: tuple[str, ...]) -> Made:
        """Install ``file``, which pins ``pins``; link all else; put it where it is kept."""
        began = time.monotonic()
        assert self.installer is not None
        self.say(f"{', '.join(changes)}: {self.installer.name} installs {len(pins)} anew ...")
        self._venv()
        python = self.new / "bin" / "python"
        self.installer.install(python, pins, file)
        self._mask_addresses(python)
        installed = _disk(self.new)
        made = self._completed({pin.name for pin in pins}, changes, ())
        self.say(
            f"installed {len(pins)} anew ({installed / 1e6:.1f} MB), linked {self._linked} files "
            f"of {self.base.prefix}, in {time.monotonic() - began:.1f} s; kept in {self.kept}"
        )
        return made

    def swap(self, other: _Base, names: Collection[str], changes: tuple[str, ...]) -> Made:
        """Link ``names`` as ``other`` has them, and all else; put it where it is kept."""
        began = time.monotonic()
        self._venv()
        site = Path(_ask(self.new / "bin" / "python")["purelib"])
        for name, each in other.distributions.items():
            if name in names:
                self._link_distribution(name, each, other.prefix, site)
        made = self._completed(names, changes, (other,))
        self.say(
            f"{', '.join(changes)}: linked {self._linked} files of {self.base.prefix} and "
            f"{other.prefix}, in {time.monotonic() - began:.1f} s; kept in {self.kept}"
        )
        return made

    def _completed(
        self, names: Collection[str], changes: tuple[str, ...], others: tuple[_Base, ...]
    ) -> Made:
        """Link all of the base but ``names``, which are there by now; put it where it is kept."""
        self._hide(names)
        python = self.new / "bin" / "python"
        site = Path(_ask(python)["purelib"])
        for each in self.base.sites:
            self._link_tree(each, site)
        self._link_outside(site)
        self._name_final_place([each.prefix for each in (self.base, *others)])
        problems: set[str] = set()
        if self.installer is not None:
            before = [self.installer.check(each.python) for each in (self.base, *others)]
            problems = self.installer.check(python).difference(*before)
        made = Made(self.kept / "bin" / "python", changes, tuple(sorted(map(masked, problems))))
        about = {"schema": _SCHEMA, "changes": changes, "problems": made.problems}
        about["base"] = str(self.base.python)
        (self.new / _ABOUT).write_text(json.dumps(about, indent=1), "utf-8")
        try:
            self.new.rename(self.kept)
        except OSError:
            if _load(self.kept) is None:  # else another builder was faster
                raise
        return made

    def _mask_addresses(self, python: Path) -> None:
        """A kept environment holds no login: installers note the address as it was given."""
        for path in Path(_ask(python)["purelib"]).glob("*.dist-info/direct_url.json"):
            path.write_text(masked(path.read_text("utf-8")), "utf-8")

    def _venv(self) -> None:
        command = [str(self.base.python), "-m", "venv", "--without-pip", str(self.new)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise InstallError(f"{' '.join(command[:3])} failed: {said}")

    def _hide(self, names: Collection[str]) -> None:
        """Note what the base has of the distributions that are there anew."""
        for name, each in self.base.distributions.items():
            if name in names:
                self._hidden |= _paths(name, each)
        for name, each in self.base.distributions.items():
            if name not in names:  # what it shares with one of those, such as nvidia/__init__.py
                beside = str(each.locate_file(""))
                self._hidden.difference_update(f"{beside}/{file}" for file in _recorded(each))

    def _link_distribution(
        self, name: str, each: metadata.Distribution, prefix: Path, site: Path
    ) -> None:
        """Link all files of a distribution of the environment at ``prefix``."""
        place = str(each.locate_file(""))
        for text in sorted(_paths(name, each)):
            path = Path(text)
            there = Path(os.path.normpath(site / os.path.relpath(path, place)))
            inside = path.is_relative_to(place) or path.is_relative_to(prefix)
            if not (inside and there.is_relative_to(self.new)) or os.path.lexists(there):
                continue
            if path.is_dir() and not path.is_symlink():
                self._link_tree(path, there)
            elif path.is_file():
                there.parent.mkdir(parents=True, exist_ok=True)
                self._link(path, there)

    def _link_tree(self, source: Path, target: Path) -> None:
        """Link all files under ``source``; what is at ``target`` already is newer, and stays."""
        made = target.is_dir()
        for path in source.iterdir():
            there = target / path.name
            if str(path) in self._hidden:
                continue
            if path.is_dir() and not path.is_symlink():
                self._link_tree(path, there)
                continue
            module = source.parent / f"{path.name.partition('.')[0]}.py"
            of_hidden = source.name == "__pycache__" and str(module) in self._hidden
            if of_hidden or os.path.lexists(there):
                continue
            if not made:
                target.mkdir(parents=True, exist_ok=True)
                made = True
            self._link(path, there)

    def _link(self, path: Path, there: Path) -> None:
        if path.is_symlink():
            there.symlink_to(path.resolve())
        else:
            try:
                there.hardlink_to(path)
            except OSError:  # another file system, or another user's file
                there.symlink_to(path)
        self._linked += 1

    def _link_outside(self, site: Path) -> None:
        """Link what distributions keep outside of their directory: libraries, data, commands."""
        for each in self.base.distributions.values():
            for name in (name for name in _recorded(each) if name.startswith("../")):
                path = Path(os.path.normpath(str(each.locate_file(name))))
                there = Path(os.path.normpath(site / name))
                inside = there.is_relative_to(self.new) and path.is_relative_to(self.base.prefix)
                if not inside or str(path) in self._hidden or not path.is_file():
                    continue
                if not os.path.lexists(there):
                    there.parent.mkdir(parents=True, exist_ok=True)
                    self._link(path, there)

    def _name_final_place(self, prefixes: Sequence[Path]) -> None:
        """Let commands start the interpreter of the place where all this will stand."""
        new, kept = os.fsencode(self.new), os.fsencode(self.kept)
        for path in (self.new / "bin").iterdir():
            if re.fullmatch(r"python[\d.]*", path.name) or not path.is_file():
                continue
            with path.open("rb") as file:
                if file.read(2) != b"#!" and not path.name.lower().startswith("activate"):
                    continue
            text = path.read_bytes()
            changed = text.replace(new, kept)
            for prefix in map(os.fsencode, prefixes):
                changed = changed.replace(prefix + b"/bin/python", kept + b"/bin/python")
            if changed != text:  # never in place: it may be a link to the base's, or to a cache's
                mode = path.stat().st_mode
                path.unlink()
                path.write_bytes(changed)
                path.chmod(mode)


def _paths(name: str, each: metadata.Distribution) -> set[str]:
    """Where the files of a distribution are, and its dist-info."""
    place = Path(str(each.locate_file("")))
    files = each.files
    if files is None:  # no list of them, as of the operating system's packages
        tops = (each.read_text("top_level.txt") or name.replace("-", "_")).split()
        files = [metadata.PackagePath(top + end) for top in tops for end in ("", ".py")]
    found = {os.path.normpath(place / file) for file in files}
    if about := getattr(each, "_path", None):  # the one way to its dist-info
        found.add(os.path.normpath(about))
    return found


def _recorded(each: metadata.Distribution) -> list[str]:
    """The files of a distribution, from its directory on; without those whose names need quotes."""
    lines = (each.read_text("RECORD") or "").splitlines()
    return [line.partition(",")[0] for line in lines]


def _private(path: Path, text: str) -> Path:
    """Write a file that may hold an index's credentials: its owner's alone, gone at the end."""
    path.touch(0o600)
    path.write_text(text, "utf-8")
    return path


def _load(kept: Path) -> Made | None:
    """What was made before; None, and nothing left there, where it is not whole."""
    python = kept / "bin" / "python"
    try:
        about = json.loads((kept / _ABOUT).read_text("utf-8"))
        if about["schema"] == _SCHEMA and os.access(python, os.X_OK):
            return Made(python, tuple(about["changes"]), tuple(about["problems"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(kept, ignore_errors=True)
    return None


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "perfline" / "environments"
    except RuntimeError as error:  # no HOME, and no account
        raise InstallError(
            "no home directory is known to keep environments in: set XDG_CACHE_HOME"
        ) from error


def _sweep(cache: Path) -> None:
    """Remove what builders of this machine that were killed left behind."""
    for left in cache.glob(f"making-{socket.gethostname()}-*"):
        found = re.search(r"-(\d+)-[^-]*$", left.name)
        if found and not runs(int(found[1])):
            shutil.rmtree(left, ignore_errors=True)


def _disk(folder: Path) -> int:
    """Bytes of all files under ``folder``."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.lstat(f"{place}/{name}").st_size
    return total


def runs(pid: int) -> bool:
    """Whether a process of this machine has that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
