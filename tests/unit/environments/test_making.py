"""An environment is the base and what was asked for; half of one, or a stale one, is never used."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from perfline.environments import making
from perfline.environments.installers import Pin, Request
from perfline.environments.making import Made, check_swap, contents, installed, make, swap
from perfline.errors import InstallError
from wheels import interpreter, site, told, unpack, wheel

OPTION = "--candidate-install"


@dataclass
class FakeInstaller:
    """Installs from a folder what it is told to plan."""

    folder: Path
    plan: list[Pin]
    name: str = "fake"
    problems: set[str] = field(default_factory=set)
    installed: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    fails: BaseException | None = None

    def resolve(self, python: Path, request: Request, file: Path) -> list[Pin]:
        assert file.read_text() == request.text
        assert file.stat().st_mode & 0o077 == 0
        return self.plan

    def install(self, python: Path, pins: Sequence[Pin], file: Path) -> None:
        for line in file.read_text().split():
            if "==" in line:
                module, _, version = line.replace("-", "_").partition("==")
                unpack(self.folder / f"{module}-{version}-py3-none-any.whl", site(python))
                self.installed.append(line)
        command = python.parent / "local"
        command.write_text(f"#!{python}\nprint('local')\n")
        command.chmod(0o755)
        if self.fails is not None:
            raise self.fails

    def check(self, python: Path) -> set[str]:
        of_base = python.parents[1].name in ("base", "theirs")
        return {"was so before"} | (set() if of_base else self.problems)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a package that changes, one that shares its namespace, and one that stays."""
    folder = tmp_path_factory.mktemp("pristine")
    files = {
        "local_pkg/__init__.py": "version = '1.0'\n",
        "local_pkg/old.py": "",
        "_local_helper.py": "",
        "shared/__init__.py": "",
        "shared/local.py": "version = '1.0'\n",
    }
    other = {"shared/__init__.py": "", "shared/other.py": "", "other.py": "version = 'other'\n"}
    interpreter(
        folder / "base",
        wheel(folder, "local-pkg", "1.0", files),
        wheel(folder, "other", "3", other),
    )
    return folder / "base"


@pytest.fixture
def base(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, an empty cache, and an editable project."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    shutil.copytree(pristine, tmp_path / "base", symlinks=True)
    python = tmp_path / "base" / "bin" / "python"
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "editable.py").write_text("version = 'editable'")
    (site(python) / "_editable.pth").write_text(str(tmp_path / "project"))
    command = python.with_name("other")
    command.write_text(f"#!{python}\nimport sys; print(sys.prefix)\n")
    command.chmod(0o755)
    about = site(python) / "other-3.dist-info" / "RECORD"
    about.write_text(about.read_text() + "../../../bin/other,,\n../../../lib/libother.so,,\n")
    (tmp_path / "base" / "lib" / "libother.so").write_text("library")
    return python


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeInstaller:
    new = {
        "local_pkg/__init__.py": "version = '2.0'\n",
        "local_pkg/new.py": "",
        "shared/local.py": "version = '2.0'\n",
    }
    wheel(tmp_path, "local-pkg", "2.0", new)
    found = FakeInstaller(tmp_path, [Pin("local-pkg", "2.0")])
    monkeypatch.setattr(making, "find_installer", lambda base: found)
    return found


def kept() -> list[str]:
    return sorted(os.listdir(making._cache()))  # noqa: PTH208


def test_only_what_changes_is_installed_anew(base: Path, installer: FakeInstaller):
    lines: list[str] = []
    before = sorted(path for path in base.parents[1].rglob("*") if "__pycache__" not in str(path))
    made = make(base, ["local-pkg"], OPTION, lines.append)
    assert made.changes == ("local-pkg 1.0 -> 2.0",)
    assert told(made.python, "import local_pkg; print(local_pkg.version)") == "2.0"
    versions = "from importlib.metadata import *; print([d.version for d in distributions()])"
    assert sorted(eval(told(made.python, versions))) == ["2.0", "3"]
    assert told(made.python, "import editable, other; print(editable.version)") == "editable"
    # Nothing of the older version shines through, and what shares a directory lies together.
    there = site(made.python)
    assert not (there / "local_pkg" / "old.py").exists()
    assert not (there / "_local_helper.py").exists()
    assert (there / "local_pkg" / "new.py").exists()
    code = "import shared.local, shared.other; print(shared.local.version, len(shared.__path__))"
    assert told(made.python, code) == "2.0 1"
    assert (there / "other.py").samefile(site(base) / "other.py")
    assert (made.python.parents[1] / "lib" / "libother.so").read_text() == "library"
    after = sorted(path for path in base.parents[1].rglob("*") if "__pycache__" not in str(path))
    assert after == before
    assert told(base, "import local_pkg; print(local_pkg.version)") == "1.0"
    assert lines[0] == f"{OPTION}: local-pkg 1.0 -> 2.0: fake installs 1 anew ..."
    assert lines[1].startswith(f"{OPTION}: installed 1 anew (0.0 MB), linked ")
    assert lines[1].endswith(f" s; kept in {made.python.parents[1]}")


