"""How far do launches of the same thing differ here, and how do known slow-downs look?

Collects launch pairs for ``evaluate.py``. In each, A and B are one process each, started, loaded
and compiled anew as ``perfline compare`` does it, with the same code. At every level they take
turns A B | B A (``perfline.compare.pair``), and B does extra work behind
every forward (``slowdown.py``); level 0 is A/A. The levels' order moves on by one from launch to
launch. The amounts of work are calibrated first, on launches of their own, which are not recorded.
Finer is what ``--calibrate-from`` makes of an earlier, short recording: any extra product also
costs the caches something, which a line through its levels shows.

The file is rewritten after every pair: an interrupt costs one pair, ``--resume`` goes on::

    python benchmarks/gate/record.py --pairs 80 --out benchmarks/gate/data/NAME.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import slowdown
from _recording import SCHEMA, read

from perfline import jsonfile
from perfline.cases.case import WeightsKind, load_cases
from perfline.compare import pair
from perfline.compare.launch import ProcessLauncher
from perfline.compare.model import SIDES, Side, SideName, Worker, Workload
from perfline.compare.sides import make_side, places
from perfline.engines import environment
from perfline.errors import RecordError

ROOT = Path(__file__).parents[2]
Rounds = dict[str, list[float]]


class Recorder:
    """Two live processes at a time, and the file by which B is slowed."""

    def __init__(
        self, launcher: ProcessLauncher, sides: Sequence[Side], slow: Path, threads: int
    ) -> None:
        """``slow`` is what B's ``slowdown.py`` reads; ``threads`` as of ``pair.Task``."""
        self._launcher, self._sides, self._slow = launcher, sides, slow
        self._threads, self.repeats = threads, 0

    @contextmanager
    def launched(self, min_round_s: float) -> Iterator[tuple[dict[SideName, Worker], list[float]]]:
        """Start A and B together; yields the workers, and the seconds that each took."""
        slowdown.write(self._slow, 0.0)
        begin, seconds = time.monotonic(), []
        pending = {side.name: self._launcher.start(side) for side in self._sides}
        workers: dict[SideName, Worker] = {}
        try:
            for name in SIDES:
                workers[name] = pending[name].wait_ready()
                seconds.append(round(time.monotonic() - begin, 3))
            if not self.repeats:
                self.repeats = pair.repeats_for(min_round_s, *(w.ready for w in workers.values()))
            for worker in workers.values():
                worker.hold(self._threads)
            yield workers, seconds
        finally:
            for name in pending:
                pending[name].close()

    def rounds(self, workers: dict[SideName, Worker], amount: float, rounds: int) -> Rounds:
        """Microseconds a token of the kept rounds, in turns A B | B A."""
        slowdown.write(self._slow, amount)
        live = {name: pair.Live(workers[name], 0.0) for name in SIDES}
        each = pair.turns_for(self.repeats, *(workers[name].ready for name in SIDES))
        pair.in_turns(live, SIDES, each, rounds)
        return {
            key: [round(1e6 * done.core_s / done.tokens, 6) for done in live[name].kept]
            for key, name in zip("ab", SIDES, strict=True)
        }


def main() -> int:
    """Calibrate, then record pair after pair."""
    args = _arguments()
    pair.TURN_S = args.turn_s
    levels = [float(text) for text in args.levels.split(",")]
    (case,) = load_cases([args.case], [])
    settings = [f"throughput.sample={args.sample}"]
    with tempfile.TemporaryDirectory() as scratch, _neighbours(args.busy):
        files = {name: Path(scratch, name) for name in SIDES}
        for path in files.values():
            slowdown.write(path, 0.0)
        sides = [
            make_side(
                name,
                env=[f"{slowdown.VARIABLE}={files[name]}", f"PYTHONPATH={Path(__file__).parent}"],
                settings=settings,
                imports=["slowdown"],
            )
            for name in SIDES
        ]
        kind: WeightsKind = "dummy" if args.dummy_weights else "real"
        work = Workload(case.id, (), args.data_dir, kind, args.engine, questions=0)
        with places(sides, ROOT) as where, ProcessLauncher(work, where) as launcher:
            threads = case.engine.cpu_threads or 0
            recorder = Recorder(launcher, sides, files["candidate"], threads)
            data = _begin(args, levels)
            amounts: dict[str, float] = data.get("amounts") or _amounts(recorder, args, levels)
            data["amounts"] = amounts
            print(f"amounts of extra work: {amounts}", flush=True)
            _record(recorder, args, data)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--case", default="tiny")
    parser.add_argument("--engine", choices=("eager", "inductor"), default="inductor")
    parser.add_argument("--pairs", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=6, help="kept, a side and level")
    parser.add_argument("--sample", type=int, default=16, help="prompts of a pass")
    parser.add_argument("--min-round-s", type=float, default=0.2)
    parser.add_argument("--turn-s", type=float, default=pair.TURN_S, help="10: whole rounds")
    parser.add_argument("--levels", default="0.0,0.01,0.02,0.03,0.05")
    parser.add_argument("--calibrations", type=int, default=4, help="launch pairs")
    parser.add_argument("--calibrate-from", type=Path, help="an earlier recording")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--dummy-weights", action="store_true")
    parser.add_argument("--resume", action="store_true", help="add to the file")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="processes beside it")
    parser.add_argument("--note", default="")
    return parser.parse_args()


