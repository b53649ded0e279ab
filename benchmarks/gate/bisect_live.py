"""Does ``perfline bisect`` find the commit of a made history, by live processes?

``python benchmarks/gate/bisect_live.py --effect 0.05 --commits 8 --step 5 [--write]``: makes a git
repository whose commits differ in a module that makes every forward last so much longer, from
commit ``step`` on, and runs ``perfline bisect`` over it. Effect 0 makes a history without a
change. An hour on 2 quiet cores; what other options follow go to ``perfline bisect``.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import _live

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "bisect-live.json"
_MODULE = """# Commit {number}: every forward lasts longer by a share of {effect:g}, on a CPU.
{slowed}
if {effect:g}:
    TorchEngine.forward = slower({effect:g})
"""


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
        now = effect if number >= step else 0.0
        text = _MODULE.format(number=number, effect=now, slowed=_live.SLOWED)
        (folder / "src" / "made_history.py").write_text(text)
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", f"change {number}")
        found.append(git(folder, "rev-parse", "--short=12", "HEAD"))
    return found


def main() -> int:
    """Make the history, search it, and say whether the answer is right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    _live.add_options(parser, RESULTS)
    parser.add_argument("--commits", type=int, default=8)
    parser.add_argument("--step", type=int, default=5)
    args, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="bisect-live-") as made:
        folder = Path(made)
        commits = make(folder, args.commits, args.step, args.effect)
        words = ["bisect", "tiny", "--good", commits[0], "--bad", "main"]
        words += ["--import", "made_history", *more]
        search = _live.search(words, folder, folder / "results" / "bisect.json")
    wanted = {commits[args.step]} if args.effect else set()
    facts = {"effect": args.effect, "commits": args.commits}
    return _live.told(
        search,
        wanted,
        args,
        RESULTS,
        facts,
        lambda probe: {"number": commits.index(probe.b), "against": commits.index(probe.a)},
    )


if __name__ == "__main__":
    raise SystemExit(main())
