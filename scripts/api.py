"""What does docs/api.md say? ``python scripts/api.py > docs/api.md``, from the code itself."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap

import perfline
from perfline.errors import PerflineError

HEAD = """# The names that code outside may rest on

`import perfline` gives these names and no others; each is imported when it is first asked for, and
none of them imports torch. A test pins the list. [extending.md](extending.md) shows them at work.
All else in the package may change with any version. This page is made from the code:

```console
$ python scripts/api.py > docs/api.md
```
"""


def members(found: type) -> list[str]:
    """The source of a class's fields, comments included, and its public methods, a line each."""
    source = textwrap.dedent(inspect.getsource(found))
    lines, shown = source.splitlines(), []
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign):
            shown += lines[node.lineno - 1 : node.end_lineno]
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            is_value = any(ast.unparse(each) == "property" for each in node.decorator_list)
            given = "" if is_value else f"({ast.unparse(node.args)})"
            returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
            first = text(ast.get_docstring(node)).split("\n")[0]
            shown += [f"    # {first}", f"    {node.name}{given}{returns}"]
    return [plain(line) for line in shown if not line.strip().startswith("_")]


def plain(line: str) -> str:
    """A dataclass's field with its default alone."""
    defaults = ((r"default_factory=(\w+)", r" = \1()"), (r"default=(\(\)|[^,)]+)", r" = \1"))
    for given, meant in defaults:
        line = re.sub(rf" = field\({given}.*?\)(?=  #|$)", meant, line)
    return re.sub(r" = field\(.*?\)(?=  #|$)", "", line)


def text(docstring: str | None) -> str:
    """A docstring as Markdown: no reST roles, its indented blocks fenced."""
    said = inspect.cleandoc(docstring or "").replace("::\n", ":\n")
    for sign in (":class:`~perfline.", ":class:`~", ":class:`", ":meth:`", ":func:`"):
        said = said.replace(sign, "`")
    blocks = [
        f"```\n{textwrap.dedent(block)}\n```" if block.startswith("    ") else block
        for block in said.replace("``", "`").replace("Attributes:\n    ", "").split("\n\n")
    ]
    return "\n\n".join(blocks)


def page() -> str:
    """The whole page."""
    parts, errors = [HEAD], []
    for name in perfline.__all__:
        found = getattr(perfline, name)
        if isinstance(found, str):
            continue
        if isinstance(found, type) and issubclass(found, PerflineError):
            (base,) = (each.__name__ for each in found.__bases__)
            first = text(found.__doc__).split("\n\n")[0].replace("\n", " ")
            errors.append(f"| `{name}` | `{base}` | {first} |")
            continue
        if isinstance(found, type):
            code = "\n".join(members(found))
        else:
            code = f"    {name}{inspect.signature(found)}".replace("'", "")
        block = textwrap.dedent(code)
        parts.append(f"## {name}\n\n{text(found.__doc__)}\n\n```\n{block}\n```\n")
    table = "\n".join(["| error | is a | when |", "|---|---|---|", *errors])
    return "\n".join([*parts, f"## Errors\n\nEach is one line for a person.\n\n{table}\n"])


if __name__ == "__main__":
    print(page(), end="")
