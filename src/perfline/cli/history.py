"""What does ``perfline history`` do? It shows what past sessions measured, and when it changed.

It reads records only, and imports no torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from perfline.cli.options import add_command, names


def add_history(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the ``perfline`` command line."""
    parser = add_command(
        commands,
        "history",
        _run,
        "show what past sessions measured, from a folder of their records",
        "example:\n  perfline history results --case tiny --metric p_infer_core",
    )
    parser.add_argument(
        "directory",
        metavar="DIR",
        type=Path,
        nargs="?",
        default=Path("results"),
        help="records, in sub-directories too (default: results)",
    )
    parser.add_argument("--case", metavar="A,B", help="only these cases (default: all)")
    parser.add_argument(
        "--metric",
        metavar="A,B",
        help="these metrics (default: p_infer_core,acc_infer,mem; --trend and --json: more)",
    )
    parser.add_argument(
        "--trend",
        action="store_true",
        help="say what changed when, by Apache Otava's change points (extra: trend)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _run(args: argparse.Namespace) -> int:
    from perfline.report import history

    metrics = names(args.metric)
    found = history.only(history.scan(args.directory), names(args.case))
    history.check_metrics(found, metrics)
    changes = history.trend(found, metrics) if args.trend else None
    if args.json:
        data = history.as_json(found, metrics)
        if changes is not None:
            data["trend"] = history.trend_json(changes)
        print(history.dump(data))
        return 0
    print(history.text(found, metrics or history.KEY_METRICS))
    if changes is not None:
        print(f"\n{history.trend_text(changes)}")
    return 0
