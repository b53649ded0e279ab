"""Where do tests get a ``python`` that has imported torch already?

Importing torch and transformers takes some five seconds of CPU, the first use of its compiler's
modules as many again. One server a test process has imported them, has computed nothing and forks
for each command: the command is a process of its own, with its own streams, directory, environment
and ``sys.path``, that dies with whoever asked for it. perfline itself and pytest's plugins are not
among what is imported. Tests about how something starts, or about what outlives what, take
``sys.executable``.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import marshal
import os
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import NoReturn

IMPORTED = (
    "torch.distributed.launcher.api",  # most of torchrun
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
    "torch._inductor.compile_fx",
    "scipy.stats",
    "pandas",
    "tabulate",
    "yaml",
    "pytest",
)
# Of these, what a command has must be what the server had when it imported; or it is started anew.
READ_AT_IMPORT = ("HF_", "LD_", "MKL_", "PYTHON", "TORCH", "TRANSFORMERS_")
READ_LATER = (
    "PYTHONPATH",
    "PYTHON_EXEC",
    "TORCHELASTIC_",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCH_NCCL_",
)
CLIENT = Path(__file__).with_name("fork_client.py")


class ForkServer:
    """A server, and the command ``python`` that asks it; ``stop`` ends both."""

    def __init__(self, imported: Sequence[str] = IMPORTED) -> None:
        """Start to import ``imported``: what asks meanwhile waits."""
        self._folder = Path(tempfile.mkdtemp(prefix="fork-server-"))
        address = str(self._folder / "socket")
        self.python = str(self._folder / "python")
        asking = [sys.executable, "-IS", str(CLIENT), address, sys.executable]
        Path(self.python).write_text(f'#!/bin/sh\nexec {shlex.join(asking)} "$@"\n')
        Path(self.python).chmod(0o700)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno()), *imported],
                env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
                stdin=subprocess.PIPE,  # its end is the server's
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[listener.fileno()],
            )

    def stop(self) -> None:
        """End the server and all that it still runs."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        shutil.rmtree(self._folder)


@functools.cache
def _server() -> ForkServer:
    server = ForkServer()
    atexit.register(server.stop)
    return server


def python() -> str:
    """A program that does what ``sys.executable`` does, without importing torch anew.

    It knows ``-u``, ``-m``, ``-c`` and a script. Elsewhere than on Linux it is ``sys.executable``.
    """
    return _server().python if sys.platform == "linux" else sys.executable


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment modules may have read while they were imported."""
    return {
        key: value
        for key, value in environment.items()
        if key.startswith(READ_AT_IMPORT) and not key.startswith(READ_LATER)
    }


def _serve(listener: socket.socket) -> tuple[Sequence[str], str, dict[str, str]]:
    """Fork for each request until the input ends; return in the child, as what it is to be."""
    mine = read_at_import(os.environ)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ, (0, None))
    selector.register(listener, selectors.EVENT_READ, (0, None))
    while True:
        for key, _ in selector.select():
            pid, client = key.data
            if key.fileobj == 0:
                _end(selector)
            elif key.fileobj is listener:
                client, _ = listener.accept()
                head, streams, _, _ = socket.recv_fds(client, 4, 3)
                with client.makefile("rb") as sent:
                    request = marshal.loads(sent.read(int.from_bytes(head, "big")))
                same = read_at_import(request[2]) == mine
                pid = os.fork() if same and _known(request[0]) else -1
                if not pid:
                    client.close()
                    _close(selector)
                    for number, stream in enumerate(streams):
                        os.dup2(stream, number)
                        os.close(stream)
                    return request
                for stream in streams:
                    os.close(stream)
                with suppress(BrokenPipeError):
                    client.sendall(max(pid, 0).to_bytes(4, "big"))
                if pid < 0:
                    client.close()
                else:
                    selector.register(client, selectors.EVENT_READ, (pid, client))
                    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, client))
            elif key.fileobj is client:  # it was killed: its command, too, but if that has ended
                with suppress(KeyError, ValueError):
                    selector.unregister(client)
                    _kill(pid)
            else:
                selector.unregister(key.fileobj)
                os.close(key.fd)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with suppress(KeyError):
                    selector.unregister(client)
                with client, suppress(BrokenPipeError):
                    client.sendall(status.to_bytes(4, "big", signed=True))


def _known(words: Sequence[str]) -> bool:
    return words[:1] > ("",) and (words[0][0] != "-" or words[0] in ("-c", "-m", "-u"))


def _close(selector: selectors.BaseSelector) -> None:
    """Close what the server has open, in a child."""
    for key in list(selector.get_map().values()):
        if key.data[1]:
            key.data[1].close()
        if isinstance(key.fileobj, socket.socket):
            key.fileobj.close()
        elif key.fileobj:
            os.close(key.fd)
    selector.close()


def _kill(pid: int) -> None:
    """Kill a command and what it has started; before it has a session of its own, it alone."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _end(selector: selectors.BaseSelector) -> NoReturn:
    pids = {pid for pid, _ in (key.data for key in selector.get_map().values()) if pid}
    for pid in pids:
        _kill(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    sys.exit()


def _run(
    words: Sequence[str], directory: str, environment: dict[str, str], path: list[str]
) -> None:
    """Be ``python`` with these words, in this process; ``path`` is ``sys.path`` as installed."""
    os.setsid()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    if words[0] == "-u":
        words = words[1:]
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    threads = environment.get("OMP_NUM_THREADS")
    if threads and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(threads))
    named = list(filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))
    sys.path[:] = [*named, *path]
    sys.path_importer_cache.clear()
    kind, rest = words[0], list(words[1:])
    if kind == "-m":
        sys.path.insert(0, directory)
        sys.argv = [kind, *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path.insert(0, "")
        sys.argv = [kind, *rest[1:]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.path.insert(0, str(Path(kind).resolve().parent))
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


def _exit(code: str | int | None) -> NoReturn:
    """End as the interpreter does, but for taking every module of torch to pieces: 0.4 s."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(code & 0xFF if isinstance(code, int) else int(code is not None))


def main(number: str, *imported: str) -> None:
    """Import what a server is told to and serve on the socket with that file descriptor."""
    path = sys.path[1:]
    for name in imported:
        importlib.import_module(name)
    for plugin in metadata.entry_points(group="pytest11"):
        module = sys.modules.get(plugin.module.partition(".")[0])
        if module is not None:  # transformers imports anyio: pytest would warn that it was
            module.__doc__ = "PYTEST_DONT_REWRITE"
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(number)) as listener:
        request = _serve(listener)
    try:
        _run(*request, path)
    except SystemExit as ended:
        _exit(ended.code)
    _exit(None)


if __name__ == "__main__":
    main(*sys.argv[1:])
