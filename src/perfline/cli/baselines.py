"""What do ``perfline baselines update|diff|show|check|remove`` do with the files?

They measure nothing and import no torch. ``update`` and ``remove`` are the only writers of
``baselines/``; what may be stored is decided in ``baselines.accept``. Each function prints its
result and returns the exit status.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from perfline.baselines import accept, baseline, suggestions
from perfline.baselines.baseline import Baseline
from perfline.baselines.proposal import Terms
from perfline.cases.case import Case, load_cases, slim_cases
from perfline.engines.environment import LAYOUT
from perfline.errors import BaselineError, PerflineError
from perfline.measure.record import load as load_record
from perfline.report import baselines
from perfline.report.text import paragraph


def update(
    root: Path,
    run: Path,
    names: Sequence[str],
    directories: Sequence[Path],
    terms: Terms,
) -> int:
    """Store what the session in ``run`` measured of the cases (all if none is named), or nothing.

    BaselineError, one line for each reason, unless every case may be stored. A baseline that is
    broken is replaced with ``--accept-regression`` only.
    """
    record = load_record(run)
    names = list(dict.fromkeys(names)) or list(record.cases)
    _refuse(accept.record_problems(run, record, names, terms.reason))
    if not names:
        raise BaselineError(f"{run}: holds no case; run pytest again")
    cases = {case.id: case for case in load_cases(names, directories)}
    with baseline.locked(
        suggestions.place(root, record, names[0])
    ):  # one machine: one directory, one lock
        results = suggestions.results(root, run, record, [cases[name] for name in names], terms)
        _save_all({candidate.path: new for candidate, new in results})
    for candidate, result in results:
        print(baselines.comparison(candidate, result))
        for line in accept.notes(candidate, terms):
            print("\n".join(paragraph(line)))
        print(f"  written: {candidate.path}\n")
    print(f"next: git add {shlex.join(str(candidate.path) for candidate, _ in results)}")
    return 0


def diff(root: Path, run: Path, name: str, directories: Sequence[Path]) -> int:
    """Print what an update would change, and what would keep it from being made."""
    record = load_record(run)
    terms = Terms(reason="diff")
    unknown = accept.record_problems(run, record, [name], terms.reason)
    if name not in record.cases:
        _refuse(unknown[-1:])
    (case,) = load_cases([name], directories)
    candidate = suggestions.candidate(root, run, record, case, terms)
    print(baselines.comparison(candidate, accept.merged(candidate, terms)))
    for line in baselines.differences(candidate):
        print("\n".join(paragraph(line)))
    for line in [*unknown, *accept.problems(candidate, terms)]:
        print("\n".join(paragraph(f"update would refuse: {line}")))
    return 0


def show(root: Path, names: Sequence[str], as_json: bool) -> int:
    """Print what is stored, of all cases or of those named."""
    stored = {path: baseline.load(path) for path in _files(root)}
    known = sorted({each.case for each in stored.values()})
    for name in names:
        if name not in known:
            there = ", ".join(known) or "none"
            raise BaselineError(f"{root}: holds no baseline of case '{name}' (there: {there})")
    chosen = {path: each for path, each in stored.items() if not names or each.case in names}
    if as_json:
        print(json.dumps([baselines.as_json(*item) for item in chosen.items()], indent=1))
    elif chosen:
        print("\n\n".join(baselines.description(*item) for item in chosen.items()))
    else:
        print(f"{root}: holds no baseline yet; `perfline baselines update` stores one")
    return 0


def check(root: Path, directories: Sequence[Path], strict: bool, wanted: Sequence[str] = ()) -> int:
    """Print what is wrong with the files, one line each; 1 if anything is.

    A case that a machine with other baselines has none of is worth a line, and counts as wrong
    under ``strict``: any case, or one of those ``wanted``.
    """
    cases = {case.id: case for case in load_cases(None, directories)}
    # Of the slim ones a machine may hold a baseline; none has to.
    known = {case.id: case for case in load_cases(slim_cases())} | cases
    wrong: list[str] = []
    held: dict[str, set[str]] = {}
    files = _files(root)
    for path in files:
        held.setdefault(path.parent.name, set()).add(baselines.case_of(path))
        wrong += _file_problems(root, path, known, directories)
    published = sorted((root / baseline.PUBLISHED).glob("*.json"))
    for path in published:
        wrong += _published_problems(path, cases)
    missing = [
        f"missing: {machine} has no baseline of case '{name}'; run pytest "
        f"{_as_measured(machine)}, then "
        f"`{_update_command(root, name, directories)}`"
        for machine, there in held.items()
        for name in wanted or cases
        if name not in there
    ]
    for line in wrong + missing:
        print("\n".join(paragraph(line, "")))
    print(
        f"{root}: {len(files)} {'baseline' if len(files) == 1 else 'baselines'} and "
        f"{len(published)} published checked: "
        f"{len(wrong)} wrong, {len(missing)} missing"
    )
    return 1 if wrong or (strict and missing) else 0


def remove(root: Path, name: str, machine: str, dummy: bool) -> int:
    """Delete one baseline; BaselineError where there is none."""
    path = baseline.path(root, machine, name, dummy)
    files = _files(root)
    if path not in files:
        there = ", ".join(str(file.relative_to(root)) for file in files) or "none"
        raise BaselineError(f"{path}: no such baseline to remove (there: {there})")
    with baseline.locked(path):
        try:
            path.unlink()
        except OSError as failure:
            raise BaselineError(f"{path}: cannot be removed: {failure.strerror}") from failure
    print(f"removed: {path}")
    print(f"next: git add {shlex.quote(str(path))}")
    return 0


def _refuse(lines: Sequence[str]) -> None:
    if lines:
        raise BaselineError("\n".join(lines))


def _save_all(results: Mapping[Path, Baseline]) -> None:
    """Write every file, or put back what was there; BaselineError says which of the two."""
    before = {path: _contents(path) for path in results}
    written: list[Path] = []
    try:
        for path, result in results.items():
            baseline.save(path, result)
            written.append(path)
    except (BaselineError, KeyboardInterrupt) as failure:
        changed = [str(path) for path in written if not _put_back(path, before[path])]
        state = (
            f"these hold the new run: {', '.join(changed)}" if changed else "nothing was changed"
        )
        if isinstance(failure, KeyboardInterrupt) and not changed:
            raise
        raise BaselineError(f"{str(failure) or 'interrupted'}; {state}") from failure


def _contents(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise BaselineError(f"{path}: cannot be read: {failure.strerror}") from failure


def _put_back(path: Path, old: bytes | None) -> bool:
    """Restore a file's contents at once, or its absence; False where that fails."""
    spare = path.with_name(f".{path.name}.restored")
    try:
        if old is None:
            path.unlink()
        else:
            spare.write_bytes(old)
            spare.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            spare.unlink()
        return False
    return True


