"""How does a class of somebody's own become an engine that is measured like ours?

It is named ``module:Class`` in ``--engines``, in a case's key ``engines`` or in ``perfline compare
--engine``. What such a class must have, and what it may have, says ``engine.Engine``; what it can
do is asked here and nowhere else.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from perfline.cases.case import Case, EngineName, engine_name
from perfline.engines.device import Device
from perfline.engines.engine import CompileCounts, Engine, Head
from perfline.errors import EngineError
from perfline.tasks.answers import full_vocab_letter
from perfline.tasks.mmlu import Prompt

_NEEDED = ("forward", "answer")
_OPTIONAL = (
    *("begin", "prepare", "synchronize", "letter_logits", "compiled_graphs", "flops"),
    *("reset_peak_memory", "peak_memory_gib", "close"),
)
_PAGE = "docs/extending.md shows one"


class OwnEngine:
    """``engine.MeasuredEngine`` over somebody's engine."""

    def __init__(self, engine: Engine, named: str, device: Device) -> None:
        """Wrap ``engine``, which ``named`` (``module:Class``) has made."""
        self.name = engine_name(named)
        self._named = named
        self._device = device
        self._engine = engine
        self._can: dict[str, Any] = {
            name: getattr(engine, name) for name in _OPTIONAL if hasattr(engine, name)
        }

    def begin(self, prompts: Sequence[Prompt], head: Head) -> None:
        """Say which pass begins."""
        if "begin" in self._can:
            self._can["begin"](prompts, head)

    def prepare(self, prompt: Prompt) -> Any:
        """What its ``forward`` takes: the prompt itself, unless it prepares it."""
        return self._can["prepare"](prompt) if "prepare" in self._can else prompt

    def forward(self, batch: Any, head: Head) -> Any:
        """Its forward."""
        return self._engine.forward(batch, head)

    def synchronize(self) -> None:
        """Wait for what it has queued, on torch's device unless it says how."""
        self._can.get("synchronize", self._device.synchronize)()

    def read(self, logits: Any) -> tuple[Sequence[float] | None, int, str]:
        """Its answer as a letter, by the one rule that scores them all."""
        text = self._engine.answer(logits)
        if not isinstance(text, str):
            self._wrong("answer", text, "text such as ' B'")
        return self._letter_logits(logits), -1, full_vocab_letter(text)

    def forget_compiled(self) -> None:
        """What it compiles is its own affair."""

    def not_compiled(self) -> str:
        """It says how many graphs it compiled; that there should be any, nobody knows."""
        return ""

    def compile_counts(self) -> CompileCounts:
        """The graphs that it says it has compiled."""
        graphs = self._can["compiled_graphs"]() if "compiled_graphs" in self._can else 0
        if not isinstance(graphs, int):
            self._wrong("compiled_graphs", graphs, "a whole number")
        return CompileCounts(graphs=graphs)

    def fingerprint(self, *_: object) -> None:
        """What runs inside it, nobody knows."""

    def flops(self, tokens: int, head: Head) -> float | None:
        """FLOPs of a forward; None where it does not tell."""
        return self._number("flops", tokens, head)

    def reset_peak_memory(self) -> None:
        """Start a new peak, where it counts one."""
        if "reset_peak_memory" in self._can:
            self._can["reset_peak_memory"]()

    def peak_memory_gib(self) -> float | None:
        """Its peak memory in GiB; None where it does not count it."""
        return self._number("peak_memory_gib")

    def close(self) -> None:
        """Have it free its model."""
        if "close" in self._can:
            self._can["close"]()

    def _letter_logits(self, output: Any) -> list[float] | None:
        if "letter_logits" not in self._can:
            return None
        found = self._can["letter_logits"](output)
        try:
            numbers = [float(logit) for logit in found]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) != 4:
            self._wrong("letter_logits", found, "4 numbers, of A, B, C and D")
        return numbers

    def _number(self, method: str, *arguments: object) -> float | None:
        found = self._can[method](*arguments) if method in self._can else None
        if found is not None and not (isinstance(found, int | float) and found >= 0):
            self._wrong(method, found, "a number of at least 0, or None")
        return found

    def _wrong(self, method: str, found: object, expected: str) -> None:
        shown = " ".join(repr(found).split())[:60]
        raise EngineError(f"{self._named}: {method}() gave {shown}; expected {expected}")


