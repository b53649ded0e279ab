"""How does a class of somebody's own become an engine that is measured like ours?

It is named ``module:Class`` in ``--engines``, in a case's key ``engines`` or in ``perfline compare
--engine``. What such a class must have, and what it may have, says ``engine.Engine``; what it can
do is asked here and nowhere else.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import ExitStack
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NoReturn, cast

from perfline.cases.case import Case, EngineName, engine_name
from perfline.engines.device import Device
from perfline.engines.engine import CompileCounts, Engine, Head, Ints
from perfline.errors import EngineError
from perfline.fields import MOST
from perfline.tasks.answers import LETTERS
from perfline.tasks.prompts import Prompt
from perfline.tasks.task import scores, tasks_of

_NEEDED = ("forward", "answer")
_OPTIONAL = (
    *("begin", "prepare", "synchronize", "letter_logits", "log_probability", "compiled_graphs"),
    *("flops", "reset_peak_memory", "peak_memory_gib", "close"),
)
_PAGE = "docs/extending.md shows one"
_UNSCORED = f"choices are scored by continuation, and it has no method 'log_probability'; {_PAGE}"


class OwnEngine:
    """``engine.MeasuredEngine`` over somebody's engine."""

    def __init__(self, engine: Engine, named: str, device: Device) -> None:
        """Wrap ``engine``, which ``named`` (``module:Class``) has made."""
        self.name = engine_name(named)
        self._named = named
        self._device = device
        self._graphs = 0
        self._file = getattr(sys.modules.get(type(engine).__module__), "__file__", None)
        self._can: dict[str, Callable[..., Any]] = {}
        for name in (*_NEEDED, *_OPTIONAL):
            if (found := getattr(engine, name, None)) is None:
                continue
            if not callable(found):
                raise EngineError(
                    f"{named}: its attribute '{name}' is {_shown(found)}; expected a method: "
                    f"call the attribute something else ({_PAGE})"
                )
            self._can[name] = found

    def begin(self, prompts: Sequence[Prompt], head: Head) -> None:
        """Say which pass begins."""
        self._ask("begin", prompts, head)

    def prepare(self, prompt: Prompt) -> Any:
        """What its ``forward`` takes: the prompt itself, unless it prepares it."""
        return self._ask("prepare", prompt) if "prepare" in self._can else prompt

    def forward(self, batch: Any, head: Head) -> Any:
        """Its forward."""
        return self._ask("forward", batch, head)

    def synchronize(self) -> None:
        """Wait for what it has queued, on torch's device unless it says how."""
        if "synchronize" in self._can:
            self._ask("synchronize")
        else:
            self._device.synchronize()

    def read(self, logits: Any) -> tuple[Sequence[float] | None, None, int, str]:
        """Its answer, and what it tells of the letters."""
        if isinstance(logits, Coroutine):
            logits.close()  # or Python warns that nobody has awaited it
        if isinstance(logits, Awaitable | Generator | AsyncGenerator):
            self._wrong("forward", logits, "what it computed: of this nothing has run yet")
        text = self._ask("answer", logits)
        if not isinstance(text, str):
            self._wrong("answer", text, "text such as ' B'")
        return self._letter_logits(logits), None, -1, text

    def score(self, batch: Any, targets: Ints, head: Head) -> tuple[Any, Ints]:
        """Its forward, with logits at all positions."""
        if "log_probability" not in self._can:  # a tokenizer without tokens for the letters, say
            raise EngineError(f"{self._named}: {_UNSCORED}")
        return self.forward(batch, "all"), targets

    def read_score(self, scored: tuple[Any, Ints]) -> tuple[float, float]:
        """The log-probability that it tells; what that was made of, it does not."""
        output, targets = scored
        found = self._ask("log_probability", output, targets)
        number = cast("float", found) if isinstance(found, Real) else 1
        if isinstance(found, bool) or not number <= 0:
            self._wrong("log_probability", found, "a number of at most 0")
        return float(number), abs(float(number))

    def forget_compiled(self) -> None:
        """What it compiles is its own affair."""

    def not_compiled(self) -> str:
        """It says how many graphs it compiled; that there should be any, nobody knows."""
        return ""

    def compile_counts(self) -> CompileCounts:
        """The graphs that it says it has compiled."""
        if "compiled_graphs" in self._can:
            found = self._ask("compiled_graphs")
            if isinstance(found, bool) or not isinstance(found, Integral):
                self._wrong("compiled_graphs", found, "a whole number")
            if found < self._graphs:
                expected = f"at least {self._graphs}, as before: all that were ever compiled"
                self._wrong("compiled_graphs", found, expected)
            self._graphs = int(found)
        return CompileCounts(graphs=self._graphs)

    def fingerprint(self, *_: object) -> None:
        """What runs inside it, nobody knows."""

    def profile(self, *_: object) -> None:
        """Nor how long."""

    def flops(self, tokens: int, head: Head) -> float | None:
        """FLOPs of a forward; None where it does not tell."""
        return self._number("flops", tokens, head)

    def reset_peak_memory(self) -> None:
        """Start a new peak, where it counts one."""
        self._ask("reset_peak_memory")

    def peak_memory_gib(self) -> float | None:
        """Its peak memory in GiB; None where it does not count it."""
        return self._number("peak_memory_gib")

    def close(self) -> None:
        """Have it free its model."""
        self._ask("close")

    def _ask(self, method: str, *arguments: object) -> Any:
        """What one of its methods gives; None where it has no such method.

        EngineError, one line with the place, for whatever its code raises; DeviceMemory.
        """
        if method not in self._can:
            return None
        try:
            return self._can[method](*arguments)
        except (Exception, SystemExit) as error:
            _raise_told(f"{self._named}: {method}()", error, self._file, self._device)

    def _letter_logits(self, output: Any) -> list[float] | None:
        if "letter_logits" not in self._can:
            return None
        found = self._ask("letter_logits", output)
        try:
            numbers = [] if isinstance(found, str | bytes) else [float(logit) for logit in found]
        except Exception:  # whatever it holds: torch has errors of its own for a row too many
            numbers = []
        if not 4 <= len(numbers) <= len(LETTERS):
            self._wrong("letter_logits", found, "4 numbers, of A, B, C and D")
        return numbers

    def _number(self, method: str, *arguments: object) -> float | None:
        found = self._ask(method, *arguments)
        if found is None:
            return None
        number = cast("float", found) if isinstance(found, Real) else 0
        if isinstance(found, bool) or not 0 < number <= MOST:
            self._wrong(method, found, "a number above 0, or None")
        return float(number)

    def _wrong(self, method: str, found: object, expected: str) -> NoReturn:
        raise EngineError(f"{self._named}: {method}() gave {_shown(found)}; expected {expected}")


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
            except (Exception, SystemExit) as error:  # no server, a broken checkpoint: what it is
                _raise_told(f"case '{self._case.id}': {named}(case, weights)", error, None, device)
            self.load_s[name] = time.perf_counter() - begin
            self._made[name] = OwnEngine(engine, named, device)
        return self._made[name]

    def close(self) -> None:
        """Have them all free their models, whichever fails to."""
        with ExitStack() as ends:
            for engine in self._made.values():
                ends.callback(engine.close)


