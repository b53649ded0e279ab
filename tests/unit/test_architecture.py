"""Modules import each other in one direction, and torch only where it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import perfline

SOURCE = Path(perfline.__file__).parent
# Lower may not import higher; a module may import from the layers before its own.
LAYERS = (
    {"errors"},
    {"metrics", "statistics", "jsonfile", "device", "case", "progress", "tiers"},
    {"environment", "telemetry", "answers", "stored", "verdict"},
    {"mmlu", "baseline", "data", "gates", "accuracy_gates"},
    {"engine", "lengths", "prefix", "journal", "prompt_cache"},
    {"throughput", "torch_engine", "record", "ab"},
    {"hf", "prefix_forward"},
    {"shared_prefix"},
    {"accuracy"},
    {"bench", "report", "accept"},
    {"judge"},
    {"line", "doctor", "baselines_text"},
    {"baselines_cli", "prompt_cli", "plugin"},
    {"cli"},
)
HEAVY = {"torch", "transformers", "pandas", "scipy"}


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Names of all modules that a file imports, for types only left out."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "perfline":
                found |= {f"perfline.{alias.name}" for alias in node.names}
    return found


def own(names: set[str]) -> set[str]:
    return {name.removeprefix("perfline.") for name in names if name.startswith("perfline.")}


def test_every_module_has_its_layer():
    modules = {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}
    assert set().union(*LAYERS) == modules


def test_imports_go_down_only():
    level = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{path.stem} -> {name}"
        for path in SOURCE.glob("*.py")
        if path.stem != "__init__"
        for name in own(imports(path, top_level=True))
        if name in level and level[name] >= level[path.stem]
    ]
    assert wrong == []


def test_only_the_real_engine_imports_torch_at_its_top():
    heavy = {
        path.stem
        for path in SOURCE.glob("*.py")
        if {name.split(".")[0] for name in imports(path, top_level=True)} & HEAVY
    }
    assert heavy == {"hf", "torch_engine", "prefix_forward", "shared_prefix"}


def test_only_cli_writes_baselines():
    writers = {
        path.stem
        for path in SOURCE.glob("*.py")
        if "baseline.save(" in path.read_text() or "baselines.save(" in path.read_text()
    }
    assert writers == {"baselines_cli"}


def test_help_and_the_plugin_import_nothing_heavy():
    code = (
        "import sys, perfline.plugin, perfline.cli\n"
        "try:\n    perfline.cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
