"""Does ``perfline bisect`` find the commit of a made history, by live processes?

``python benchmarks/gate/bisect_live.py --effect 0.05 --commits 8 --step 5 [--write]``: makes a git
repository whose commits differ in a module that runs one more forward for every 1 / effect-th one,
from commit ``step`` on, and runs ``perfline bisect`` over it. Effect 0 makes a history without a
change. An hour on 2 quiet cores; what other options follow go to ``perfline bisect``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from perfline import jsonfile
from perfline.errors import RecordError
from perfline.search import record

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "bisect-live.json"
_MODULE = '''"""Commit {number}: every {every}th forward runs twice (0: none does)."""

from perfline.engines.torch_engine import TorchEngine

EVERY = {every}
forward, calls = TorchEngine.forward, 0


def slowed(self, batch, head):
    global calls
    calls += 1
    if EVERY and calls % EVERY == 0:
        forward(self, batch, head)
    return forward(self, batch, head)


TorchEngine.forward = slowed
'''


def git(folder: Path, *words: str) -> str:
    """Run git in the made repository."""
    identity = ("-c", "user.name=bisect", "-c", "user.email=bisect@example.org")
    command = ["git", "-C", str(folder), *identity, "-c", "commit.gpgsign=false", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def make(folder: Path, commits: int, step: int, effect: float) -> list[str]:
    """Make the history; its commits, the good end first, ``commits`` behind it."""
    git(folder, "init", "-q", "-b", "main")
    (folder / ".gitignore").write_text("results/\n")
    (folder / "src").mkdir()
    found = []
    for number in range(commits + 1):
        every = round(1 / effect) if effect and number >= step else 0
        text = _MODULE.format(number=number, every=every)
        (folder / "src" / "made_history.py").write_text(text)
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", f"change {number}")
        found.append(git(folder, "rev-parse", "--short=12", "HEAD"))
    return found


def main() -> int:
    """Make the history, search it, and say whether the answer is right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--effect", type=float, default=0.05)
    parser.add_argument("--commits", type=int, default=8)
    parser.add_argument("--step", type=int, default=5)
    parser.add_argument("--note", default="", help="such as how busy the machine was")
    parser.add_argument("--write", action="store_true", help=f"add the result to {RESULTS.name}")
    args, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="bisect-live-") as made:
        folder = Path(made)
        commits = make(folder, args.commits, args.step, args.effect)
        words = ["bisect", "tiny", "--good", commits[0], "--bad", "main"]
        words += ["--import", "made_history", *more]
        done = subprocess.run([sys.executable, "-m", "perfline", *words], cwd=folder, check=False)
        if done.returncode not in (0, 1):
            return done.returncode
        search = record.load(folder / "results" / "bisect.json")
    wanted = (commits[args.step],) if args.effect else ()
    right = search.named == wanted
    print(f"{'right' if right else 'WRONG'}: expected {wanted}, named {search.named}")
    if args.write:
        rows: list[object] = []
        if RESULTS.exists():
            stored = jsonfile.read(RESULTS, 1, RecordError, "delete it")
            rows += stored.get("rows", tuple[object, ...])
        row = {
            "how": "live",
            "note": args.note,
            "command": " ".join(["python benchmarks/gate/bisect_live.py", *sys.argv[1:]]),
            "effect": args.effect,
            "commits": args.commits,
            "right": right,
            "answer": search.answer,
            "minutes": round(search.minutes, 1),
            "probes": [
                {
                    "number": commits.index(each.b),
                    "against": commits.index(each.a),
                    "word": each.finding.word,
                    "change": each.finding.change,
                    "pairs": each.finding.pairs,
                    "minutes": round(each.finding.minutes, 1),
                }
                for each in search.probes
            ],
        }
        jsonfile.write(RESULTS, {"schema": 1, "rows": [*rows, row]}, RecordError)
    return int(not right)


if __name__ == "__main__":
    raise SystemExit(main())