def find(named: str, case: Case) -> type:
    """Import the class that ``named`` (``module:Class``) says; nothing is loaded yet.

    EngineError, one line: what is missing, and which option or file names it.
    """
    who = f"{case.engines_named_in} names '{named}'"
    found = _imported(named, who)
    for method in (*_NEEDED, *_OPTIONAL):
        there = getattr(found, method, None)
        theirs = callable(there) and there is not vars(Engine).get(method)  # nor the protocol's
        if not theirs and (method in _NEEDED or hasattr(found, method)):
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
    scored = {scores(case, task) for task in tasks_of(case)}
    if "continuation" in scored and not hasattr(found, "log_probability"):
        raise EngineError(f"{who}: {_UNSCORED}")
    if "letters" in scored and not hasattr(found, "letter_logits"):
        raise EngineError(
            f"{who}, and the case scores the letters' logits (mmlu.scoring): the class has no "
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
    except (Exception, SystemExit) as error:  # whatever its code does
        _raise_told(f"{who}: importing {module}", error)
    if isinstance(found := there.get(name), type):
        return found
    classes = [key for key, kind in there.items() if isinstance(kind, type)]
    near = difflib.get_close_matches(name, classes, n=1, cutoff=0.5)
    hint = f"; did you mean '{module}:{near[0]}'?" if near else ""
    raise EngineError(f"{who}: {module} has no class '{name}'{hint}")


def _raise_told(
    what: str, error: BaseException, file: str | None = None, device: Device | None = None
) -> NoReturn:
    """Say that ``what`` failed: how, and in which line of ``file``, else where it was raised."""
    from perfline.engines import torch_engine, upstream

    if device is not None and upstream.is_full(error):
        raise torch_engine.out_of_memory(device, what, error) from error
    first = (str(error).strip() or "no message").splitlines()[0]
    places = [(place.filename, place.lineno) for place in traceback.extract_tb(error.__traceback__)]
    places = [place for place in places if place[0] == file] or places
    if isinstance(error, SyntaxError):
        first, places = error.msg, [(str(error.filename), error.lineno)]
    place = f" ({places[-1][0]}:{places[-1][1]})" if places else ""
    raise EngineError(f"{what} failed: {type(error).__name__}: {first}{place}") from error


def _shown(found: object) -> str:
    return " ".join(repr(found).split())[:60]