def _as_measured(machine: str) -> str:
    """How pytest is run for a machine's folder, whose name may end in a layout of ranks."""
    layout = re.search(rf"-{LAYOUT.pattern}$", machine)
    return f"under torchrun with {layout['ranks']} ranks there" if layout else "there"


def _files(root: Path) -> list[Path]:
    """Return the files of all machines, sorted."""
    if not root.is_dir():
        raise BaselineError(
            f"{root}: no such directory of baselines; name it with --baselines, or store a first "
            "one with `perfline baselines update`"
        )
    return sorted(p for p in root.glob("*/*.json") if p.parent.name != baseline.PUBLISHED)


def _update_command(root: Path, name: str, directories: Sequence[Path]) -> str:
    """Return the command that stores a case, to be pasted as it is."""
    words = f'perfline baselines update {name} --run results/run.json --reason "..."'
    return " ".join([words, *(f"--case-dir={shlex.quote(str(d))}" for d in directories)]) + _at(
        root
    )


def _at(root: Path) -> str:
    """Return the option that names the baselines' directory, where it is not the default."""
    return "" if root == Path("baselines") else f" --baselines={shlex.quote(str(root))}"


def _file_problems(
    root: Path, path: Path, cases: Mapping[str, Case], directories: Sequence[Path]
) -> Iterator[str]:
    name = baselines.case_of(path)
    try:
        stored = baseline.load(path)
    except PerflineError as problem:
        yield f"broken: {problem}"
        return
    if name not in cases:
        dummy = " --dummy" if baselines.kind_of(path) == "dummy" else ""
        yield (
            f"unused: {path}: there is no case '{name}'; `perfline baselines remove {name} "
            f"--machine {path.parent.name}{dummy}{_at(root)}`, or name its YAML's directory with "
            "--case-dir"
        )
        return
    today = cases[name].digest(baselines.kind_of(path))
    if stored.case_digest != today:
        yield (
            f"stale: {path}: is of an older definition of the case ({stored.case_digest}, "
            f"{cases[name].source.name} is now {today}); run pytest on {path.parent.name}, then "
            f"`{_update_command(root, name, directories)}`"
        )


def _published_problems(path: Path, cases: Mapping[str, Case]) -> Iterator[str]:
    try:
        baseline.load_published(path)
    except PerflineError as problem:
        yield f"broken: {problem}"
        return
    if path.stem not in cases:
        yield f"unused: {path}: there is no case '{path.stem}'; delete it, or name --case-dir"
