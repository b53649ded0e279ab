"""perfline holds the line on LLM inference: accuracy and throughput against baselines.

These names are all that code outside of perfline may rest on; ``docs/extending.md`` shows what they
are for. Each is imported when it is first asked for: ``import perfline`` by itself costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perfline.baselines.baseline import Baseline
    from perfline.baselines.baseline import load as load_baseline
    from perfline.cases.case import Case, load_case
    from perfline.engines.engine import Engine
    from perfline.errors import (
        BaselineError,
        CaseError,
        DataError,
        DeviceMemory,
        EngineError,
        InstallError,
        MetricError,
        MissingData,
        MissingRanks,
        NoDecode,
        NoFidelity,
        NoSharedPrefixes,
        PerflineError,
        RankError,
        RecordError,
        ReplicaLost,
        SearchError,
        WorkerError,
    )
    from perfline.gates.verdict import Verdict
    from perfline.measure.record import Record
    from perfline.measure.record import load as load_record
    from perfline.metrics import Metric
    from perfline.tasks.answers import Answers
    from perfline.tasks.prompts import Prompt, Question

__version__ = "0.1.0"

__all__ = [
    "Answers",
    "Baseline",
    "BaselineError",
    "Case",
    "CaseError",
    "DataError",
    "DeviceMemory",
    "Engine",
    "EngineError",
    "InstallError",
    "Metric",
    "MetricError",
    "MissingData",
    "MissingRanks",
    "NoDecode",
    "NoFidelity",
    "NoSharedPrefixes",
    "PerflineError",
    "Prompt",
    "Question",
    "RankError",
    "Record",
    "RecordError",
    "ReplicaLost",
    "SearchError",
    "Verdict",
    "WorkerError",
    "__version__",
    "load_baseline",
    "load_case",
    "load_record",
]

_PLACES = {
    "Answers": "tasks.answers",
    "Baseline": "baselines.baseline",
    "Case": "cases.case",
    "Engine": "engines.engine",
    "Metric": "metrics",
    "Prompt": "tasks.prompts",
    "Question": "tasks.prompts",
    "Record": "measure.record",
    "Verdict": "gates.verdict",
    "load_baseline": "baselines.baseline:load",
    "load_case": "cases.case",
    "load_record": "measure.record:load",
}  # all others: errors


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'perfline' has no attribute '{name}'")
    module, _, there = _PLACES.get(name, "errors").partition(":")
    found = getattr(importlib.import_module(f"perfline.{module}"), there or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
