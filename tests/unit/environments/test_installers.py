"""What may be asked of an installer, what it is told, and what of its words is shown."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from perfline.environments import installers
from perfline.environments.installers import Pin, Pip, Request, Uv, find_installer, masked
from perfline.errors import InstallError

OPTION = "--candidate-install"
SAYS_PLAN = """
echo "Would install 2 packages" >&2
echo " - local-pkg==1.0" >&2
echo " + local-pkg==2.0" >&2
echo " + Other_Pkg==3.1+cpu (from file:///w/other_pkg.whl)" >&2
echo " + third @ file:///w/third" >&2
"""
Script = Callable[..., Path]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Put a scripted program on the path, which keeps what it was called with in ``NAME.log``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "env", "grep", "sort", "cat", "seq"):
        (folder / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(folder))
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_", "SSL_", "ALL_"))]:
        monkeypatch.delenv(name)
    # Neither package in this interpreter is to answer.
    monkeypatch.setattr(installers, "_installed", lambda name: False)

    def put(name: str, body: str) -> Path:
        path = folder / name
        log = f'(echo "$@"; env | grep -E "^(UV|PIP|SSL|ALL)_" | sort) >> {tmp_path}/{name}.log\n'
        path.write_text(f"#!/bin/sh\n{log}{body}\n")
        path.chmod(0o755)
        return tmp_path / f"{name}.log"

    return put


def parse(*texts: str) -> Request:
    return Request.parse(texts, OPTION)


@pytest.mark.parametrize(
    ("texts", "requirements", "options"),
    [
        (["transformers==5.24.0"], ["transformers==5.24.0"], []),
        (["--pre torch"], ["torch"], ["--pre"]),
        (["torch>=2.9 numpy", "pandas"], ["torch>=2.9", "numpy", "pandas"], []),
        (["torch >= 2.9 , < 3"], ["torch >= 2.9 , < 3"], []),
        (["thing[a,b]==1"], ["thing[a,b]==1"], []),
        (["thing @ https://host/thing.whl"], ["thing @ https://host/thing.whl"], []),
        (
            ["--index-url=https://host/simple -f https://host/links torch"],
            ["torch"],
            ["--index-url https://host/simple", "--find-links https://host/links"],
        ),
        (["--no-index torch"], ["torch"], ["--no-index"]),
        (["--exclude-newer 2026-10-01 torch"], ["torch"], ["--exclude-newer 2026-10-01"]),
    ],
)
def test_a_request_is_read_as_pip_reads_it(
    texts: list[str], requirements: list[str], options: list[str]
):
    request = parse(*texts)
    assert (list(request.requirements), list(request.options)) == (requirements, options)


def test_files_are_read_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub" / "wheels").mkdir(parents=True)
    (tmp_path / "new.txt").write_text("# new\n-r sub/more.txt\ntorch==2.15.0  # the newest\n")
    (tmp_path / "sub" / "more.txt").write_text(
        "-c pins.txt\n--find-links wheels\nnumpy==2.4 \\\n  --hash=sha256:aa\n"
    )
    (tmp_path / "sub" / "pins.txt").touch()
    request = parse("-r new.txt")
    assert request.requirements == ("numpy==2.4 --hash=sha256:aa", "torch==2.15.0")
    sub = tmp_path / "sub"
    assert request.options == (f"--constraint {sub}/pins.txt", f"--find-links {sub}/wheels")
    assert request.pinned([Pin("numpy", "2.4"), Pin("six", "1.0")], OPTION).splitlines()[2:] == [
        "numpy==2.4 --hash=sha256:aa",  # is still checked
        "six==1.0",
    ]


def test_local_files_are_absolute_and_known_by_what_is_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    wheel, project = tmp_path / "w" / "a.whl", tmp_path / "project"
    wheel.parent.mkdir()
    wheel.write_text("1")
    project.mkdir()
    (project / "code.py").write_text("1")
    request = parse("w/a.whl ./project[extra]")
    assert request.requirements == (str(wheel), f"{project}[extra]")
    assert parse(f"a @ file://{wheel}").local == (wheel,)
    digests = [request.local_digest()]
    (project / "build").mkdir()
    (project / "build" / "code.py").write_text("1")  # made by building it
    assert request.local_digest() == digests[0]
    for changed in (wheel, project / "code.py"):
        changed.write_text("22")
        digests.append(request.local_digest())
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("-e .", "takes no '-e'; expected requirements, wheels, directories, --pre, -r FILE"),
        ("--target=/ torch", "takes no '--target=/'"),
        ("--pre", "names nothing to install: '--pre'"),
        ("", "names nothing to install: ''"),
        ("-r", "-r needs a value behind it"),
        ("-r none.txt", "none.txt is not there; correct the path"),
        ("./none.whl", "./none.whl is not there"),
        ("'torch", "cannot be read (No closing quotation)"),
        ("-r self.txt", "self.txt names itself with -r"),
        ("-r bad.txt", "takes no '--config-settings"),
        ("-r bytes.txt", "bytes.txt cannot be read"),
        ("-r quote.txt", "quote.txt: '--find-links \"a' cannot be read"),
    ],
)
def test_what_is_unfit_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "self.txt").write_text("-r self.txt")
    (tmp_path / "bad.txt").write_text("--config-settings=a=b")
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    (tmp_path / "quote.txt").write_text('--find-links "a')
    with pytest.raises(InstallError) as caught:
        parse(text)
    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"{OPTION}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://me:pw@host/simple/ and", "at https://***@host/simple/ and"),
        ("https://token@host/a https://u:p@b/", "https://***@host/a https://***@b/"),
        ("'https://u:p@ss@host'", "'https://***@host'"),
        ("git+ssh://git@host/a.git@main", "git+ssh://git@host/a.git@main"),
        (
            "https://host/a.whl?X-Amz-Signature=abc&x=1",
            "https://host/a.whl?X-Amz-Signature=***&x=1",
        ),
        ("torch==2.0 @ file:///a@b", "torch==2.0 @ file:///a@b"),
        ("https://u:p'q@host/ https://u:p\"q@host/", "https://***@host/ https://***@host/"),
        ("https://git@token@host/ https://git@u:p@h/", "https://***@host/ https://***@h/"),
        ("https://host/a.whl?auth=abc", "https://host/a.whl?auth=***"),
    ],
)
def test_credentials_are_not_shown(text: str, shown: str):
    assert masked(text) == shown


def test_uv_is_told_by_a_file_and_its_plan_is_read(script: Script, tmp_path: Path):
    log = script("uv", SAYS_PLAN)
    request = parse("--pre local-pkg", "--index-url https://me:pw@host/simple")
    uv = find_installer(Path("/base/python"))
    pins = uv.resolve(Path("/base/python"), request, tmp_path / "request.txt")
    assert pins == [
        Pin("local-pkg", "2.0"),
        Pin("other-pkg", "3.1+cpu", "file:///w/other_pkg.whl"),
        Pin("third", "", "file:///w/third"),
    ]
    asked = log.read_text()
    assert "pip install --python /base/python --dry-run" in asked
    assert "--upgrade-package local-pkg --prerelease allow" in asked
    assert "pw" not in asked
    assert request.pinned(pins, OPTION).splitlines() == [
        *request.options,
        "local-pkg==2.0",
        "other-pkg @ file:///w/other_pkg.whl",
        "third @ file:///w/third",
    ]


def test_what_would_be_the_same_again_is_not_installed_anew(script: Script, tmp_path: Path):
    """Of a day of the index: uv goes back to older versions where it is told to reinstall."""
    log = script("uv", "echo ' - A_a==1.0' >&2; echo ' + A_a==1.0' >&2; " + SAYS_PLAN)
    uv = find_installer(Path("/base/python"))
    request = parse("--exclude-newer 2026-10-01 a-a local-pkg")
    pins = uv.resolve(Path("/base/python"), request, tmp_path / "request.txt")
    assert [pin.name for pin in pins] == ["local-pkg", "other-pkg", "third"]
    assert "--reinstall-package a-a --reinstall-package local-pkg" in log.read_text()
    assert "--upgrade-package" not in log.read_text()


def test_pip_s_settings_hold_for_uv(script: Script, tmp_path: Path):
    script(
        "pip",
        """
        case "$*" in "config list") cat <<'END'
