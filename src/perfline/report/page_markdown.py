"""What does ``perfline report --format markdown`` say, of sessions and of comparisons?"""

from __future__ import annotations

from perfline.report import markdown as report_markdown
from perfline.report.markdown import LIMIT, quoted
from perfline.report.page_case import Context, context
from perfline.report.page_comparison import ComparisonView, comparison_views
from perfline.report.page_headline import headline
from perfline.report.page_inputs import Inputs
from perfline.report.text import verdict_table


def markdown(inputs: Inputs, *, strict: bool = False, limit: int = LIMIT) -> str:
    """Return the summary, under ``limit`` characters: verdict first, details folded."""
    found = headline(inputs, strict)
    blocks = report_markdown.heading(found.title, found.counts, found.exit_line, found.next)
    details: list[str] = []
    last = ""
    if inputs.record is not None:
        published = {n: e.published for n, e in inputs.cases.items() if e.published is not None}
        changes = {n: _context(context(e, inputs.record)) for n, e in inputs.cases.items()}
        summaries, details = report_markdown.session_blocks(inputs.record, published, changes)
        blocks += summaries
        blocks += report_markdown.notice_blocks(inputs.record)
        last = report_markdown.last_line(inputs.record)
    for each in inputs.comparisons:
        blocks += [block for view in comparison_views(each, 0) for block in _comparison(view)]
    return report_markdown.fitted([*blocks, *details], last, limit)


def _context(found: Context) -> str:
    if not found.against:
        return ""
    differences = "; ".join(f"{d.name} {d.before} -> {d.after}" for d in found.differences)
    return f"against {found.against}: {differences or 'nothing differs'}"


def _comparison(view: ComparisonView) -> list[str]:
    title = f"### {quoted(view.name, 60)}, candidate against baseline: {view.word}\n"
    lines = [f"- **{quoted(view.headline)}**", f"- {quoted(view.story)}"]
    if view.problem:
        lines.append(f"- **ended before a decision**: {quoted(view.problem)}")
    lines += [f"- **{quoted(f.title)}** {f.word}: {quoted(f.reason)}" for f in view.findings]
    lines += [
        f"- {quoted(d.name, 60)}: {quoted(d.before, 100)} -> {quoted(d.after, 100)}"
        for d in view.differences
    ]
    table = verdict_table(view.verdicts, "github", quoted)
    return [title, *lines, report_markdown.folded(f"{quoted(view.name, 60)}: verdicts", table)]
