"""Which operator of which module takes how long inside a forward?

Forwards run under torch's profiler with a range around every module's call, so that the call tree
says which module launched what. An operator is the topmost one: what the model's code called, with
all that it calls in turn, or a kernel that inductor made. On a CPU its seconds are the CPU's, and
what a module spends between its operators is its ``Python``; on an accelerator they are the
device's. Inside of what is compiled as a whole there are no modules: its kernels and operators
belong to the module that was compiled.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn, profiler

from perfline.engines.engine import Profile, Span
from perfline.engines.upstream import is_guard_check, kernel_name

PYTHON = "Python"
REPEATS = 2  # of a prompt in a round
_FORWARD, _MODULE = "perfline forward ", "perfline module "  # ranges of ours
_profiler: Any = profiler
Key = tuple[str, str]  # module, operator


class Profiler:
    """Profiles forwards of one model.

    Attributes:
        stack: the module that holds the decoder layers; paths below it leave it out.
        compiled: the modules whose forward is compiled; those within them are not seen.
    """

    def __init__(self, model: nn.Module, stack: nn.Module, compiled: Collection[nn.Module]) -> None:
        """Nothing is hooked yet."""
        within = {inner for module in compiled for inner in module.modules()} - {*compiled}
        names = {module: name for name, module in model.named_modules()}
        above = f"{names[stack]}." if names.get(stack) else ""
        self._names = {
            module: name.removeprefix(above)
            for module, name in names.items()
            if module not in within
        }

    def round(
        self,
        forwards: Sequence[Callable[[], object]],
        tokens: int,
        on_device: bool,
        trace: Path | None = None,
    ) -> Callable[[], Profile]:
        """Run ``forwards``, of ``tokens`` in all, ``REPEATS`` times; each waits for the device.

        The first is run once more before them: the profiler's own start is not measured. Events are
        read when the profile is asked for: that takes several times as long as the round, and the
        other side's round is to follow at once.
        """
        walls: list[float] = []
        record: Any = _profiler.record_function
        with (
            self._ranges(),
            _profiler.profile(activities=_profiler.supported_activities()) as found,
        ):
            forwards[0]()
            for number, forward in enumerate([*forwards] * REPEATS):
                with record(f"{_FORWARD}{number}"):
                    start = time.perf_counter()
                    forward()
                    walls.append(time.perf_counter() - start)
        if trace is not None:
            found.export_chrome_trace(str(trace))
        return lambda: told(found.events(), walls, len(forwards), tokens, on_device)

    @contextmanager
    def _ranges(self) -> Iterator[None]:
        """A range of the profiler around the call of every module."""
        open_ranges: list[Any] = []
        record: Any = _profiler.record_function

        def enter(module: nn.Module, _: object) -> None:
            made = record(f"{_MODULE}{self._names[module]}")
            made.__enter__()
            open_ranges.append(made)

        def leave(*_: object) -> None:
            open_ranges.pop().__exit__(None, None, None)

        hooks = []
        for module in self._names:  # around the hooks of others
            hooks.append(module.register_forward_pre_hook(enter, prepend=True))
            hooks.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def told(
    events: Sequence[Any], walls: Sequence[float], prompts: int, tokens: int, on_device: bool
) -> Profile:
    """What the profiler's ``events`` (``FunctionEvent``) say of the forwards among them.

    ``walls`` are the seconds of each by the clock, of every prompt in turn. Of the repeats of one
    prompt the least counts, for every operator and for what none accounts for: nothing makes a
    forward faster than it is, and much else that runs on a machine makes it slower. Calls are those
    of all forwards.
    """
    trees: list[_Tree] = []
    for event in events:
        if event.name.startswith(_FORWARD) and event.device_type.name == "CPU":
            trees.append(_Tree())
            (trees[-1].of_device if on_device else trees[-1].of_host)(event, "")
    calls: Counter[Key] = Counter()
    kernels: defaultdict[Key, Counter[str]] = defaultdict(Counter)
    for tree in trees:
        calls.update(tree.calls)
        for key, parts in tree.kernels.items():
            kernels[key].update(parts)

    def least(each: Sequence[float]) -> float:
        return sum(min(each[prompt::prompts]) for prompt in range(prompts))

    spans = tuple(
        Span(
            *key,
            least([tree.us[key] for tree in trees]) / 1e6,
            calls[key],
            _most(key[1], kernels[key]),
        )
        for key in calls
    )
    gaps = [wall - sum(tree.us.values()) / 1e6 for wall, tree in zip(walls, trees, strict=True)]
    return Profile(tokens, sum(span.seconds for span in spans) + least(gaps), on_device, spans)


class _Tree:
    """One forward's call tree, summed by module and operator."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self.us: Counter[Key] = Counter()
        self.calls: Counter[Key] = Counter()
        self.kernels: defaultdict[Key, Counter[str]] = defaultdict(Counter)

    def of_host(self, event: Any, module: str) -> float:
        """Count what ``event`` holds; the microseconds of its operators and modules."""
        inside = 0.0
        for child in event.cpu_children:
            took = float(child.time_range.elapsed_us())
            if child.name.startswith(_MODULE):
                own = child.name.removeprefix(_MODULE)
                self._add(own, PYTHON, max(0.0, took - self.of_host(child, own)), Counter())
            elif operator := _operator(child.name):
                self._add(module, operator, took, _own_us(child))
            else:
                took = self.of_host(child, module)
            inside += took
        return inside

    def of_device(self, event: Any, module: str, operator: str = "") -> None:
        """Count the kernels that ``event``, and all that it calls, launched."""
        if event.name.startswith(_MODULE):
            module, operator = event.name.removeprefix(_MODULE), ""
        operator = operator or _operator(event.name)
        for kernel in event.kernels:
            if not kernel.name.startswith((_MODULE, _FORWARD)):
                name, us = kernel_name(kernel.name) or kernel.name, float(kernel.duration)
                self._add(module, operator or name, us, Counter({name: us}))
        for child in event.cpu_children:
            self.of_device(child, module, operator)

    def _add(self, module: str, operator: str, us: float, parts: Counter[str]) -> None:
        key = (module, operator)
        self.us[key] += us  # type: ignore[assignment]
        self.calls[key] += 1
        self.kernels[key].update(parts)


def _operator(event: str) -> str:
    """The operator that an event's name is; empty for a range of anything else."""
    if "::" in event:
        return event
    return event if is_guard_check(event) else kernel_name(event)


def _own_us(event: Any) -> Counter[str]:
    """Microseconds by name of an event and all that it calls, each without what that calls."""
    found: Counter[str] = Counter()
    waiting = [event]
    while waiting:
        now = waiting.pop()
        waiting += now.cpu_children
        inside = sum(child.time_range.elapsed_us() for child in now.cpu_children)
        found[now.name] += now.time_range.elapsed_us() - inside
    return found


def _most(operator: str, parts: Counter[str]) -> str:
    """What took most of an operator; empty where that is itself."""
    name = max(parts, key=lambda part: parts[part], default="")
    name = kernel_name(name) or name
    return "" if name == operator else name
