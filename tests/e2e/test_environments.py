"""uv and pip themselves make an environment of this one, with no network: wheels made by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from perfline.compare.model import Side
from perfline.environments import making
from perfline.environments.installers import Pip, Uv, find_installer
from perfline.environments.making import make
from perfline.errors import InstallError
from perfline.search.candidates import days
from wheels import interpreter, site, told, wheel

OPTION = "--candidate-install"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with pip, local-pkg 1.0, and what needs it to be older than 2."""
    folder = tmp_path_factory.mktemp("base")
    python = interpreter(
        folder / "venv",
        wheel(folder, "local-pkg", "1.0"),
        wheel(folder, "careful", "1", requires=["local-pkg<2"]),
    )
    subprocess.run([python, "-m", "ensurepip"], check=True, capture_output=True)
    return python


@pytest.fixture(params=["uv", "pip"])
def installer(
    request: pytest.FixtureRequest,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Each of them, told by pip's settings alone where packages are."""
    monkeypatch.setenv("PATH", f"{sys.prefix}-uv/bin", prepend=os.pathsep)  # `make setup`'s own
    if request.param == "uv" and not isinstance(find_installer(base), Uv):
        pytest.skip("no uv here")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if request.param == "pip":
        pip = Pip((str(base), "-m", "pip"))
        monkeypatch.setattr(making, "find_installer", lambda base: pip)
    for version in ("1.0", "1.5", "2.0", "3.0rc1"):
        wheel(tmp_path / "wheels", "local-pkg", version, scripts=["local-pkg"])
    return str(request.param)


def test_an_upgrade_and_the_same_again(base: Path, installer: str):
    lines: list[str] = []
    made = make(base, ["local-pkg"], OPTION, lines.append)
    assert made.changes == ("local-pkg 1.0 -> 2.0",)
    assert f": {installer} installs 1 anew" in lines[0]
    code = "import local_pkg, importlib.metadata as m; print(local_pkg.version, m.version(%r))"
    assert told(made.python, code % "local-pkg") == "2.0 2.0"
    assert told(base, code % "local-pkg") == "1.0 1.0"
    done = subprocess.run(
        [made.python.with_name("local-pkg")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "2.0\n"
    (problem,) = made.problems
    assert "careful" in problem
    assert lines[-1] == f"{OPTION}: notice: {problem}"

    again: list[str] = []
    assert make(base, ["local-pkg==2.0"], OPTION, again.append) == made
    assert "nothing to install, kept in" in again[0]


@pytest.mark.parametrize(
    ("request_", "version"),
    [
        ("--pre local-pkg", "3.0rc1"),
        ("-r new.txt", "1.5"),
        ("wheels/local_pkg-2.0-py3-none-any.whl", "2.0"),
    ],
)
def test_all_forms_of_a_request(
    base: Path,
    installer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request_: str,
    version: str,
):
    monkeypatch.chdir(tmp_path)
    Path("new.txt").write_text("-c most.txt\nlocal-pkg >= 1.1  # newer\n")
    Path("most.txt").write_text("local-pkg<2\n")
    made = make(base, [request_], OPTION)
    assert told(made.python, "import local_pkg; print(local_pkg.version)") == version


def test_what_is_there_already(base: Path, installer: str):
    assert make(base, ["local-pkg==1.0"], OPTION).python == base


def test_what_cannot_be_had(base: Path, installer: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "https://me:hunter2@127.0.0.1:9/links")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(InstallError) as caught:
        make(base, ["local-pkg==99"], OPTION)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{OPTION} 'local-pkg==99' cannot be installed; {installer} says:"
    assert len(lines) > 1
    assert "hunter2" not in str(caught.value)


def test_this_very_environment_with_its_torch(
    installer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All of it is there again, torch's libraries in the right place, at no cost."""
    if installer == "pip":
        pytest.skip("once is enough")
    here = Path(sys.executable)
    made = make(here, ["local-pkg"], OPTION)
    assert made.changes == ("local-pkg none -> 2.0",)
    code = "import torch, perfline, local_pkg; print(torch.__version__); print(torch._C.__file__)"
    version, library = told(made.python, code).splitlines()
    assert version == told(here, "import importlib.metadata as m; print(m.version('torch'))")
    assert Path(library).is_relative_to(site(made.python))
    shutil.rmtree(tmp_path / "cache")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """A package index that tells when a file was uploaded (PEP 700); its address."""
    days = {"1.0": "2026-10-01", "1.5": "2026-10-10", "2.0": "2026-10-20", "3.0rc1": "2026-10-30"}

    class Index(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.rstrip("/") != "/simple/local-pkg":
                return super().do_GET()
            names = {version: f"local_pkg-{version}-py3-none-any.whl" for version in days}
            files = [
                {
                    "filename": name,
                    "url": f"/wheels/{name}",
                    "hashes": {},
                    "size": (tmp_path / "wheels" / name).stat().st_size,
                    "upload-time": f"{days[version]}T12:00:00Z",
                }
                for version, name in names.items()
            ]
            told = {"meta": {"api-version": "1.1"}, "name": "local-pkg", "versions": [*days]}
            page = json.dumps({**told, "files": files}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/vnd.pypi.simple.v1+json")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
            return None

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()


def test_days_go_back_to_what_the_index_had_then(
    installer: str, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if installer == "pip":
        pytest.skip("days need uv")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", index)
    newest = wheel(tmp_path / "wheels", "local-pkg", "2.0")
    python = interpreter(tmp_path / "newer", newest)

    found = days(python, ("2026-10-05", "2026-10-21"), partial(Side, python=python), print)

    code = "import local_pkg; print(local_pkg.version)"
    for candidate, version in ((found[0], "1.0"), (found[5], "1.5"), (found[-1], "2.0")):
        side = candidate.environment.side("candidate")
        assert told(side.python, code) == version, candidate.name