global.index-url='https://me:pw@host/simple'
global.extra-index-url='\\nhttps://a/simple\\nhttps://b/simple'
global.cert='/global.pem'
install.no-binary='thing'
install.pre='true'
install.index-url='https://me:pw@install/simple'
:env:.find-links='/w1 /w2'
:env:.cert='/env.pem'
:env:.no-index='1'
freeze.timeout='1'
END
        esac""",
    )
    log = script("uv", SAYS_PLAN)
    uv = find_installer(Path("/base/python"))
    uv.resolve(Path("/base/python"), parse("local-pkg"), tmp_path / "request.txt")
    told = log.read_text().splitlines()
    assert {line for line in told if "=" in line and " " not in line.partition("=")[0]} >= {
        "UV_DEFAULT_INDEX=https://me:pw@install/simple",
        "UV_INDEX=https://a/simple https://b/simple",
        "UV_INDEX_STRATEGY=unsafe-best-match",
        "UV_FIND_LINKS=/w1,/w2",
        "SSL_CERT_FILE=/env.pem",
    }
    assert "--no-index --prerelease allow --no-binary thing" in log.read_text()
    assert "UV_HTTP_TIMEOUT" not in log.read_text()
    assert "pw" not in str(uv.places)


def test_what_uv_was_told_itself_comes_first(script: Script, monkeypatch: pytest.MonkeyPatch):
    script("uv", "")
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://more/simple")
    monkeypatch.setenv("PIP_KEYRING_PROVIDER", "import")
    uv = find_installer(Path("/base/python"))
    assert isinstance(uv, Uv)
    assert uv.environment["UV_DEFAULT_INDEX"] == "https://pip/simple"
    assert uv.environment["UV_KEYRING_PROVIDER"] == "subprocess"
    monkeypatch.setenv("UV_INDEX_URL", "https://uv/simple")
    monkeypatch.setenv("UV_INDEX_STRATEGY", "first-index")
    assert set(uv.environment) == {"UV_INDEX", "UV_KEYRING_PROVIDER"}
    assert uv.places["UV_INDEX_URL"] == "https://uv/simple"


def test_pip_installs_where_uv_is_not(script: Script, tmp_path: Path):
    script("uv", "exit 127")  # a shim without a version behind it
    log = script(
        "pip",
        """
        while [ $# -gt 0 ]; do [ "$1" = --report ] && cat > "$2" <<'END'
{"install": [
  {"metadata": {"name": "Local_Pkg", "version": "2.0"}, "is_direct": false,
   "download_info": {"url": "https://me:pw@host/l.whl",
                     "archive_info": {"hashes": {"sha256": "aa"}}}},
  {"metadata": {"name": "vcs", "version": "1"}, "is_direct": true,
   "download_info": {"url": "https://me:pw@host/v", "vcs_info": {"vcs": "git", "commit_id": "c0"}}}
]}
END
        shift; done""",
    )
    pip = find_installer(Path("/base/python"))
    assert isinstance(pip, Pip)
    request = parse("local-pkg", "vcs @ git+https://me:pw@host/v")
    pins = pip.resolve(Path("/base/python"), request, tmp_path / "request.txt")
    assert pins == [
        Pin("local-pkg", "2.0", "", "aa"),
        Pin("vcs", "1", "git+https://***@host/v@c0"),
    ]
    assert "--python /base/python --no-input install --quiet --dry-run --upgrade" in log.read_text()
    assert "PIP_USER=0" in log.read_text()
    # The address with its credentials is the one that was asked for.
    assert request.pinned(pins, OPTION).splitlines()[-1] == "vcs @ git+https://me:pw@host/v"
    with pytest.raises(InstallError, match=r"without a name; write vcs @ ADDRESS"):
        parse("git+https://me:pw@host/v").pinned(pins, OPTION)


@pytest.mark.parametrize(
    ("kind", "option"), [("uv", "--exclude-newer"), ("pip", "--uploaded-prior-to")]
)
def test_the_newest_day_is_a_word_of_the_command_and_no_line_of_a_file(
    script: Script, tmp_path: Path, kind: str, option: str
):
    body = {"uv": "", "pip": 'while [ $# -gt 0 ]; do [ "$1" = --report ] && '}
    body["pip"] += """echo '{"install": []}' > "$2"; shift; done"""
    log = script(kind, body[kind])
    request = parse("--exclude-newer 2026-10-01T23:59:59Z local-pkg")
    assert request.text == "local-pkg\n"
    assert request.pinned([Pin("local-pkg", "2.0")], OPTION) == "local-pkg==2.0\n"

    found = find_installer(Path("/base/python"))
    assert found.resolve(Path("/base/python"), request, tmp_path / "request.txt") == []

    assert f"{option} 2026-10-01T23:59:59Z" in log.read_text()


def test_versions_are_sorted_as_versions(script: Script):
    script("pip", "echo 'local-pkg (2.0)'; echo 'Available versions: 2.0, 1.10, 1.2rc1, 1.2'")
    assert installers.versions(Path("/p"), "local-pkg", pre=True) == [
        "1.2rc1",
        "1.2",
        "1.10",
        "2.0",
    ]


def test_a_pip_that_tells_no_versions_is_one_line(script: Script):
    script("pip", "echo nothing")
    with pytest.raises(InstallError, match="index versions` names no versions; update pip"):
        installers.versions(Path("/p"), "local-pkg", pre=False)


def test_without_an_installer_it_says_so(script: Script):
    with pytest.raises(InstallError, match="neither uv nor pip is there"):
        find_installer(Path("/base/python"))


@pytest.mark.parametrize("kind", ["uv", "pip"])
def test_an_installer_that_fails_is_quoted_without_credentials(
    script: Script, tmp_path: Path, kind: str
):
    said = "for i in $(seq 30); do echo line $i; done; echo Using Python 3 in /v >&2; "
    said += "echo 'no https://me:pw@host/simple/x' >&2"
    script(kind, f'case "$*" in *install*) {said}; exit 1;; esac')
    found = find_installer(Path("/base/python"))
    with pytest.raises(InstallError) as caught:
        found.resolve(Path("/base/python"), parse("x"), tmp_path / "request.txt")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{kind} says:"
    assert lines[-2:] == ["  line 30", "  no https://***@host/simple/x"]
    assert len(lines) == 13


def test_an_old_pip_that_writes_no_report_is_one_line(script: Script, tmp_path: Path):
    script("pip", "")
    pip = find_installer(Path("/base/python"))
    with pytest.raises(InstallError, match="wrote no report that can be read; update pip"):
        pip.resolve(Path("/base/python"), parse("x"), tmp_path / "request.txt")


def test_what_is_missing_between_packages_is_read(script: Script):
    line = "The package `a` requires `b>2`, but `1` is installed"
    script("uv", f"case \"$*\" in *check*) echo Checked >&2; echo '{line}' >&2; exit 1; esac")
    script("pip", 'case "$*" in *check*) echo "a 1 requires b"; exit 1; esac')
    assert Uv(("uv",), {}).check(Path("/p")) == {line}
    assert Pip(("pip",)).check(Path("/p")) == {"a 1 requires b"}
    script("pip", "echo No broken requirements found.")
    assert Pip(("pip",)).check(Path("/p")) == set()


@pytest.mark.parametrize(
    "text",
    ["torch ''", "'' torch", "''", "~none/x", "-r ~none/x", "-r " + 300 * "x", "a @ file://[bad"],
)
def test_a_hostile_request_is_refused_in_one_line(text: str):
    with pytest.raises(InstallError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_a_file_that_names_itself_by_another_path_is_refused(tmp_path: Path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "r.txt").write_text("-r ../d/r.txt\n")
    with pytest.raises(InstallError, match="names itself with -r"):
        parse(f"-r {tmp_path}/d/r.txt")


def test_the_quotes_of_a_marker_are_its_own():
    assert parse("kern; python_version>'3.5'").requirements == ("kern; python_version>'3.5'",)


def test_looking_for_pip_leaves_torch_s_compiler_its_distutils(tmp_path: Path):
    """setuptools stands in for distutils, and steps back once anything looks for the module pip."""
    code = (
        "import pathlib, sys; from perfline.environments import installers;"
        "installers.pip_settings(pathlib.Path(sys.argv[1])); import setuptools"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
