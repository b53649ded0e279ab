"""Modules import each other in one direction, and torch only where it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import perfline

SOURCE = Path(perfline.__file__).parent
FILES = [path for path in SOURCE.rglob("*.py") if path.stem != "__init__"]
# Lower may not import higher; a module may import from the layers before its own.
LAYERS = (
    {
        "errors",
        "options",
        "engines.device",
        "engines.compilers",
        "kinds",
        "measure.progress",
        "gates.statistics",
        "tasks.sampling",
    },
    {"compare.sequential", "page.svg"},
    {"ab.cli", "export.cli", "page.cli", "past.cli"},  # parsers; they import their work when called
    {
        "engines.attention",
        "distributed.group",
        "metrics",
        "jsonfile",
        "cases.case",
        "engines.environment",
        "engines.telemetry",
    },
    {"compare.worktree", "distributed.rendezvous"},
    {"tasks.answers", "tasks.stored_answers", "gates.verdict", "cases.data", "compare.wire"},
    {
        "tasks.mmlu",
        "baselines.baseline",
        "gates.performance",
        "gates.accuracy",
        "measure.record",
        "measure.journal",
    },
    {"page.plots", "compare.process", "compare.worker", "baselines.proposal"},
    {"baselines.validity", "compare.rank_processes"},
    {"baselines.accept"},
    {"baselines.suggestions", "baselines.offer"},
    {"baselines.outcome"},
    {
        "engines.engine",
        "tasks.prompt_lengths",
        "engines.prefix_plan",
        "tasks.prompt_cache",
        "report",
        "distributed.work_units",
    },
    {"distributed.replica"},
    {
        "measure.throughput",
        "measure.pass_part",
        "engines.tensor_parallel",
        "engines.torch_engine",
        "report_markdown",
        "compare.model",
    },
    {"compare.fields"},
    {
        "engines.hf",
        "engines.prefix_forward",
        "measure.aggregate_timings",
        "compare.messages",
        "compare.record",
        "compare.sides",
    },
    {"engines.shared_prefix", "measure.parallel_rounds"},
    {"measure.accuracy", "measure.loaded_case"},
    {"measure.accuracy_metrics"},
    {
        "measure.case_run",
        "measure.parallel_accuracy",
        "export.exports",
        "compare.record_file",
        "compare.gates",
        "compare.launch",
        "compare.pairs",
    },
    {"measure.rank_worker"},
    {
        "baselines.judge",
        "compare.serve",
        "compare.run",
        "ab.table",
        "export.lm_eval",
        "export.otava",
    },
    {"line", "doctor", "baselines_text", "ab.text", "past.history"},
    {"page.inputs", "past.trend", "ranks"},
    {"page.accuracy", "page.headline"},
    {"page.charts"},
    {"page.view"},
    {"page.comparison"},
    {"page.markdown", "page.page"},
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
            if node.module.split(".")[0] == "perfline":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module(path: Path) -> str:
    """``ab.pairs`` for ``ab/pairs.py``."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def own(names: set[str]) -> set[str]:
    return {name.removeprefix("perfline.") for name in names if name.startswith("perfline.")}


def test_every_module_has_its_layer():
    modules = {module(path) for path in FILES}
    assert set().union(*LAYERS) == modules


def test_imports_go_down_only():
    level = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{module(path)} -> {name}"
        for path in FILES
        for name in own(imports(path, top_level=True))
        if name in level and level[name] >= level[module(path)]
    ]
    assert wrong == []


def test_only_the_real_engine_imports_torch_at_its_top():
    heavy = {
        module(path)
        for path in FILES
        if {name.split(".")[0] for name in imports(path, top_level=True)} & HEAVY
    }
    engine = {
        "engines.hf",
        "engines.torch_engine",
        "engines.prefix_forward",
        "engines.shared_prefix",
    }
    assert heavy == {"engines.attention", "engines.tensor_parallel"} | engine


def test_only_cli_writes_baselines():
    writers = {
        module(path)
        for path in FILES
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
