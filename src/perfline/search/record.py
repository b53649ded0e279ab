"""What has a search measured so far, and what did it answer?

The file is replaced, whole and at once, after every probe, and says ``partial`` until the search
has ended by itself. A search that is run again with the same request takes the probes that it finds
there and goes on behind them: a plan is a function of what its probes found, so it asks the same
questions in the same order. A probe that was interrupted is not in the file, and is measured anew.

Schema 1: the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from perfline import jsonfile
from perfline.errors import RecordError
from perfline.fields import OPTIONAL, as_json
from perfline.search.probe import Compare, Environment, Finding, Terms

SCHEMA = 1
_FIX = "move it away, or name another --out"


@dataclass(frozen=True)
class Probe:
    """One comparison of a search.

    Attributes:
        role: what the plan asked it for, such as ``ends``.
        a, b: names of the environments.
    """

    role: str
    a: str
    b: str
    terms: Terms
    finding: Finding


@dataclass(frozen=True)
class Search:
    """What one search measured; ``command`` runs it again, and goes on where it is partial.

    Attributes:
        plan: which plan, such as ``bisect``.
        request: digest of all that decides what is compared with what.
        named: names of what did it: one, several of which one did it, or none.
        answer: the same in a sentence; empty while it is partial.
        groups: of ``isolate``: what each group holds, as ``torch 2.12.0 -> 2.13.0``.
    """

    created: str  # ISO 8601, UTC
    partial: bool
    command: str
    plan: str
    request: str
    case: str
    engine: str
    metric: str
    probes: tuple[Probe, ...] = ()
    named: tuple[str, ...] = ()
    answer: str = ""
    notes: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict, metadata=OPTIONAL)

    @property
    def minutes(self) -> float:
        """What all probes took."""
        return sum(probe.finding.minutes for probe in self.probes)


def save(path: Path, search: Search) -> None:
    """Replace the file at once; RecordError where it cannot be written."""
    data = {"schema": SCHEMA, "kind": "search", **as_json(search)}
    jsonfile.write(path, data | {"digest": jsonfile.digest(data)}, RecordError)


def load(path: Path) -> Search:
    """Read the record of a search; RecordError says which key of the file is wrong."""
    node = jsonfile.read(path, SCHEMA, RecordError, _FIX, "search")
    if node.data.get("kind") != "search":
        raise RecordError(f"{path}: is no record of a search; {_FIX}")
    search = node.build(Search)
    rest = {key: value for key, value in node.data.items() if key != "digest"}
    if node.text("digest") != jsonfile.digest(rest):
        raise RecordError(f"{path}: was edited by hand (its digest does not fit); {_FIX}")
    return search


def resumed(path: Path, fresh: Search) -> Search:
    """What is to be gone on with: the partial search of the same request at ``path``, or ``fresh``.

    RecordError where something else than the record of a search stands there.
    """
    if jsonfile.is_continued(path) or not path.exists():
        return fresh
    found = load(path)
    if not found.partial or found.request != fresh.request:
        return fresh
    return replace(fresh, created=found.created, probes=found.probes, notes=found.notes)


@dataclass
class Journal:
    """Asks ``compare`` what the search has not been told yet, and keeps every answer.

    Attributes:
        told: called with every probe, and whether it was known before.
    """

    path: Path
    search: Search
    compare: Compare
    told: Callable[[Probe, bool], None] = lambda probe, known: None
    _asked: int = 0

    def probe(
        self,
        role: str,
        a: Environment,
        b: Environment,
        terms: Terms,
        compare: Compare | None = None,
    ) -> Finding:
        """The finding of a comparison, measured now or before the search was interrupted.

        ``compare`` asks by another metric than the search's own; the role says which.
        """
        asked = Probe(role, a.name, b.name, terms, Finding("unsure"))
        if self._asked < len(self.search.probes):
            found = self.search.probes[self._asked]
            if replace(found, finding=asked.finding) == asked:
                self._asked += 1
                self.told(found, True)
                return found.finding
            # Another plan by now: what follows was not asked for.
            self.search = replace(self.search, probes=self.search.probes[: self._asked])
        found = replace(asked, finding=(compare or self.compare)(a, b, terms))
        self.search = replace(self.search, probes=(*self.search.probes, found))
        self._asked += 1
        save(self.path, self.search)
        self.told(found, False)
        return found.finding

    def forget(self) -> None:
        """Drop the last answer, so that a later call asks it again."""
        self._asked -= 1
        self.search = replace(self.search, probes=self.search.probes[: self._asked])
        save(self.path, self.search)

    def end(self, named: tuple[str, ...], answer: str, notes: tuple[str, ...] = ()) -> Search:
        """Keep the answer: the search has ended by itself."""
        self.search = replace(self.search, partial=False, named=named, answer=answer, notes=notes)
        save(self.path, self.search)
        return self.search
