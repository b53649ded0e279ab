"""Do the pages of the docs say of cases what is true, and do their links lead somewhere?"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from packaging.version import Version

from doc_pages import PAGES, REPOSITORY, commands, rows, yaml_blocks
from perfline.cases import case
from perfline.engines import environment
from perfline.gates.statistics import detectable_drop_pp
from perfline.tasks.task import packaged_tasks


@pytest.mark.parametrize("page", PAGES)
def test_every_line_with_a_prompt_is_a_command_that_is_tested(page: str):
    """What stands in another kind of block, tests/e2e/test_docs.py would not see."""
    lines = (REPOSITORY / page).read_text().splitlines()
    shown = [number for number, line in enumerate(lines, 1) if re.match(r"\s*\$ ", line)]
    assert shown == [command.line for command in commands(page)]
    assert shown


def test_the_readme_is_for_somebody_with_two_minutes():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 200


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", (REPOSITORY / page).read_text()):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
            assert file.exists(), f"{page}: {target}"
            if anchor:
                assert anchor in anchors(file), f"{page}: {target}"


def anchors(file: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", file.read_text())
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", ["README.md", "docs/cases.md"])
def test_case_files_shown_are_valid(page: str, tmp_path: Path):
    shown = [text for text in yaml_blocks(page) if re.search(r"(?m)^case: ", text)]
    assert shown
    for text in shown:
        path = tmp_path / f"{yaml.safe_load(text)['case']}.yaml"
        path.write_text(text)
        assert case.load_case(path).id == path.stem


def schema(cls: type, prefix: str = "", digest: bool = True) -> dict[str, tuple[str, ...]]:
    """{key: (type, default, in the digest)} of every key that a case may have."""
    hints, keys = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        name = field.metadata.get("key", field.name)
        counts = digest and field.metadata.get("digest", True)
        if dataclasses.is_dataclass(hints[field.name]):
            keys |= schema(hints[field.name], f"{prefix}{name}.", counts)
        elif name is not None:
            required = field.default is dataclasses.MISSING
            default = "*required*" if required else plain(field.default)
            kind = type_words(hints[field.name], field.metadata)
            keys[f"{prefix}{name}"] = (kind, default, "yes" if counts else "no")
    return keys


def type_words(hint: object, meta: dict[str, object]) -> str:
    names = {str: "text", int: "whole number", float: "number", type(None): "null"}
    if get_origin(hint) is tuple:
        return f"list of {type_words(get_args(hint)[0], meta)}"
    options = [hint] if get_origin(hint) in (Literal, None) else list(get_args(hint))
    words: list[str] = []
    for option in options:
        if get_origin(option) is Literal:
            words += [f"`{word}`" for word in get_args(option)]
        elif option is bool:
            words += ["`true`", "`false`"]
        else:
            words.append(names.get(option, "mapping"))
    text = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    labels = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    limits = [f"{label} {meta[key]}" for key, label in labels.items() if key in meta]
    limits += ["relative path"] * bool(meta.get("relative"))
    return f"{text} ({', '.join(limits)})" if limits else text


def plain(value: object) -> str:
    """A value as YAML has it; 64.0 and 64 are one."""
    return json.dumps(float(value) if type(value) in (int, float) else value)


def test_every_key_of_a_case_is_documented_as_it_is():
    shown = {}
    for key, kind, default, unit, digest, purpose in (
        r for r in rows("docs/cases.md") if len(r) == 6
    ):
        if not key.startswith("`"):
            continue
        value = default if default.startswith("*") else plain(yaml.safe_load(default.strip("`")))
        shown[key.strip("`")] = (kind, value, digest)
        suffix = {"_fraction": "fraction", "_pp": "pp", "_s": "s", "_mib": "MiB"}
        due = [words for end, words in suffix.items() if key.strip("`").endswith(end)]
        assert due in ([], [unit]), key
        assert purpose, key
    assert shown == schema(case.Case)


def test_the_tested_versions_are_those_of_the_code_and_not_below_the_lock():
    lock = (REPOSITORY / "constraints.txt").read_text()
    for page in ("README.md", "docs/versions.md"):
        text = " ".join((REPOSITORY / page).read_text().split())
        for name, (first, last) in environment.TESTED.items():
            assert f"{name} {first} to {last}" in text, page
    for name, (_, last) in environment.TESTED.items():
        pinned = re.findall(rf"^{name}==([\d.]+)", lock, flags=re.MULTILINE)
        assert pinned
        assert max(map(Version, pinned)) <= Version(last)


def test_what_drop_each_task_sees_is_computed():
    shown = {row[0].strip("`"): row for row in rows("docs/tasks.md") if row[-1].endswith(" pp")}
    assert set(shown) <= set(packaged_tasks())
    assert {"mmlu", "mmlu_pro", "ceval", "cmmlu"} <= set(shown)
    for _, _, questions, _, drop in shown.values():
        n = int(questions.removeprefix("about ").replace(",", ""))
        assert drop == f"{detectable_drop_pp(n, 0.01, alpha=0.05):.2f} pp"
    per_task = {
        name: detectable_drop_pp(14042, rate, alpha)
        for name, rate, alpha in (
            ("table", 0.01, 0.05),
            ("gate", 0.01, 0.01),
            ("flips", 0.02, 0.05),
        )
    }
    factors = [f"{per_task[name] / per_task['table']:.2f} times" for name in ("gate", "flips")]
    text = " ".join((REPOSITORY / "docs/tasks.md").read_text().split())
    assert all(factor in text for factor in factors)
    assert f"{per_task['table'] / 100 / (0.01 / 14042) ** 0.5:.2f} sqrt(p / n)" in text
