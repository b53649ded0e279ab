"""What is started in place of ``python``? It asks the fork server, and ends as what it asked for.

It is told the server's socket, the real interpreter, and the words behind ``python``.
"""

from __future__ import annotations

import marshal
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def main(address: str, python: str, *words: str) -> int:
    """Have the server run ``words`` on this process's own streams; its exit status."""
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until it is known to whom
    with socket.socket(socket.AF_UNIX) as server, server.makefile("rb") as answers:
        server.connect(address)
        here = os.getcwd()  # noqa: PTH109 (the import of pathlib takes longer than all else here)
        request = marshal.dumps((words, here, dict(os.environ)))
        socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(request)
        pid = int.from_bytes(answers.read(4), "big")
        for number in PASSED_ON if pid else ():
            signal.signal(number, lambda number, _: os.kill(pid, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        if not pid:
            os.execv(python, [python, *words])
        status = answers.read(4)
    if not status:
        sys.exit("the fork server has ended: tests/fork_server.py")
    code = int.from_bytes(status, "big", signed=True)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
