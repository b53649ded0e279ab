"""What does `make setup` install? This perfline and what it needs, as constraints.txt pins it.

By uv, in a quarter of pip's time, under pip's own settings (index, find-links, certificates); where
there is no uv, by pip.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from perfline.environments.installers import Uv, pip_settings

PINS = ("-c", "constraints.txt")
BACKEND = ("hatchling", "editables")  # builds perfline, pinned like all else


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--uv", required=True, type=Path)
    parser.add_argument("--python", required=True, type=Path, help="of the environment")
    parser.add_argument("--extras", required=True)
    args = parser.parse_args()
    if args.uv.exists():
        command = [str(args.uv), "pip", "install", "--python", str(args.python)]
        command.append("--compile-bytecode")  # else each process does, where none may write it
        settings = Uv((str(args.uv),), pip_settings(Path(sys.executable))).environment
    else:
        command = [str(args.python), "-m", "pip", "install", "--disable-pip-version-check"]
        settings = {}
    for words in (BACKEND, ("--no-build-isolation", "-e", f".[{args.extras}]")):
        done = subprocess.run(
            [*command, "--quiet", *PINS, *words], env={**os.environ, **settings}, check=False
        )
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
