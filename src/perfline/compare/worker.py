"""What is the process of one side of ``perfline compare``, and when does it end?

``python -m perfline.compare.worker`` reads requests from its standard input and answers on a
private copy of its standard output (``wire``); what anything else prints goes to stderr. It runs in
the side's own environment, which needs torch, transformers, numpy and PyYAML, not perfline.

With ``--ranks=N`` it becomes torchrun (``python -m torch.distributed.run``), which starts N of this
module (``--as-rank``): the first serves the requests, the others do what it asks of them through
torchrun's store (``serve.assist``), print to stderr alone, and read nothing.

It never outlives its parent: the end of its input ends it at once, in the middle of a forward too,
and on Linux the kernel kills it even where a C function holds the interpreter's lock; so it is with
every rank. There is no gentler end: it has nothing to save, and torch takes a second or more to
leave.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import importlib.util
import os
import queue
import select
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, BinaryIO

from perfline.compare import wire
from perfline.errors import PerflineError, WorkerError
from perfline.measure.notices import Notices

if TYPE_CHECKING:
    from perfline.compare.serve import Launch
    from perfline.distributed.group import Group
    from perfline.fields import Node

DIE_WITH_PARENT = "--die-with-parent"
RANKS = "--ranks"
AS_RANK = "--as-rank"
# Among ranks: who waits for the launch loses patience earlier, and ends it.
PATIENCE_S = 7 * 86400.0
NEEDED = {"torch": "torch", "transformers": "transformers", "numpy": "numpy", "yaml": "pyyaml"}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> int:
    """Serve requests; the end of the input ends the process, from another thread."""
    asked = _asked(arguments)
    if asked.die_with_parent:
        die_with_parent()
    if asked.ranks:
        _torchrun(asked)
        return 0
    faulthandler.enable()
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, all_threads=False)  # the parent asks where it hangs
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    source, sink = _private_streams()
    if asked.as_rank and os.environ["RANK"] != "0":
        sink.close()
        threading.Thread(target=_outlive_nobody, args=(source,), daemon=True, name="parent").start()
        return _assist(asked.imports)
    threading.Thread(target=_listen, args=(source, requests), daemon=True, name="parent").start()
    serve(iter(requests.get, None), sink, asked.as_rank)
    return 0


def _asked(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument(DIE_WITH_PARENT, action="store_true")
    parser.add_argument(RANKS, type=int, default=0)
    parser.add_argument("--logs")
    parser.add_argument("--import", action="append", default=[], dest="imports")
    parser.add_argument(AS_RANK, action="store_true")
    return parser.parse_args(arguments)


def _torchrun(asked: argparse.Namespace) -> None:
    """Become torchrun, in this very process: who started it can end it."""
    try:
        _check_packages()
    except WorkerError as error:
        sys.stdout.buffer.write(_refusal(error))
        return
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={asked.ranks}"]
    run += ["--max-restarts=0", f"--log-dir={asked.logs}", "--redirects=2"]  # stderr to files
    worker = ["-m", "perfline.compare.worker", DIE_WITH_PARENT, AS_RANK]
    imports = [f"--import={name}" for name in asked.imports]
    os.execv(sys.executable, [sys.executable, *run, *worker, *imports])


def _assist(imports: Sequence[str]) -> int:
    """Be a rank beside the first."""
    problem: WorkerError | None = None
    try:
        _import(imports)
    except WorkerError as error:
        problem = error  # rank 0 says so, unless it is this rank's alone
    from perfline.compare.serve import assist
    from perfline.distributed.group import join

    try:
        group = join(PATIENCE_S)
        if problem is not None:
            group.command()
            raise problem
        with Notices().listening():
            assist(group)
    except PerflineError as error:
        sys.exit(str(error))  # torchrun tells whose that is
    return 0


def serve(requests: Iterable[bytes], sink: BinaryIO, as_rank: bool = False) -> None:
    """Answer every request; a PerflineError is an answer, any other error ends the process."""
    launch: Launch | None = None
    notices = Notices()
    with notices.listening():
        for line in requests:
            try:
                request = wire.parse(line, "the parent")
                word = request.text("ask")
                if word == "open":
                    launch, answer = _open(request, as_rank)
                    notices.once(_beyond_tested(launch))
                    answer["notices"] = [asdict(notice) for notice in notices.all]
                elif launch is None:
                    raise WorkerError(f"was asked for '{word}' before 'open'")
                else:
                    answer = launch.answer(word, request)
                reply = wire.line(ok=answer)
            except PerflineError as error:
                reply = _refusal(error)
            sink.write(reply)
            sink.flush()


def _beyond_tested(launch: Launch) -> list[str]:
    from perfline.engines.environment import beyond_tested

    return beyond_tested(launch.environment.context)


def _refusal(error: PerflineError) -> bytes:
    return wire.line(error={"kind": type(error).__name__, "message": str(error)})


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (prctl(2)); Linux."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _open(request: Node, as_rank: bool) -> tuple[Launch, dict[str, object]]:
    """Import what the side asks for, then load, compile and warm up."""
    _check_packages()
    _import(request.texts("imports"))
    from perfline.compare.serve import Launch

    group: Group | None = None
    if as_rank:
        from perfline.distributed.group import join

        group = join(PATIENCE_S)
    launch = Launch.open(request, group)
    return launch, launch.answer("ready", request)


def _check_packages() -> None:
    missing = [pip for name, pip in NEEDED.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise WorkerError(
            f"{sys.executable} has no {', '.join(missing)}; install: "
            f"{sys.executable} -m pip install {' '.join(missing)}"
        )


def _import(names: Iterable[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise WorkerError(f"{sys.executable}: cannot import '{name}': {error}") from error


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


def _outlive_nobody(source: int) -> None:
    """End the process when nobody can write to ``source`` any more; read nothing of it."""
    hung_up = select.poll()
    hung_up.register(source, 0)
    hung_up.poll()
    _end_now()


def _end_now() -> None:
    """End this process and what it started, such as a compiler."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
