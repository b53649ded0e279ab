"""Which version of everything do `make perf` and `make test` install?

    make lock                    pins that still fit stay, the others are solved anew
    make lock ARGS=--upgrade     everything moves to the newest (`--upgrade-package NAME`: one)

Writes constraints.txt by `uv pip compile --universal`: pins for every supported Python and
platform, with markers. Its head holds a digest of the requirements in pyproject.toml, so that a
test sees a stale file without a network. Standard library and uv only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

LOCK = Path("constraints.txt")
PROJECT = Path("pyproject.toml")
EXTRAS = ("test", "gpu", "browser")  # what `make setup` is called with, here and in .github/
HEAD = """\
# Made by `make lock`: what `make setup` installs, on every supported Python and platform.
# Requirements: {digest}
"""


def main() -> int:
    """Write constraints.txt; 2 and one line on stderr where it cannot be made."""
    parser = argparse.ArgumentParser(prog="make lock", description=__doc__.splitlines()[0])
    parser.add_argument("--uv", default="uv", help="the program (default: uv)")
    parser.add_argument("--upgrade", action="store_true", help="move everything to the newest")
    parser.add_argument("--upgrade-package", action="append", default=[], metavar="NAME")
    parser.add_argument("--changed", type=Path, metavar="FILE", help="write the lines that are new")
    args = parser.parse_args()
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    old = LOCK.read_text(encoding="utf-8").splitlines() if LOCK.exists() else []
    moved = {name_of(name) for name in args.upgrade_package}
    if unknown := sorted(moved - {name_of(line) for line in old}):
        print(f"lock: error: {LOCK} pins no {', '.join(unknown)}", file=sys.stderr)
        return 2
    kept = [line for line in old if name_of(line) not in moved and not args.upgrade]
    try:
        pins = solved(args.uv, project, kept)
    except (OSError, ValueError) as problem:
        print(f"lock: error: {problem}", file=sys.stderr)
        return 2
    new = LOCK.with_suffix(".new")
    new.write_text(HEAD.format(digest=digest(project)) + pins, encoding="utf-8")
    new.replace(LOCK)
    if args.changed:
        args.changed.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{line}\n" for line in pins.splitlines() if line not in old]
        args.changed.write_text("".join(lines), encoding="utf-8")
    return 0


def digest(project: dict[str, Any]) -> str:
    """Return a digest of what a pyproject.toml requires, whatever its order and blanks."""
    table = project["project"]
    told = {
        "build-system": canonical(project["build-system"]["requires"]),
        "requires-python": table["requires-python"],
        "dependencies": canonical(table["dependencies"]),
        "optional-dependencies": {
            name: canonical(given) for name, given in table["optional-dependencies"].items()
        },
    }
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def canonical(requirements: list[str]) -> list[str]:
    """Return requirements in one order, without blanks but those between words of a marker."""
    return sorted(re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(r.split())) for r in requirements)


def name_of(requirement: str) -> str:
    """Return the package that a requirement or a line of constraints.txt names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def held(project: dict[str, Any], kept: list[str]) -> list[str]:
    """Return the pins of direct dependencies that have several, each for some Pythons.

    uv keeps an older pin where it can, and prefers what it has just chosen for other Pythons: it
    would put torch of the newest Python onto all. As constraints these stay apart.
    """
    direct = {name_of(text) for text in project["project"]["dependencies"]}
    several = {name for name, n in Counter(map(name_of, kept)).items() if n > 1} & direct
    return [line for line in kept if name_of(line) in several]


def solved(uv: str, project: dict[str, Any], kept: list[str]) -> str:
    """Return the new pins, old ones ``kept`` where they fit; ValueError: one line, why none."""
    floor = re.sub(r"[^\d.]", "", project["project"]["requires-python"])
    # What builds perfline itself, too: `make setup` installs it first and builds with that.
    backend = [*project["build-system"]["requires"], "editables"]
    with tempfile.TemporaryDirectory() as folder:
        output, constraints = Path(folder, LOCK.name), Path(folder, "held.txt")
        output.write_text("\n".join(kept), encoding="utf-8")  # uv reads it before it writes
        constraints.write_text("\n".join(held(project, kept)), encoding="utf-8")
        command = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", floor]
        command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
        command += [word for extra in EXTRAS for word in ("--extra", extra)]
        command += ["--constraints", str(constraints), "--output-file", str(output)]
        done = subprocess.run(
            [*command, str(PROJECT), "-"],
            input="\n".join(backend),
            env={name: text for name, text in os.environ.items() if name != "UV_FIND_LINKS"},
            stdout=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ValueError(
                f"`uv pip compile` ended with {done.returncode}; its message is above (a pin in "
                "the way: ARGS=--upgrade, or ARGS='--upgrade-package NAME')"
            )
        pins = output.read_text(encoding="utf-8")
    if strange := [line for line in pins.splitlines() if re.match(r"[^#]*(://|==[^ ;]*\+)", line)]:
        raise ValueError(f"{strange[0]!r}: expected NAME==VERSION, no address, no local version")
    return pins


if __name__ == "__main__":
    sys.exit(main())