class OwnEngines:
    """The engines of the user's own that a case names, each made when it is first asked for.

    Attributes:
        load_s: seconds that it took to make each, by name.
    """

    def __init__(self, case: Case) -> None:
        """Import their classes; EngineError, one line, for what is wrong with one of them."""
        named = [engine for engine in case.engines if ":" in engine]
        self._case = case
        self._classes = {engine_name(engine): (engine, find(engine, case)) for engine in named}
        self._made: dict[EngineName, OwnEngine] = {}
        self.load_s: dict[EngineName, float] = {}

    def __contains__(self, name: EngineName) -> bool:
        """Whether the engine of that name is one of them."""
        return name in self._classes

    @property
    def are_all(self) -> bool:
        """Whether the case runs no engine of ours."""
        return len(self._classes) == len(self._case.engines)

    def engine(self, name: EngineName, weights: Path | None, device: Device) -> OwnEngine:
        """The engine of that name; EngineError, one line with the place, where its code fails."""
        if name not in self._classes:
            raise EngineError(
                f"{self._case.engines_named_in} names no '{name}', which was asked for"
            )
        if name not in self._made:
            named, kind = self._classes[name]
            begin = time.perf_counter()
            try:
                engine = cast("Engine", kind(self._case, weights))
            except Exception as error:  # no server, no memory, a broken checkpoint: whatever it is
                raise EngineError(
                    f"case '{self._case.id}': {named}(case, weights) failed: {_told(error)}"
                ) from error
            self.load_s[name] = time.perf_counter() - begin
            self._made[name] = OwnEngine(engine, named, device)
        return self._made[name]

    def close(self) -> None:
        """Have them free their models."""
        for engine in self._made.values():
            engine.close()


def find(named: str, case: Case) -> type:
    """Import the class that ``named`` (``module:Class``) says; nothing is loaded yet.

    EngineError, one line: what is missing, and which option or file names it.
    """
    who = f"{case.engines_named_in} names '{named}'"
    found = _imported(named, who)
    for method in (*_NEEDED, *_OPTIONAL):
        there = hasattr(found, method)
        if (method in _NEEDED and not there) or (there and not callable(getattr(found, method))):
            raise EngineError(f"{who}: the class has no method '{method}'; {_PAGE}")
    try:
        inspect.signature(found).bind(case, None)
    except TypeError as error:
        raise EngineError(
            f"{who}: the class is made by {found.__name__}(case, weights), and takes other "
            f"arguments ({error}); {_PAGE}"
        ) from error
    except ValueError:  # a class of C has no signature to look at
        pass
    if case.mmlu.scoring == "letters" and not hasattr(found, "letter_logits"):
        raise EngineError(
            f"{who}, and the case scores the four letters' logits (mmlu.scoring): the class has no "
            "method 'letter_logits'; add it, or score full-vocab"
        )
    if case.parallel.tensor > 1:
        raise EngineError(
            f"{who}, and the case splits its model over ranks (parallel.tensor): an engine of your "
            "own runs in one process"
        )
    return found


def _imported(named: str, who: str) -> type:
    module, _, name = named.partition(":")
    try:
        there = vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise EngineError(f"{who}: {module} needs {error.name}, which is not there") from error
        raise EngineError(
            f"{who}: there is no module '{error.name}'; install it, or have its directory in "
            "PYTHONPATH or in pytest's setting 'pythonpath'"
        ) from error
    except Exception as error:  # whatever its code does
        raise EngineError(f"{who}: importing {module} failed: {_told(error)}") from error
    if isinstance(found := there.get(name), type):
        return found
    classes = [key for key, kind in there.items() if isinstance(kind, type)]
    near = difflib.get_close_matches(name, classes, n=1, cutoff=0.5)
    hint = f"; did you mean '{module}:{near[0]}'?" if near else ""
    raise EngineError(f"{who}: {module} has no class '{name}'{hint}")


def _told(error: Exception) -> str:
    """An error of somebody's code: its kind, its first line, and where it was raised."""
    first = (str(error).strip() or "no message").splitlines()[0]
    places = traceback.extract_tb(error.__traceback__)
    place = f" ({places[-1].filename}:{places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {first}{place}"
