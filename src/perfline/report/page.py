"""How does a session become one HTML file that a person opens, mails and prints?

The file holds everything: style sheet, charts and texts; it asks no network and runs no script (a
content security policy in it forbids both), so that it opens from disk, and folding works through
``<details>`` alone. jinja2 escapes all that comes from a record; only the charts, which
:mod:`perfline.report.svg` escapes itself, are passed as they are.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from perfline import __version__
from perfline.errors import PerflineError
from perfline.gates.verdict import WORST_FIRST, Word
from perfline.report.page_case import CaseView, case_view
from perfline.report.page_comparison import comparison_views
from perfline.report.page_headline import headline
from perfline.report.page_inputs import Inputs
from perfline.report.text import number, unit_shown

if TYPE_CHECKING:
    import jinja2

LIMIT = 2_000_000  # bytes
# What is left out, step by step, until a page is below the limit: flips of one verdict that are
# listed, and whether every metric has its history.
_STEPS = ((150, True), (150, False), (30, False), (5, False), (0, False))

SYMBOLS: dict[Word, str] = {
    "ok": "✓",
    "improved": "▲",
    "regressed": "✕",
    "unsure": "?",
    "missing": "–",
    "incomparable": "≠",
    "invalid": "!",
}


def html(inputs: Inputs, *, strict: bool = False, limit: int = LIMIT) -> str:
    """Return the page, below ``limit`` bytes; PerflineError without jinja2.

    What has to be left out for the limit is said on the page.
    """
    template = _template()
    page = ""
    for most_flips, every_plot in _STEPS:
        page = _rendered(template, inputs, strict, most_flips, every_plot)
        if len(page.encode()) < limit:
            return page
    raise PerflineError(
        f"{inputs.path}: the page takes {len(page.encode()):,} bytes with nothing but the verdicts "
        f"(limit {limit:,}); report on fewer cases, or use --format markdown"
    )


def _rendered(
    template: jinja2.Template, inputs: Inputs, strict: bool, most_flips: int, every_plot: bool
) -> str:
    record = inputs.record
    cases: list[CaseView] = []
    if record is not None:
        cases = [
            case_view(inputs.cases[name], record, most_flips, every_plot) for name in inputs.cases
        ]
        cases.sort(key=lambda case: (not case.errors, WORST_FIRST.index(case.word)))
    compared = [view for each in inputs.comparisons for view in comparison_views(each, most_flips)]
    return template.render(
        headline=headline(inputs, strict),
        inputs=inputs,
        record=record,
        cases=cases,
        comparisons=compared,
        symbols=SYMBOLS,
        strict=strict,
        version=__version__,
    )


def _pretty(text: str) -> str:
    return text.replace("+-", "±").replace("->", "→")


@cache
def _template() -> jinja2.Template:
    try:
        import jinja2
    except ImportError as error:
        raise PerflineError(
            "the page needs jinja2, which is not installed; get it with: "
            "pip install 'perfline[report]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pretty"] = _pretty
    environment.globals.update(number=number, unit_shown=unit_shown)
    return environment.get_template("page.html.j2")
