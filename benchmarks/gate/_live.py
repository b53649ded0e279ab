"""What do the live searches share? They run the command, read its record, and keep a row of it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from perfline import jsonfile
from perfline.errors import RecordError
from perfline.search import record
from perfline.search.record import Probe, Search

# A module's text: how a forward lasts longer. As much in every one: rounds may be short.
SLOWED = """
import time

from perfline.engines.torch_engine import TorchEngine


def slower(effect):
    forward = TorchEngine.forward

    def slowed(self, batch, head):
        start = time.perf_counter()
        logits = forward(self, batch, head)
        end = time.perf_counter()
        while time.perf_counter() < end + effect * (end - start):
            pass
        return logits

    return slowed

"""


def add_options(parser: argparse.ArgumentParser, results: Path) -> None:
    """Add what each live search is asked: the effect, and what becomes of the result."""
    parser.add_argument("--effect", type=float, default=0.05)
    parser.add_argument("--note", default="", help="such as how busy the machine was")
    parser.add_argument("--write", action="store_true", help=f"add the result to {results.name}")


def search(words: Sequence[str], folder: Path, out: Path) -> Search:
    """Run ``perfline`` in ``folder``, and read the record of its search; exits where it fails."""
    command = [sys.executable, "-m", "perfline", *words, "--out", str(out)]
    done = subprocess.run(command, cwd=folder, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    return record.load(out)


def told(
    found: Search,
    wanted: set[str],
    args: argparse.Namespace,
    results: Path,
    facts: dict[str, Any],
    of_probe: Callable[[Probe], dict[str, Any]],
) -> int:
    """Say whether the answer is right, and keep the row where asked; the exit status."""
    right = {*found.named} == wanted
    print(f"{'right' if right else 'WRONG'}: expected {sorted(wanted)}, named {[*found.named]}")
    if args.write:
        rows: list[object] = []
        if results.exists():
            stored = jsonfile.read(results, 1, RecordError, "delete it")
            rows += stored.get("rows", tuple[object, ...])
        row = {
            "how": "live",
            "note": args.note,
            "command": " ".join(["python", *sys.argv]),
            **facts,
            "right": right,
            "answer": found.answer,
            "minutes": round(found.minutes, 1),
            "probes": [
                of_probe(each)
                | {
                    "word": each.finding.word,
                    "change": each.finding.change,
                    "pairs": each.finding.pairs,
                    "minutes": round(each.finding.minutes, 1),
                }
                for each in found.probes
            ],
        }
        jsonfile.write(results, {"schema": 1, "rows": [*rows, row]}, RecordError)
    return int(not right)
