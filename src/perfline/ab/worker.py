"""What is the process of one side of ``perfline compare``, and when does it end?

``python -m perfline.ab.worker`` reads requests from its standard input and answers on a private
copy of its standard output (``wire``); what anything else prints goes to stderr. It runs in the
side's own environment, which needs torch, transformers, numpy and PyYAML, not perfline.

It never outlives its parent: the end of its input ends it at once, in the middle of a forward too,
and on Linux the kernel kills it even where a C function holds the interpreter's lock. There is no
gentler end: it has nothing to save, and torch takes a second or more to leave.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, BinaryIO

from perfline.ab import wire
from perfline.errors import PerflineError, WorkerError

if TYPE_CHECKING:
    from perfline.ab.serve import Launch
    from perfline.jsonfile import Node

DIE_WITH_PARENT = "--die-with-parent"
NEEDED = {"torch": "torch", "transformers": "transformers", "numpy": "numpy", "yaml": "pyyaml"}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> int:
    """Serve requests; the end of the input ends the process, from another thread."""
    faulthandler.enable()
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, all_threads=False)  # the parent asks where it hangs
    if DIE_WITH_PARENT in arguments:
        die_with_parent()
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    source, sink = _private_streams()
    threading.Thread(target=_listen, args=(source, requests), daemon=True, name="parent").start()
    serve(iter(requests.get, None), sink)
    return 0


def serve(requests: Iterable[bytes], sink: BinaryIO) -> None:
    """Answer every request; a PerflineError is an answer, any other error ends the process."""
    launch: Launch | None = None
    for line in requests:
        try:
            request = wire.parse(line, "the parent")
            word = request.text("ask")
            if word == "open":
                launch, answer = _open(request)
            elif launch is None:
                raise WorkerError(f"was asked for '{word}' before 'open'")
            else:
                answer = launch.answer(word, request)
            reply = wire.line(ok=answer)
        except PerflineError as error:
            reply = wire.line(error={"kind": type(error).__name__, "message": str(error)})
        sink.write(reply)
        sink.flush()


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (prctl(2)); Linux."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _open(request: Node) -> tuple[Launch, dict[str, object]]:
    """Import what the side asks for, then load, compile and warm up."""
    missing = [pip for name, pip in NEEDED.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise WorkerError(
            f"{sys.executable} has no {', '.join(missing)}; install: "
            f"{sys.executable} -m pip install {' '.join(missing)}"
        )
    for name in request.texts("imports"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise WorkerError(f"{sys.executable}: cannot import '{name}': {error}") from error
    from perfline.ab.serve import Launch

    launch = Launch.open(request)
    return launch, launch.answer("ready", request)


def _private_streams() -> tuple[int, BinaryIO]:
    """Keep the two pipes to ourselves: prints go to stderr, nothing else reads our input."""
    source, sink = os.dup(0), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return source, sink


def _listen(source: int, requests: queue.SimpleQueue[bytes]) -> None:
    """Pass lines on; at the end of the input end the process, whatever it is doing."""
    rest = b""
    while True:
        try:
            chunk = os.read(source, 65536)
        except OSError:
            chunk = b""
        if not chunk:
            _end_now()
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            requests.put(line)


def _end_now() -> None:
    """End this process and what it started, such as a compiler."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
