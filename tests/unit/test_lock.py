"""Does constraints.txt pin what pyproject.toml asks for today, and nothing that a machine adds?"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "lock.py"


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def pins() -> list[str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def names(pinned: list[str]) -> set[str]:
    return {line.partition("==")[0] for line in pinned}


def test_it_is_of_the_requirements_of_today(lock: ModuleType):
    told = re.search(r"(?m)^# Requirements: (\S+)$", (REPOSITORY / "constraints.txt").read_text())
    assert told is not None, "constraints.txt: its head has no digest; run `make lock`"
    assert told[1] == lock.digest(project()), (
        "constraints.txt was made for other requirements than pyproject.toml has: run `make lock`"
    )


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("project", "requires-python", ">=3.12"),
        ("project", "dependencies", ["torch>=2.10,<3"]),
        ("project", "optional-dependencies", {"report": ["jinja2>=3.2"]}),
        ("build-system", "requires", ["setuptools"]),
    ],
)
def test_any_other_requirement_has_another_digest(lock: ModuleType, table, key, value):
    changed = project()
    changed[table][key] = value
    assert lock.digest(changed) != lock.digest(project())


def test_order_and_blanks_of_requirements_do_not_count(lock: ModuleType):
    changed = project()
    given = [
        text.replace(">=", " >= ").replace(";", " ;")
        for text in project()["project"]["dependencies"]
    ]
    changed["project"]["dependencies"] = given[::-1]
    changed["project"]["description"] = "another"
    assert lock.digest(changed) == lock.digest(project())


def test_a_blank_between_words_of_a_marker_counts(lock: ModuleType):
    assert lock.canonical(["a; x in 'b'"]) == ["a;x in'b'"]


@pytest.mark.parametrize("name", ["PyYAML", "nvidia-ml-py", "a.B__c-_.d", "lm_eval"])
def test_a_package_is_named_as_packaging_names_it(lock: ModuleType, name: str):
    """The script has the standard library alone, whose rule for names is ours to write."""
    for rest in ("", "[hf]==1.0", " >=2; python_version < '3.12'"):
        assert lock.name_of(name + rest) == canonicalize_name(name)


def test_every_line_is_one_version_of_the_index(lock: ModuleType):
    line = r"[a-z0-9.-]+==[\w.!]+( ; [^#@:]+)?"  # no address, no file, no local version
    assert [text for text in pins() if not re.fullmatch(line, text)] == []


def test_all_that_make_setup_installs_is_pinned(lock: ModuleType):
    table = project()["project"]
    asked = [*table["dependencies"], *project()["build-system"]["requires"]]
    asked += [text for extra in lock.EXTRAS for text in table["optional-dependencies"][extra]]
    asked += [
        text for extra in ("report", "parallel") for text in table["optional-dependencies"][extra]
    ]
    wanted = {re.split(r"[<>=~;\[ ]", text)[0].lower() for text in asked} - {"perfline"}
    assert wanted - names(pins()) == set()
    installs = (REPOSITORY / "Makefile").read_text()
    assert set(re.findall(r"(?m)EXTRAS \?= (\w+)$", installs)) <= set(lock.EXTRAS)
    for text in [installs, *(p.read_text() for p in (REPOSITORY / ".github/workflows").iterdir())]:
        for given in re.findall(r"EXTRAS[=:] ?([\w,]+)", text):
            assert set(given.split(",")) <= {*lock.EXTRAS, "report", "parallel"}


FAKE = """#!{python}
import pathlib, sys
words, here = sys.argv[1:], pathlib.Path(__file__).parent
(here / "asked").write_text("\\n".join([*words, sys.stdin.read()]))
output = pathlib.Path(words[words.index("--output-file") + 1])
(here / "offered").write_text(output.read_text())
held = pathlib.Path(words[words.index("--constraints") + 1])
(here / "held").write_text(held.read_text())
output.write_text((here / "pins").read_text())
sys.exit(int((here / "status").read_text()))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A pyproject.toml, a constraints.txt and a uv that answers with the file ``pins``."""
    (tmp_path / "pyproject.toml").write_text((REPOSITORY / "pyproject.toml").read_text())
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    (tmp_path / "uv").write_text(FAKE.format(python=sys.executable))
    (tmp_path / "uv").chmod(0o755)
    (tmp_path / "pins").write_text("torch==2.13.0\ncolorama==0.4.6 ; sys_platform == 'win32'\n")
    (tmp_path / "status").write_text("0")
    return tmp_path


def made(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, "--uv", folder / "uv", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_pins_that_are_there_are_offered_to_uv_and_what_it_says_is_written(
    checkout: Path, lock: ModuleType
):
    done = made(checkout)
    assert (done.returncode, done.stderr) == (0, "")
    assert (checkout / "offered").read_text() == "torch==2.13.0"
    assert (checkout / "held").read_text() == ""
    digest = lock.digest(project())
    text = (checkout / "constraints.txt").read_text()
    assert text == lock.HEAD.format(digest=digest) + (checkout / "pins").read_text()
    asked = (checkout / "asked").read_text().splitlines()
    assert asked[asked.index("--python-version") + 1] == "3.11"
    assert [asked[i + 1] for i, word in enumerate(asked) if word == "--extra"] == list(lock.EXTRAS)
    assert "--no-emit-index-url" in asked
    assert {"hatchling>=1.25", "editables"} <= set(asked)


FORKED = """\
# Made by `make lock`
numpy==2.4.6
torch==2.13.0 ; python_full_version < '3.15'
torch==2.15.0 ; python_full_version >= '3.15'
triton==3.7.1 ; python_full_version < '3.15'
triton==3.9.0 ; python_full_version >= '3.15'
"""


def test_pins_of_several_pythons_stay_apart_and_what_follows_from_them_is_free(checkout: Path):
    (checkout / "constraints.txt").write_text(FORKED)
    assert made(checkout).returncode == 0
    assert (checkout / "offered").read_text() == FORKED.rstrip()
    assert (checkout / "held").read_text().splitlines() == FORKED.splitlines()[2:4]


def test_one_package_or_all_of_them_are_upgraded(checkout: Path):
    (checkout / "constraints.txt").write_text(FORKED)
    assert made(checkout, "--upgrade-package", "torch").returncode == 0
    assert "torch" not in (checkout / "offered").read_text() + (checkout / "held").read_text()
    assert "numpy==2.4.6" in (checkout / "offered").read_text()
    (checkout / "constraints.txt").write_text(FORKED)
    assert made(checkout, "--upgrade").returncode == 0
    assert (checkout / "offered").read_text() + (checkout / "held").read_text() == ""


@pytest.mark.parametrize("spelling", ["ruamel.yaml", "Ruamel_YAML", "ruamel-yaml"])
def test_a_package_to_upgrade_may_be_spelled_in_any_way(checkout: Path, spelling: str):
    (checkout / "constraints.txt").write_text("ruamel-yaml==0.18\ntorch==2.13.0\n")
    assert made(checkout, "--upgrade-package", spelling).returncode == 0
    assert (checkout / "offered").read_text() == "torch==2.13.0"


def test_a_package_that_is_not_pinned_is_no_upgrade(checkout: Path):
    done = made(checkout, "--upgrade-package", "torhc", "--upgrade-package", "torch")
    assert (done.returncode, done.stderr) == (2, "lock: error: constraints.txt pins no torhc\n")
    assert (checkout / "constraints.txt").read_text() == "torch==2.13.0\n"
    assert not (checkout / "asked").exists()


def test_the_lines_that_an_upgrade_changes_are_told(checkout: Path):
    (checkout / "pins").write_text("numpy==2.5.0\ntorch==2.13.0\n")
    assert made(checkout, "--upgrade", "--changed", "results/changed.txt").returncode == 0
    assert (checkout / "results/changed.txt").read_text() == "numpy==2.5.0\n"
    assert made(checkout, "--upgrade", "--changed", "results/changed.txt").returncode == 0
    assert (checkout / "results/changed.txt").read_text() == ""


@pytest.mark.parametrize(
    ("pins", "status", "said"),
    [
        ("torch==2.13.0+cpu\n", "0", "'torch==2.13.0+cpu': expected NAME==VERSION"),
        ("torch @ https://example.org/torch.whl\n", "0", "no address"),
        ("", "1", "`uv pip compile` ended with 1"),
    ],
)
def test_what_is_no_lock_leaves_the_old_one(checkout: Path, pins: str, status: str, said: str):
    (checkout / "pins").write_text(pins)
    (checkout / "status").write_text(status)
    done = made(checkout)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
    assert (checkout / "constraints.txt").read_text() == "torch==2.13.0\n"


def test_without_uv_one_line_says_so(checkout: Path):
    (checkout / "uv").unlink()
    done = made(checkout)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No such file or directory" in done.stderr