def test_commands_start_the_new_interpreter(base: Path, installer: FakeInstaller):
    made = make(base, ["local-pkg"], OPTION)
    home = made.python.parents[1]
    for name, said in (("local", "local"), ("other", str(home))):
        done = subprocess.run([home / "bin" / name], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == said
    assert str(base) in base.with_name("other").read_text()  # the base's own is as it was


def test_the_second_time_costs_nothing(base: Path, installer: FakeInstaller):
    first = make(base, ["local-pkg"], OPTION)
    told(base, "import local_pkg, other")  # writes bytecode
    lines: list[str] = []
    assert make(base, ["local-pkg==2.0"], OPTION, lines.append) == first
    assert installer.installed == ["local-pkg==2.0"]
    (line,) = lines
    assert "nothing to install, kept in" in line
    assert kept() == [first.python.parents[1].name]


def test_a_newer_version_or_another_base_is_another_environment(
    base: Path, installer: FakeInstaller, tmp_path: Path
):
    made = [make(base, ["local-pkg"], OPTION)]
    wheel(tmp_path, "local-pkg", "3.0")
    installer.plan = [Pin("local-pkg", "3.0")]  # published in the meantime
    made.append(make(base, ["local-pkg"], OPTION))
    (site(base) / "more.pth").write_text("/somewhere")
    made.append(make(base, ["local-pkg"], OPTION))
    installer.places = {"UV_DEFAULT_INDEX": "https://other/simple"}
    made.append(make(base, ["local-pkg"], OPTION))
    wheel(tmp_path, "local-pkg", "3.0", {"local_pkg/new.py": ""})  # built anew under its number
    installer.places = {"UV_FIND_LINKS": f"/nowhere,{tmp_path}"}
    made.append(make(base, ["local-pkg"], OPTION))
    wheel(tmp_path, "local-pkg", "3.0", {"local_pkg/newer.py": ""})
    made.append(make(base, ["local-pkg"], OPTION))
    record = site(base) / "other-3.dist-info" / "RECORD"
    os.utime(record, (1, 1))  # the same version installed again, such as one built here
    made.append(make(base, ["local-pkg"], OPTION))
    assert len({each.python for each in made}) == len(made)


def test_a_tree_that_is_gone_afterwards_is_known_by_its_commit(
    base: Path, installer: FakeInstaller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lines: list[str] = []

    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "setup.py").write_text("")

    def of(name: str, commit: str, *more: str) -> Path:
        tree = tmp_path / name
        tree.mkdir()
        (tree / "pyproject.toml").write_text("[project]\n")
        installer.plan = [Pin("local-pkg", "2.0", f"file://{tree}")]
        requests = [" ".join((str(tree), *more))]
        made = make(base, requests, OPTION, lines.append, (tree, f"/repository {commit}"))
        shutil.rmtree(tree)
        return made.python

    first = of("tree-1", "abc")
    assert of("tree-2", "abc") == first
    assert "nothing to install, kept in" in lines[-1]
    assert of("tree-3", "def") != first
    other = of("tree-4", "abc", str(beside))
    (beside / "setup.py").write_text("changed")
    assert of("tree-5", "abc", str(beside)) != other
    monkeypatch.setenv("CFLAGS", "-O3")
    assert of("tree-6", "abc") != first


def test_what_is_there_already_needs_no_environment(base: Path, installer: FakeInstaller):
    installer.plan = []
    lines: list[str] = []
    assert make(base, ["local-pkg==1.0"], OPTION, lines.append) == Made(base)
    assert lines == [f"{OPTION}: changes nothing: {base} has it all"]
    assert kept() == []


def test_a_requirement_that_breaks_is_told_each_time(base: Path, installer: FakeInstaller):
    installer.problems = {"other requires local-pkg<2"}
    for _ in range(2):
        lines: list[str] = []
        made = make(base, ["local-pkg"], OPTION, lines.append)
        assert made.problems == ("other requires local-pkg<2",)
        assert lines[-1] == f"{OPTION}: notice: other requires local-pkg<2"


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), InstallError("uv says:"), OSError(errno.ENOSPC, "No space")]
)
def test_a_build_that_ends_early_leaves_nothing(
    base: Path, installer: FakeInstaller, error: BaseException
):
    installer.fails = error
    with pytest.raises(type(error)):
        make(base, ["local-pkg"], OPTION)
    assert kept() == []


