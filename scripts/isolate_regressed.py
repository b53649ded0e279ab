"""Which of the packages that moved made a case worse? ``perfline isolate`` after the compare.

    make upgrade-isolate     each case that is ``regressed`` in results/compare.json; what was found
                             stands in results/isolate.md, and each record in results/isolate/

The status is 0 whatever is found: the comparison has failed already.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from perfline.compare import record
from perfline.compare.record import Comparison
from perfline.errors import RecordError
from perfline.search.probe import SOUGHT

COMPARED = Path("results/compare.json")
FOLDER = Path("results/isolate")
FOUND = Path("results/isolate.md")
CHANGED = "-r results/changed.txt"


def main() -> int:
    """Isolate what the comparison found; say where that goes wrong, and go on."""
    try:
        comparison = record.load(COMPARED)
    except RecordError as problem:
        print(f"isolate_regressed: nothing to isolate: {problem}", file=sys.stderr)
        return 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = []
    for case, metric in regressed(comparison):
        page = FOLDER / f"{case}.md"
        words = ["isolate", case, "--metric", metric, "--candidate-install", CHANGED]
        words += ["--out", str(FOLDER / f"{case}.json"), "--markdown", str(page)]
        done = subprocess.run([sys.executable, "-m", "perfline", *words], check=False)
        if done.returncode in (0, 1):
            texts.append(page.read_text("utf-8"))
        else:
            texts.append(f"## {case} could not be isolated: see the job's log\n")
        FOUND.write_text("\n".join(texts), "utf-8")  # the job's time may be over at any moment
    return 0


def regressed(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Each case that is worse, and the first of its metrics that is."""
    for name, case in comparison.cases.items():
        worse = [each.metric for each in case.verdicts if each.word == "regressed"]
        known = [
            sought for metric in worse for sought in SOUGHT if f"{metric}_".startswith(f"{sought}_")
        ]
        if known:
            yield name, known[0]


if __name__ == "__main__":
    raise SystemExit(main())
