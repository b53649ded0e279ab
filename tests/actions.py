"""GitHub Actions on this machine, as far as this repository's workflows use it.

Expressions are evaluated by the documented rules (loose equality, ``&&`` and ``||`` return an
operand); ``run:`` steps are bash with the files GITHUB_ENV, GITHUB_OUTPUT and GITHUB_STEP_SUMMARY;
artifacts are folders; ``actions/checkout`` is a clone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
WORKFLOWS = REPOSITORY / ".github" / "workflows"
_TOKEN = re.compile(r"\s*(?:('(?:[^']|'')*')|(&&|\|\||==|!=|[!(),])|([\w.-]+))")


def load(name: str) -> dict[str, Any]:
    """A workflow; its key ``on``, which YAML 1.1 takes for true, is called ``on``."""
    found = yaml.safe_load((WORKFLOWS / name).read_text(encoding="utf-8"))
    found["on"] = found.pop(True)
    return found


def evaluate(text: str, contexts: Mapping[str, Any]) -> Any:
    """The value of an expression; functions are callables in ``contexts``."""
    tokens = [match.groups() for match in _TOKEN.finditer(text)]
    assert "".join("".join(t or "" for t in g) for g in tokens) == _unspaced(text), text
    value, rest = _either([next(filter(None, group)) for group in tokens], contexts)
    assert not rest, f"{text}: {rest} is left"
    return value


def filled(text: object, contexts: Mapping[str, Any]) -> str:
    """A text with every ``${{ }}`` replaced."""
    given = {True: "true", False: "false"}.get(text, text) if isinstance(text, bool) else text
    return re.sub(
        r"\$\{\{(.*?)\}\}", lambda m: _text(evaluate(m[1], contexts)), str(given), flags=re.DOTALL
    )


def condition(text: str | None, contexts: Mapping[str, Any]) -> bool:
    """Whether a job or step with this ``if`` runs; ``success()`` unless it asks for a status."""
    bare = re.sub(r"^\$\{\{(.*)\}\}$", r"\1", (text or "").strip(), flags=re.DOTALL)
    if not re.search(r"\b(always|failure|cancelled|success)\(\)", bare):
        bare = f"success() && ({bare})" if bare else "success()"
    return bool(evaluate(bare, contexts))


def _unspaced(text: str) -> str:
    parts = re.split(r"('(?:[^']|'')*')", text)
    return "".join(p if p.startswith("'") else re.sub(r"\s", "", p) for p in parts)


def _either(tokens: list[str], contexts: Mapping[str, Any]) -> tuple[Any, list[str]]:
    value, tokens = _both(tokens, contexts)
    while tokens[:1] == ["||"]:
        other, tokens = _both(tokens[1:], contexts)
        value = value or other
    return value, tokens


def _both(tokens: list[str], contexts: Mapping[str, Any]) -> tuple[Any, list[str]]:
    value, tokens = _compared(tokens, contexts)
    while tokens[:1] == ["&&"]:
        other, tokens = _compared(tokens[1:], contexts)
        value = value and other
    return value, tokens


def _compared(tokens: list[str], contexts: Mapping[str, Any]) -> tuple[Any, list[str]]:
    value, tokens = _single(tokens, contexts)
    while tokens[:1] in (["=="], ["!="]):
        other, rest = _single(tokens[1:], contexts)
        same = _loose(value) == _loose(other)
        value, tokens = same if tokens[0] == "==" else not same, rest
    return value, tokens


def _single(tokens: list[str], contexts: Mapping[str, Any]) -> tuple[Any, list[str]]:
    first, rest = tokens[0], tokens[1:]
    if first == "!":
        value, rest = _single(rest, contexts)
        return not value, rest
    if first == "(":
        value, rest = _either(rest, contexts)
        return value, rest[1:]
    if first.startswith("'"):
        return first[1:-1].replace("''", "'"), rest
    if rest[:1] == ["("]:
        end = rest.index(")")
        arguments = [token[1:-1] for token in rest[1:end] if token != ","]
        return contexts[first](*arguments), rest[end + 1 :]
    if first in ("true", "false"):
        return first == "true", rest
    value: Any = contexts
    for name in first.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value, rest


def _loose(value: object) -> object:
    if isinstance(value, str):
        return value.casefold()  # comparisons of strings ignore the case
    return value


def _text(value: object) -> str:
    if value is None:
        return ""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


@dataclass
class Step:
    """What became of one step: ``skipped``, ``success`` or ``failure``."""

    name: str
    outcome: str
    output: str = ""


@dataclass
class Machine:
    """Where jobs run: a fresh folder each, artifacts kept between them.

    Attributes:
        folder: everything is below it.
        origin: the git repository that is checked out.
        environment: of every step, below GitHub's own variables.
        contexts: ``github``, ``inputs``, ``vars`` of the event.
    """

    folder: Path
    origin: Path
    environment: dict[str, str]
    contexts: dict[str, Any]
    artifacts: dict[str, Path] = field(default_factory=dict)
    summary: str = ""

    def run(self, workflow: Mapping[str, Any], job: str) -> list[Step]:
        """Every step of a job in order, as a runner does."""
        work = self.folder / f"{job}-{len(list(self.folder.iterdir()))}"
        (work / "temp").mkdir(parents=True)
        self.workspace = work / "workspace"
        spec, steps = workflow["jobs"][job], []
        contexts: dict[str, Any] = {**self.contexts, "runner": {"temp": str(work / "temp")}}
        contexts |= {"always": lambda: True, "cancelled": lambda: False, "hashFiles": self._hashed}
        contexts["success"] = lambda: all(step.outcome != "failure" for step in steps)
        contexts["failure"] = lambda: not contexts["success"]()
        if not condition(spec.get("if"), contexts):
            return []
        exported = {k: filled(v, contexts) for k, v in spec.get("env", {}).items()}
        for step in spec["steps"]:
            name = step.get("name", step.get("uses", "").partition("@")[0])
            if not condition(step.get("if"), contexts):
                steps.append(Step(name, "skipped"))
                continue
            own = {k: filled(v, contexts) for k, v in step.get("env", {}).items()}
            if "run" in step:
                steps.append(self._script(name, step["run"], {**exported, **own}, exported))
            else:
                given = {k: filled(v, contexts) for k, v in step.get("with", {}).items()}
                steps.append(Step(name, self._action(step["uses"], given)))
        return steps

    def _hashed(self, pattern: str) -> str:
        return "hash" if list(self.workspace.glob(pattern)) else ""

    def _script(
        self, name: str, script: str, environment: dict[str, str], exported: dict[str, str]
    ) -> Step:
        temp = self.workspace.parent / "temp"
        files = {key: temp / key for key in ("GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for file in files.values():
            file.write_text("")
        github = {f"GITHUB_{k.upper()}": v for k, v in self.contexts["github"].items()}
        github = {k: v for k, v in github.items() if isinstance(v, str) and k != "GITHUB_TOKEN"}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.workspace,
            env={
                **self.environment,
                **environment,
                **github,
                **{key: str(file) for key, file in files.items()},
                "GITHUB_WORKSPACE": str(self.workspace),
                "GITHUB_ACTIONS": "true",
                "CI": "true",
                "RUNNER_TEMP": str(temp),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.summary += files["GITHUB_STEP_SUMMARY"].read_text()
        exported |= dict(_assignments(files["GITHUB_ENV"].read_text()))
        return Step(name, "failure" if done.returncode else "success", done.stdout)

    def _action(self, uses: str, given: Mapping[str, str]) -> str:
        name = uses.partition("@")[0]
        if name == "actions/checkout":
            assert given["persist-credentials"] == "false"
            clone = ["git", "clone", "--quiet", str(self.origin), str(self.workspace)]
            subprocess.run(clone, check=True)
        elif name == "actions/upload-artifact":
            return self._upload(given)
        elif name == "actions/download-artifact":
            shutil.copytree(
                self.artifacts[given["name"]], self.workspace / given["path"], dirs_exist_ok=True
            )
        else:
            assert name == "actions/setup-python", f"{name} is not emulated"
        return "success"

    def _upload(self, given: Mapping[str, str]) -> str:
        """Keep files below the deepest folder that the given paths have in common."""
        named = [self.workspace / line for line in given["path"].split()]
        alone = len(named) == 1
        root = named[0] if alone and named[0].is_dir() else Path(os.path.commonpath(named))
        root = root.parent if alone and named[0].is_file() else root
        files = [f for path in named for f in (path, *path.rglob("*")) if f.is_file()]
        if not files:
            return "failure" if given.get("if-no-files-found") == "error" else "success"
        kept = self.folder / "artifacts" / given["name"]
        shutil.rmtree(kept, ignore_errors=True)
        for file in files:
            target = kept / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        self.artifacts[given["name"]] = kept
        return "success"


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, _, value = line.partition("=")
        yield name, value
