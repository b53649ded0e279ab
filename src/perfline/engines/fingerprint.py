"""What runs inside a forward? Counts that have no noise: two runs of one stack give the same.

One prompt is run once more, or generated behind, after everything that is timed: under torch's
profiler, which sees the operators and kernels of eager and compiled code alike, and for the eager
engine under ``FlopCounterMode``. That is a TorchDispatchMode, under which compiled layers would run
eagerly: the FLOPs by module are eager's, and called so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib import metadata
from typing import Any

from torch import nn, profiler
from torch.utils.flop_counter import FlopCounterMode

from perfline.engines.engine import CompileCounts, EngineName, Fingerprint, Ints
from perfline.engines.upstream import is_compiled_region
from perfline.tasks.reference import prompt_digest

_profiler: Any = profiler
_LONGEST = 100  # characters of a kernel's name
_DEPTH = 3  # ``layers.2.mlp``: modules below are within it


def of_run(
    name: EngineName,
    model: nn.Module,
    device: str,
    run: Callable[[], object],
    ids: Ints,
    compiled: tuple[CompileCounts, CompileCounts],
    sample_tokens: int,
) -> Fingerprint:
    """Call ``run``, forwards of the engine ``name`` from the prompt ``ids`` on, and say what ran.

    ``ids`` are (tokens,). ``device`` is the kind that it should run on, such as ``cuda``;
    ``compiled``: what the first forward compiled, and what the warm-up did after it;
    ``sample_tokens``: of all prompts that are timed.
    """
    operators: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    eager_ops = 0
    with _profiler.profile(activities=_profiler.supported_activities()) as found:
        run()
    for event in found.events():
        if event.device_type.name != "CPU":
            kernels[event.name[:_LONGEST]] += 1
        elif "::" in event.name:
            operators[event.name] += 1
            eager_ops += not _compiled(event)
    weights: Counter[str] = Counter()
    elsewhere = 0
    for tensor in (*model.parameters(), *model.buffers()):
        kind, dtype = tensor.device.type, str(tensor.dtype).removeprefix("torch.")
        weights[f"{kind} {dtype}"] += tensor.numel()
        elsewhere += 0 if kind == device else tensor.numel()
    counts: dict[str, float] = {"prompt_tokens": sample_tokens, "weights_elsewhere": elsewhere}
    if name != "eager":
        first, later = compiled
        both = first + later
        counts |= {
            "eager_ops": eager_ops,
            "graphs": first.graphs,
            "graph_breaks": both.graph_breaks,
            "recompiles": later.graphs,
        }
        kernels.update(generated=both.kernels, nodes=both.nodes)
    versions = (f"{package} {metadata.version(package)}" for package in ("torch", "transformers"))
    return Fingerprint(
        prompt=prompt_digest(ids),
        software=", ".join(versions),
        counts=counts,
        operators=dict(sorted(operators.items())),
        kernels=dict(sorted(kernels.items())),
        flops=_flops(run) if name == "eager" else {},
        weights=dict(sorted(weights.items())),
    )


def _compiled(event: Any) -> bool:
    """Whether it is within what torch.compile made."""
    while event is not None and not is_compiled_region(event.name):
        event = event.cpu_parent
    return event is not None


def _flops(run: Callable[[], object]) -> dict[str, float]:
    """FLOPs by module; matrix products and attention alone are counted."""
    with FlopCounterMode(display=False) as counter:
        run()
    found: dict[str, float] = {}
    for name, by_operator in counter.get_flop_counts().items():
        _, layers, within = name.rpartition("layers.")
        place = f"{layers}{within}" if layers else "all" if name == "Global" else ""
        if place and place.count(".") < _DEPTH:
            found[place] = sum(by_operator.values())
    return found
