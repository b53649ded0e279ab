"""What may be asked of an installer, and how do uv and pip answer?

uv where it is on the path or importable, else pip. pip's own settings (``pip config list``: files
and ``PIP_*``) hold for uv too, but where uv's own variables say otherwise. Requests go to the
installer through a file, never on a command line, and what it says is shown without credentials.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import NoReturn, Protocol
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name
from packaging.version import Version

from perfline.errors import InstallError

_LINES_SHOWN = 12  # of an installer that fails: the last ones
_LOGIN = re.compile(r"(?<=://)(?!git@[^@/\s]*(?:/|\s|$))[^/\s@]+@(?:[^/\s@]+@)*")
_SIGNED = re.compile(
    r"(?i)([?&][^=&\s]*(?:token|secret|pass|key|sig|auth|cred)[^=&\s]*=)[^&\s'\"`]+"
)
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?")
_PLANNED = re.compile(r"^ \+ ([\w.-]+)(?:==(\S+))?(?: @ (.+)| \(from (.+)\))?$", re.MULTILINE)
_REMOVED = re.compile(r"^ - ([\w.-]+)==(\S+)$", re.MULTILINE)
_GLUE = "<>=!~@;,["  # what a requirement goes on with, behind a blank
_ARCHIVES = (".whl", ".tar.gz", ".zip")
_SHORT = {"-r": "--requirement", "-c": "--constraint", "-i": "--index-url", "-f": "--find-links"}
_NEWER = "--exclude-newer"  # uv's name for it; pip takes it as --uploaded-prior-to
_WITH_VALUE = {*_SHORT.values(), "--extra-index-url", _NEWER}
_FLAGS = {"--pre", "--no-index"}
_EXPECTED = (
    "requirements, wheels, directories, --pre, -r FILE, -c FILE, --index-url, --extra-index-url, "
    "--find-links, --no-index and --exclude-newer DATE"
)


def masked(text: str) -> str:
    """``text`` without the credentials of its addresses."""
    return _SIGNED.sub(r"\1***", _LOGIN.sub("***@", text))


@dataclass(frozen=True)
class Pin:
    """A distribution that an installer would install anew.

    Attributes:
        name: normalised.
        version: empty where the installer tells the source alone.
        source: the address it comes from, where that is no index; without credentials.
        digest: of its file, where the installer tells.
    """

    name: str
    version: str
    source: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Request:
    """What is to be installed, in the words of a requirements file; paths are absolute.

    Attributes:
        requirements: one a line, those of ``-r`` files included.
        options: lines such as ``--pre`` and ``--index-url ...``; may hold credentials.
        local: files and directories among the requirements.
    """

    requirements: tuple[str, ...]
    options: tuple[str, ...]
    local: tuple[Path, ...]

    @classmethod
    def parse(cls, texts: Sequence[str], option: str) -> Request:
        """Read what was given to the command line's ``option``; InstallError where it is unfit."""
        reader = _Reader(option)
        for text in texts:
            reader.read(text, Path.cwd())
        if not reader.requirements:
            reader.refuse(f"names nothing to install: {' '.join(texts)!r}; expected {_EXPECTED}")
        return cls(tuple(reader.requirements), tuple(reader.options), tuple(reader.local))

    @property
    def text(self) -> str:
        """A requirements file of it."""
        return "\n".join((*self._lines, *self.requirements, ""))

    @property
    def _lines(self) -> list[str]:
        """The options that a requirements file may hold."""
        return [line for line in self.options if not line.startswith(_NEWER)]

    @property
    def newest(self) -> str:
        """The day or moment from which on releases are not seen; empty where all are."""
        dates = [line.split()[1] for line in self.options if line.startswith(_NEWER)]
        return dates[-1] if dates else ""

    @property
    def named(self) -> dict[str, str]:
        """Normalised name -> the line that asks for it; without what a bare path or URL brings."""
        found: dict[str, str] = {}
        for line in self.requirements:
            name = _NAME.match(line)
            if name and not re.match(r"[\w+]+://|/", line):
                found[canonicalize_name(name[0])] = line
        return found

    def pinned(self, pins: Sequence[Pin], option: str) -> str:
        """A requirements file of ``pins``, from the same places."""
        lines = self._lines
        for pin in pins:
            own = self.named.get(pin.name, "")
            if "***" in pin.source and not own:
                raise InstallError(
                    f"{option} {pin.source}: has credentials in an address without a name; "
                    f"write {pin.name} @ ADDRESS"
                )
            if "--hash" in own or "***" in pin.source:
                lines.append(own)
            else:
                lines.append(f"{pin.name} @ {pin.source}" if pin.source else _exactly(pin))
        return "\n".join((*lines, ""))

    def local_digest(self, known: Path | None = None) -> str:
        """Of what lies in the local files, and of the directories' files' sizes and dates.

        Without what lies in ``known``.
        """
        found = hashlib.sha256()
        for path in self.local:
            if known is not None and path.resolve().is_relative_to(known):
                continue
            if path.is_file():
                found.update(path.read_bytes())
                continue
            for folder, folders, files in os.walk(path):
                folders[:] = sorted(name for name in folders if not _made_by_build(name))
                for name in sorted(files):
                    seen = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - thousands
                    found.update(f"{folder}/{name} {seen.st_size} {seen.st_mtime_ns}\n".encode())
        return found.hexdigest()