def test_a_full_disk_while_linking_leaves_nothing(
    base: Path, installer: FakeInstaller, monkeypatch: pytest.MonkeyPatch
):
    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", full)
    monkeypatch.setattr(Path, "symlink_to", full)
    with pytest.raises(OSError, match="No space left"):
        make(base, ["local-pkg"], OPTION)
    assert kept() == []


def test_where_no_hard_link_goes_a_symbolic_one_does(
    base: Path, installer: FakeInstaller, monkeypatch: pytest.MonkeyPatch
):
    def other_file_system(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", other_file_system)
    made = make(base, ["local-pkg"], OPTION)
    assert (site(made.python) / "other.py").is_symlink()
    code = "import other, local_pkg, editable; print(other.version, local_pkg.version)"
    assert told(made.python, code) == "other 2.0"
    # Such a link is followed, not linked to, when this environment is a base itself.
    installer.plan = [Pin("new-one", "1")]
    wheel(installer.folder, "new-one", "1")
    again = make(made.python, ["new-one"], OPTION)
    link = site(again.python) / "other.py"
    assert link.is_symlink()
    assert link.readlink() == (site(base) / "other.py").resolve()
    assert told(again.python, f"{code}; import new_one") == "other 2.0"


def test_an_environment_that_was_damaged_is_made_again(base: Path, installer: FakeInstaller):
    home = make(base, ["local-pkg"], OPTION).python.parents[1]
    for damage in (home / "environment.json", home / "bin" / "python"):
        damage.unlink()
        made = make(base, ["local-pkg"], OPTION)
        assert made.python.parents[1] == home
        assert told(made.python, "import local_pkg; print(local_pkg.version)") == "2.0"
    assert len(installer.installed) == 3


def test_the_faster_of_two_builders_wins(
    base: Path, installer: FakeInstaller, monkeypatch: pytest.MonkeyPatch
):
    install, others = installer.install, []

    def meanwhile(python: Path, pins: Sequence[Pin], file: Path) -> None:
        monkeypatch.setattr(installer, "install", install)
        others.append(make(base, ["local-pkg"], OPTION))
        install(python, pins, file)

    monkeypatch.setattr(installer, "install", meanwhile)
    assert make(base, ["local-pkg"], OPTION) == others[0]
    assert len(installer.installed) == 2
    assert kept() == [others[0].python.parents[1].name]


def test_what_a_killed_builder_left_is_removed(
    base: Path, installer: FakeInstaller, tmp_path: Path
):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from perfline.environments import making as e\n"
        "from perfline.environments.installers import Pin\n"
        "class Slow:\n"
        "    name, places = 'slow', {}\n"
        "    def resolve(self, *a): return [Pin('local-pkg', '2.0')]\n"
        "    def install(self, *a): print('installing', flush=True); time.sleep(600)\n"
        "e.find_installer = lambda base: Slow()\n"
        f"e.make(Path({str(base)!r}), ['local-pkg'], '--x')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == b"installing\n"
        (left,) = kept()
        made = make(base, ["local-pkg"], OPTION)
        assert kept() == sorted([made.python.parents[1].name, left])  # it is alive
        builder.send_signal(signal.SIGKILL)
    assert left in kept()
    make(base, ["local-pkg"], OPTION)
    assert kept() == [made.python.parents[1].name]
    assert told(made.python, "import local_pkg; print(local_pkg.version)") == "2.0"


def test_what_cannot_be_resolved_names_the_option_and_quotes_the_installer(
    base: Path, installer: FakeInstaller, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*given: object) -> list[Pin]:
        raise InstallError("uv says:\n  no version of local-pkg==99")

    monkeypatch.setattr(installer, "resolve", refuse)
    with pytest.raises(InstallError) as caught:
        make(base, ["local-pkg==99 --index-url https://me:pw@host/simple"], OPTION)
    assert str(caught.value).splitlines() == [
        f"{OPTION} 'local-pkg==99 --index-url https://***@host/simple' cannot be installed; "
        "uv says:",
        "  no version of local-pkg==99",
    ]
    assert kept() == []


def test_no_credential_is_kept(base: Path, installer: FakeInstaller, tmp_path: Path):
    told = {"local_pkg-2.0.dist-info/direct_url.json": '{"url": "https://host/x.whl?sig=hunter2"}'}
    wheel(tmp_path, "local-pkg", "2.0", told)  # uv writes the address as it was given
    made = make(base, ["local-pkg", "--index-url https://me:hunter2@host/simple"], OPTION)
    for path in made.python.parents[1].rglob("*"):
        if path.is_file():
            assert b"hunter2" not in path.read_bytes(), path


def test_what_is_no_python_is_one_line(installer: FakeInstaller, tmp_path: Path):
    with pytest.raises(InstallError, match="does not tell where its packages are"):
        make(tmp_path / "none", ["x"], OPTION)


def test_packages_without_a_list_of_files_are_hidden_by_name(base: Path, installer: FakeInstaller):
    about = site(base) / "local_pkg-1.0.dist-info"
    (about / "RECORD").unlink()
    made = make(base, ["local-pkg"], OPTION)
    assert not (site(made.python) / "local_pkg" / "old.py").exists()
    assert told(made.python, "import local_pkg; print(local_pkg.version)") == "2.0"


def test_without_a_home_and_an_account_it_is_said_what_to_set(monkeypatch: pytest.MonkeyPatch):
    def unknown() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(InstallError, match=r"no home directory is known .*: set XDG_CACHE_HOME"):
        making._cache()


@pytest.fixture
def other(base: Path, tmp_path: Path) -> Path:
    """Another environment: a newer local-pkg with a command, an editable one, and no ``other``."""
    files = {
        "local_pkg/__init__.py": "version = '2.0'\n",
        "shared/__init__.py": "",
        "shared/local.py": "version = '2.0'\n",
    }
    python = interpreter(
        tmp_path / "theirs",
        wheel(tmp_path, "local-pkg", "2.0", files),
        wheel(tmp_path, "linked", "7", {"_linked.pth": f"{tmp_path / 'work'}\n"}),
    )
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "linked.py").write_text("version = 'as edited'")
    command = python.with_name("local")
    command.write_text(f"#!{python}\nimport sys; print(sys.prefix)\n")
    command.chmod(0o755)
    record = site(python) / "local_pkg-2.0.dist-info" / "RECORD"
    record.write_text(record.read_text() + "../../../bin/local,,\n/etc/hostname,,\n")
    return python


