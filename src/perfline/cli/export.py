"""What does ``perfline export`` do? It writes a record in the form that another service reads.

It measures nothing and imports no torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perfline.cli.options import add_case_dir, add_command, names

if TYPE_CHECKING:
    from perfline.report.exports import Export

FORMATS = (
    *("customBiggerIsBetter", "customSmallerIsBetter", "bencher", "otava", "lm-eval"),
    *("vllm", "trtllm"),
)
_EPILOG = """\
formats:
  customBiggerIsBetter   github-action-benchmark: throughput, accuracy
  customSmallerIsBetter  github-action-benchmark: memory, graphs, graph breaks
  bencher                Bencher Metric Format (bencher run --adapter json)
  otava                  Apache Otava: a row is appended to the CSV named by -o
  lm-eval                lm-evaluation-harness: results and samples below -o
  vllm, trtllm           decode by their benchmarks' field names, JSON lines

example:
  perfline export results/run.json --format bencher -o results/bencher.json"""


def add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the ``perfline`` command line."""
    purpose = "write a record in the form that another service reads"
    parser = add_command(commands, "export", _run, purpose, _EPILOG)
    parser.add_argument("run", metavar="RECORD", type=Path, help="such as results/run.json")
    parser.add_argument("--format", choices=FORMATS, required=True, metavar="FORMAT")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="file to write (default: standard output); otava's CSV; lm-eval's directory",
    )
    parser.add_argument("--case", metavar="A,B", help="only these cases (default: all)")
    parser.add_argument(
        "--metric", metavar="A,B", help="otava: these columns (default: all judged metrics)"
    )
    parser.add_argument("--branch", metavar="NAME", help="otava: adds a column with the branch")
    add_case_dir(parser, only="lm-eval: ")


def _run(args: argparse.Namespace) -> int:
    from perfline import jsonfile
    from perfline.errors import RecordError, printable
    from perfline.measure import record
    from perfline.report import exports

    output: Path | None = args.output
    if output is not None and args.format not in ("otava", "lm-eval"):
        if output.exists() and args.run.exists() and output.samefile(args.run):
            raise RecordError(f"{output}: is the record; write the export elsewhere")
        jsonfile.withdraw(output, RecordError)
    found = exports.exports(args.run, record.load(args.run), names(args.case))
    if args.format != "otava" and (args.metric or args.branch):
        raise RecordError("--metric and --branch are for --format otava only; leave them out")
    if args.format in ("otava", "lm-eval"):
        if output is None:
            what = "the CSV to append to" if args.format == "otava" else "a directory"
            raise RecordError(f"--format {args.format} needs -o, {what}")
        if args.format == "otava":
            return _otava(output, found, names(args.metric), args.branch)
        return _lm_eval(output, found, args.case_dir)
    if args.format == "bencher":
        text = exports.bencher(found)
    elif args.format in ("vllm", "trtllm"):
        text = exports.serving(found, args.format)
    else:
        bigger = args.format == "customBiggerIsBetter"
        text = exports.github_action_benchmark(found, "higher" if bigger else "lower")
    if output is None:
        sys.stdout.write(text)
    else:
        jsonfile.write_text(output, text, RecordError)
        print(printable(f"written: {output}"))
    return 0


def _otava(path: Path, found: Sequence[Export], metrics: list[str], branch: str | None) -> int:
    from perfline.errors import RecordError, printable
    from perfline.report import exports

    if len(found) != 1:
        there = ", ".join(export.case.case for export in found)
        raise RecordError(f"an Otava CSV holds one case: name one of {there} with --case")
    new = exports.otava_row(found[0], metrics, branch)
    rows = exports.append_otava(path, new)
    print(printable(f"written: {path} ({rows} {'row' if rows == 1 else 'rows'})"))
    if rows == 1:
        print(f"Otava reads it with this otava.yaml:\n\n{exports.otava_config(path, new)}", end="")
    return 0


def _lm_eval(directory: Path, found: Sequence[Export], case_dirs: Sequence[Path]) -> int:
    from perfline.cases.case import load_cases
    from perfline.errors import printable
    from perfline.report import export_lm_eval

    cases = {case.id: case for case in load_cases(None, case_dirs)}
    for path in export_lm_eval.write(directory, found, cases):
        print(printable(f"written: {path}"))
    return 0