def _exactly(pin: Pin) -> str:
    return f"{pin.name}=={pin.version}"


def _made_by_build(name: str) -> bool:
    return name.startswith(".") or name in ("__pycache__", "build", "dist") or "egg-info" in name


@dataclass
class _Reader:
    """Reads words of the command line and lines of requirements files."""

    option: str
    requirements: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    local: list[Path] = field(default_factory=list)
    _inside: list[Path] = field(default_factory=list)

    def refuse(self, why: str) -> NoReturn:
        """Raise InstallError."""
        raise InstallError(f"{self.option}: {masked(why)}")

    def read(self, text: str, place: Path, shown: str = "") -> None:
        """Take options and requirements; ``place`` is where files are named from."""
        try:
            words = shlex.split(text)
        except ValueError as error:
            self.refuse(f"{shown}{text!r} cannot be read ({error})")
        if not all(words):
            self.refuse(f"{shown}{text!r} holds an empty word; expected {_EXPECTED}")
        if words and not any(word.startswith("-") for word in words) and ";" in text:
            self._requirement(text.strip())  # the quotes of a marker are its own
            return
        requirements: list[str] = []
        rest = iter(words)
        for word in rest:
            if not word.startswith("-"):
                goes_on = requirements and (word[0] in _GLUE or requirements[-1][-1] in _GLUE)
                if goes_on and not word.startswith("["):
                    requirements[-1] += f" {word}"
                else:
                    requirements.append(word)
                continue
            self._option(word, rest, place)
        for requirement in requirements:
            self._requirement(requirement)

    def _option(self, word: str, rest: Iterator[str], place: Path) -> None:
        name, sign, value = word.partition("=")
        name = _SHORT.get(name, name)
        if name in _FLAGS and not sign:
            self.options.append(name)
            return
        if name not in _WITH_VALUE:
            self.refuse(f"takes no {word!r}; expected {_EXPECTED}")
        value = value if sign else next(rest, "")
        if not value:
            self.refuse(f"{word} needs a value behind it")
        if name == "--requirement":
            self._file(self._existing(value, place))
        elif name == "--constraint":
            self.options.append(f"{name} {self._existing(value, place)}")
        else:
            there = place / value
            self.options.append(f"{name} {there if there.exists() else value}")

    def _existing(self, value: str, place: Path) -> Path:
        try:
            path = place / Path(value).expanduser()
            there = path.exists()
        except (OSError, RuntimeError) as error:  # a name too long, a home that is not there
            self.refuse(f"{value[:80]} cannot be looked at ({error})")
        if not there:
            self.refuse(f"{value} is not there; correct the path")
        return path.resolve()

    def _file(self, path: Path) -> None:
        if path in self._inside:
            self.refuse(f"{path} names itself with -r; remove that line")
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self.refuse(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")
        self._inside.append(path)
        for line in re.sub(r"\\\n", " ", text).splitlines():
            line = re.sub(r"(^|\s)#.*", "", line).strip()
            if line.startswith("-"):
                self.read(line, path.parent, f"{path}: ")
            elif line:
                self._requirement(" ".join(line.split()))
        self._inside.pop()

    def _requirement(self, text: str) -> None:
        where = text.rpartition(" @ ")[2]
        path, extras = where, ""
        if (found := re.fullmatch(r"(.+?)(\[[\w,. -]+\])", where)) and " @ " not in text:
            path, extras = found[1], found[2]
        if where.startswith("file:"):
            try:
                path = unquote(urlsplit(where).path)
            except ValueError as error:
                self.refuse(f"{masked(where)[:80]} is no address ({error})")
            self.local.append(self._existing(path, Path.cwd()))
        elif "://" not in path and (
            path.startswith((".", "~", "/"))
            or path.endswith(_ARCHIVES)
            or ("/" in path and Path(path).exists())
        ):
            self.local.append(self._existing(path, Path.cwd()))
            text = f"{self.local[-1]}{extras}"
        self.requirements.append(text)


class Installer(Protocol):
    """uv or pip."""

    @property
    def name(self) -> str:
        """``uv`` or ``pip``."""

    @property
    def places(self) -> dict[str, str]:
        """Where it looks for packages, from settings; without credentials."""

    def resolve(self, python: Path, request: Request, file: Path) -> list[Pin]:
        """What ``request``, which stands in ``file``, would install anew beside ``python``.

        What it names is brought up to the newest version that it allows; all else moves only
        where it must. InstallError, with the installer's last lines, where that cannot be.
        """

    def install(self, python: Path, pins: Sequence[Pin], file: Path) -> None:
        """Install what ``file`` pins into the environment of ``python``, and nothing else."""

    def check(self, python: Path) -> set[str]:
        """Lines that say which requirements between installed distributions are not met."""


def find_installer(base: Path) -> Installer:
    """The installer for environments of the interpreter ``base``; InstallError without one."""
    candidates: list[tuple[str, ...]] = []
    if on_path := shutil.which("uv"):
        candidates.append((on_path,))
    if _installed("uv"):
        candidates.append((sys.executable, "-m", "uv"))
    for uv in candidates:
        if _answer((*uv, "--version")) is not None:
            return Uv(uv, pip_settings(base))
    for pip in _pips(base):
        if _answer((*pip, "--version")) is not None:
            return Pip(pip)
    raise InstallError(f"neither uv nor pip is there to install beside {base}; install uv")


def versions(base: Path, package: str, pre: bool) -> list[str]:
    """The released versions of ``package`` that the interpreter ``base`` can use, oldest first.

    Asked of ``pip index versions``, under pip's settings: uv has no such question. InstallError,
    with pip's last lines, where the index knows no such package or cannot be reached.
    """
    for pip in _pips(base):
        if _answer((*pip, "--version")) is None:
            continue
        flag = ("--pre",) if pre else ()
        words = ("index", "versions", "--disable-pip-version-check", *flag, package)
        said = _checked("pip", [*pip, *words], {}).stdout
        found = re.search(r"(?m)^Available versions: (.+)$", said)
        if found is None:
            raise InstallError(f"`{' '.join(pip)} index versions` names no versions; update pip")
        return sorted((text.strip() for text in found[1].split(",")), key=Version)
    raise InstallError(
        f"no pip is there to ask for the versions of {package} (uv cannot tell them); install pip"
    )


def _installed(name: str) -> bool:
    """Whether this interpreter has it.

    Not by ``find_spec``: setuptools takes that for pip itself, and takes its stand-in for
    distutils, which torch's compiler needs, out of this process.
    """
    return any(metadata.distributions(name=name))


def _pips(base: Path) -> list[tuple[str, ...]]:
    """Commands that may be pip: of the base, of this interpreter, of the path."""
    found: list[tuple[str, ...]] = [(str(base), "-m", "pip")]
    if _installed("pip"):
        found.append((sys.executable, "-m", "pip"))
    if on_path := shutil.which("pip"):
        found.append((on_path,))
    return found


def _answer(command: Sequence[str]) -> str | None:
    try:
        done = _process(command, {})
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def pip_settings(base: Path) -> dict[str, str]:
    """What pip is set to for ``pip install``, as ``pip config list`` shows; without pip ``PIP_*``.

    Values are text; of several, one a word.
    """
    said = next((text for pip in _pips(base) if (text := _answer((*pip, "config", "list")))), "")
    if not said:
        known = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
        return {key[4:].lower().replace("_", "-"): value for key, value in known.items()}
    return _settings(said)


def _settings(said: str) -> dict[str, str]:
    """What ``pip config list`` says of an install."""
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):  # the later, the stronger
        for key, value in re.findall(rf"(?m)^{section}\.([\w-]+)=(.+)$", said):
            with suppress(SyntaxError, ValueError):
                settings[key] = str(ast.literal_eval(value))
    return settings


