"""Rooms import from the rooms before them, and torch only where a model runs."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import perfline

SOURCE = Path(perfline.__file__).parent
ROOMS = (
    *("cases", "tasks", "distributed", "engines", "gates", "measure", "baselines", "environments"),
    *("compare", "search", "report", "plugin", "cli"),
)
MODULES = {
    path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", "."): path
    for path in SOURCE.rglob("*.py")
    if path.stem != "__init__" and path.parent.name != "suite"  # tests of users: no room's
}
HEAVY = {"torch", "transformers", "pandas", "scipy"}
# Files; twelve anywhere else. ``explain`` is a plan beside ``run``, ``profile`` beside
# ``fingerprint``: what a forward runs is counted without noise, how long that takes is not.
LARGEST = {"report": 15, "compare": 14, "engines": 16}


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Names of all modules that a file imports: all of them, or those in no function."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def edges() -> set[tuple[str, str]]:
    """(module, what it imports) within perfline."""
    return {
        (module, name.removeprefix("perfline."))
        for module, path in MODULES.items()
        for name in imports(path)
        if name.removeprefix("perfline.") in MODULES
    }


def room(module: str) -> str:
    return module.partition(".")[0] if "." in module or module == "__main__" else ""


def test_the_tree_is_the_rooms_and_no_room_is_full():
    files = defaultdict(set)
    for module in MODULES:
        files[room(module)].add(module)
    assert set(files) == {"", *ROOMS, "__main__"}
    assert len(files[""]) <= 5
    assert [name for name in ROOMS if len(files[name]) > LARGEST.get(name, 12)] == []


def test_rooms_import_from_the_rooms_before_them():
    place = {name: number for number, name in enumerate(("", *ROOMS, "__main__"))}
    assert {pair for pair in edges() if place[room(pair[0])] < place[room(pair[1])]} == set()


def test_no_circle_in_a_room():
    graph = defaultdict(set)
    for module, name in edges() - {("engines.torch_engine", "engines.hf")}:  # for a type only
        graph[module].add(name)
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_rooms_take_from_each_other_what_is_offered():
    offered = {
        f"{name}.{module}"
        for name in ROOMS
        for module in importlib.import_module(f"perfline.{name}").__all__
    }
    assert offered <= set(MODULES)
    taken = {name for module, name in edges() if room(name) and room(module) != room(name)}
    assert taken - offered == set()


def test_torch_is_imported_at_the_top_of_engines_only():
    heavy = {
        module
        for module, path in MODULES.items()
        if {name.split(".")[0] for name in imports(path, top_level=True)} & HEAVY
    }
    real = (
        "decode",
        "fingerprint",
        "full_precision",
        "hf",
        "prefix_forward",
        "profile",
        "shared_prefix",
        "tensor_parallel",
    )
    assert heavy == {f"engines.{name}" for name in (*real, "torch_engine", "upstream")}


def test_only_the_command_writes_baselines():
    saves = ("baseline.save(", "baselines.save(")
    writers = {m for m, path in MODULES.items() if any(s in path.read_text() for s in saves)}
    assert writers == {"cli.baselines"}


def test_help_and_the_plugin_import_nothing_heavy():
    code = (
        "import sys, perfline.plugin.hooks, perfline.cli.main\n"
        "try:\n    perfline.cli.main.main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_source_tree_names_the_plugin_as_the_package_does():
    root = SOURCE.parents[1]
    plugin = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]
    script = (root / "benchmarks" / "gpu_session.sh").read_text()
    assert f"-p {plugin['pytest11']['perfline']})" in script
