"""Ranks as threads, with a dictionary as their store."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from perfline.distributed.group import Group


@dataclass
class DictStore:
    """``group.Store`` in this process."""

    values: dict[str, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    gone: bool = False

    def add(self, key, amount):
        self._reached()
        with self.lock:
            value = int(self.values.get(key, b"0")) + amount
            self.values[key] = str(value).encode()
            return value

    def set(self, key, value):
        self._reached()
        with self.lock:
            self.values[key] = value.encode()

    def get(self, key):
        self._reached()
        return self.values[key]

    def check(self, keys):
        self._reached()
        return all(key in self.values for key in keys)

    def wait(self, keys, timeout):
        end = time.monotonic() + timeout.total_seconds()
        while not all(key in self.values for key in keys):
            self._reached()
            if time.monotonic() > end:
                raise RuntimeError("wait timeout")
            time.sleep(0.0005)

    def delete_key(self, key):
        with self.lock:
            return self.values.pop(key, None) is not None

    def _reached(self):
        if self.gone:
            raise RuntimeError("Connection reset by peer\nstack of C++ frames")


def groups(ranks, store=None, timeout_s=20.0, attempt=0):
    store = store or DictStore()
    made = [Group(r, ranks, f"host-{r}", store, timeout_s, attempt) for r in range(ranks)]
    for group in made:
        group.sleep = lambda seconds: time.sleep(0.0005)
        group.join()
    return made
