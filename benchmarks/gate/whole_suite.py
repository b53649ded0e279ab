"""Is the whole suite green on unchanged code, and what does fidelity take beside the accuracy pass?

One session of the embedded model is accepted as the baseline, then the suite runs again and again,
as a user types it:

    python benchmarks/gate/whole_suite.py                 # 5 runs: 15 minutes on 2 cores
    python benchmarks/gate/whole_suite.py --out FILE      # ... and keep what they said as JSON
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tabulate import tabulate

from perfline.engines import environment
from perfline.measure.record import Record, load

ROOT = Path(__file__).parents[2]
SECONDS = ("fidelity_time", "acc_val_time", "acc_infer_time", "e2e_time")


def suite(folder: Path, name: str) -> Record:
    """One session of ``pytest -m "perf or accuracy"``; its record."""
    results = folder / f"{name}.json"
    command = [sys.executable, "-m", "pytest", "-m", "perf or accuracy", "--cases=tiny", "-q"]
    places = [f"--results={results}", f"--baselines={folder / 'baselines'}"]
    done = subprocess.run([*command, *places], cwd=ROOT, check=False, stdout=subprocess.PIPE)
    if not results.exists():
        raise SystemExit(f"pytest wrote no record (status {done.returncode})")
    return load(results)


def told(record: Record) -> dict[str, Any]:
    """The words of a run's verdicts, those that are not ok by name, and its seconds."""
    case = record.cases["tiny"]
    return {
        "words": dict(Counter(verdict.word for verdict in case.verdicts)),
        "not_ok": [v.headline for v in case.verdicts if v.word not in ("ok", "improved")],
        "seconds": {name: round(case.metrics[name].value, 2) for name in SECONDS},
    }


def main(arguments: list[str] | None = None) -> int:
    """Print a row a run; 1 where one was not green."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suite(folder, "first")
        accept = [sys.executable, "-m", "perfline", "baselines", "update", "tiny", "--reason=first"]
        places = [f"--run={folder / 'first.json'}", f"--baselines={folder / 'baselines'}"]
        subprocess.run([*accept, *places], cwd=ROOT, check=True)
        runs = [told(suite(folder, f"run-{number}")) for number in range(given.runs)]
    rows = [
        [number, *(f"{run['seconds'][each]:.1f}" for each in SECONDS), run["words"], run["not_ok"]]
        for number, run in enumerate(runs, 1)
    ]
    print(tabulate(rows, ["run", *(f"{each}, s" for each in SECONDS), "words", "not ok"]))
    if given.out is not None:
        found = environment.collect(ROOT)
        kept = {"machine": found.machine, "context": dict(found.context), "runs": runs}
        given.out.write_text(json.dumps(kept, indent=1) + "\n")
    return 1 if any(run["not_ok"] for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
