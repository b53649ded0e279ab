"""What do the README and the pages under docs/ show: commands, tables, case files?"""

from __future__ import annotations

import dataclasses
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in REPOSITORY.glob("docs/*.md"))]
MEASURE = "make perf"
# Programs of others: what they are given is theirs, but for files of this repository.
FOREIGN = {"apt-get", "cat", "cd", "chmod", "chown", "curl", "echo", "export", "gh", "git", "hf"}
FOREIGN |= {"install", "nvidia-smi", "pip", "systemctl", "tar", "tee", "ubuntu-drivers", "useradd"}
FOREIGN |= {"./config.sh", "sbatch", "torchrun"}
OURS = {"perfline", "pytest", "make", "python", "bash", "."}


@dataclass(frozen=True)
class Command:
    """One command of a page, and the output shown for it."""

    page: str
    line: int
    text: str
    output: str

    @property
    def bare(self) -> str:
        """The command without the remark behind it."""
        return self.text.partition(" #")[0].strip()

    @property
    def parts(self) -> list[list[str]]:
        """The words of each program in it: no redirections, variables set, ``sudo``."""
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        parts: list[list[str]] = [[]]
        words = iter(lexer)
        for word in words:
            if set(word) <= set("<>&|;") and word.strip("&|;"):
                next(words)
            elif set(word) <= set("&|;"):
                parts.append([])
            elif parts[-1] or not (word == "sudo" or re.match(r"\w+=", word)):
                parts[-1].append(word)
        return [part for part in parts if part]

    @property
    def elsewhere(self) -> bool:
        """Whether it needs another machine, or more than this test has."""
        foreign = any(part[0] not in OURS for part in self.parts)
        makes = any(part[0] == "make" for part in self.parts) and self.bare != MEASURE
        scripts = re.search(r"\b(benchmarks|scripts)/", self.text)
        there = re.search(r"(^|[\s=\"'])~?/\w|\b(llama3-8b|deepseek-7b)\b", self.text)
        return bool(foreign or there or scripts or makes)


def commands(page: str) -> list[Command]:
    """All commands in the page's console blocks, in order; ``> `` goes on with one."""
    found: list[Command] = []
    inside, goes_on, indent = False, False, 0
    for number, raw in enumerate((REPOSITORY / page).read_text().splitlines(), 1):
        if raw.strip().startswith("```"):
            inside, goes_on = not inside and raw.strip() == "```console", False
            indent = len(raw) - len(raw.lstrip())
        elif inside and (line := raw[indent:]).startswith("$ "):
            found.append(Command(page, number, line[2:], ""))
            goes_on = True
        elif inside and goes_on and (line.startswith("> ") or found[-1].text.endswith("\\")):
            found[-1] = dataclasses.replace(
                found[-1], text=f"{found[-1].text}\n{line.removeprefix('> ')}"
            )
        elif inside:
            goes_on = False
            found[-1] = dataclasses.replace(found[-1], output=f"{found[-1].output}{line}\n")
    return found


ALL = [command for page in PAGES for command in commands(page)]


def inline(page: str) -> list[str]:
    """The spans of code in a page's prose."""
    prose = re.sub(r"(?ms)^ *```.*?^ *```$", "", (REPOSITORY / page).read_text())
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def yaml_blocks(page: str) -> list[str]:
    """What stands in the page's ```yaml blocks."""
    return re.findall(r"(?ms)^```yaml\n(.*?)^```$", (REPOSITORY / page).read_text())


def python_files(page: str) -> list[tuple[str, str]]:
    """(name, text) of the page's ```python blocks; the first line is the name: ``# engine.py``."""
    return re.findall(r"(?ms)^```python\n# (\S+\.py)\n(.*?)^```$", (REPOSITORY / page).read_text())


def rows(page: str) -> list[list[str]]:
    """The cells of every row of every table."""
    lines = (REPOSITORY / page).read_text().splitlines()
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line[:1] == "|"]
