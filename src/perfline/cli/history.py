"""What does ``perfline history`` do? It shows what past sessions measured, and when it changed.

It reads records only, and imports no torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_history(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the ``perfline`` command line."""
    purpose = "show what past sessions measured, from a folder of their records"
    parser = commands.add_parser(
        "history",
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog="example:\n  perfline history results --case tiny --metric p_infer_core",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    parser.set_defaults(run_command=_run)


def _run(args: argparse.Namespace) -> int:
    from perfline.report import history

    metrics = _names(args.metric)
    found = history.only(history.scan(args.directory), _names(args.case))
    history.check_metrics(found, metrics)
    if args.json:
        data = history.as_json(found, metrics)
        if args.trend:
            from perfline.report import trend

            data["trend"] = trend.as_json(trend.trend(found, metrics))
        print(history.dump(data))
        return 0
    shown = history.text(found, metrics or history.KEY_METRICS)
    if args.trend:
        from perfline.report import trend

        shown += f"\n\n{trend.text(trend.trend(found, metrics))}"
    print(shown)
    return 0


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()] if text else []