@contextmanager
def _neighbours(count: int) -> Iterator[None]:
    """So many processes, each of which takes all that it can get of a core, while we live."""
    program = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()


def _begin(args: argparse.Namespace, levels: list[float]) -> dict[str, Any]:
    found = environment.collect(ROOT)
    if args.resume and args.out.exists():
        data: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8"))
        if data["machine"] != found.machine:
            raise SystemExit(f"{args.out}: is of {data['machine']}; this is {found.machine}")
        if data.get("levels") != levels:
            raise SystemExit(f"{args.out}: has levels {data.get('levels')}; asked for {levels}")
        if data.get("turn_s") != args.turn_s:
            raise SystemExit(f"{args.out}: turn_s is {data.get('turn_s')}; asked for {args.turn_s}")
        return data
    return {
        "schema": SCHEMA,
        "machine": found.machine,
        "context": dict(found.context),
        "created": environment.today(),
        "command": shlex.join(["python", os.path.relpath(__file__, ROOT), *sys.argv[1:]]),
        "case": args.case,
        "engine": args.engine,
        "levels": levels,
        "turn_s": args.turn_s,
        "note": args.note,
        "pairs": [],
    }


def _amounts(
    recorder: Recorder, args: argparse.Namespace, levels: Sequence[float]
) -> dict[str, float]:
    if not any(levels):
        return {str(level): 0.0 for level in levels}
    if args.calibrate_from:
        return _fitted(args.calibrate_from, levels)
    return _calibrate(recorder, args, levels)


def _calibrate(
    recorder: Recorder, args: argparse.Namespace, levels: Sequence[float]
) -> dict[str, float]:
    """Amounts for the levels, from one that costs about a fifth, which stands out of any noise.

    Time is linear in the amount: an extra product has a call's cost of 5 us beside its rows' (on a
    CPU, measured), 0.05 % of a forward of ``tiny``.
    """
    with recorder.launched(args.min_round_s) as (workers, _):
        on_cpu = workers["baseline"].ready.machine.startswith("cpu")
        amount, size = (0.5 if on_cpu else 1000.0), 0.0  # rows, or cycles, a token
        while size < 0.15:
            amount *= 2
            size = _ratio(recorder, workers, amount, args.rounds) - 1
            print(f"calibration: {amount:g} units of work cost {size:+.1%}", flush=True)
    found = []
    for _ in range(args.calibrations):
        with recorder.launched(args.min_round_s) as (workers, _):
            for _ in range(3):
                still = _ratio(recorder, workers, 0.0, args.rounds)
                found.append(_ratio(recorder, workers, amount, args.rounds) / still - 1)
                print(f"calibration: {amount:g} units of work cost {found[-1]:+.1%}", flush=True)
    return {str(level): level * amount / statistics.median(found) for level in levels}


def _fitted(path: Path, levels: Sequence[float]) -> dict[str, float]:
    """Amounts for the levels, from a line through the slow-downs that ``path`` has measured."""
    data = json.loads(path.read_text(encoding="utf-8"))
    amounts = {float(level): amount for level, amount in data["amounts"].items() if amount}
    earlier = read(path)
    still = earlier.log_ratios(0.0)
    slowed = [math.expm1(np.median(earlier.log_ratios(level) - still)) for level in amounts]
    slope, at_zero = np.polyfit(list(amounts.values()), slowed, 1)
    print(f"from {path.name}: {at_zero:+.2%}, and {slope:.2%} a unit of work", flush=True)
    return {
        str(level): round(float((level - at_zero) / slope), 4) if level else 0.0 for level in levels
    }


def _ratio(
    recorder: Recorder, workers: dict[SideName, Worker], amount: float, rounds: int
) -> float:
    done = recorder.rounds(workers, amount, rounds)
    ratios = [b / a for a, b in zip(done["a"], done["b"], strict=True)]
    return math.exp(statistics.median(map(math.log, ratios)))


def _record(recorder: Recorder, args: argparse.Namespace, data: dict[str, Any]) -> None:
    pairs: list[dict[str, object]] = data["pairs"]
    amounts = {float(level): float(amount) for level, amount in data["amounts"].items()}
    levels = list(amounts)
    while len(pairs) < args.pairs:
        launch, start_s = len(pairs), time.time()
        turned = levels[launch % len(levels) :] + levels[: launch % len(levels)]
        with recorder.launched(args.min_round_s) as (workers, seconds):
            found = {
                str(level): recorder.rounds(workers, amounts[level], args.rounds)
                for level in turned
            }
        pairs.append(
            {
                "launch": launch,
                "start_s": round(start_s, 3),
                "launch_s": seconds,
                "levels": {str(level): found[str(level)] for level in levels},
            }
        )
        jsonfile.write(args.out, data, RecordError)
        logs = [
            statistics.median(math.log(b / a) for a, b in zip(r["a"], r["b"], strict=True))
            for r in (found[str(level)] for level in levels)
        ]
        shown = " ".join(f"{100 * value:+.2f}" for value in logs)
        print(f"pair {launch}: {time.time() - start_s:.1f} s, log ratios in %: {shown}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
