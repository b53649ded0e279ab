"""Tiny wheels, made by hand, and an interpreter that has some: no test needs an index."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str] | None = None,
    requires: Sequence[str] = (),
    scripts: Sequence[str] = (),
) -> Path:
    """``NAME-VERSION-py3-none-any.whl`` in ``folder``; by default a module that says its version.

    ``scripts`` are commands that call ``main`` of the module.
    """
    module = name.replace("-", "_")
    about = f"{module}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"Requires-Dist: {text}" for text in requires]
    contents = dict(
        files or {f"{module}.py": f"version = {version!r}\ndef main(): print(version)\n"}
    )
    contents[f"{about}/METADATA"] = "\n".join(metadata) + "\n"
    contents[f"{about}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    if scripts:
        points = "".join(f"{script} = {module}:main\n" for script in scripts)
        contents[f"{about}/entry_points.txt"] = f"[console_scripts]\n{points}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}-{version}-py3-none-any.whl"
    record = "".join(f"{file},,\n" for file in (*contents, f"{about}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**contents, f"{about}/RECORD": record}.items():
            archive.writestr(file, text)
    return path


def interpreter(folder: Path, *wheels: Path) -> Path:
    """A virtual environment without pip, which has ``wheels``."""
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True)
    for path in wheels:
        unpack(path, site(folder / "bin" / "python"))
    return folder / "bin" / "python"


def unpack(path: Path, where: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(where)


def site(python: Path) -> Path:
    """The directory of an interpreter's packages."""
    (found,) = python.parents[1].glob("lib/python*/site-packages")
    return found


def told(python: Path, code: str) -> str:
    """What the interpreter prints."""
    return subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
