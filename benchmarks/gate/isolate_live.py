"""Does ``perfline isolate`` find what did it, by live processes?

``python benchmarks/gate/isolate_live.py slower|together|tokens [--effect 0.05] [--write]``: makes
local wheels in two versions, installs 1 of each for A and 2 for B, and isolates between them:

- ``slower``: one of three makes forwards last longer in its version 2;
- ``together``: two of them do, but only where both are version 2;
- ``tokens``: one makes 9 % more tokens of each prompt, which needs no timing.

Half an hour to an hour on 2 quiet cores, ``tokens`` a minute; what other options follow go to
``perfline isolate``.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path

import _live

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "isolate-live.json"
NAMES = ("made_one", "made_two", "made_three")
GUILTY = {
    "slower": {"made-two"},
    "together": {"made-one", "made-two"},
    "tokens": {"made-three"},
}
_IDLE = '"""Does nothing."""\n'
_SLOWED = """# Forwards last longer, where all of {asked} are version 2.
from importlib.metadata import version
{slowed}
if all(version(name) == "2" for name in {asked}):
    TorchEngine.forward = slower({effect:g})
"""
_LONGER = '''"""Nine tokens more for every hundred of a prompt."""

import os
import tempfile

from perfline.tasks import prompts

# Prompts are kept by the versions of transformers and tokenizers, which stay as they are here.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
hf_encode = prompts.hf_encode


def longer(tokenizer, bos):
    encode = hf_encode(tokenizer, bos)
    return lambda texts: [row[: len(row) * 9 // 100] + row for row in encode(texts)]


prompts.hf_encode = longer
'''


def modules(kind: str, effect: float) -> dict[str, str]:
    """The text of version 2 of each wheel; version 1 of all does nothing."""
    found = dict.fromkeys(NAMES, _IDLE)
    if kind == "slower":
        found["made_two"] = _SLOWED.format(effect=effect, slowed=_live.SLOWED, asked=["made-two"])
    elif kind == "together":
        found["made_two"] = _SLOWED.format(
            effect=effect, slowed=_live.SLOWED, asked=["made-one", "made-two"]
        )
    else:
        found["made_three"] = _LONGER
    return found


def wheel(folder: Path, module: str, version: str, text: str) -> Path:
    """Make one of a single module."""
    about = f"{module}-{version}.dist-info"
    contents = {
        f"{module}.py": text,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    contents[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in (*contents, f"{about}/RECORD"))
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, held in contents.items():
            archive.writestr(name, held)
    return path


def main() -> int:
    """Make the wheels, isolate, and say whether the answer is right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=list(GUILTY))
    _live.add_options(parser, RESULTS)
    args, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="isolate-live-") as made:
        folder = Path(made)
        second = modules(args.kind, args.effect)
        words = ["isolate", "tiny", *more]
        for side, version in (("baseline", "1"), ("candidate", "2")):
            wheels = [
                wheel(folder, name, version, _IDLE if version == "1" else second[name])
                for name in NAMES
            ]
            words += [f"--{side}-install", " ".join(["--no-index", *map(str, wheels)])]
            option = "--baseline-import" if version == "1" else "--import"
            words += [word for name in NAMES for word in (option, name)]
        search = _live.search(words, Path.cwd(), folder / "isolate.json")
    return _live.told(
        search,
        GUILTY[args.kind],
        args,
        RESULTS,
        {"kind": args.kind},
        lambda probe: {"role": probe.role, "of": probe.b},
    )


if __name__ == "__main__":
    raise SystemExit(main())
