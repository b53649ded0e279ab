"""Is the compiler there that ``torch.compile`` calls on this device?

Inductor compiles what it writes for a CPU with ``$CXX``, else g++ (clang++ on macOS); Triton builds
its launchers for a GPU with ``$CC``, else gcc, else clang. Both take one program's name, without
arguments, and both notice its absence only when the first model is compiled.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Compiler:
    """What was looked for, and where it is.

    Attributes:
        language: ``C`` or ``C++``.
        caller: who calls it.
        path: where it is; None where it is not.
        problem: what is missing and what to do; empty where nothing is.
    """

    language: str
    caller: str
    path: str | None
    problem: str = ""


def compiler(kind: str) -> Compiler | None:
    """Return the compiler for a device of this kind; None where none is needed."""
    mac = sys.platform == "darwin"
    if kind in ("cpu", "xpu"):
        return _look("C++", "inductor", "CXX", ("clang++",) if mac else ("g++",))
    if kind == "cuda":  # ROCm's, too
        return _look("C", "Triton", "CC", ("gcc", "clang"))
    return None


def _look(language: str, caller: str, variable: str, names: tuple[str, ...]) -> Compiler:
    named = os.environ.get(variable)
    path = next(filter(None, map(shutil.which, (named,) if named else names)), None)
    if path is not None:
        return Compiler(language, caller, path)
    if named:
        found = f"${variable} is '{named}', which is no program; correct or unset it"
    else:
        get = f"sudo apt-get install {names[0]}" if sys.platform == "linux" else f"get {names[0]}"
        found = f"no {' or '.join(names)} on PATH; {get}, or name one in ${variable}"
    return Compiler(language, caller, None, f"no {language} compiler for {caller}: {found}")