def test_packages_of_another_environment_are_taken_as_they_are_installed(
    base: Path, other: Path, installer: FakeInstaller
):
    lines: list[str] = []
    made = swap(base, other, {"local-pkg", "linked"}, lines.append)
    assert made.changes == ("linked none -> 7", "local-pkg 1.0 -> 2.0")
    code = (
        "import local_pkg, linked, other; print(local_pkg.version, linked.version, other.version)"
    )
    assert told(made.python, code) == "2.0 as edited other"
    code = "import shared.local, shared.other; print(shared.local.version, len(shared.__path__))"
    assert told(made.python, code) == "2.0 1"
    there = site(made.python)
    assert not (there / "local_pkg" / "old.py").exists()
    assert (there / "local_pkg" / "__init__.py").samefile(site(other) / "local_pkg/__init__.py")
    command = made.python.with_name("local")
    assert subprocess.check_output([command], text=True).strip() == str(made.python.parents[1])
    assert installer.installed == []
    assert len(lines) == 1
    assert f"{other.parents[1]}, in " in lines[0]
    assert swap(base, other, {"local-pkg", "linked"}, lines.append) == made
    assert len(lines) == 1
    assert told(swap(base, other, {"local-pkg"}).python, "import other") == ""


def test_what_the_other_environment_lacks_is_left_out(
    base: Path, other: Path, installer: FakeInstaller
):
    made = swap(base, other, {"other"})
    assert made.changes == ("other 3 -> none",)
    assert told(made.python, "import local_pkg; print(local_pkg.version)") == "1.0"
    assert not (site(made.python) / "other.py").exists()
    assert installed(made.python) == {"local-pkg": "1.0"}


def test_a_swap_that_breaks_a_requirement_is_refused_each_time(
    base: Path, other: Path, installer: FakeInstaller
):
    installer.problems = {"local-pkg 2.0 requires linked, which is not installed"}
    told_of = r"^local-pkg 1.0 -> 2.0: local-pkg 2.0 requires linked, which is not installed$"
    for _ in range(2):
        with pytest.raises(InstallError, match=told_of):
            swap(base, other, {"local-pkg"})


def test_a_swap_needs_no_installer(base: Path, other: Path, monkeypatch: pytest.MonkeyPatch):
    def none(base: Path) -> FakeInstaller:
        raise InstallError("neither uv nor pip is there")

    monkeypatch.setattr(making, "find_installer", none)
    assert swap(base, other, {"local-pkg"}).problems == ()


def test_packages_of_another_python_are_not_taken(
    base: Path, other: Path, monkeypatch: pytest.MonkeyPatch
):
    ask = making._ask

    def older(python: Path) -> dict[str, str]:
        found = ask(python)
        return found | {"version": "3.9.1 (main)", "abi": ".39.so"} if python == base else found

    monkeypatch.setattr(making, "_ask", older)
    with pytest.raises(InstallError, match=r"is 3\.9\.1 \(\.39\.so\), .*make both environments"):
        check_swap(base, other)
    assert contents(base).python == "3.9.1"
