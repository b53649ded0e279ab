"""Which options do several commands of ``perfline`` share? Each says the same thing everywhere."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from pathlib import Path

MAX_PAIRS = 90  # the last of compare.sequential.LOOKS, which takes numpy: not for --help
Run = Callable[[argparse.Namespace], int]


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Run,
    purpose: str,
    epilog: str,
    more: str = "",
) -> argparse.ArgumentParser:
    """Add a command; its help begins with the purpose and what ``more`` says of it."""
    description = f"{purpose[0].upper()}{purpose[1:]}. {more}"
    parser = commands.add_parser(
        name,
        help=purpose,
        description=textwrap.fill(description, 80),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run_command=run)
    return parser


def add_data_dir(
    parser: argparse.ArgumentParser, holds: str = "holds the cases' weights and questions"
) -> None:
    """Add ``--data-dir``; ``data.directory`` says what stands in for it."""
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        type=Path,
        help=f"{holds} (default: $PERFLINE_DATA_DIR)",
    )


def add_case_dir(parser: argparse.ArgumentParser, only: str = "") -> None:
    """Add ``--case-dir``, which may be given again; ``only`` says for what it is heeded."""
    parser.add_argument(
        "--case-dir",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help=f"{only}holds YAML files of more cases; may be given again (default: cases, where it "
        "holds any)",
    )


def add_baselines(parser: argparse.ArgumentParser) -> None:
    """Add ``--baselines``."""
    parser.add_argument(
        "--baselines",
        metavar="DIR",
        type=Path,
        default=Path("baselines"),
        help="where baselines are kept (default: baselines)",
    )


def names(text: str | None) -> list[str]:
    """Return the names in ``A,B``; none for an option that is not given."""
    return [name.strip() for name in text.split(",") if name.strip()] if text else []