# pip's setting -> uv's variable, and what stands between several values.
_AS_VARIABLE = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "keyring-provider": ("UV_KEYRING_PROVIDER", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "client-cert": ("SSL_CLIENT_CERT", " "),
    "proxy": ("ALL_PROXY", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
}
_OLDER_NAMES = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}
_TRUE = ("1", "true", "yes", "on", "t", "y")


@dataclass(frozen=True)
class Uv:
    """uv, under pip's ``settings``."""

    command: tuple[str, ...]
    settings: Mapping[str, str]
    name: str = "uv"

    @property
    def environment(self) -> dict[str, str]:
        """The settings as uv's variables; what uv was told itself stays."""
        found = {}
        for setting, (variable, between) in _AS_VARIABLE.items():
            given = {variable, _OLDER_NAMES.get(variable, variable)} & set(os.environ)
            if (value := self.settings.get(setting, "")) and not given:
                found[variable] = between.join(value.split())
        if "keyring-provider" in self.settings and found.get("UV_KEYRING_PROVIDER") != "disabled":
            found["UV_KEYRING_PROVIDER"] = "subprocess"  # the one way that both have
        if "UV_INDEX" in found and "UV_INDEX_STRATEGY" not in os.environ:
            found["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip takes the best of all indexes
        return found

    @property
    def places(self) -> dict[str, str]:
        """Where it looks for packages, from settings; without credentials."""
        names = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", *_OLDER_NAMES.values())
        told = {**os.environ, **self.environment}
        return {name: masked(told[name]) for name in names if name in told}

    def resolve(self, python: Path, request: Request, file: Path) -> list[Pin]:
        """As ``Installer`` says."""
        # What is installed and newer than it may be is kept by an upgrade, and not by this.
        option = "--reinstall-package" if request.newest else "--upgrade-package"
        upgrade = [word for name in request.named for word in (option, name)]
        newest = ("--exclude-newer", request.newest) if request.newest else ()
        # A dry run changes nothing, not even of what the operating system manages.
        words = ("--dry-run", "--break-system-packages", *upgrade, *newest)
        said = self._run("install", python, *words, *self._words(request.options), "-r", str(file))
        pins = [
            Pin(canonicalize_name(n), version, masked(at or of))
            for n, version, at, of in _PLANNED.findall(said)
        ]
        gone = {(canonicalize_name(n), version) for n, version in _REMOVED.findall(said)}
        return [pin for pin in pins if pin.source or (pin.name, pin.version) not in gone]

    def install(self, python: Path, pins: Sequence[Pin], file: Path) -> None:
        """As ``Installer`` says."""
        local = [pin.name for pin in pins if pin.source.startswith("file:")]  # maybe built before
        refresh = [word for name in local for word in ("--refresh-package", name)]
        words = self._words(file.read_text("utf-8").splitlines())
        self._run("install", python, "--no-deps", *refresh, *words, "-r", str(file))

    def check(self, python: Path) -> set[str]:
        """As ``Installer`` says."""
        done = _process(self._command("check", python), self.environment)
        return {line for line in done.stderr.splitlines() if line.startswith("The package")}

    def _words(self, lines: Sequence[str]) -> list[str]:
        """What uv takes on its command line alone."""
        settings = self.settings
        words = ["--no-index"] * (settings.get("no-index", "").lower() in _TRUE)
        if "--pre" in lines or settings.get("pre", "").lower() in _TRUE:
            words += ["--prerelease", "allow"]
        for kind in ("only-binary", "no-binary"):
            names = re.split(r"[\s,]+", settings.get(kind, ""))
            words += [word for name in filter(None, names) for word in (f"--{kind}", name)]
        return words

    def _command(self, verb: str, python: Path, *words: str) -> list[str]:
        return [*self.command, "--color=never", "pip", verb, "--python", str(python), *words]

    def _run(self, verb: str, python: Path, *words: str) -> str:
        return _checked(self.name, self._command(verb, python, *words), self.environment).stderr


@dataclass(frozen=True)
class Pip:
    """pip, which reads its settings itself."""

    command: tuple[str, ...]
    name: str = "pip"

    @property
    def places(self) -> dict[str, str]:
        """Where it looks for packages, from settings; without credentials."""
        names = ("index-url", "extra-index-url", "find-links")
        found = _settings(_answer((*self.command, "config", "list")) or "")
        return {name: masked(found[name]) for name in names if name in found}

    def resolve(self, python: Path, request: Request, file: Path) -> list[Pin]:
        """As ``Installer`` says."""
        report = file.with_suffix(".json")
        newest = ("--uploaded-prior-to", request.newest) if request.newest else ()
        words = ("--dry-run", "--upgrade", *newest, "--report", str(report), "-r", str(file))
        self._run("install", python, *words)
        try:
            planned = json.loads(report.read_text("utf-8"))["install"]
            return [_reported(each) for each in planned]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InstallError(
                f"{' '.join(self.command)} wrote no report that can be read; update pip"
            ) from error

    def install(self, python: Path, pins: Sequence[Pin], file: Path) -> None:
        """As ``Installer`` says."""
        self._run("install", python, "--no-deps", "-r", str(file))

    def check(self, python: Path) -> set[str]:
        """As ``Installer`` says."""
        done = _process(self._command("check", python), {})
        return set(done.stdout.splitlines()) if done.returncode else set()

    def _command(self, verb: str, python: Path, *words: str) -> list[str]:
        return [*self.command, "--python", str(python), "--no-input", verb, *words]

    def _run(self, verb: str, python: Path, *words: str) -> None:
        # Into this environment, whatever the settings say of the user's own directory.
        _checked(self.name, self._command(verb, python, "--quiet", *words), {"PIP_USER": "0"})


def _reported(planned: Mapping[str, Mapping[str, object]]) -> Pin:
    """One entry of ``pip install --report`` (the installation report, version 1)."""
    metadata, download = planned["metadata"], planned["download_info"]
    source = str(download["url"]) if planned["is_direct"] else ""
    if isinstance(vcs := download.get("vcs_info"), Mapping):
        source = f"{vcs['vcs']}+{source}@{vcs['commit_id']}"
    archive = download.get("archive_info")
    hashes = archive.get("hashes", {}) if isinstance(archive, Mapping) else {}
    name, version = str(metadata["name"]), str(metadata["version"])
    return Pin(canonicalize_name(name), version, masked(source), hashes.get("sha256", ""))


def _checked(
    name: str, command: Sequence[str], env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    try:
        done = _process(command, env)
    except OSError as error:
        raise InstallError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        said = [
            line
            for line in (done.stdout + done.stderr).splitlines()
            if line.strip() and not line.startswith("Using Python ")
        ]
        last = said[-_LINES_SHOWN:] or [f"nothing, and ended with status {done.returncode}"]
        raise InstallError("\n".join([f"{name} says:", *(f"  {masked(line)}" for line in last)]))
    return done


def _process(command: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **env, "GIT_TERMINAL_PROMPT": "0"},
        check=False,
    )
